"""Run folders of earlier code are recognised from the same flat configs, shown, opened and resumed."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from igpt_model import train
from igpt_model.inference.features import image_features
from igpt_model.runs import metric_log
from igpt_model.runs.open_model import load_model
from tests.compatibility.earlier import ROOT, copy, read_json
from tests.conftest import Command

UNDISTURBED = read_json("undisturbed.json")
FINISHED = "runs/" + read_json("registry.json")["run"]["name"]
UNFINISHED = "runs/" + UNDISTURBED["run"]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A folder with the dataset, both runs and both configs."""
    return copy(tmp_path, "dataset", "runs", "configs/pretrain.yaml", "configs/refresh.yaml")


def test_a_run_that_was_cut_off_is_resumed_and_comes_to_its_loss(kept: Path) -> None:
    before = sorted(path.name for path in (kept / "runs").iterdir())
    done = subprocess.run(
        [sys.executable, "-m", "igpt_model.train", "pretrain.yaml"],
        capture_output=True,
        text=True,
        cwd=kept,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (kept / "runs").iterdir()) == before
    assert re.findall(r"^step (\d+)", done.stdout, re.MULTILINE) == ["15", "20", "30"]
    result, expected = json.loads((kept / UNFINISHED / "result.json").read_text()), UNDISTURBED["result"]
    assert result["restarts"] == 1
    assert result["snapshot_digest"] == expected["manifest_digest"]
    for name in ("steps", "images", "parameters", "palette_sha256"):
        assert result[name] == expected[name]
    assert result["validation_loss"] == pytest.approx(expected["validation_loss"], abs=1e-4)
    losses = {str(logged.step): logged.values for logged in metric_log.read(str(kept / UNFINISHED))}
    assert set(losses) == set(UNDISTURBED["losses"])
    for step, values in UNDISTURBED["losses"].items():
        assert {name: losses[step][name] for name in values} == pytest.approx(values, abs=1e-4)


@pytest.fixture
def ask_for(
    kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[dict[str, Any]], str]:
    """Runs `python -m igpt_model.train` on a flat config, in this process; returns what it prints.

    The dataset has lost its shards, so a run that is not recognised cannot start again.
    """
    shutil.rmtree(kept / "dataset" / "shards")

    def ask(config: dict[str, Any]) -> str:
        monkeypatch.chdir(kept)
        (kept / "asked.yaml").write_text(yaml.safe_dump({**config, "dataset": "dataset", "runs": "runs"}))
        monkeypatch.setattr(sys, "argv", ["train", "asked.yaml"])
        train.main()
        return capsys.readouterr().out

    return ask


def test_a_finished_run_is_found_by_its_config(kept: Path, ask_for: Callable[[dict[str, Any]], str]) -> None:
    said = ask_for(yaml.safe_load((kept / "refresh.yaml").read_text())["pretrain"])
    assert said.startswith(f"{kept / FINISHED}: validation loss") and "after 20 steps" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("named", read_json("run_names.json"), ids=lambda named: named["name"])
def test_every_config_finds_its_run_by_name(
    named: dict[str, Any], kept: Path, ask_for: Callable[[dict[str, Any]], str]
) -> None:
    config = {"workers": 1, **named["config"]}
    result = json.loads((kept / FINISHED / "result.json").read_text())
    folder = kept / "runs" / named["name"]
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({**result, "steps": config.get("steps", 1000)}))
    assert ask_for(config).startswith(f"{folder}: validation loss")


def test_runs_are_listed_and_shown(kept: Path, igpt: Callable[..., Command]) -> None:
    rows = {row["name"]: row for row in json.loads(igpt("runs", "ls", kept / "runs", "--json").out)}
    states = {name: (row["state"], row["step"], row["of"]) for name, row in rows.items()}
    assert states == {
        Path(FINISHED).name: ("finished", 20, 20),
        Path(UNFINISHED).name: ("unfinished", 10, 30),
    }
    for run, step, experiment in ((FINISHED, 20, "fixtures"), (UNFINISHED, 10, None)):
        shown = igpt("runs", "show", kept / run, "--verify", "--json")
        assert shown.code == 0, shown.err
        described = json.loads(shown.out)
        assert [(row["checkpoint"], row["files"]) for row in described["checkpoints"]] == [(step, "good")]
        assert [point["step"] for point in described["curve"]] == list(range(10, step + 1, 10))
        assert described["config"].get("experiment") == experiment


def test_the_model_of_a_run_is_the_one_that_was_registered_from_it(kept: Path) -> None:
    bundle, expected = load_model(str(kept / FINISHED)), read_json("answers.json")
    tokens = torch.from_numpy(bundle.quantize(np.array(expected["images"], np.uint8)))
    features = image_features(bundle, tokens).transpose(0, 1).numpy()
    assert features == pytest.approx(np.array(expected["all_layers"]), abs=1e-5)
