"""A compaction joins small shards: each image and token is there once, as before, and readers of before go on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.dataset import index, record, snapshot, verified_shards
from pipeline.dataset.lifecycle import compact as compacting
from pipeline.dataset.lifecycle.compact import compact, plan
from pipeline.dataset.record import Publisher
from pipeline.dataset.snapshot import SPLITS, ShardEntry, Snapshot
from pipeline.errors import IgptError
from pipeline.inspect.verify import verify
from pipeline.store import objects
from tests.pipeline.dataset.test_snapshot import entry

pytestmark = pytest.mark.usefixtures("without_cluster")
PUBLISHER = Publisher(program="igpt 9.9")


def sized(split: str, number: int, images: int, rejected: int = 0) -> ShardEntry:
    counts = {"corrupt": rejected} if rejected else {}
    return replace(entry(split, number), images=images, samples=images, rejected=counts)


@pytest.mark.parametrize(
    ("sizes", "joined"),
    [
        ([], []),
        ([3], []),
        ([10, 10, 4], []),  # one small shard alone stays
        ([3, 3, 3, 3], [[0, 1, 2]]),  # the fourth does not fit, and is alone
        ([5, 10, 5, 9, 1], [[0, 2]]),  # full ones in between stay where they are
        ([5, 6, 5], [[0, 2]]),  # more than half full is not small
        ([1] * 12, [list(range(10)), [10, 11]]),
        ([0, 0], [[0, 1]]),
    ],
)
def test_small_shards_are_joined_in_their_order(sizes: list[int], joined: list[list[int]]) -> None:
    shards = [sized("train", number, images) for number, images in enumerate(sizes)]
    assemblies = plan(shards, 10)
    assert [[piece.number for piece in one.pieces] for one in assemblies] == joined
    assert len({one.name for one in assemblies}) == len(assemblies)
    other = plan([replace(shard, index_sha256="other") for shard in shards], 10)
    assert {one.name for one in assemblies}.isdisjoint(one.name for one in other), "a name stands for its pieces"


def test_splits_are_not_mixed_and_rejected_images_count() -> None:
    shards = [sized("train", 0, 2, 3), sized("train", 1, 2, 3), sized("train", 2, 2), sized("test", 0, 2)]
    assert [[piece.number for piece in one.pieces] for one in plan(shards, 10)] == [[0, 1]]


def arrive(config: DatasetConfig, photos: np.ndarray, night: int, count: int = 6) -> None:
    folder = Path(config.raw) / f"night{night % 2}"
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = np.roll(photos[(17 * night + number) % len(photos)], night, 1)
        Image.fromarray(pixels).save(folder / f"{night}-{number}.png")


def everything(of: Snapshot) -> dict[str, list[tuple[object, ...]]]:
    """By key what a snapshot says of each image: split, label, samples, and its row; or why it is rejected."""
    found: dict[str, list[tuple[object, ...]]] = {}
    for shard in of.shards:
        view = verified_shards.read(of, shard)
        crops = shard.samples // shard.images if shard.images else 1
        for row, image in enumerate(index.read(of.dataset, shard.index_path).to_pylist()):
            samples = view.tokens_NHW[row * crops : (row + 1) * crops].tobytes()
            labels = set(view.labels_N[row * crops : (row + 1) * crops].tolist())
            assert labels == {image["label"]} and view.key(row * crops)[:20] == image["key"]
            found.setdefault(image["key"], []).append((shard.split, samples, tuple(sorted(image.items()))))
        for image in index.read(of.dataset, shard.quarantine_path).to_pylist() if shard.quarantine_path else ():
            found.setdefault(image["key"], []).append((shard.split, image["reason"], tuple(image.items())))
    return found


@pytest.fixture
def grown(config: DatasetConfig, photos: np.ndarray) -> DatasetConfig:
    """A dataset with three nights of few images, one of them unusable."""
    build(config)
    for night in range(3):
        arrive(config, photos, night)
        if night == 1:
            (Path(config.raw) / "night1" / "broken.png").write_bytes(b"no image")
        build(config)
    return config


@pytest.mark.parametrize("crops", [0, 3])
def test_the_same_images_and_tokens_once_in_fewer_shards(config: DatasetConfig, photos: np.ndarray, crops: int) -> None:
    config = replace(config, crops_per_image=crops, resolution=8)
    build(config)
    for night in range(3):
        arrive(config, photos, night)
        build(config)
    before = snapshot.read(config.dataset)
    told = compact(config.dataset, PUBLISHER, dry_run=True)
    assert snapshot.read(config.dataset) == before and told.joined > told.made > 0
    done = compact(config.dataset, PUBLISHER)
    after = done.snapshot
    assert (done.joined, done.made, done.images, done.bytes) == (told.joined, told.made, told.images, told.bytes)
    assert (after.number, after.parent) == (before.number + 1, before.number)
    assert len(after.shards) == len(before.shards) - done.joined + done.made
    assert verify(after) == [] and verify(before) == [], "a training on the snapshot of before goes on"
    seen = everything(after)
    assert seen == everything(before) and all(len(rows) == 1 for rows in seen.values())
    assert after.source_digest == before.source_digest and after.pixel_counts == before.pixel_counts
    assert [after.samples(split) for split in SPLITS] == [before.samples(split) for split in SPLITS]
    beside = record.read(after)
    assert beside is not None and beside.published_by == "igpt 9.9" and beside.raw_root == config.raw
    assert compact(config.dataset, PUBLISHER).nothing_to_do and snapshot.read(config.dataset) == after
    assert build(config).unchanged, "a rerun takes the joined shards for those that it made"


def test_a_rerun_after_a_compaction_processes_only_what_changed(grown: DatasetConfig, photos: np.ndarray) -> None:
    after = compact(grown.dataset, PUBLISHER).snapshot
    (Path(grown.raw) / "night0" / "0-1.png").unlink()
    Image.fromarray(photos[100]).save(Path(grown.raw) / "night0" / "0-2.png")
    rerun = build(grown)
    assert rerun.planned.plan is not None and verify(rerun.snapshot) == []
    assert (rerun.planned.plan.changed_images, rerun.planned.plan.deleted_images) == (1, 1)
    before, now = everything(after), everything(rerun.snapshot)
    assert len(before.keys() - now.keys()) == 1
    assert sum(before[key][0][1] != now[key][0][1] for key in now) == 1, "the samples of others are copied"


def test_kept_columns_of_other_types_are_joined(config: DatasetConfig, photos: np.ndarray, tmp_path: Path) -> None:
    def labels(value: str) -> None:
        names = sorted(str(path.relative_to(config.raw)) for path in Path(config.raw).rglob("*.*"))
        rows = [f"{name},{name[0]},{value if 'night0' in name else 7}" for name in names]
        (tmp_path / "labels.csv").write_text("\n".join(["file_name,label,size", *rows]))

    config = replace(config, labels=str(tmp_path / "labels.csv"), keep_columns=("size",), samples_per_shard=200)
    labels("7")
    first = build(config).snapshot
    arrive(config, photos, 0)
    labels("2.5")
    build(config)
    after = compact(config.dataset, PUBLISHER).snapshot
    assert len(after.shards) < len(first.shards) + 1
    sizes = {row[0][2] for row in everything(after).values()}
    values = {dict(row)["size"] for row in sizes}  # type: ignore[call-overload]
    assert values == {7.0, 2.5} and build(config).unchanged


DEATHS = {
    "before the first shard": ("assemble", 0),
    "before the last shard": ("assemble", -1),
    "before the manifest": ("commit", 0),
}


@pytest.mark.parametrize("death", list(DEATHS))
def test_after_a_crash_nothing_is_published_and_the_same_command_ends_it(
    death: str, grown: DatasetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, call = DEATHS[death]
    last = compact(grown.dataset, PUBLISHER, dry_run=True).made - 1
    count = 0
    real: Callable[..., object] = getattr(compacting, name)

    def dies(*arguments: object) -> object:
        nonlocal count
        count += 1
        if count - 1 == (last if call < 0 else call):
            raise KeyboardInterrupt
        return real(*arguments)

    before = snapshot.read(grown.dataset)
    expected = everything(before)
    with monkeypatch.context() as patched:
        patched.setattr(compacting, name, dies)
        with pytest.raises(KeyboardInterrupt):
            compact(grown.dataset, PUBLISHER)
    assert snapshot.read(grown.dataset) == before and verify(before) == []
    after = compact(grown.dataset, PUBLISHER).snapshot
    assert everything(after) == expected and verify(after) == []


@pytest.mark.parametrize("folder", ["shards", "index", "quarantine"])
def test_a_damaged_file_is_one_line_and_nothing_is_published(grown: DatasetConfig, folder: str) -> None:
    before = snapshot.read(grown.dataset)
    for path in (Path(grown.dataset) / folder).iterdir():
        objects.write_bytes(str(path), path.read_bytes()[:-7] + b"damaged")
    with pytest.raises(IgptError, match="checksum") as raised:
        compact(grown.dataset, PUBLISHER)
    assert "\n" not in str(raised.value) and snapshot.read(grown.dataset) == before
