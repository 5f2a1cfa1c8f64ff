"""Parts of a snapshot: every sample in one part, whatever their size, and named by what they hold."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.readers import arrow
from pipeline.samples.parts import SnapshotParts
from tests.igpt_model.training.test_loop import build_here, digits_snapshot


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return digits_snapshot(tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize(("split", "most"), [(None, 59), (None, 10_000), ("validation", 7)])
def test_every_sample_is_in_one_part_as_readers_see_it(split: str | None, most: int, data: Snapshot) -> None:
    source = SnapshotParts(snapshot=data, split=split)
    parts = source.plan(most)
    assert [part.number for part in parts] == list(range(len(parts))) and max(p.images for p in parts) <= most
    read = [source.reader.read(part) for part in source.fill(parts)]
    assert [len(images.keys) for images in read] == [part.images for part in parts]
    table = arrow.table(data.dataset, split=split)
    for name, column in (("keys", "key"), ("uris", "uri"), ("splits", "split"), ("labels", "class_name")):
        assert [value for images in read for value in getattr(images, name)] == table[column].to_pylist()
    tokens_NHW = arrow.pixels_of(table["tokens"])
    assert np.array_equal(np.concatenate([images.tokens_NT for images in read]), tokens_NHW.reshape(len(table), -1))


def test_names_follow_from_content(data: Snapshot) -> None:
    def digests(of: Snapshot, most: int = 30) -> list[str]:
        return [part.digest for part in SnapshotParts(snapshot=of, split=None).plan(most)]

    same = digests(data)
    assert len(set(same)) == len(same) and digests(replace(data, number=9)) == same
    first = replace(data.shards[0], sha256="0" * 64)
    other = digests(replace(data, shards=(first, *data.shards[1:])))
    assert [a == b for a, b in zip(same, other, strict=True)] == [False, False, *[True] * (len(same) - 2)]
    assert digests(data, 29)[0] != same[0]


def test_random_crops_have_keys_of_their_own(tmp_path: Path, image_folder: Path) -> None:
    data = build_here(image_folder, tmp_path / "crops", crops_per_image=2)
    source = SnapshotParts(snapshot=data, split="train")
    read = [source.reader.read(part) for part in source.plan(50)]
    keys = [key for images in read for key in images.keys]
    assert len(set(keys)) == len(keys) == data.samples("train") and all(key[20:] in ("-000", "-001") for key in keys)
    assert all(uri.startswith(str(image_folder)) for images in read for uri in images.uris)


def test_a_dataset_without_samples_is_refused(data: Snapshot) -> None:
    with pytest.raises(IgptError, match="snapshot 1 has no images"):
        SnapshotParts(snapshot=replace(data, shards=()), split=None).plan(5)
