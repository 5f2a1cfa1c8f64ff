"""Collect facts about this machine: system, cores, memory, disks, limits, PyTorch, GPUs. verdicts.py judges them."""

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

_SECONDS = 60  # for the slowest: importing torch from a cold network disk
_CGROUP = Path("/sys/fs/cgroup")
# Run in its own process: this one shall not import torch.
_QUERY_TORCH = """
import json, warnings
with warnings.catch_warnings(record=True) as raised:
    warnings.simplefilter("always")
    import torch
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    problem = str(raised[-1].message) if raised and torch.version.cuda and not usable else ""
from igpt_model.training import compiler
facts = {
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "usable_gpus": usable,
    "problem": problem,
    "compile_problem": compiler.why_not(torch.device("cuda" if usable else "cpu")) or "",
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
    """The CUDA version it was built for; None for the CPU build."""
    usable_gpus: int
    problem: str
    """Why it cannot be imported, or why a CUDA build cannot use a GPU; else empty."""
    compile_problem: str
    """Why compile=true would not work, and what to install; empty if it works."""


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """The GPUs that NVIDIA's driver lists."""

    names: tuple[str, ...]
    driver: str
    problem: str
    """Why nvidia-smi lists none although it is installed; else empty."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The resources that this process may use; sizes in bytes."""

    system: str
    """As platform.system() names it: Linux or Darwin."""
    architecture: str
    """As platform.machine() names it."""
    system_version: str
    """The version of the C library on Linux, of the system elsewhere."""
    python: tuple[int, int, int]
    cores: float
    """The cores this process may run on, at most the limit of its control group."""
    memory: int
    """Total memory, at most the limit of the control group."""
    memory_is_limited: bool
    """Whether the control group's limit is below the machine's memory."""
    memory_available: int
    disks: tuple[Disk, ...]
    """Those of the services' folder and of temporary files."""
    shared_memory: Disk | None
    """/dev/shm, if the system has it."""
    loopback_problem: str
    """Why no server can listen on loopback; empty if one can."""
    open_files: int | None
    """Limit of open files per process; None without a limit."""
    processes: int | None
    """Limit of processes and threads per user; None without a limit."""
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
        loopback_problem=_loopback_problem(),
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
        except (OSError, ValueError):  # no such file, or the word max
            continue
    return None


def _group_cores(folder: Path = _CGROUP) -> float | None:
    """The CPU limit of this process's control group, in cores; None without a limit."""
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
    usable = len(process.cpu_affinity() or []) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1
    limit = _group_cores()
    return float(usable) if limit is None else min(float(usable), limit)


def _disk(folder: Path) -> Disk:
    existing = folder
    while not existing.exists():
        existing = existing.parent
    usage = shutil.disk_usage(existing)
    try:
        with tempfile.TemporaryFile(dir=existing):
            writable = True
    except OSError:
        writable = False
    return Disk(folder=str(folder), free=usage.free, total=usage.total, writable=writable)


def _loopback_problem() -> str:
    try:
        with socket.create_server((HOST, 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _soft_limit(kind: int) -> int | None:
    soft, _ = resource.getrlimit(kind)
    return None if soft == resource.RLIM_INFINITY else soft


def _torch() -> Torch:
    result = _run([sys.executable, "-c", _QUERY_TORCH])
    if not result.succeeded:
        return Torch(version=None, cuda=None, usable_gpus=0, problem=result.last_error, compile_problem="")
    facts = json.loads(result.output.splitlines()[-1])
    return Torch(**{**facts, "problem": shortened(facts["problem"])})


def _gpus() -> Gpus:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Gpus(names=(), driver="", problem="")
    result = _run([program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    if not result.succeeded:
        return Gpus(names=(), driver="", problem=shortened(result.output) or result.last_error)
    rows = [[cell.strip() for cell in line.split(",")] for line in result.output.splitlines() if line.count(",") == 2]
    return Gpus(
        names=tuple(f"{name}, {memory}" for name, memory, _ in rows),
        driver=rows[0][2] if rows else "",
        problem="" if rows else "it lists none",
    )


@dataclass(frozen=True, kw_only=True)
class _Result:
    succeeded: bool
    output: str
    errors: str

    @property
    def last_error(self) -> str:
        return shortened((self.errors.strip().splitlines() or ["no reason given"])[-1])


def _run(command: Sequence[str]) -> _Result:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return _Result(succeeded=False, output="", errors=str(error))
    return _Result(succeeded=ended.returncode == 0, output=ended.stdout, errors=ended.stderr)
