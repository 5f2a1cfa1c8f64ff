"""The facts about this machine, and about simulated control groups, compilers and drivers."""

import os
import sys
from pathlib import Path

import psutil
import pytest

from flows.doctor import machine


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the whole PATH, for a test's own programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def put(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_this_machine(tmp_path: Path) -> None:
    facts = machine.examine(tmp_path / "not" / "yet")
    assert facts.python == sys.version_info[:3]
    assert 0 < facts.cores <= (os.cpu_count() or 1)
    assert 0 < facts.memory_available <= facts.memory <= psutil.virtual_memory().total
    assert facts.disks[0].folder == str(tmp_path / "not" / "yet")
    assert all(disk.writable and 0 < disk.free <= disk.total for disk in facts.disks)
    assert not (tmp_path / "not").exists()
    assert facts.loopback_problem == ""
    assert facts.torch.version is not None and facts.torch.version.startswith("2.")


def test_a_control_group_limits_memory_and_cores(tmp_path: Path) -> None:
    assert (machine._group_memory(tmp_path), machine._group_cores(tmp_path)) == (None, None)
    (tmp_path / "memory.max").write_text("1073741824\n")
    (tmp_path / "memory.current").write_text("73741824\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    memory = machine._group_memory(tmp_path)
    assert memory is not None
    assert (memory.limit, memory.used, machine._group_cores(tmp_path)) == (1073741824, 73741824, 1.5)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert (machine._group_memory(tmp_path), machine._group_cores(tmp_path)) == (None, None)


def test_a_control_group_of_version_1_does_too(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("500\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("100\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    memory = machine._group_memory(tmp_path)
    assert memory is not None
    assert (memory.limit, memory.used, machine._group_cores(tmp_path)) == (500, 100, None)
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    assert machine._group_cores(tmp_path) == 0.5


def test_without_a_compiler_the_reason_and_the_packages_are_given(programs: Path) -> None:
    torch = machine._torch()
    assert torch.version is not None
    assert "there is none" in torch.compile_problem and "g++ libc6-dev python3-dev" in torch.compile_problem


def test_gpus_are_those_the_driver_lists(programs: Path) -> None:
    assert machine._gpus() == machine.Gpus(names=(), driver="", problem="")
    put(programs, "nvidia-smi", 'echo "NVIDIA H100 80GB HBM3, 81559 MiB, 580.95.05"')
    gpus = machine._gpus()
    assert (gpus.names, gpus.driver) == (("NVIDIA H100 80GB HBM3, 81559 MiB",), "580.95.05")
    put(programs, "nvidia-smi", 'echo "NVIDIA-SMI has failed because it could not communicate with the driver"; exit 9')
    assert machine._gpus().problem == "NVIDIA-SMI has failed because it could not communicate with the driver"
