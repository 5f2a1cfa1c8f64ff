"""`igpt features`, `classify` and `score` of many images: any model, any source; one line for what does not match."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from flows import batch as flow
from igpt_model.probing.probed import ProbedModel
from igpt_model.registry.serving import RegisteredImageGPT
from pipeline.dataset.snapshot import Snapshot
from pipeline.readers import arrow
from tests.conftest import Command
from tests.igpt_model.registry.test_serving import make_bundle, make_head
from tests.igpt_model.training.test_loop import build_here, digits_snapshot

Igpt = Callable[..., Command]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; registered versions are this model with a probe."""
    folder = tmp_path_factory.mktemp("model")
    make_bundle().save(folder)
    return folder


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> RegisteredImageGPT:
    """What models:/... opens, without an MLflow server, and what `predict` of it gives."""
    opened = ProbedModel(bundle=make_bundle(), best_layer=1, head=make_head())
    monkeypatch.setattr(flow, "_open", lambda reference: (opened, reference))
    return RegisteredImageGPT(opened.bundle, opened.best_layer, opened.head)


@pytest.fixture(scope="module")
def data(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Digits in the colours of the model, beside `dataset` in colours of its own."""
    folder = tmp_path_factory.mktemp("digits")
    digits_snapshot(folder)
    return build_here(folder / "raw", folder / "theirs", palette=str(model / "palette.npy"))


@pytest.fixture(scope="module")
def raw(data: Snapshot) -> Path:
    return Path(data.dataset).parent / "raw"


@pytest.mark.parametrize("task", ["features", "classify", "score"])
@pytest.mark.parametrize("source", ["dataset", "raw"])
def test_a_registered_model(
    task: str, source: str, igpt: Igpt, registered: RegisteredImageGPT, data: Snapshot, raw: Path, tmp_path: Path
) -> None:
    arguments = (task, "models:/digits@champion", data.dataset if source == "dataset" else raw / "3", tmp_path / "out")
    done = igpt(*arguments, *(["split=test"] if source == "dataset" else []))
    assert done.code == 0, done.err
    images = data.samples("test") if source == "dataset" else len(list((raw / "3").iterdir()))
    assert f"{tmp_path}/out: {images} images in 1 part\n" in done.out
    rows = pq.read_table(tmp_path / "out" / "parts")
    expected = registered.predict([Path(uri).read_bytes() for uri in rows["uri"].to_pylist()], {"task": task})
    name = {"features": "layer_1", "classify": "probabilities", "score": "bits_per_pixel"}[task]
    assert arrow.pixels_of(rows[name]) == pytest.approx(np.asarray(expected), abs=1e-5)
    again = igpt(*arguments, *(["split=test"] if source == "dataset" else []), "--json")
    assert json.loads(again.out)["parts_computed"] == 0 and json.loads(again.out)["images"] == images


def test_a_model_folder_has_features_of_its_middle_layer_and_no_classes(
    igpt: Igpt, model: Path, data: Snapshot, tmp_path: Path
) -> None:
    done = igpt("features", model, data.dataset, tmp_path / "out", "split=validation", "pooling=none", "part_images=7")
    assert done.code == 0, done.err
    parts = -(-data.samples("validation") // 7)
    assert f"{data.samples('validation')} images in {parts} parts" in done.out
    rows = pq.read_table(tmp_path / "out" / "parts")
    assert arrow.pixels_of(rows["layer_1"]).shape == (data.samples("validation"), 8, 8, 32)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert (manifest["model"], manifest["dataset"], manifest["snapshot"]) == (str(model), data.dataset, data.number)
    done = igpt("classify", model, data.dataset, tmp_path / "other")
    assert done.code == 2 and "no probe is attached" in done.err and not (tmp_path / "other").exists()


def peak_mib(*arguments: object) -> float:
    """The largest memory of a process of the command line."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "flows.cli", *(str(argument) for argument in arguments)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return used.ru_maxrss / (2**10 if sys.platform == "linux" else 2**20)


@pytest.mark.programs
def test_memory_does_not_grow_with_the_number_of_images(model: Path, raw: Path, tmp_path: Path) -> None:
    fields = ("pooling=none", "layers=[0,1,2]", "part_images=50")  # 24 KiB of features an image
    for copy in range(8):
        shutil.copytree(raw, tmp_path / "copies" / str(copy))
    few, many = (
        peak_mib("features", model, source, tmp_path / name, *fields)
        for name, source in (("few", raw), ("many", tmp_path / "copies"))
    )
    features = pq.read_table(tmp_path / "many" / "parts").nbytes / 2**20
    assert features > 50
    assert many - few < features / 3


def test_rejected_images_are_told(igpt: Igpt, model: Path, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.png").write_bytes(next((raw / "1").iterdir()).read_bytes())
    (tmp_path / "raw" / "b.png").write_bytes(b"nothing")
    done = igpt("score", model, tmp_path / "raw", tmp_path / "out")
    assert done.code == 0 and "1 images in 1 part" in done.out and "1 rejected: not_an_image" in done.out


def test_labels_of_raw_images_come_from_a_file(igpt: Igpt, model: Path, raw: Path, tmp_path: Path) -> None:
    names = [path.name for path in sorted((raw / "1").iterdir())]
    labels = tmp_path / "labels.csv"
    labels.write_text("file_name,label\n" + "\n".join(f"{name},number {name}" for name in names))
    done = igpt("score", model, raw / "1", tmp_path / "out", f"labels={labels}")
    assert done.code == 0, done.err
    rows = pq.read_table(tmp_path / "out" / "parts")
    assert rows["label"].to_pylist() == [f"number {Path(uri).name}" for uri in rows["uri"].to_pylist()]
    done = igpt("score", model, raw / "1", tmp_path / "out")
    assert done.code == 2 and "holds a batch whose labels is " in done.err and "not null; give another" in done.err


def test_images_by_name_are_scored_as_before(igpt: Igpt, model: Path, raw: Path) -> None:
    files = sorted((raw / "1").iterdir())[:2]
    done = igpt("score", *files, "--model", model, "--device", "cpu")
    assert done.code == 0, done.err
    assert [line.split("  ")[-1] for line in done.out.splitlines()] == [str(file) for file in files]


def test_what_cannot_be_done_is_one_line(igpt: Igpt, model: Path, data: Snapshot, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    out = tmp_path / "out"
    for arguments, expected in (
        (["features", model, tmp_path / "nothing", out], "nothing is there"),
        (["features", tmp_path / "nothing", data.dataset, out], "no model there"),
        (["features", model, raw.parent / "dataset", out], "has palette"),
        (["features", model, data.dataset, out, "snapshot=7"], "there is no snapshot 7"),
        (["features", model, data.dataset, out, "layers=[5]"], "different numbers from 0 to 2"),
        (["features", model, data.dataset, out, "layer=1"], "`igpt config batch`"),
        (["features", model, data.dataset, out, "image_column=photo"], "is a dataset: leave it out"),
        (["features", model, data.dataset, out, "labels=labels.csv"], "is a dataset: leave it out"),
        (["features", model, raw, out, "labels=labels.csv"], "labels.csv: no label file there"),
        (["features", model, raw, out, "split=test"], "is no dataset: leave it out"),
        (["features", model, data.dataset, f"{data.dataset}/features"], "lies in the dataset"),
        (["features", model, raw, raw], "is both what is read and what is written"),
        (["features", model, data.dataset, tmp_path / "full"], "is not empty, and holds no batch"),
        (["features", "models:/a@champion", data.dataset, out], "no MLflow server is known"),
        (["score", model, data.dataset], "give --model MODEL with image files, or MODEL DATASET OUT"),
        (["score", model, data.dataset, out, "--device", "cpu"], "--device is for image files"),
        (["score", model, data.dataset, out, "--output", "a.png"], "--output is for image files"),
        (["score", next((raw / "1").iterdir()), "--model", model, "--json"], "--json is for `igpt score MODEL DATASET"),
    ):
        done = igpt(*arguments)
        assert done.code == 2 and expected in done.err and len(done.err.splitlines()) == 1, (arguments, done.err)
    assert not out.exists() or not list(out.rglob("*.parquet"))


def test_a_cluster_that_does_not_answer_is_told_and_not_needed(
    igpt: Igpt, model: Path, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = igpt("features", model, raw / "1", tmp_path / "out")
    assert done.code == 0, done.err
    assert "Ray at 127.0.0.1:1 does not answer" in done.out and "working in this process" in done.out
