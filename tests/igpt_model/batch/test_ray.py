"""A batch over a dataset and over raw images: the numbers of `predict`, each image once, whatever is interrupted."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from igpt_model.batch import ray as batches
from igpt_model.batch.config import BatchConfig
from igpt_model.batch.ray import BatchResult, run_batch
from igpt_model.batch.work import Work
from igpt_model.evaluating.ray import Executor
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from igpt_model.probing.probed import ProbedModel
from igpt_model.registry.serving import RegisteredImageGPT
from pipeline.cluster import tasks
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.pictures.raw_parts import RawParts, raw_parts
from pipeline.progress import silent
from pipeline.readers import arrow
from pipeline.samples.parts import PartSource, SnapshotParts
from pipeline.store import lease
from pipeline.store.lease import LeaseHeldError
from tests.igpt_model.training.test_loop import digits_snapshot

CONFIG = BatchConfig(layers=(1, 2), pooling="rows", part_images=50)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return digits_snapshot(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def raw(data: Snapshot) -> Path:
    """The raw images that the dataset was built from."""
    return Path(data.dataset).parent / "raw"


@pytest.fixture(scope="module")
def model(data: Snapshot) -> ProbedModel:
    torch.manual_seed(0)
    network = ImageGPT(ModelConfig(layers=2, width=16, heads=2, resolution=8, colours=16))
    torch.nn.init.normal_(network.head.weight)
    bundle = ModelBundle(model=network.eval(), palette_K3=data.palette(), classes=data.classes)
    return ProbedModel(bundle=bundle, best_layer=1)


class StopError(Exception):
    """Stands for the end of a driver."""


class Interrupting:
    """Runs tasks here, up to a number of them."""

    def __init__(self, most: int) -> None:
        self.most, self.done = most, 0
        self.executor = Executor(run=self._run, device="cpu")

    def _run(self, function: Callable[..., Any], calls: Any, **options: Any) -> Iterator[tuple[int, Any]]:
        for result in tasks.map_here(function, calls, **options):
            self.done += 1
            yield result
            if self.done == self.most:
                raise StopError


def run(
    model: ProbedModel,
    source: PartSource,
    out: Path,
    config: BatchConfig = CONFIG,
    executor: Executor | None = None,
    task: Any = "features",
) -> BatchResult:
    work, executor = Work.of(task, model, config), executor or Executor.here()
    return run_batch(work, model.bundle, source, str(out), config, executor, about={"model": "models:/a/1"})


def whole(data: Snapshot, split: str | None = None) -> SnapshotParts:
    return SnapshotParts(snapshot=data, split=split)


def opened(raw: Path, out: Path) -> Any:
    return raw_parts(str(raw), str(out), resolution=8, on_cluster=False, progress=silent)


def table(out: Path) -> pa.Table:
    return pq.read_table(out / "parts")


def values(column: pa.ChunkedArray) -> np.ndarray:
    return arrow.pixels_of(column)


def files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*.parquet"))}


def test_a_dataset_and_its_raw_images_have_the_numbers_of_predict(
    model: ProbedModel, data: Snapshot, raw: Path, tmp_path: Path
) -> None:
    done = run(model, whole(data), tmp_path / "dataset")
    assert (done.images, done.rejected, done.parts) == (300, {}, done.parts_computed)
    with opened(raw, tmp_path / "raw") as source:
        of_raw = run(model, source, tmp_path / "raw")
    assert (of_raw.images, of_raw.parts) == (300, 6)
    first, second = (table(out).sort_by("key") for out in (tmp_path / "dataset", tmp_path / "raw"))
    assert first.column_names == ["key", "uri", "split", "label", "layer_1", "layer_2"]
    for name in ("key", "uri", "label"):
        assert first[name].equals(second[name])
    assert set(first["split"].to_pylist()) == {"train", "validation", "test"}
    pictures = [Path(uri).read_bytes() for uri in first["uri"].to_pylist()]
    served = RegisteredImageGPT(model.bundle, model.best_layer)
    for layer in (1, 2):
        expected = served.predict(pictures, {"layer": layer, "pooling": "rows"})
        assert expected.shape == (300, 8, 16)
        for one in (first, second):
            assert values(one[f"layer_{layer}"]) == pytest.approx(expected, abs=1e-5)
    manifest = json.loads((tmp_path / "dataset" / "manifest.json").read_bytes())
    assert manifest["content_digest"] == data.content_digest and manifest["model"] == "models:/a/1"
    assert manifest["images"] == 300 == sum(part["images"] for part in manifest["parts"])


def test_scores_of_a_split(model: ProbedModel, data: Snapshot, tmp_path: Path) -> None:
    done = run(model, whole(data, "test"), tmp_path, BatchConfig(), task="score")
    rows = table(tmp_path)
    assert done.images == data.samples("test") == len(rows) and set(rows["split"].to_pylist()) == {"test"}
    pictures = [Path(uri).read_bytes() for uri in rows["uri"].to_pylist()]
    served = RegisteredImageGPT(model.bundle, model.best_layer)
    assert rows["bits_per_pixel"].to_numpy() == pytest.approx(served.predict(pictures, {"task": "score"}), abs=1e-5)


@pytest.mark.parametrize("after", [1, 6])
def test_what_was_interrupted_goes_on_and_gives_the_same(
    after: int, model: ProbedModel, raw: Path, tmp_path: Path
) -> None:
    with opened(raw, tmp_path / "whole") as source:
        run(model, source, tmp_path / "whole")
    interrupted = Interrupting(after)
    out = tmp_path / "out"
    with pytest.raises(StopError), opened(raw, out) as source:
        run(model, source, out, executor=interrupted.executor)
    assert not (out / "manifest.json").exists()
    with opened(raw, out) as source:
        done = run(model, source, out)
    assert (done.parts, done.parts_computed, done.images) == (6, 6 - after, 300)
    assert files(out) == files(tmp_path / "whole")
    before = (out / "manifest.json").read_bytes()
    never = Interrupting(1)
    with opened(raw, out) as source:
        assert run(model, source, out, executor=never.executor) == replace(done, parts_computed=0)
    assert never.done == 0 and (out / "manifest.json").read_bytes() == before


def test_images_that_changed_meanwhile_are_in_one_part(model: ProbedModel, raw: Path, tmp_path: Path) -> None:
    own, out = tmp_path / "own", tmp_path / "out"
    shutil.copytree(raw, own)
    with pytest.raises(StopError), opened(own, out) as source:
        run(model, source, out, executor=Interrupting(4).executor)
    gone, changed, new = own / "0" / "0.png", own / "1" / "1.png", own / "2" / "new.png"
    gone.unlink()
    changed.write_bytes(b"damaged now")
    shutil.copy(own / "2" / "2.png", new)
    with opened(own, out) as source:
        done = run(model, source, out)
    assert (done.images, sum(done.rejected.values())) == (299, 1) and 0 < done.parts_computed <= 6
    uris = table(out)["uri"].to_pylist()
    assert sorted(uris) == sorted(str(path) for path in own.rglob("*.png") if path != changed)
    assert pq.read_table(out / "rejected")["uri"].to_pylist() == [str(changed)]
    new.unlink()
    with (
        pytest.raises(IgptError, match=r"is complete, with 299 images; the source has others now"),
        opened(own, out) as source,
    ):
        run(model, source, out)


def test_other_work_in_the_same_folder_is_refused(
    model: ProbedModel, data: Snapshot, raw: Path, tmp_path: Path
) -> None:
    run(model, whole(data, "test"), tmp_path)
    other = replace(model, bundle=replace(model.bundle, classes=("a", "b")))
    for changed, config, split, expected in (
        (model, CONFIG, "validation", 'whose split is "test", not "validation"'),
        (model, replace(CONFIG, pooling="mean"), "test", 'whose pooling is "rows", not "mean"'),
        (model, replace(CONFIG, part_images=10), "test", "whose part_images is 50, not 10"),
        (other, CONFIG, "test", "whose classes is"),
    ):
        with pytest.raises(IgptError, match=expected):
            run(changed, whole(data, split), tmp_path, config)
    with opened(raw, tmp_path) as source, pytest.raises(IgptError, match="whose raw is null"):
        run(model, source, tmp_path)


def test_one_process_at_a_time(model: ProbedModel, data: Snapshot, tmp_path: Path) -> None:
    with lease.hold(str(tmp_path), dead_seconds=2), pytest.raises(LeaseHeldError, match="is working on it"):
        run(model, whole(data), tmp_path)
    assert not (tmp_path / "parts").exists()


def test_a_task_that_lost_the_lease_writes_nothing(
    model: ProbedModel, data: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost:
        def check(self) -> None:
            raise lease.LeaseLostError("taken over")

    make = batches._make_part
    monkeypatch.setattr(batches, "_make_part", lambda part, job: make(part, replace(job, fence=Lost())))
    with pytest.raises(lease.LeaseLostError):
        run(model, whole(data), tmp_path)
    assert not (tmp_path / "parts").exists()


def test_a_part_with_other_counts_than_listed_is_not_published(
    model: ProbedModel, data: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = type(whole(data).reader).read

    def one_less(self: Any, part: Any) -> Any:
        images = read(self, part)
        return replace(
            images,
            **{name: getattr(images, name)[1:] for name in ("keys", "uris", "splits", "labels", "tokens_NT")},
        )

    monkeypatch.setattr("pipeline.samples.parts.SnapshotReader.read", one_less)
    with pytest.raises(IgptError, match="49 images, 50 are listed"):
        run(model, whole(data), tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_colours_are_found_alike_by_table_and_by_comparing(
    model: ProbedModel, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(raw / "3", tmp_path / "a") as source:
        run(model, source, tmp_path / "a")
    monkeypatch.setattr(batches, "_IMAGES_FOR_A_TABLE", 1)
    with opened(raw / "3", tmp_path / "b") as source:
        run(model, source, tmp_path / "b")
    one, other = files(tmp_path / "a"), files(tmp_path / "b")
    assert one == other and one


@pytest.mark.usefixtures("own_ray")
def test_a_cluster_gives_the_numbers_of_this_process(
    model: ProbedModel, data: Snapshot, raw: Path, tmp_path: Path
) -> None:
    run(model, whole(data), tmp_path / "here")
    run(model, whole(data), tmp_path / "cluster", executor=Executor.cluster())
    assert list(files(tmp_path / "here")) == list(files(tmp_path / "cluster"))
    here, cluster = table(tmp_path / "here"), table(tmp_path / "cluster")
    assert here["key"].equals(cluster["key"])
    assert values(here["layer_2"]) == pytest.approx(values(cluster["layer_2"]), abs=1e-6)
    with raw_parts(str(raw), str(tmp_path / "raw"), resolution=8, on_cluster=True, progress=silent) as source:
        assert isinstance(source, RawParts) and not source.reader.isolated
        assert run(model, source, tmp_path / "raw", executor=Executor.cluster()).images == 300
