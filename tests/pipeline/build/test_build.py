"""A full build: every image in one place, reproducible bytes, and nothing incomplete is published."""

import hashlib
import json
import os
import shutil
import tarfile
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.build import plan
from pipeline.build.build import BuildResult, build
from pipeline.config import DatasetConfig
from pipeline.dataset import snapshot
from pipeline.dataset.keys import key_of
from pipeline.dataset.shards import ShardView
from pipeline.errors import IgptError
from pipeline.images import decode, palette
from pipeline.images.decode import Recipe
from pipeline.source import list_source
from pipeline.source.listing import Listing
from pipeline.store import objects
from pipeline.store.lease import Fence, LeaseLostError

BAD_IMAGES = {
    "temple/zero.png": "zero_bytes",
    "temple/text.png": "not_an_image",
    "flower/cut.jpg": "truncated",
    "flower/tiny.png": "too_small",
}


pytestmark = pytest.mark.usefixtures("without_cluster")


@pytest.fixture(scope="module")
def raw(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image folder with four unusable files."""
    root = tmp_path_factory.mktemp("raw") / "images"
    shutil.copytree(image_folder, root)
    (root / "temple" / "zero.png").write_bytes(b"")
    (root / "temple" / "text.png").write_bytes(b"<html>not found</html>")
    (root / "flower" / "cut.jpg").write_bytes((root / "flower" / "00.jpg").read_bytes()[:900])
    Image.new("RGB", (64, 15)).save(root / "flower" / "tiny.png")
    return root


@pytest.fixture(scope="module")
def config(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    return DatasetConfig(
        raw=str(raw),
        dataset=str(tmp_path_factory.mktemp("dataset") / "built"),
        resolution=16,
        colours=24,
        samples_per_shard=20,
        validation_fraction=0.15,
        test_fraction=0.1,
        max_reject_fraction=0.1,
    )


@pytest.fixture(scope="module")
def built(config: DatasetConfig) -> BuildResult:
    """A fresh build; the tests that change a dataset make their own."""
    return build(config)


def contents(dataset: str | Path) -> dict[str, bytes]:
    """The files of a dataset by path, without the records, which contain times."""
    paths = [path for path in Path(dataset).rglob("*") if path.is_file() and path.parent.name != "records"]
    return {str(path.relative_to(dataset)): path.read_bytes() for path in paths}


def times(dataset: str | Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in [Path(dataset), *Path(dataset).rglob("*")]}


def rows(dataset: str | Path, folder: str) -> list[dict[str, object]]:
    tables = [pq.read_table(path) for path in sorted((Path(dataset) / folder).glob("*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


def tokens_by_key(result: BuildResult) -> dict[str, np.ndarray]:
    """Token images of all shards by key; fails on a key that is there twice."""
    tokens: dict[str, np.ndarray] = {}
    for shard in result.snapshot.shards:
        path = Path(result.snapshot.dataset) / shard.path
        view = ShardView.open(path, samples=shard.samples, side=result.snapshot.resolution)
        for key, tokens_HW in zip(view.keys_N, view.tokens_NHW, strict=True):
            assert key.decode() not in tokens
            tokens[key.decode()] = np.array(tokens_HW)
    return tokens


def test_the_counts_add_up(built: BuildResult, config: DatasetConfig) -> None:
    shards = built.snapshot.shards
    assert built.planned.images_in == 104
    assert built.snapshot.samples() == 100
    assert sum(built.snapshot.samples(split) for split in snapshot.SPLITS) == 100
    assert built.snapshot.rejected == Counter(BAD_IMAGES.values())
    assert (built.unchanged, built.shards_reused, built.planned.left_out) == (False, 0, {})
    for shard in shards:
        account = pq.read_table(Path(config.dataset) / shard.index_path)
        assert account.num_rows == shard.samples == shard.images
        assert shard.samples + sum(shard.rejected.values()) <= config.samples_per_shard


def test_every_image_is_in_the_index_or_in_quarantine_once(built: BuildResult, raw: Path) -> None:
    indexed = [row["uri"] for row in rows(built.snapshot.dataset, "index")]
    rejected = {row["uri"]: row["reason"] for row in rows(built.snapshot.dataset, "quarantine")}
    assert sorted([*indexed, *rejected]) == sorted(str(path.relative_to(raw)) for path in raw.rglob("*.*"))
    assert rejected == BAD_IMAGES
    assert all(row["detail"] for row in rows(built.snapshot.dataset, "quarantine"))


def test_the_manifest_says_what_the_shards_are(built: BuildResult) -> None:
    dataset = Path(built.snapshot.dataset)
    assert snapshot.read(str(dataset)) == built.snapshot
    assert built.snapshot.classes == ("digit", "flower", "temple")
    for shard in built.snapshot.shards:
        data = (dataset / shard.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
    assert {path.stem for path in (dataset / "shards").iterdir()} == {shard.name for shard in built.snapshot.shards}


def test_the_shards_hold_the_quantized_images(built: BuildResult, raw: Path) -> None:
    table = palette.compute_lookup_table(built.snapshot.palette())
    tokens = tokens_by_key(built)
    index = {row["key"]: row for row in rows(built.snapshot.dataset, "index")}
    assert tokens.keys() == index.keys()
    for key, row in index.items():
        path = raw / str(row["uri"])
        data = path.read_bytes()
        pictures = decode.decode(data, Recipe(resolution=16, smallest_side=16, max_pixels=10**6))
        assert key == key_of(str(path.relative_to(raw)))
        assert np.array_equal(tokens[key], palette.quantize(pictures.pixels[0], table))
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["bytes"] == len(data)
        assert (row["width"], row["height"]) == (pictures.width, pictures.height)
        assert built.snapshot.classes[int(str(row["label"]))] == path.parent.name


def test_the_labels_of_the_shards_are_those_of_the_index(built: BuildResult) -> None:
    for shard in built.snapshot.shards:
        path = Path(built.snapshot.dataset) / shard.path
        view = ShardView.open(path, samples=shard.samples, side=16)
        index = pq.read_table(Path(built.snapshot.dataset) / "index" / f"{shard.name}.parquet")
        assert [key.decode() for key in view.keys_N] == index["key"].to_pylist()
        assert view.labels_N.tolist() == index["label"].to_pylist()


def test_a_fresh_build_elsewhere_has_the_same_bytes(built: BuildResult, config: DatasetConfig, tmp_path: Path) -> None:
    again = build(replace(config, dataset=str(tmp_path / "elsewhere")))
    assert again.snapshot.manifest_digest == built.snapshot.manifest_digest
    assert contents(tmp_path / "elsewhere") == contents(config.dataset)


def test_a_build_of_the_same_inputs_writes_nothing(built: BuildResult, config: DatasetConfig) -> None:
    before = times(config.dataset)
    again = build(config)
    assert again.unchanged
    assert again.snapshot == built.snapshot
    assert times(config.dataset) == before


def test_an_interrupted_build_keeps_what_was_finished(
    built: BuildResult, config: DatasetConfig, tmp_path: Path
) -> None:
    dataset = tmp_path / "interrupted"
    finished, without_index, without_tar, cut = [shard.name for shard in built.snapshot.of_split("train")][:4]
    for folder, suffix in (("shards", "tar"), ("index", "parquet"), ("quarantine", "parquet")):
        (dataset / folder).mkdir(parents=True)
        for name in (finished, without_index, without_tar, cut):
            source = Path(config.dataset) / folder / f"{name}.{suffix}"
            if source.exists():
                shutil.copy(source, dataset / folder)
    (dataset / "index" / f"{without_index}.parquet").unlink()
    (dataset / "shards" / f"{without_tar}.tar").unlink()
    os.truncate(dataset / "shards" / f"{cut}.tar", 1000)
    before = times(dataset)
    resumed = build(replace(config, dataset=str(dataset)))
    assert resumed.shards_reused == 1
    assert contents(dataset) == contents(config.dataset)
    after = times(dataset)
    for path in (f"shards/{finished}.tar", f"index/{finished}.parquet"):
        assert after[str(dataset / path)] == before[str(dataset / path)]


def test_too_many_rejects_publish_nothing(built: BuildResult, config: DatasetConfig, tmp_path: Path) -> None:
    strict = replace(config, dataset=str(tmp_path / "strict"), max_reject_fraction=0.01)
    with pytest.raises(IgptError, match=r"4 of 104 images were rejected .*max_reject_fraction 0\.01") as raised:
        build(strict)
    assert all(reason in str(raised.value) for reason in BAD_IMAGES.values())
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "strict" / "LATEST").exists()
    assert not (tmp_path / "strict" / "snapshots").exists()
    assert len(rows(strict.dataset, "quarantine")) == 4
    # The shards are finished: with a higher limit they are published at once.
    accepted = build(replace(strict, max_reject_fraction=0.1))
    assert accepted.shards_reused == len(accepted.snapshot.shards)
    assert accepted.snapshot.manifest_digest == built.snapshot.manifest_digest


def test_a_tar_gives_the_tokens_of_the_folder(
    built: BuildResult, config: DatasetConfig, raw: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "raw.tar", "w") as archive:
        archive.add(raw, ".")
    from_tar = build(replace(config, raw=str(tmp_path / "raw.tar"), dataset=str(tmp_path / "dataset")))
    assert from_tar.snapshot.rejected == built.snapshot.rejected
    assert from_tar.snapshot.palette_sha256 == built.snapshot.palette_sha256
    actual, expected = tokens_by_key(from_tar), tokens_by_key(built)
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[key], expected[key]) for key in expected)


def test_a_shard_whose_images_are_all_rejected_is_accounted_for(
    config: DatasetConfig, raw: Path, tmp_path: Path
) -> None:
    shutil.copytree(raw, tmp_path / "raw")
    with Listing() as listing:
        list_source.list_source(replace(config, raw=str(tmp_path / "raw")), listing)
        splits = plan.assign_splits(listing.rows, config)
        held_out = [Path(url) for url in listing.take(np.flatnonzero(splits == 1))["url"].to_pylist()]
    assert held_out
    for path in held_out:
        path.write_bytes(b"")
    loose = replace(config, raw=str(tmp_path / "raw"), dataset=str(tmp_path / "dataset"), max_reject_fraction=1.0)
    result = build(loose)
    assert result.snapshot.samples("validation") == 0
    assert result.snapshot.samples() + sum(result.snapshot.rejected.values()) == 104
    assert len(tokens_by_key(result)) == result.snapshot.samples()


def test_a_given_palette_is_taken_as_it_is(config: DatasetConfig, tmp_path: Path) -> None:
    corners = np.array([[r, g, b] for r in (-1, 1) for g in (-1, 1) for b in (-1, 1)], np.float32)
    (tmp_path / "corners.npy").write_bytes(palette.to_bytes(corners))
    given = replace(config, palette=str(tmp_path / "corners.npy"), colours=8, dataset=str(tmp_path / "dataset"))
    result = build(given)
    assert np.array_equal(result.snapshot.palette(), corners)
    assert max(tokens_HW.max() for tokens_HW in tokens_by_key(result).values()) == 7
    with pytest.raises(IgptError, match="has 8 colours and colours is 24: set colours to 8"):
        build(replace(given, colours=24, dataset=str(tmp_path / "other")))
    with pytest.raises(IgptError, match="no palette there"):
        build(replace(given, palette=str(tmp_path / "missing.npy"), dataset=str(tmp_path / "other")))


@pytest.mark.parametrize(
    ("content", "words"),
    [("black", "the images have a single colour"), ("text", "none of 5 sampled images could be decoded")],
)
def test_images_that_give_no_palette_are_refused_in_one_line(
    config: DatasetConfig, tmp_path: Path, content: str, words: str
) -> None:
    (tmp_path / "raw").mkdir()
    for number in range(5):
        path = tmp_path / "raw" / f"{number}.png"
        if content == "black":
            Image.new("RGB", (32, 32)).save(path)
        else:
            path.write_text(content)
    poor = replace(
        config,
        raw=str(tmp_path / "raw"),
        dataset=str(tmp_path / "dataset"),
        validation_fraction=0.0,
        test_fraction=0.0,
    )
    with pytest.raises(IgptError, match=words) as raised:
        build(poor)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "dataset").exists()


def test_progress_ends_where_the_images_do(config: DatasetConfig, built: BuildResult, tmp_path: Path) -> None:
    shutil.copytree(config.dataset, tmp_path / "dataset")
    (tmp_path / "dataset" / "LATEST").unlink()
    shutil.rmtree(tmp_path / "dataset" / "snapshots")
    calls: list[tuple[str, int, int]] = []
    build(
        replace(config, dataset=str(tmp_path / "dataset")),
        progress=lambda step, done, total, detail="": calls.append((step, done, total)),
    )
    shards = [(done, total) for step, done, total in calls if step == "shards"]
    assert shards == sorted(shards)
    assert shards[-1] == (104, 104)
    assert {step for step, _, _ in calls} == {"list", "palette", "shards", "count"}


def take_term(folder: str, term: int) -> Fence:
    """The fence of a process that has just taken a term."""
    holder = f"holder of term {term}"
    objects.write_bytes(objects.join(folder, "lease", f"{term:08d}.json"), json.dumps({"id": holder}).encode())
    return Fence(folder=folder, term=term, holder=holder)


def test_a_build_that_lost_its_lease_publishes_nothing_and_the_next_one_uses_its_shards(
    image_folder: Path, tmp_path: Path
) -> None:
    config = DatasetConfig(raw=str(image_folder), dataset=str(tmp_path / "built"), resolution=16, colours=24)
    first, others = take_term(config.dataset, 1), []

    def progress(step: str, done: int, total: int, detail: str = "") -> None:
        if step == "shards":
            others.append(take_term(config.dataset, 2))  # in the middle of the work

    with pytest.raises(LeaseLostError, match="another process took over"):
        build(config, progress=progress, exclusively=lambda dataset: nullcontext(first))
    assert snapshot.latest_number(config.dataset) is None and not snapshot.numbers(config.dataset)
    heir = build(config, exclusively=lambda dataset: nullcontext(others[0]))
    assert heir.snapshot.number == 1 and heir.shards_reused == len(heir.snapshot.shards)
