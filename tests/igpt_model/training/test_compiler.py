"""Without a compiler, a training with `compile` fails before its first step with one line, in every launcher."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
import yaml

from igpt_model.config import PretrainConfig
from igpt_model.runs.events import Listener
from igpt_model.training import compiler
from igpt_model.training.loop import train
from igpt_model.training.ray import TrainJob, train_on_cluster
from igpt_model.worker import Worker
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from tests.igpt_model.training.test_loop import Recorder, short_training

CPU = torch.device("cpu")
PACKAGES = "g++ libc6-dev python3-dev"


@pytest.fixture
def config(data: Snapshot, tmp_path: Path) -> PretrainConfig:
    return short_training(data, tmp_path).with_fields(compile=True, name="compiled", workers=2)


def check_line(line: str) -> None:
    assert "compile is set and torch.compile needs a C++ compiler, and there is none" in line
    assert PACKAGES in line and line.endswith("or set compile to false")


@pytest.mark.needs("compiler")
@pytest.mark.parametrize(
    ("option", "complaint"), [("-nostdinc", "stdlib.h"), ("-UNDEBUG", ""), ("--no-such-option", "no-such-option")]
)
def test_headers_are_checked_with_the_compiler(
    option: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = compiler._inductor_compiler()
    wrapper = tmp_path / "g++"
    wrapper.write_text(f'#!/bin/sh\nexec {real} {option} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setattr(compiler, "_inductor_compiler", lambda: str(wrapper))
    reason = compiler.why_not(CPU)
    if not complaint:
        assert reason is None
    else:
        assert reason is not None and complaint in reason and PACKAGES in reason and "\n" not in reason


@pytest.mark.needs("compiler")
def test_a_gpu_needs_the_c_compiler_that_triton_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    build = SimpleNamespace(cc=None)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(knobs=SimpleNamespace(build=build)))
    assert compiler.why_not(torch.device("cuda")) is None
    build.cc = "no-such-compiler"
    assert "no-such-compiler does not run" in str(compiler.why_not(torch.device("cuda")))
    build.cc = None
    monkeypatch.setenv("PATH", "/no/such/folder")
    assert "torch.compile needs a C compiler, and there is none" in str(compiler.why_not(torch.device("cuda")))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"compile": True}, "compile is set and there is no compiler, or set compile to false"),
        ({"compile": None, "use_gpu": True}, "use_gpu compiles by default and there is no compiler, or set compile to"),
        ({"compile": False, "use_gpu": True}, None),
        ({"compile": None}, None),
    ],
)
def test_what_asks_for_the_compiler_is_named(
    fields: dict, expected: str | None, config: PretrainConfig, data: Snapshot, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(compiler, "why_not", lambda device: "there is no compiler")
    chosen = config.with_fields(workers=1, steps=1, **fields)
    with nullcontext() if expected is None else pytest.raises(IgptError, match=expected):
        train(chosen, data, str(tmp_path / "run"), Worker(), Recorder())


def test_a_training_by_itself_ends_in_one_line(config: PretrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(asdict(config)))
    command = [sys.executable, "-m", "igpt_model.train", str(path)]
    environment = {**os.environ, "PATH": "/no/such/folder", "CXX": "c++"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    check_line(line)
    assert not (tmp_path / "runs").exists()


class MetricNames(Listener):
    """Records the names of logged metrics, and fails on a warning."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.names |= values.keys()

    def warn(self, line: str) -> None:
        raise AssertionError(line)


@pytest.fixture
def ray_without_compiler() -> Iterator[None]:
    """A Ray whose workers have no compiler, while this process may have one."""
    ray.shutdown()
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"CXX": "no-such-compiler"}},
    )
    yield
    ray.shutdown()


@pytest.mark.services
def test_a_training_on_ray_ends_in_one_line(
    config: PretrainConfig, data: Snapshot, ray_without_compiler: None, tmp_path: Path
) -> None:
    run = str(tmp_path / "runs" / "compiled")
    listener = MetricNames()
    with pytest.raises(IgptError) as ended:
        train_on_cluster(TrainJob(config=config, snapshot=data, run=run, mlflow_run="none"), listener)
    check_line(str(ended.value))
    assert all(name.startswith("system/") for name in listener.names)
    assert not list(Path(run).rglob("*.safetensors"))
