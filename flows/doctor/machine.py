"""What this machine is and has, as facts: nothing is judged here. Slow parts run in processes of their own."""

import json
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.services.ports import HOST
from flows.services.process import shortened

_SECONDS = 60  # torch's import from a cold network disk is the slowest
_CGROUP = Path("/sys/fs/cgroup")
_ASK_TORCH = """
import json, warnings
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    import torch
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    complaint = str(told[-1].message) if told and torch.version.cuda and not usable else ""
from igpt_model.training import compiler
facts = {
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "usable_gpus": usable,
    "complaint": complaint,
    "compiling": compiler.why_not(torch.device("cuda" if usable else "cpu")) or "",
}
print(json.dumps(facts))
"""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The file system of a folder; sizes in bytes."""

    folder: str
    free: int
    total: int
    writable: bool


@dataclass(frozen=True, kw_only=True)
class Torch:
    """The installed PyTorch."""

    version: str | None
    cuda: str | None
    """The version of CUDA that it was built for; None for a build for CPUs."""
    usable_gpus: int
    complaint: str
    """Why it cannot be imported, or cannot use a GPU that its build is for."""
    compiling: str
    """Why compile=true would not work, with what to install; empty when it would."""


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """The GPUs as NVIDIA's driver lists them."""

    names: tuple[str, ...]
    driver: str
    complaint: str
    """Why nvidia-smi, which is there, lists none."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this process may use of this machine; sizes in bytes."""

    system: str
    """As platform.system() names it: Linux or Darwin."""
    architecture: str
    """As platform.machine() names it."""
    system_version: str
    """The C library's version on Linux, that of the system elsewhere."""
    python: tuple[int, int, int]
    cores: float
    """Those this process may run on, and no more than its control group grants."""
    memory: int
    """In all; the limit of the control group where that is smaller."""
    memory_is_limited: bool
    """Whether a control group grants less memory than the machine has."""
    memory_available: int
    disks: tuple[Disk, ...]
    """Of the services' folder and of temporary files."""
    shared_memory: Disk | None
    """/dev/shm, where the system has one."""
    loopback: str
    """Why no server can listen on loopback; empty when one can."""
    open_files: int | None
    """How many files a process may have open; None without a limit."""
    processes: int | None
    """How many processes and threads the user may have; None without a limit."""
    torch: Torch
    gpus: Gpus


def examine(home: Path) -> Machine:
    """The facts of this machine; `home` is the folder of the services. Takes some seconds."""
    group_memory = _group_memory()
    memory = psutil.virtual_memory()
    limit = memory.total if group_memory is None else min(memory.total, group_memory.limit)
    used = None if group_memory is None else group_memory.used
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        system_version=" ".join(platform.libc_ver()).strip() or platform.mac_ver()[0],
        python=sys.version_info[:3],
        cores=_cores(),
        memory=limit,
        memory_is_limited=limit < memory.total,
        memory_available=memory.available if used is None else min(memory.available, max(0, limit - used)),
        disks=(_disk(home), _disk(Path(tempfile.gettempdir()))),
        shared_memory=_disk(Path("/dev/shm")) if Path("/dev/shm").is_dir() else None,
        loopback=_loopback(),
        open_files=_soft_limit(resource.RLIMIT_NOFILE),
        processes=_soft_limit(resource.RLIMIT_NPROC),
        torch=_torch(),
        gpus=_gpus(),
    )


@dataclass(frozen=True, kw_only=True)
class _GroupMemory:
    limit: int
    used: int


def _group_memory(folder: Path = _CGROUP) -> _GroupMemory | None:
    """The memory of this process's control group, version 2 or 1; None without a limit."""
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return _GroupMemory(limit=int((folder / limit).read_text()), used=int((folder / usage).read_text()))
        except (OSError, ValueError):  # not there, or the word max
            continue
    return None


def _group_cores(folder: Path = _CGROUP) -> float | None:
    """The processor time of this process's control group, in cores; None without a limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if int(quota) > 0:
                return int(quota) / int(period)
        except (OSError, ValueError):
            continue
    return None


def _cores() -> float:
    process = psutil.Process()
    mine = len(process.cpu_affinity() or []) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1
    granted = _group_cores()
    return float(mine) if granted is None else min(float(mine), granted)


def _disk(folder: Path) -> Disk:
    there = folder
    while not there.exists():
        there = there.parent
    usage = shutil.disk_usage(there)
    try:
        with tempfile.TemporaryFile(dir=there):
            writable = True
    except OSError:
        writable = False
    return Disk(folder=str(folder), free=usage.free, total=usage.total, writable=writable)


def _loopback() -> str:
    try:
        with socket.create_server((HOST, 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _soft_limit(kind: int) -> int | None:
    soft, _ = resource.getrlimit(kind)
    return None if soft == resource.RLIM_INFINITY else soft


def _torch() -> Torch:
    asked = _run([sys.executable, "-c", _ASK_TORCH])
    if not asked.succeeded:
        return Torch(version=None, cuda=None, usable_gpus=0, complaint=asked.last_error, compiling="")
    told = json.loads(asked.output.splitlines()[-1])
    return Torch(**{**told, "complaint": shortened(told["complaint"])})


def _gpus() -> Gpus:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Gpus(names=(), driver="", complaint="")
    asked = _run([program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    if not asked.succeeded:
        return Gpus(names=(), driver="", complaint=shortened(asked.output) or asked.last_error)
    rows = [[cell.strip() for cell in line.split(",")] for line in asked.output.splitlines() if line.count(",") == 2]
    return Gpus(
        names=tuple(f"{name}, {memory}" for name, memory, _ in rows),
        driver=rows[0][2] if rows else "",
        complaint="" if rows else "it lists none",
    )


@dataclass(frozen=True, kw_only=True)
class _Ended:
    succeeded: bool
    output: str
    errors: str

    @property
    def last_error(self) -> str:
        return shortened((self.errors.strip().splitlines() or ["it says nothing"])[-1])


def _run(command: Sequence[str]) -> _Ended:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return _Ended(succeeded=False, output="", errors=str(error))
    return _Ended(succeeded=done.returncode == 0, output=done.stdout, errors=done.stderr)
