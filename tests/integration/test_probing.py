"""The probing flow from a registry URI: its results, where they are stored, and what a rerun computes."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from flows.report import shown_images
from flows.services.local_stack import Stack
from igpt_model.registry.client import Registry
from igpt_model.registry.gate import ACCURACY
from igpt_model.runs import record
from pipeline.dataset import snapshot
from pipeline.store import objects
from tests.flows.report.test_page import Parsed, check_nothing_is_outside
from tests.flows.report.test_shown_images import keys_shown
from tests.integration.conftest import Command, Refreshed, igpt

pytestmark = pytest.mark.services

URI = "models:/refreshed@candidate"
FIELDS = (
    f"model={URI}",
    "dataset=s3://datasets/refreshed",
    "features=s3://datasets/probing-features",
    "strengths=[0.01,0.1]",
    "labels_per_class=[1,5]",
    "draws=3",
    "neighbours=[1,5]",
    "fine_tune.steps=20",
    "fine_tune.batch=32",
    "supervised.steps=20",
)


def run(*fields: str) -> Command:
    command = igpt("probe", *FIELDS, *fields)
    assert command.code == 0, command.out + command.err
    return command


@pytest.fixture(scope="module")
def probed(refreshed: Refreshed) -> Command:
    return run()


def test_every_number_stands_beside_its_baselines(probed: Command) -> None:
    assert probed.err == ""
    rows = {line.split("  ")[0].strip(): line for line in probed.out.splitlines()}
    trained = ("fine-tuned", "supervised convolutional network", "supervised convolutional network, 5 labels a class")
    for name in ("linear probe", "1 labels a class", "5 labels a class", "nearest neighbours", *trained):
        assert name in rows, probed.out
    heading = next(line for line in probed.out.splitlines() if line.startswith("test accuracy"))
    assert heading.split("  ")[-1].strip() == "paper"
    assert {"pretrained", "untrained", "raw pixels"} <= {part.strip() for part in heading.split("  ")}
    assert rows["5 labels a class"].count("±") == 3


def test_the_results_are_with_the_version_and_its_run(probed: Command, stack: Stack) -> None:
    version = Registry(stack.mlflow_url).find(URI)
    client = MlflowClient(stack.mlflow_url)
    data = snapshot.read("s3://datasets/refreshed")
    assert version.tags["igpt.probe.refreshed.snapshot"] == f"{data.number} {data.content_digest}"
    of_model = {metric.key: metric.value for metric in client.get_logged_model(version.model_id).metrics or []}
    for name in (
        "probe_best_test_accuracy",
        "probe_5_labels_untrained_mean",
        "probe_neighbours_raw_pixels_test_accuracy",
        "probe_fine_tuned_pretrained_test_accuracy",
        "probe_supervised_test_accuracy",
    ):
        tag = float(version.tags[f"igpt.probe.refreshed.{name.removeprefix('probe_')}"])
        assert of_model[name] == pytest.approx(tag, abs=1e-5)
        assert 0 < of_model[name] <= 1
    assert abs(float(version.tags["igpt.probed_at"]) - time.time()) < 600
    assert float(version.tags[ACCURACY]) == pytest.approx(of_model["probe_best_validation_accuracy"], abs=1e-5)
    run_metrics = client.get_run(version.run_id).data.metrics
    assert run_metrics["probe_best_test_accuracy"] == of_model["probe_best_test_accuracy"]
    curve = client.get_metric_history(version.run_id, "probe_test_accuracy")
    assert {metric.step for metric in curve} == {0, 1, 2}
    names = {artifact.path for artifact in client.list_artifacts(version.run_id)}
    assert {"probe.png", "confusion.png", "neighbours.png", "probe-report.html", "report.html"} <= names
    for name in ("confusion.png", "neighbours.png"):
        path = client.download_artifacts(version.run_id, name)
        assert min(Image.open(path).size) > 200


def test_the_report_has_the_sections_of_a_probe(probed: Command, home: Path) -> None:
    path = home / "reports" / "refreshed-candidate" / "report.html"
    assert probed.out.splitlines()[-1] == f"report {path}"
    html = path.read_bytes()
    check_nothing_is_outside(html)
    sections = [a["id"] for tag, a in Parsed(html).elements if tag == "section"]
    assert sections == ["probe", "confusion", "neighbours", "costs", "lineage", "settings", "shown"]
    assert "nearest neighbours" in html.decode() and "models:/refreshed/" in html.decode()
    listed = set(shown_images.read(html.decode()).sections_by_key)
    assert len(listed) > 20 and listed == keys_shown(html)


def test_a_rerun_computes_what_is_missing_and_nothing_else(probed: Command, stack: Stack) -> None:
    data = snapshot.read("s3://datasets/refreshed")
    shards = 2 * len(data.shards)  # for the trained and the untrained network
    assert f"features of {shards} shards computed, of 0 found in the cache" in probed.out
    kept = {file.url: objects.read_bytes(file.url) for file in objects.list_files("s3://datasets/probing-features")}
    assert len(kept) == 3 * shards  # layers
    again = run("fine_tune=null", "supervised=null", "labels_per_class=[]", "neighbours=[]")
    assert f"features of 0 shards computed, of {shards} found in the cache" in again.out
    lost = sorted(kept)[4]
    objects.delete(lost)
    mended = run("fine_tune=null", "supervised=null", "labels_per_class=[]", "neighbours=[]")
    assert f"features of 1 shards computed, of {shards - 1} found in the cache" in mended.out
    after = np.load(io.BytesIO(objects.read_bytes(lost)))
    assert after == pytest.approx(np.load(io.BytesIO(kept[lost])), abs=1e-5)


def test_every_checkpoint_of_a_run_is_drawn_by_its_loss(refreshed: Refreshed, stack: Stack, tmp_path: Path) -> None:
    figure = tmp_path / "figure.png"
    fields = (f"model={refreshed.run}", "dataset=s3://datasets/refreshed", "strengths=[0.1]")
    command = igpt("probe", *fields, "checkpoints=all", "--output", str(figure))
    assert command.code == 0, command.out + command.err
    rows = [line.split() for line in command.out.splitlines() if line.startswith(refreshed.run.split("/")[-1])]
    by_step = {int(row[2]): (float(row[3]), float(row[5])) for row in rows if len(row) == 6}
    assert sorted(by_step) == [80, 160]
    assert by_step[80][0] > by_step[160][0]
    assert "accuracy over 2 checkpoints: not defined" in command.out
    assert min(Image.open(figure).size) > 200
    client, run = MlflowClient(stack.mlflow_url), record.read(refreshed.run).mlflow_run
    assert run is not None
    logged = {entry.step: entry.value for entry in client.get_metric_history(run, "probe_by_checkpoint_test_accuracy")}
    assert {step: round(100 * value, 1) for step, value in logged.items()} == {
        step: accuracy for step, (_, accuracy) in by_step.items()
    }
    names = {artifact.path for artifact in client.list_artifacts(run)}
    assert {"features_by_loss.png", "checkpoints-report.html"} <= names
    report = command.out.splitlines()[-1].removeprefix("report ")
    sections = [a["id"] for tag, a in Parsed(Path(report).read_bytes()).elements if tag == "section"]
    assert sections == ["checkpoints", "costs", "lineage", "settings", "shown"]


def test_only_a_training_run_has_checkpoints_to_draw(refreshed: Refreshed) -> None:
    command = igpt("probe", f"model={URI}", "dataset=s3://datasets/refreshed", "checkpoints=all")
    assert (command.code, command.out) == (2, "")
    assert f"checkpoints is all and the model is {URI}: give the folder of a training run" in command.err


def test_a_snapshot_of_another_source_is_probed_with_the_models_palette(
    probed: Command, stack: Stack, tmp_path
) -> None:
    """Another dataset than that of the pretraining: two of the digits, in the model's colours."""
    palette = tmp_path / "palette.npy"
    assert igpt("models", "palette", URI, str(palette)).code == 0
    raw = tmp_path / "raw"
    for file in objects.list_files("s3://raw/some-digits"):
        digit, name = file.url.split("/")[-2:]
        if digit in "38":
            (raw / digit).mkdir(parents=True, exist_ok=True)
            (raw / digit / name).write_bytes(objects.read_bytes(file.url))
    fields = ("resolution=8", "colours=16", "validation_fraction=0.3", "test_fraction=0.3")
    built = igpt("dataset", "build", f"raw={raw}", "dataset=s3://datasets/pair", *fields, "--palette", str(palette))
    assert built.code == 0, built.err
    command = igpt("probe", f"model={URI}", "dataset=s3://datasets/pair", "strengths=[0.1]")
    assert command.code == 0, command.err
    version = Registry(stack.mlflow_url).find(URI)
    assert float(version.tags["igpt.probe.pair.best_test_accuracy"]) > 0.7
    # The gate still compares the accuracy on the dataset that the model was trained on.
    assert version.tags[ACCURACY] == version.tags["igpt.probe.refreshed.best_validation_accuracy"]
    one = igpt(
        *("dataset", "build", f"raw={raw / '3'}", "dataset=s3://datasets/one", *fields, "--palette", str(palette)),
        "max_reject_fraction=0.5",
    )
    assert one.code == 0, one.err
    refused = igpt("probe", f"model={URI}", "dataset=s3://datasets/one")
    assert refused.code == 2
    assert "a probe needs at least 2" in refused.err or "has a class" in refused.err, refused.err
