"""Models of every kind trained by the flow, and the commands that use models in the object store and the registry."""

import json
import re
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from flows.services.local_stack import Stack
from pipeline.store import objects
from tests.integration.conftest import Refreshed, igpt

pytestmark = pytest.mark.services


@pytest.mark.parametrize(
    ("fields", "pictures"),
    [
        ("objective=masked ema_decay=0.9 micro_batch=5", {"reconstructions.png"}),
        # So wide that its pictures are drawn by tasks.
        ("class_conditional=true low_resolution=4 flip=true workers=1 width=256 heads=4", {"upscaled.png"}),
    ],
)
def test_a_model_of_another_kind_is_trained_and_shown(
    fields: str, pictures: set[str], refreshed: Refreshed, stack: Stack
) -> None:
    name = fields.split("=")[0]
    command = igpt(
        *("pretrain", "dataset=s3://datasets/refreshed", "runs=s3://runs/kinds", f"name={name}", "preset=tiny"),
        *("layers=2", "steps=20", "global_batch=32", "warmup_steps=5", f"experiment=kind-{name}", *fields.split()),
        "sample_every=10",
    )
    assert command.code == 0, command.out + command.err
    assert command.err == ""
    result = json.loads(objects.read_bytes(f"s3://runs/kinds/{name}/result.json"))
    assert (result["steps"], result["images"], result["skipped_steps"]) == (20, 640, 0)
    client = MlflowClient(stack.mlflow_url)
    experiment = client.get_experiment_by_name(f"kind-{name}")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {*pictures, "loss.png", "images"}
    drawn = [file.path for file in client.list_artifacts(run.info.run_id, "images") if file.path.endswith(".png")]
    assert [path.split("+")[:3] for path in drawn] == [[f"images/{min(pictures)[:-4]}", "step", "10"]]
    assert run.data.metrics["skipped_steps"] == 0
    metrics = run.data.metrics
    assert 0 < metrics["data_wait_share"] < 1
    assert 0 < metrics["flop_utilization"] <= 1
    assert metrics["tokens_per_second"] == pytest.approx(64 * metrics["images_per_second"])
    busy = [name for name in metrics if re.fullmatch(r"system/[\d.]+/cpu_utilization_percentage", name)]
    assert len(busy) == 1 and 0 < metrics[busy[0]] <= 100


def test_a_training_starts_from_a_registered_version(refreshed: Refreshed, stack: Stack) -> None:
    fields = refreshed.config["pretrain"]
    shape = [f"{name}={value}" for name, value in fields.items() if name in {"preset", "layers", "width", "heads"}]
    command = [
        *("pretrain", "dataset=s3://datasets/refreshed", "runs=s3://runs/children", "steps=10", "global_batch=32"),
        *("workers=1", "warmup_steps=5", "sample_every=0", "experiment=children", *shape),
    ]
    child = igpt(*command, "parent=models:/refreshed@champion")
    assert child.code == 0, child.out + child.err
    client = MlflowClient(stack.mlflow_url)
    experiment = client.get_experiment_by_name("children")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["igpt.parent_model"] == run.data.params["parent"] == "models:/refreshed/1"
    assert run.data.metrics["validation_loss"] < refreshed.result["validation_loss"] + 0.1
    kept = [file.url.rsplit("/", 1)[-1] for file in objects.list_files(f"{run.data.tags['igpt.run']}/parent")]
    assert kept == ["model.json", "palette.npy", "parent.json", "weights.safetensors"]
    for reference, expected in (
        ("models:/refreshed/99", "models:/refreshed/99: no such version"),
        ("models:/nothing/1", "nothing: no such model"),
        ("models:/nothing@champion", "nothing: no such model"),
    ):
        refused = igpt(*command, f"parent={reference}")
        assert refused.code == 2
        (line,) = refused.err.splitlines()
        assert expected in line


def test_commands_take_a_run_in_the_store_and_a_registry_uri(refreshed: Refreshed, tmp_path: Path) -> None:
    image = tmp_path / "grey.png"
    Image.new("RGB", (20, 20), "grey").save(image)
    objects.write_bytes("s3://raw/grey.png", image.read_bytes())
    scores = [
        igpt("score", picture, "-m", model)
        for picture, model in ((str(image), refreshed.run), ("s3://raw/grey.png", "models:/refreshed@candidate"))
    ]
    assert [score.code for score in scores] == [0, 0], scores
    assert scores[0].out.split()[:6] == scores[1].out.split()[:6]
    samples = tmp_path / "samples.png"
    drawn = igpt("sample", "-m", "models:/refreshed/1", "--count", "4", "-o", str(samples))
    assert drawn.code == 0, drawn.err
    assert Image.open(samples).format == "PNG"
    for model, expected in (
        ("models:/refreshed@best", "models:/refreshed@best: no such alias"),
        ("s3://runs/nothing", "no model there"),
        ("s3://no-such-bucket/run", "the bucket does not exist"),
    ):
        refused = igpt("score", str(image), "-m", model)
        assert refused.code == 2
        (line,) = refused.err.splitlines()
        assert expected in line
