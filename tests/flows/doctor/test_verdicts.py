"""A table of situations: each changes one fact about a good machine, and gives one verdict that is not ok."""

from dataclasses import replace
from typing import Any

import pytest

from flows.doctor.addresses import Answer
from flows.doctor.machine import Disk, Gpus, Machine, Torch
from flows.doctor.verdicts import Verdict, judge
from flows.services.local_stack import ServiceStatus
from flows.services.settings import AMAZON

GIB = 2**30
CPU_TORCH = Torch(version="2.13.0+cpu", cuda=None, usable_gpus=0, problem="", compile_problem="")
CUDA_TORCH = Torch(version="2.13.0", cuda="13.0", usable_gpus=1, problem="", compile_problem="")
ONE_GPU = Gpus(names=("NVIDIA H100, 80 GiB",), driver="580.1", problem="")
MACHINE = Machine(
    system="Linux",
    architecture="x86_64",
    system_version="glibc 2.36",
    python=(3, 11, 7),
    cores=8.0,
    memory=16 * GIB,
    memory_is_limited=False,
    memory_available=12 * GIB,
    disks=(
        Disk(folder="/home/a/.igpt", free=90 * GIB, total=100 * GIB, writable=True),
        Disk(folder="/tmp", free=90 * GIB, total=100 * GIB, writable=True),
    ),
    shared_memory=Disk(folder="/dev/shm", free=8 * GIB, total=8 * GIB, writable=True),
    loopback_problem="",
    open_files=10_240,
    processes=None,
    torch=CPU_TORCH,
    gpus=Gpus(names=(), driver="", problem=""),
)
STACK = [
    ServiceStatus(name=name, url=f"http://127.0.0.1:2{number}", pid=number, answers=True, detail="")
    for number, name in enumerate(("s3", "prefect", "mlflow", "ray"), 2000)
]
ANSWERS = {
    "S3": Answer(service="S3", address="http://s3:1", version="rclone/v1.74.0", clock_ahead=0.7),
    "Prefect": Answer(service="Prefect", address="http://p:1/api", version="3.8.8", client="3.8.8", clock_ahead=-1.0),
    "MLflow": Answer(service="MLflow", address="http://m:1", version="3.17.2", client="3.17.2"),
    "Ray": Answer(service="Ray", address="r:1", version="2.60.0", client="2.60.0", python="3.11.7"),
}


def disks(**fields: Any) -> dict[str, Any]:
    return {"disks": (MACHINE.disks[0], replace(MACHINE.disks[1], **fields))}


def not_ok(machine: Machine = MACHINE, stack: list[ServiceStatus] = STACK, **answers: Answer) -> list[Verdict]:
    ray = replace(ANSWERS["Ray"], python=".".join(map(str, machine.python)))
    verdicts = judge(machine, stack, list({**ANSWERS, "Ray": ray, **answers}.values()))
    assert all(verdict.advice for verdict in verdicts if verdict.state != "ok")
    return [verdict for verdict in verdicts if verdict.state != "ok"]


def test_a_good_machine_is_ok_in_every_check() -> None:
    verdicts = judge(MACHINE, STACK, list(ANSWERS.values()))
    assert {verdict.state for verdict in verdicts} == {"ok"}
    assert [verdict.advice for verdict in verdicts] == [""] * len(verdicts)
    assert len({verdict.check for verdict in verdicts}) == len(verdicts) >= 20


MACHINES = {
    "Apple silicon": ({"system": "Darwin", "architecture": "arm64", "shared_memory": None}, None),
    "arm64": ({"architecture": "aarch64"}, None),
    "an Intel Mac": ({"system": "Darwin"}, ("platform", "warning", "Apple silicon")),
    "an old Python": ({"python": (3, 10, 4)}, ("Python", "fails", "make PYTHON=")),
    "the newest Python": ({"python": (3, 14, 1)}, None),
    "a Python too new": ({"python": (3, 15, 0)}, ("Python", "warning", "3.11 to 3.14")),
    "one core": ({"cores": 1.5}, ("cores", "warning", "2 cores")),
    "two cores": ({"cores": 2.0}, None),
    "a machine too small": ({"memory": 4 * GIB - 1}, ("memory", "fails", "a larger machine")),
    "a container too small": (
        {"memory": 2 * GIB, "memory_is_limited": True},
        ("memory", "fails", "raise the container's limit"),
    ),
    "a small machine": (
        {"memory": 6 * GIB, "memory_available": 5 * GIB},
        ("memory", "warning", "4.0 GiB must be free"),
    ),
    "a machine in use": ({"memory_available": 3 * GIB}, ("memory", "warning", "end other programs")),
    "a full disk": (disks(free=GIB // 4), ("disk of /tmp", "fails", "TMPDIR")),
    "little disk": (disks(free=2 * GIB), ("disk of /tmp", "warning", "free some space")),
    "a large disk that is nearly full": (
        disks(free=40 * GIB, total=1000 * GIB),
        ("disk of /tmp", "warning", "Ray keeps 5% of a disk free"),
    ),
    "a folder of another user": (disks(writable=False), ("disk of /tmp", "fails", "make it writable")),
    "Docker's shared memory": (
        {"shared_memory": Disk(folder="/dev/shm", free=64 << 20, total=64 << 20, writable=True)},
        ("/dev/shm", "warning", "--shm-size"),
    ),
    "no loopback": ({"loopback_problem": "Network is unreachable"}, ("loopback", "fails", "lo up")),
    "few open files": ({"open_files": 256}, ("open files", "warning", "ulimit -n 4096")),
    "few processes": ({"processes": 512}, ("processes", "warning", "ulimit -u 4096")),
    "no compiler": (
        {
            "torch": replace(
                CPU_TORCH, compile_problem="torch.compile needs a compiler, and: there is none: install g++"
            )
        },
        ("compiler", "warning", "only for training with compile=true or use_gpu=true: install g++"),
    ),
    "no PyTorch": (
        {"torch": Torch(version=None, cuda=None, usable_gpus=0, problem="no module named torch", compile_problem="")},
        ("PyTorch", "fails", "install the project again"),
    ),
    "a GPU that is used": ({"gpus": ONE_GPU, "torch": CUDA_TORCH}, None),
    "a GPU and the CPU build": ({"gpus": ONE_GPU}, ("PyTorch", "warning", "docs/install.md")),
    "a driver too old": (
        {"gpus": ONE_GPU, "torch": replace(CUDA_TORCH, usable_gpus=0, problem="The NVIDIA driver is too old")},
        ("GPU", "fails", "driver is too old"),
    ),
    "a driver that does not run": (
        {"gpus": Gpus(names=(), driver="", problem="couldn't communicate with the NVIDIA driver")},
        ("GPU", "warning", "--gpus all"),
    ),
    "the CUDA build and no GPU": ({"torch": replace(CUDA_TORCH, usable_gpus=0)}, None),
}


@pytest.mark.parametrize("situation", MACHINES)
def test_verdicts_on_a_machine(situation: str) -> None:
    fields, expected = MACHINES[situation]
    verdicts = not_ok(replace(MACHINE, **fields))
    if expected is None:
        assert verdicts == []
    else:
        check, state, words = expected
        assert [(verdict.check, verdict.state) for verdict in verdicts] == [(check, state)]
        assert words in verdicts[0].advice


SERVICES = {
    "nothing is configured": ("S3", {"address": "", "version": None}, "S3", "warning", "igpt up"),
    "a password in an address": (
        "Prefect",
        {"address": "", "problem": "its address carries a password"},
        "Prefect",
        "fails",
        "leave it out of PREFECT_API_URL and set PREFECT_API_AUTH_STRING",
    ),
    "no answer": ("MLflow", {"problem": "it does not answer"}, "MLflow", "fails", "check MLFLOW_TRACKING_URI"),
    "keys of Amazon": (
        "S3",
        {"address": AMAZON, "problem": "InvalidAccessKeyId"},
        "S3",
        "fails",
        "AWS_ACCESS_KEY_ID",
    ),
    "another minor version": ("MLflow", {"version": "3.16.0"}, "MLflow", "warning", "install MLflow 3.17.2 there"),
    "another Ray": ("Ray", {"version": "2.60.1"}, "Ray", "fails", "install Ray 2.60.0 there"),
    "another Python": ("Ray", {"python": "3.11.9"}, "Ray", "fails", "same Python"),
    "a clock that is ahead": ("Prefect", {"clock_ahead": 90.0}, "clock", "warning", "NTP"),
    "one key for every step": ("S3", {"keys_by_step": False}, "keys", "warning", "a key of its own"),
    "no key that signs models": ("MLflow", {"signs_models": False}, "signatures", "warning", "IGPT_TRUSTED_KEYS"),
    "a clock that S3 refuses": ("S3", {"clock_ahead": -1000.0}, "clock", "fails", "signatures"),
}


@pytest.mark.parametrize("situation", SERVICES)
def test_verdicts_on_a_service(situation: str) -> None:
    service, fields, check, state, words = SERVICES[situation]
    (verdict,) = not_ok(**{service: replace(ANSWERS[service], **fields)})
    assert (verdict.check, verdict.state) == (check, state)
    assert words in verdict.advice


def test_another_patch_version_of_a_server_is_ok() -> None:
    assert not_ok(Prefect=replace(ANSWERS["Prefect"], version="3.8.1")) == []


def test_local_services_that_were_ended_and_one_that_hangs() -> None:
    ended = replace(STACK[0], pid=None, answers=False, detail="it is not started")
    hangs = replace(STACK[3], answers=False, detail="it does not answer")
    verdicts = not_ok(stack=[ended, *STACK[1:3], hangs])
    states = [(verdict.check, verdict.state) for verdict in verdicts]
    assert states == [("local s3", "warning"), ("local ray", "fails")]
    assert not_ok(stack=[]) == []
