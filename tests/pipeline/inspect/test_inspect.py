"""Looking at datasets: history, contents, differences, verification, collection and contact sheets."""

import io
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.dataset import snapshot
from pipeline.errors import IgptError
from pipeline.inspect import history
from pipeline.inspect.contact_sheet import contact_sheet
from pipeline.inspect.gc import collect
from pipeline.inspect.verify import verify
from pipeline.store import objects, presence

pytestmark = pytest.mark.usefixtures("without_cluster")


@pytest.fixture(scope="module")
def twice_built(image_folder: Path, photos: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    """Two snapshots: between them ten images came, one changed, two went, and one was damaged."""
    root = tmp_path_factory.mktemp("looking")
    shutil.copytree(image_folder, root / "raw")
    config = DatasetConfig(
        raw=str(root / "raw"),
        dataset=str(root / "dataset"),
        resolution=16,
        colours=24,
        samples_per_shard=20,
        validation_fraction=0.15,
        test_fraction=0.1,
    )
    build(config)
    (root / "raw" / "bud").mkdir()
    for number in range(10):
        Image.fromarray(photos[100 + number]).save(root / "raw" / "bud" / f"{number}.png")
    Image.fromarray(photos[99]).save(root / "raw" / "temple" / "00.png")
    (root / "raw" / "temple" / "01.png").unlink()
    (root / "raw" / "flower" / "02.jpg").unlink()
    os.truncate(root / "raw" / "flower" / "03.jpg", 700)
    build(config)
    return config


@pytest.fixture
def dataset(twice_built: DatasetConfig, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    shutil.copytree(twice_built.dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


def test_the_history_has_every_snapshot(twice_built: DatasetConfig) -> None:
    first, second = history.summaries(twice_built.dataset)
    assert (first.number, first.parent, first.images, first.rejected, first.latest) == (1, None, 100, 0, False)
    assert (second.number, second.parent, second.images, second.rejected, second.latest) == (2, 1, 107, 1, True)
    assert first.published <= second.published
    with pytest.raises(IgptError, match="no dataset snapshot there"):
        history.summaries(twice_built.raw)


def test_the_contents_are_counted_by_split_class_and_reason(twice_built: DatasetConfig) -> None:
    found = history.contents(snapshot.read(twice_built.dataset))
    by_class = {name: sum(counts.values()) for name, counts in found.images_by_class.items()}
    assert by_class == {"digit": 20, "flower": 38, "temple": 39, "bud": 10}
    for split in snapshot.SPLITS:
        assert found.images_by_split[split] == sum(counts.get(split, 0) for counts in found.images_by_class.values())
    assert found.rejected == {"truncated": 1}


def test_the_difference_names_what_changed(twice_built: DatasetConfig) -> None:
    first, second = (snapshot.read(twice_built.dataset, number) for number in (1, 2))
    found = history.difference(first, second)
    assert (found.added, found.removed, found.changed, found.moved, found.unchanged) == (10, 2, 2, 0, 96)
    raw = twice_built.raw
    assert found.examples["added"] == [f"{raw}/bud/{number}.png" for number in range(10)]
    assert found.examples["removed"] == [f"{raw}/flower/02.jpg", f"{raw}/temple/01.png"]
    assert found.examples["changed"] == [f"{raw}/flower/03.jpg", f"{raw}/temple/00.png"]
    assert (found.rejected_before, found.rejected_after) == ({}, {"truncated": 1})
    assert (found.same_palette, found.new_classes, found.config) == (True, ("bud",), {})
    assert found.shards_kept + found.shards_gone == len(first.shards)
    assert found.shards_kept + found.shards_new == len(second.shards)
    back = history.difference(second, first)
    assert (back.added, back.removed, back.changed) == (2, 10, 2)


def test_a_sound_snapshot_has_no_problems(twice_built: DatasetConfig) -> None:
    for number in (1, 2):
        assert verify(snapshot.read(twice_built.dataset, number)) == []


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("folder", ["shards", "index", "quarantine", "palettes"])
@pytest.mark.parametrize("damage", [Path.unlink, flip_a_bit, lambda path: os.truncate(path, 10)])
def test_damage_of_any_file_is_found(dataset: Path, folder: str, damage: object) -> None:
    chosen = snapshot.read(str(dataset))
    path = next(path for path in chosen.paths if path.startswith(folder))
    damage(dataset / path)  # type: ignore[operator]
    problems = verify(chosen)
    assert [problem.path for problem in problems] == [path], problems


def test_an_index_of_another_shard_is_found(dataset: Path) -> None:
    chosen = snapshot.read(str(dataset))
    full = [shard for shard in chosen.of_split("train") if shard.images == chosen.of_split("train")[0].images]
    assert len(full) > 1
    shutil.copy(dataset / full[1].index_path, dataset / full[0].index_path)
    problems = verify(chosen)
    assert [problem.path for problem in problems] == [full[0].index_path]
    # Nor does it help whoever writes its checksum into the manifest.
    fitting = replace(full[0], index_sha256=full[1].index_sha256)
    forged = replace(chosen, shards=tuple(fitting if shard == full[0] else shard for shard in chosen.shards))
    (problem,) = verify(forged)
    assert (problem.path, "its keys or labels are not those of" in problem.what) == (full[0].index_path, True)


def test_a_manifest_that_leaves_out_a_shard_is_found(dataset: Path) -> None:
    path = dataset / snapshot.snapshot_path(2)
    fields = json.loads(path.read_bytes())
    fields["shards"] = fields["shards"][1:]
    path.write_text(json.dumps(fields))
    (problem,) = verify(snapshot.read(str(dataset), 2))
    assert (problem.path, "source_digest" in problem.what) == (snapshot.snapshot_path(2), True)


def make_litter(dataset: Path) -> set[str]:
    """What builds that were interrupted leave behind, and a note of somebody's."""
    litter = {
        "shards/train-000077-0123456789abcdef.tar",
        "index/train-000077-0123456789abcdef.parquet",
        "quarantine/train-000077-0123456789abcdef.parquet",
        "palettes/00.npy",
        "scans/00.parquet",
        "snapshots/000003.json.claims/1234",
        "active/build-0.json",
    }
    for name in litter:
        objects.write_bytes(str(dataset / name), b"litter")
        os.utime(dataset / name, (1e9, 1e9))
    (dataset / "NOTES.txt").write_text("mine")
    os.utime(dataset / "NOTES.txt", (1e9, 1e9))
    return litter


def test_what_no_snapshot_names_is_removed(dataset: Path) -> None:
    litter = make_litter(dataset)
    assert set(collect(str(dataset), min_age_seconds=3600, dry_run=True).files) == litter
    assert all((dataset / name).exists() for name in litter)
    found = collect(str(dataset), min_age_seconds=3600)
    assert (set(found.files), found.snapshots, found.too_young) == (litter, 2, 0)
    assert not any((dataset / name).exists() for name in litter)
    assert (dataset / "NOTES.txt").exists()
    for number in (1, 2):
        assert verify(snapshot.read(str(dataset), number)) == []


def test_young_files_are_kept(dataset: Path) -> None:
    objects.write_bytes(str(dataset / "shards" / "train-000077-0123456789abcdef.tar"), b"litter")
    found = collect(str(dataset), min_age_seconds=3600)
    assert (found.files, found.too_young) == ([], 1)


def test_nothing_is_removed_while_a_build_runs(dataset: Path) -> None:
    litter = make_litter(dataset)
    with presence.building(str(dataset)), pytest.raises(IgptError, match=r"a build is running \(process \d+ on"):
        collect(str(dataset), min_age_seconds=0)
    assert all((dataset / name).exists() for name in litter)
    assert set(collect(str(dataset), min_age_seconds=0).files) == litter
    assert not list((dataset / "active").glob("*.json"))


def test_a_build_waits_for_a_collection(dataset: Path) -> None:
    order: list[str] = []

    def work() -> None:
        with presence.building(str(dataset)):
            order.append("build")

    with presence.collecting(str(dataset)):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(0.5)
        order.append("collected")
    thread.join(10)
    assert order == ["collected", "build"]


def test_a_build_that_died_long_ago_hinders_nobody(dataset: Path) -> None:
    objects.write_bytes(str(dataset / "active" / "build-dead.json"), b'{"kind": "build", "who": "process 1 on host"}')
    os.utime(dataset / "active" / "build-dead.json", (1e9, 1e9))
    assert "active/build-dead.json" in collect(str(dataset), min_age_seconds=3600).files


def test_a_dataset_without_a_snapshot_is_not_collected(tmp_path: Path) -> None:
    objects.write_bytes(str(tmp_path / "shards" / "train-000000-0.tar"), b"a first build is under way")
    with pytest.raises(IgptError, match="nothing was removed"):
        collect(str(tmp_path), min_age_seconds=0)
    assert (tmp_path / "shards" / "train-000000-0.tar").exists()


def test_a_contact_sheet_shows_the_raw_image_beside_its_tokens(twice_built: DatasetConfig) -> None:
    chosen = snapshot.read(twice_built.dataset)
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(chosen, count=3, seed=1))).convert("RGB")).astype(float)
    assert contact_sheet(chosen, count=3, seed=1) != contact_sheet(chosen, count=3, seed=2)
    for number in range(3):
        left = 8 + number * (2 * 128 + 16)
        raw, quantized = sheet[8:136, left : left + 128], sheet[8:136, left + 128 : left + 256]
        blocks = raw.reshape(16, 8, 16, 8, 3).mean((1, 3))
        assert np.abs(blocks - quantized[4::8, 4::8]).mean() < 25
        assert np.array_equal(quantized, quantized[::8, ::8].repeat(8, 0).repeat(8, 1))


def test_a_contact_sheet_without_raw_images_is_refused(twice_built: DatasetConfig, tmp_path: Path) -> None:
    shutil.copytree(twice_built.raw, tmp_path / "raw")
    moved = replace(twice_built, raw=str(tmp_path / "raw"), dataset=str(tmp_path / "dataset"))
    build(moved)
    shutil.rmtree(tmp_path / "raw")
    with pytest.raises(IgptError, match="none of 3 raw images is where the index says"):
        contact_sheet(snapshot.read(moved.dataset), count=3, seed=0)
