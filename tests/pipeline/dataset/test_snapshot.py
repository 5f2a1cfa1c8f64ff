"""The manifest: a round trip, complete commits, and a losing build that damages nothing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset import snapshot
from pipeline.dataset.decoding import Decoding
from pipeline.dataset.publish import commit
from pipeline.dataset.snapshot import ShardEntry, Snapshot, sort_shards
from pipeline.errors import IgptError
from pipeline.images import palette
from pipeline.store import objects

PALETTE = np.array([[-1, -1, -1], [0, 0.5, 1], [1, 1, 1]], np.float32)


def entry(split: str, index: int, samples: int = 4) -> ShardEntry:
    return ShardEntry(
        name=f"{split}-{index:06d}-0123456789abcdef",
        split=split,
        samples=samples,
        images=samples,
        bytes=100 + index,
        sha256=f"{index:064x}",
        rejected={"truncated": 1},
        quarantine=f"{split}-{index:06d}-fedcba9876543210",
        index_sha256="0" * 64,
        decoding=(Decoding(rule=1, pillow="13.0", images=samples),) if samples else (),
        quarantine_sha256="1" * 64,
    )


def make(dataset: Path, number: int = 1, **fields: object) -> Snapshot:
    """A snapshot whose shards and palette lie in the dataset."""
    made = Snapshot(
        **{
            "number": number,
            "parent": number - 1 or None,
            "resolution": 32,
            "classes": ("cat", "größer"),
            "palette_sha256": palette.sha256(PALETTE),
            "colours": 3,
            "config": {"resolution": 32, "palette": None, "validation_fraction": 0.04},
            "source_digest": "ab" * 32,
            "shards": (entry("train", 0), entry("train", 1), entry("validation", 0, samples=0)),
            "pixel_counts": {"train": "2" * 64},
            "dataset": str(dataset),
            **fields,
        }
    )
    for shard in made.shards:
        objects.write_bytes(objects.join(made.dataset, shard.path), bytes(shard.bytes))
    for path in made.paths:
        if not path.startswith("shards/"):
            objects.write_bytes(objects.join(made.dataset, path), b"something")
    objects.write_bytes(
        objects.join(made.dataset, snapshot.palette_path(made.palette_sha256)), palette.to_bytes(PALETTE)
    )
    return made


def files(dataset: Path) -> dict[str, bytes]:
    return {str(path.relative_to(dataset)): path.read_bytes() for path in dataset.rglob("*") if path.is_file()}


def test_a_committed_snapshot_is_read_as_it_was(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert snapshot.latest_number(str(tmp_path)) is None
    commit(made)
    for number in (None, 1):
        read = snapshot.read(str(tmp_path), number)
        assert read == made
        assert read.digests == made.digests
        assert read.to_bytes() == made.to_bytes()
        assert np.array_equal(read.palette(), PALETTE)
    assert snapshot.latest_number(str(tmp_path)) == 1


def test_the_manifest_does_not_contain_its_location(tmp_path: Path) -> None:
    here, there = make(tmp_path / "here"), make(tmp_path / "there")
    assert here.to_bytes() == there.to_bytes()
    assert str(tmp_path) not in here.to_bytes().decode()
    assert Snapshot.from_bytes(here.to_bytes(), "elsewhere").dataset == "elsewhere"


def test_the_newest_snapshot_is_read_and_the_older_ones_stay(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path, number=2, resolution=48)
    commit(first)
    commit(second)
    assert snapshot.read(str(tmp_path)) == second
    assert snapshot.read(str(tmp_path), 1) == first


def test_samples_and_shards_by_split(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert (made.samples(), made.samples("train"), made.samples("validation"), made.samples("test")) == (8, 8, 0, 0)
    assert [shard.name for shard in made.of_split("train")] == [entry("train", 0).name, entry("train", 1).name]
    for split in ("validation", "test"):
        with pytest.raises(IgptError, match=f"no images in split '{split}'.*{split}_fraction"):
            made.of_split(split)


def test_rejected_images_are_summed_over_the_shards(tmp_path: Path) -> None:
    made = make(tmp_path)
    shards = (replace(made.shards[0], rejected={"truncated": 2, "corrupt": 1}), *made.shards[1:])
    assert replace(made, shards=shards).rejected == {"corrupt": 1, "truncated": 4}


@pytest.mark.parametrize("content", [b"", b"two", b"1.5", b"\xff\xfe", b"1 2"])
def test_a_damaged_latest_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "LATEST").write_bytes(content)
    with pytest.raises(IgptError, match=r"LATEST does not hold a number"):
        snapshot.read(str(tmp_path))


def test_a_missing_snapshot_is_named(tmp_path: Path) -> None:
    with pytest.raises(IgptError, match="no dataset snapshot there"):
        snapshot.read(str(tmp_path / "missing"))
    commit(make(tmp_path))
    with pytest.raises(IgptError, match="there is no snapshot 7"):
        snapshot.read(str(tmp_path), 7)


def changed(data: bytes, **fields: object) -> bytes:
    return json.dumps({**json.loads(data), **fields}).encode()


@pytest.mark.parametrize(("schema", "remedy"), [(4, "upgrade"), (1, "build the dataset again")])
def test_a_manifest_of_another_schema_says_what_to_do(tmp_path: Path, schema: int, remedy: str) -> None:
    with pytest.raises(IgptError, match=f"schema {schema}, this version reads 3; {remedy}"):
        Snapshot.from_bytes(changed(make(tmp_path).to_bytes(), schema=schema), "a dataset")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-40],
        lambda data: b"\xff" + data,
        lambda data: b"[1, 2]",
        lambda data: b"{}",
        lambda data: changed(data, shards=None),
        lambda data: changed(data, shards=[{"name": "train-000000"}]),
        lambda data: changed(data, unheard_of=1),
    ],
    ids=["empty", "cut", "no text", "list", "no fields", "no shards", "half a shard", "unknown field"],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, damage: object) -> None:
    with pytest.raises(IgptError, match=r"^a dataset: damaged snapshot manifest"):
        Snapshot.from_bytes(damage(make(tmp_path).to_bytes()), "a dataset")


def test_a_palette_that_is_not_the_manifests_is_refused(tmp_path: Path) -> None:
    made = make(tmp_path)
    path = tmp_path / snapshot.palette_path(made.palette_sha256)
    path.write_bytes(palette.to_bytes(PALETTE[::-1]))
    with pytest.raises(IgptError, match="the palette is damaged"):
        made.palette()


@pytest.mark.parametrize(
    "fields",
    [
        {"classes": ("cat",)},
        {"palette_sha256": "0" * 64},
        {"config": {"seed": 1}},
        {"shards": (entry("train", 1), entry("train", 0), entry("validation", 0, samples=0))},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_the_content_digest_changes_with_what_a_training_sees(tmp_path: Path, fields: dict[str, object]) -> None:
    made = make(tmp_path)
    assert make(tmp_path, **fields).content_digest != made.content_digest
    renamed = tuple(replace(shard, name="train-000000-0000000000000000", index_sha256="") for shard in made.shards)
    same = replace(made, number=9, parent=8, shards=renamed, source_digest="", pixel_counts={}, dataset="elsewhere")
    assert same.content_digest == made.content_digest


def test_content_that_is_published_anew_is_known_by_the_digest_of_a_manifest_of_before(tmp_path: Path) -> None:
    before = replace(make(tmp_path), schema=2)
    assert before.is_known_as(before.manifest_digest) and before.is_known_as(before.content_digest)
    after = replace(before, schema=3).following(before)
    again = replace(after, earlier_digests=()).following(after)
    for made in (after, again):
        assert made.content_digest == before.content_digest and made.is_known_as(before.manifest_digest)
        assert Snapshot.from_bytes(made.to_bytes(), str(tmp_path)) == made
    other = replace(before, schema=3, classes=("cat",)).following(before)
    assert not other.is_known_as(before.manifest_digest) and not other.is_known_as(None)


def test_a_manifest_in_parts_says_to_upgrade(tmp_path: Path) -> None:
    assert json.loads(make(tmp_path).to_bytes())["parts"] == []
    with pytest.raises(IgptError, match="in parts, which this version does not read; upgrade igpt-pipeline"):
        Snapshot.from_bytes(changed(make(tmp_path).to_bytes(), parts=["parts/0.json"]), "a dataset")


def test_shards_are_in_the_order_of_splits_and_numbers() -> None:
    ordered = [entry(split, number) for split in ("train", "validation", "test") for number in (0, 2, 10)]
    shuffled = [ordered[number] for number in np.random.default_rng(0).permutation(9)]
    assert sort_shards(shuffled) == tuple(ordered)
