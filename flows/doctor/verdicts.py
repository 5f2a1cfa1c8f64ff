"""Judge the facts about a machine and its services: what is fine, what is not, and what to do about it. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from flows.doctor.addresses import Answer
from flows.doctor.machine import Disk, Gpus, Machine, Torch
from flows.services.local_stack import ServiceStatus
from flows.services.settings import AMAZON, CREDENTIALS, VARIABLES
from flows.terminal.tables import size_text

State = Literal["ok", "warning", "fails"]

_GIB = 2**30
_PLATFORMS = {("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64")}
_PYTHONS = ((3, 11), (3, 14))  # oldest and newest for which every package has wheels
_CORES = 2
_DEMO_MEMORY = 4 * _GIB  # measured peak of all processes of `igpt demo`
_COMFORTABLE_MEMORY = 8 * _GIB
_LOW_DISK, _NO_DISK = 5 * _GIB, _GIB // 2
_FULL = 0.95  # Ray writes no objects to a disk that is fuller
_OBJECT_STORE = 10**9  # bytes of /dev/shm for Ray's head under `igpt up`, or a quarter of the memory if that is less
_OPEN_FILES, _PROCESSES = 4096, 4096
_SKEW, _REFUSED_SKEW = 60.0, 900.0  # seconds; S3 refuses requests whose time is off by fifteen minutes


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of one check."""

    check: str
    state: State
    detail: str
    """The facts, in one line."""
    advice: str = ""
    """What to do about it; empty if it is ok."""


def judge(machine: Machine, stack: Sequence[ServiceStatus], answers: Sequence[Answer]) -> list[Verdict]:
    """The verdicts on all facts, in the order in which they are printed."""
    return [
        _platform(machine),
        _python(machine),
        _cores(machine),
        _memory(machine),
        *(_disk(disk) for disk in machine.disks),
        *_shared_memory(machine),
        _loopback(machine),
        _limit("open files", machine.open_files, _OPEN_FILES, "-n"),
        _limit("processes", machine.processes, _PROCESSES, "-u"),
        _torch(machine.torch, machine.gpus),
        *_compiling(machine.torch),
        _gpus(machine.gpus, machine.torch),
        *_stack(stack),
        *(_answer(answer, machine) for answer in answers),
        *(verdict for answer in answers for verdict in (*_keys(answer), *_signatures(answer))),
        *(verdict for answer in answers for verdict in _clock(answer)),
    ]


def _platform(machine: Machine) -> Verdict:
    name = {"Darwin": "macOS"}.get(machine.system, machine.system)
    detail = f"{name} on {machine.architecture}, {machine.system_version}"
    if (machine.system, machine.architecture) in _PLATFORMS:
        return Verdict(check="platform", state="ok", detail=detail)
    advice = "use Linux on x86-64 or arm64, or macOS on Apple silicon: some packages have no wheels for other platforms"
    return Verdict(check="platform", state="warning", detail=detail, advice=advice)


def _python(machine: Machine) -> Verdict:
    detail = ".".join(map(str, machine.python))
    oldest, newest = _PYTHONS
    if machine.python[:2] < oldest:
        advice = "install Python 3.11 or newer and run make PYTHON=/path/to/python3.11"
        return Verdict(check="Python", state="fails", detail=detail, advice=advice)
    if machine.python[:2] > newest:
        advice = "use Python 3.11 to 3.14: some packages have no wheels for a newer one"
        return Verdict(check="Python", state="warning", detail=detail, advice=advice)
    return Verdict(check="Python", state="ok", detail=detail)


def _cores(machine: Machine) -> Verdict:
    detail = f"{machine.cores:g}"
    if machine.cores >= _CORES:
        return Verdict(check="cores", state="ok", detail=detail)
    advice = f"give this process {_CORES} cores; with fewer, everything works but training takes several times as long"
    return Verdict(check="cores", state="warning", detail=detail, advice=advice)


def _memory(machine: Machine) -> Verdict:
    limited = ", the limit of its control group" if machine.memory_is_limited else ""
    detail = f"{size_text(machine.memory)}{limited}; {size_text(machine.memory_available)} available"
    where = "raise the container's limit" if machine.memory_is_limited else "use a larger machine"
    if machine.memory < _DEMO_MEMORY:
        advice = f"{where}: the services and a small training take {size_text(_DEMO_MEMORY)}"
        return Verdict(check="memory", state="fails", detail=detail, advice=advice)
    if machine.memory < _COMFORTABLE_MEMORY or machine.memory_available < _DEMO_MEMORY:
        advice = f"{where} or end other programs: {size_text(_DEMO_MEMORY)} must be free for `igpt demo`"
        return Verdict(check="memory", state="warning", detail=detail, advice=advice)
    return Verdict(check="memory", state="ok", detail=detail)


def _disk(disk: Disk) -> Verdict:
    check, detail = f"disk of {disk.folder}", f"{size_text(disk.free)} of {size_text(disk.total)} free"
    if not disk.writable:
        advice = "make it writable, or choose other folders: IGPT_HOME for the services, TMPDIR for temporary files"
        return Verdict(check=check, state="fails", detail="no file can be written there", advice=advice)
    advice = "free some space, or choose other folders: IGPT_HOME for the services, TMPDIR for temporary files"
    if disk.free < _NO_DISK:
        return Verdict(check=check, state="fails", detail=detail, advice=advice)
    if disk.free < _LOW_DISK or disk.free < (1 - _FULL) * disk.total:
        return Verdict(check=check, state="warning", detail=detail, advice=f"{advice}; Ray keeps 5% of a disk free")
    return Verdict(check=check, state="ok", detail=detail)


def _shared_memory(machine: Machine) -> Iterator[Verdict]:
    if machine.shared_memory is None:  # on macOS, where Ray keeps its objects in files
        return
    needed = min(_OBJECT_STORE, machine.memory // 4)
    detail = f"{size_text(machine.shared_memory.free)} free"
    if machine.shared_memory.writable and machine.shared_memory.free >= needed:
        yield Verdict(check="/dev/shm", state="ok", detail=detail)
        return
    advice = f"give it {size_text(needed)} (docker run --shm-size=2g): otherwise Ray keeps its objects in slow files"
    yield Verdict(check="/dev/shm", state="warning", detail=detail, advice=advice)


def _loopback(machine: Machine) -> Verdict:
    if not machine.loopback_problem:
        return Verdict(check="loopback", state="ok", detail="a server can listen on 127.0.0.1")
    advice = "bring the interface up (ip link set lo up) or allow programs to listen on 127.0.0.1"
    return Verdict(check="loopback", state="fails", detail=machine.loopback_problem, advice=advice)


def _limit(check: str, limit: int | None, needed: int, option: str) -> Verdict:
    detail = "no limit" if limit is None else f"up to {limit:,}"
    if limit is None or limit >= needed:
        return Verdict(check=check, state="ok", detail=detail)
    advice = f"raise it to {needed} (ulimit {option} {needed}, or its hard limit): Ray and large datasets need more"
    return Verdict(check=check, state="warning", detail=detail, advice=advice)


def _torch(torch: Torch, gpus: Gpus) -> Verdict:
    if torch.version is None:
        advice = "install the project again with its locked dependencies"
        return Verdict(check="PyTorch", state="fails", detail=torch.problem, advice=advice)
    detail = f"{torch.version}, for {'CPUs' if torch.cuda is None else f'CUDA {torch.cuda}'}"
    if gpus.names and torch.cuda is None:
        advice = "install the CUDA build of the same version (docs/install.md), so that the GPU is used"
        return Verdict(check="PyTorch", state="warning", detail=detail, advice=advice)
    return Verdict(check="PyTorch", state="ok", detail=detail)


def _compiling(torch: Torch) -> Iterator[Verdict]:
    if torch.version is None:
        return
    if not torch.compile_problem:
        yield Verdict(check="compiler", state="ok", detail="compile=true works")
        return
    problem, _, remedy = torch.compile_problem.rpartition(": ")
    advice = f"only for training with compile=true or use_gpu=true: {remedy}"
    yield Verdict(check="compiler", state="warning", detail=problem, advice=advice)


def _gpus(gpus: Gpus, torch: Torch) -> Verdict:
    if gpus.problem:
        advice = "install or restart NVIDIA's driver, or start the container with --gpus all"
        return Verdict(check="GPU", state="warning", detail=f"nvidia-smi: {gpus.problem}", advice=advice)
    if not gpus.names:
        return Verdict(check="GPU", state="ok", detail="none; training runs on the CPU")
    detail = f"{'; '.join(gpus.names)}, driver {gpus.driver}"
    if torch.cuda is not None and not torch.usable_gpus:
        advice = (
            f"update NVIDIA's driver to one that supports CUDA {torch.cuda} ({torch.problem or 'PyTorch sees no GPU'})"
        )
        return Verdict(check="GPU", state="fails", detail=detail, advice=advice)
    return Verdict(check="GPU", state="ok", detail=detail)


def _stack(stack: Sequence[ServiceStatus]) -> Iterator[Verdict]:
    if not stack:
        yield Verdict(check="local services", state="ok", detail="none were started here; `igpt up` starts them")
    for service in stack:
        check = f"local {service.name}"
        if service.answers:
            yield Verdict(check=check, state="ok", detail=f"answers at {service.url}")
        else:
            state: State = "warning" if service.pid is None else "fails"
            yield Verdict(
                check=check, state=state, detail=service.detail, advice="run `igpt up`, which starts it again"
            )


def _answer(answer: Answer, machine: Machine) -> Verdict:
    service, variable = answer.service, VARIABLES[answer.service]
    if not answer.address and not answer.problem:
        detail = f"not configured ({variable} is not set)"
        advice = f"start the services with `igpt up`, or set {variable}"
        return Verdict(check=service, state="warning", detail=detail, advice=advice)
    if not answer.address:
        advice = f"leave it out of {variable} and set {CREDENTIALS[service]}"
        return Verdict(check=service, state="fails", detail=answer.problem, advice=advice)
    if answer.problem:
        advice = f"start it (`igpt up` on this machine), or check {variable} and {CREDENTIALS[service]}"
        if answer.address == AMAZON:
            advice = f"check {CREDENTIALS[service]}, or set {variable}"
        return Verdict(check=service, state="fails", detail=f"{answer.address}: {answer.problem}", advice=advice)
    version = f"{'answers as ' if service == 'S3' else ''}{answer.version or 'of unknown version'}"
    detail = f"{answer.address}, {version}"
    if not _fits(answer):
        detail += f", and the client here is {answer.client}"
        advice = f"install {service} {answer.client} there, or the server's version here"
        # Ray refuses any other version; the other services still work where nothing changed between the two.
        return Verdict(check=service, state="fails" if service == "Ray" else "warning", detail=detail, advice=advice)
    here = ".".join(map(str, machine.python))
    if answer.python not in (None, here):
        detail += f", with Python {answer.python} there and {here} here"
        return Verdict(check=service, state="fails", detail=detail, advice="use the same Python on all nodes and here")
    return Verdict(check=service, state="ok", detail=detail)


def _fits(answer: Answer) -> bool:
    if answer.client is None or answer.version is None:
        return True
    parts = None if answer.service == "Ray" else 2
    return answer.client.split(".")[:parts] == answer.version.split(".")[:parts]


def _keys(answer: Answer) -> Iterator[Verdict]:
    if answer.service == "S3" and answer.address and not answer.problem and not answer.keys_by_step:
        detail = "one key of S3 serves every step: what decodes images or trains can write models, too"
        advice = "give each step a key of its own (infra/SECURITY.md), or leave it so where nobody else adds images"
        yield Verdict(check="keys", state="warning", detail=detail, advice=advice)


def _signatures(answer: Answer) -> Iterator[Verdict]:
    if answer.service == "MLflow" and answer.address and not answer.problem and not answer.signs_models:
        detail = "models are registered without a signature here, or opened without verifying it"
        advice = "set IGPT_TRUSTED_KEYS, and IGPT_SIGNING_KEY where models are registered (infra/SECURITY.md)"
        yield Verdict(check="signatures", state="warning", detail=detail, advice=advice)


def _clock(answer: Answer) -> Iterator[Verdict]:
    ahead = answer.clock_ahead
    if ahead is not None and abs(ahead) > _SKEW:
        detail = f"{answer.service} is {abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine"
        fails = answer.service == "S3" and abs(ahead) > _REFUSED_SKEW
        advice = "set both clocks by NTP: leases and S3's signatures depend on the time"
        yield Verdict(check="clock", state="fails" if fails else "warning", detail=detail, advice=advice)
