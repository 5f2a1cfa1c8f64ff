"""The digits of the demo, and what its summary says. `make demo` runs it on services."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from flows import demo
from flows.pretrain import PretrainOutcome
from flows.probe import ProbeOutcome
from flows.refresh import RefreshOutcome
from flows.terminal.memory import StageCost, StageMeter
from igpt_model.evaluating.sample_quality import SampleQuality
from igpt_model.model.losses import Baselines
from igpt_model.runs.result import TrainResult
from pipeline.build.build import BuildResult
from tests.flows.test_build_dataset import RERUN
from tests.flows.test_probe_report import RESULT
from tests.pipeline.dataset.test_snapshot import make

SAMPLES = SampleQuality(
    samples=500,
    held_out_images=345,
    sure_samples=0.8888,
    sure_held_out=0.95,
    classifier_accuracy=0.99,
    class_shares=(0.45, 0.55),
    sample_distance=34.04,
    held_out_distance=33.0,
)


@pytest.fixture
def outcome(tmp_path: Path) -> RefreshOutcome:
    made = make(tmp_path)
    trained = TrainResult(
        steps=1000,
        images=64_000,
        validation_loss=math.log(2),
        validation_images=200,
        train_loss=0.6,
        seconds=60.0,
        images_per_second=1066.66,
        restarts=1,
        parameters=311_040,
        snapshot_digest=made.content_digest,
        palette_sha256=made.palette_sha256,
    )
    return RefreshOutcome(
        build=BuildResult(
            snapshot=made, planned=RERUN, shards_reused=0, images_taken_over=0, seconds={}, task_seconds={}
        ),
        pretrain=PretrainOutcome(
            run="s3://runs/demo/tiny",
            snapshot=made,
            result=trained,
            baselines=Baselines(uniform=2.77259, unigram=2.0, position_unigram=1.5),
            mlflow_run="abc",
            mlflow_url="http://m/#/experiments/1/runs/abc",
            sheets={},
            loss_curve=b"",
        ),
        probe=ProbeOutcome(result=RESULT, classes=made.classes, curve=b""),
        model_uri="models:/digits/1",
    )


def test_the_digits_are_images_by_class() -> None:
    encoded = demo.encode_digits("s3://raw/digits")
    digits = load_digits()
    assert len(encoded) == len(digits.images) == 1797
    for number in (0, 1000, 1796):
        picture = Image.open(io.BytesIO(encoded[f"s3://raw/digits/{digits.target[number]}/{number:04d}.png"]))
        assert np.abs(np.asarray(picture) - digits.images[number] * 255 / 16).max() <= 0.5


def test_the_summary_has_the_numbers_of_every_stage(outcome: RefreshOutcome, capsys, tmp_path: Path) -> None:
    meter = StageMeter()
    meter.costs["pretrain"] = StageCost(seconds=61.26, peak_memory_bytes=3 << 30)
    report = tmp_path / "report.html"
    summary = json.loads(json.dumps(demo.summarize(outcome, meter, {"loss": "demo/loss.png"}, report, RESULT, SAMPLES)))
    assert summary["training"]["validation_bits_per_pixel"] == 1
    assert summary["training"]["baselines_nats_per_pixel"]["uniform"] == 2.7726
    assert (summary["dataset"]["images_in"], summary["dataset"]["images_in_shards"]) == (2000, 8)
    assert summary["probe"]["accuracy_by_layer"] == [0.9, 0.75] and summary["probe"]["best_layer"] == 1
    assert (summary["samples"]["named_share"], summary["samples"]["held_out_named_share"]) == (0.8888, 0.95)
    assert summary["probe_by_rows"]["best_layer_accuracy"] == 0.75
    assert summary["stages"] == {"pretrain": {"seconds": 61.3, "peak_memory_mib": 3072}}
    demo.show(summary, tmp_path / "summary.json")
    lines = capsys.readouterr().out.splitlines()
    shown = {line[:16].strip(): line[17:] for line in lines if line}
    assert shown["images"] == "2,000 in, 8 in shards, 3 rejected, 3 truncated"
    assert shown["training"] == "311,040 parameters, 1,000 steps, 1,067 images/s"
    assert shown["validation loss"].startswith("0.693 nats per pixel (uniform 2.773, ")
    assert shown["probe"].startswith(
        "75.0% at layer 1, chosen on validation (raw pixels 40.0%, untrained network 90.0%"
    )
    assert shown["untrained"] == "30.0%  90.0%"
    assert shown["pretrain"] == "61 s, peak memory 3,072 MiB"
    assert (shown["model"], shown["pictures"]) == ("models:/digits/1", "demo/loss.png")
    assert shown["probe by rows"].startswith("75.0% at layer 1, of features averaged over each row")
    assert shown["samples"].startswith("88.9% of 500 can be named (held-out images 95.0%): a classifier of real images")
    assert shown["by class"] == "45.0%  55.0%"
    assert shown["new"].startswith(
        "34.0 of 255 is the median distance to the nearest training image (held-out images 33"
    )
    assert shown["report"] == summary["report"] == str(tmp_path / "report.html")
    lost = demo.summarize(outcome, meter, {}, None, None, None)
    assert lost["report"] is None
    demo.show(lost, tmp_path / "summary.json")
    assert "report           could not be made" in capsys.readouterr().out


def test_what_was_not_measured_is_left_out(outcome: RefreshOutcome, capsys, tmp_path: Path) -> None:
    summary = demo.summarize(outcome, StageMeter(), {}, tmp_path, None, None)
    assert "samples" not in summary and "probe_by_rows" not in summary
    demo.show(summary, tmp_path / "summary.json")
    shown = {line[:16].strip() for line in capsys.readouterr().out.splitlines()}
    assert "probe" in shown and not {"probe by rows", "samples", "by class", "new"} & shown
