"""`python -m igpt_model.train` refuses each mistake in one line."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from igpt_model.train import main

ROOT = Path(__file__).parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, check=False, timeout=300
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stepz=3", "unknown field stepz"),
        ("steps=many", "optimizer.steps is 'many': it must be a whole number"),
        ("steps=1.5", "optimizer.steps is '1.5': it must be a whole number"),
        ("flip=1", "data.flip is '1': it must be true or false"),
        ("preset=gpt-5", "model.preset is 'gpt-5': it must be tiny or"),
        ("global_batch=0", "global_batch is 0: it must be at least 1"),
        ("steps", "'steps' is not an override"),
        ("dataset=", "dataset is empty"),
        pytest.param(
            "use_gpu=true",
            "PyTorch sees no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="platform: this machine has a GPU"),
        ),
    ],
)
def test_each_mistake_is_one_line(
    override: str, expected: str, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["igpt_model.train", str(path), override])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert_one_line(capsys.readouterr().err, expected)
    assert not (path.parent / "runs").exists()


def assert_one_line(err: str, expected: str) -> None:
    (line,) = err.splitlines()
    assert line.startswith("igpt: ")
    assert expected in line


def test_a_process_with_bad_input_exits_with_two(path: Path) -> None:
    ended = run("-m", "igpt_model.train", str(path), "dataset=/no/such/place")
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert_one_line(ended.stderr, "no dataset snapshot there")
