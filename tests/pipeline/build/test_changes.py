"""What counts as a change of the source: times decide what is read again, bytes decide whether it changed."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.build.build import BuildResult, build, plan_build
from pipeline.config import DatasetConfig
from pipeline.dataset import index, record, snapshot
from pipeline.errors import IgptError
from pipeline.images import decode
from pipeline.images.decode import Pictures
from pipeline.inspect.verify import verify
from pipeline.source import raw_reads
from pipeline.store import bulk, local_files
from tests.conftest import write_tar
from tests.pipeline.build.test_build import contents, times, tokens_by_key

pytestmark = pytest.mark.usefixtures("without_cluster")

TEMPLE = "temple/01.png"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of the raw images that are read, as they are read."""
    addresses: list[str] = []
    read_objects = bulk.read_objects
    monkeypatch.setattr(
        raw_reads.bulk, "read_objects", lambda urls, sizes: (addresses.extend(urls), read_objects(urls, sizes))[1]
    )
    return addresses


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the images that are decoded, as they are decoded."""
    keys: list[str] = []
    decode_one = decode.decode
    monkeypatch.setattr(decode, "decode", lambda *a: (keys.append(a[2]), decode_one(*a))[1])
    return keys


def touch(raw: Path) -> Path:
    os.utime(raw / TEMPLE, (1, 1))
    return raw


def change_mode(raw: Path) -> Path:
    (raw / TEMPLE).chmod(0o600)
    return raw


def move(raw: Path) -> Path:
    return raw.rename(raw.with_name("elsewhere"))


def copy_with_new_times(raw: Path) -> Path:
    shutil.copytree(raw, raw.with_name("copy"), copy_function=shutil.copyfile)
    shutil.rmtree(raw)
    return raw.with_name("copy")


def write_the_same(raw: Path) -> Path:
    data = (raw / TEMPLE).read_bytes()
    (raw / TEMPLE).unlink()
    (raw / TEMPLE).write_bytes(data)
    return raw


def replace_under_the_same_time(raw: Path) -> Path:
    """As tar, rsync -t and cp -p leave a file: another content with the size and the time of the old one."""
    path = raw / TEMPLE
    before = path.stat()
    data = path.read_bytes()
    path.write_bytes(data[:60] + bytes([data[60] ^ 255]) + data[61:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    return raw


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What happens to the raw images, and what the next build does."""

    happens: Callable[[Path], Path]
    """Returns where the raw images are then."""
    read: int
    """Number of images that are read again."""
    changed: int = 0


@pytest.mark.parametrize(
    "situation",
    [
        Situation(happens=lambda raw: raw, read=0),
        Situation(happens=touch, read=1),
        Situation(happens=change_mode, read=1),
        Situation(happens=write_the_same, read=1),
        Situation(happens=move, read=0),
        Situation(happens=copy_with_new_times, read=100),
        Situation(happens=replace_under_the_same_time, read=2, changed=1),  # compared, then decoded
    ],
    ids=lambda situation: situation.happens.__name__,
)
def test_the_bytes_decide_what_changed(config: DatasetConfig, situation: Situation, reads: list[str]) -> None:
    first = build(config)
    config = replace(config, raw=str(situation.happens(Path(config.raw))))
    before = contents(config.dataset)
    reads.clear()
    second = build(config)
    assert len(reads) == situation.read
    if situation.changed:
        assert second.planned.plan is not None and second.planned.plan.changed_images == situation.changed
    else:
        assert second.unchanged and second.snapshot == first.snapshot
        assert {path: data for path, data in contents(config.dataset).items() if not path.startswith("seen/")} == before
    reads.clear()
    written = times(config.dataset)
    assert build(config).unchanged and reads == [], "what was read once is not read again"
    assert times(config.dataset) == written
    assert verify(second.snapshot) == []
    beside = record.of_addresses(second.snapshot)
    for shard in second.snapshot.shards:
        table = index.with_addresses(index.read(config.dataset, shard.index_path), beside)
        assert all(Path(url).exists() for url in (*table["url"].to_pylist(), *table["uri"].to_pylist()))


def test_a_moved_source_is_told_and_its_record_follows(config: DatasetConfig) -> None:
    build(config)
    moved = replace(config, raw=str(move(Path(config.raw))))
    assert plan_build(moved).moved_from == config.raw
    assert build(moved).planned.moved_from == config.raw
    beside = record.read(snapshot.read(config.dataset))
    assert beside is not None and (beside.raw_root, beside.former_roots) == (moved.raw, (config.raw,))
    assert build(moved).planned.moved_from is None


def test_a_touched_image_in_quarantine_stays_there(config: DatasetConfig, reads: list[str]) -> None:
    (Path(config.raw) / TEMPLE).write_bytes(b"no image")
    first = build(config)
    touch(Path(config.raw))
    reads.clear()
    assert build(config).snapshot == first.snapshot and len(reads) == 1
    assert build(config).unchanged and len(reads) == 1


def test_a_touched_duplicate_changes_nothing(config: DatasetConfig) -> None:
    config = replace(config, drop_duplicates=True)
    shutil.copy(Path(config.raw) / TEMPLE, Path(config.raw) / "temple" / "twin.png")
    first = build(config)
    assert first.snapshot.rejected == {"duplicate": 1}
    for name in (TEMPLE, "temple/twin.png"):
        os.utime(Path(config.raw) / name, (1, 1))
    assert build(config).snapshot == first.snapshot


def test_touched_containers_are_scanned_once_and_found_after_a_move(
    config: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {str(p.relative_to(config.raw)): p.read_bytes() for p in sorted(Path(config.raw).rglob("*.*"))}
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "all.tar", members)
    config = replace(config, raw=str(tmp_path / "tars"))
    first = build(config)
    scanned: list[str] = []
    scan = raw_reads.containers.scan
    monkeypatch.setattr(
        raw_reads.containers, "scan", lambda file, keep: (scanned.append(file.url), scan(file, keep))[1]
    )
    os.utime(tmp_path / "tars" / "all.tar", (1, 1))
    for _ in range(2):
        assert build(config).snapshot == first.snapshot
        assert len(scanned) == 1
    (tmp_path / "tars").rename(tmp_path / "moved")
    assert build(replace(config, raw=str(tmp_path / "moved"))).snapshot == first.snapshot
    assert len(scanned) == 1


def test_verify_bytes_finds_what_no_time_shows(config: DatasetConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_files, "tag", lambda status: f"{status.st_size}-{status.st_mtime_ns}-0")
    first = build(config)
    replace_under_the_same_time(Path(config.raw))
    assert build(config).unchanged
    assert build(config, verify_bytes=True).snapshot != first.snapshot
    second = build(config)
    assert second.unchanged and second.snapshot.number == 2
    assert build(config, verify_bytes=True).unchanged
    assert verify(second.snapshot) == []
    fresh = build(replace(config, dataset=f"{config.dataset}-fresh", palette=palette_of(second)))
    assert fresh.snapshot.images() == second.snapshot.images()
    actual, expected = tokens_by_key(second), tokens_by_key(fresh)
    assert actual.keys() == expected.keys() and all(np.array_equal(actual[key], expected[key]) for key in expected)


def palette_of(result: BuildResult) -> str:
    return str(Path(result.snapshot.dataset) / snapshot.palette_path(result.snapshot.palette_sha256))


def test_another_label_needs_no_decoding(config: DatasetConfig, tmp_path: Path, decoded: list[str]) -> None:
    names = sorted(str(path.relative_to(config.raw)) for path in Path(config.raw).rglob("*.*"))
    labels = tmp_path / "labels.csv"
    labels.write_text("file_name,label\n" + "".join(f"{name},{name[0]}\n" for name in names))
    labelled = replace(config, labels=str(labels))
    build(labelled)
    labels.write_text(labels.read_text().replace(f"{TEMPLE},t", f"{TEMPLE},f"))
    decoded.clear()
    result = build(labelled)
    assert result.planned.plan is not None and result.planned.plan.changed_images == 1
    assert decoded == [] and verify(result.snapshot) == []


@pytest.mark.parametrize(("gone", "refused"), [(20, False), (21, True)])
def test_a_build_that_would_drop_many_images_publishes_nothing(config: DatasetConfig, gone: int, refused: bool) -> None:
    build(config)
    for path in sorted(Path(config.raw).rglob("*.png"))[:gone]:
        path.unlink()
    if not refused:
        assert build(config).snapshot.images() == 100 - gone
        return
    before = contents(config.dataset)
    with pytest.raises(IgptError, match=rf"{gone} of the 100 images of snapshot 1 are gone.*max_deleted_fraction 0.2"):
        build(config)
    with pytest.raises(IgptError, match="set max_deleted_fraction=1"):
        plan_build(replace(config, resolution=8))
    assert contents(config.dataset) == before
    assert build(replace(config, max_deleted_fraction=1.0)).snapshot.images() == 100 - gone


@pytest.mark.parametrize("place", ["tokens", "temple/tokens", "link"])
def test_a_dataset_inside_its_source_is_not_listed(config: DatasetConfig, place: str, tmp_path: Path) -> None:
    dataset = Path(config.raw) / place
    if place == "link":
        (tmp_path / "real").mkdir()
        dataset.symlink_to(tmp_path / "real")
    inside = replace(config, dataset=str(dataset))
    assert build(inside).planned.left_out == {}
    assert build(inside).unchanged
    with pytest.raises(IgptError, match=r"raw and dataset are both .*: give the dataset a folder of its own"):
        build(replace(config, dataset=config.raw))


def test_a_palette_that_is_fitted_to_the_same_publishes_nothing(config: DatasetConfig) -> None:
    first = build(config)
    again = build(config, refit_palette=True)
    assert again.unchanged and again.snapshot == first.snapshot
    assert again.planned.palette == "kept"


def test_classes_without_an_image_leave_when_all_is_made_anew(config: DatasetConfig) -> None:
    build(config)
    shutil.rmtree(Path(config.raw) / "digit")
    kept = build(config)
    assert kept.snapshot.classes == ("digit", "flower", "temple"), "shards contain their numbers"
    anew = build(replace(config, resolution=8))
    assert anew.snapshot.classes == ("flower", "temple")
    assert verify(anew.snapshot) == []


def test_an_upgrade_keeps_images_and_tries_refused_ones_once_more(
    config: DatasetConfig, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    """As when a new version of the decoder reads a file that the old one refused."""
    decode_one = decode.decode
    for name in ("flower/00.jpg", "flower/01.jpg"):
        (Path(config.raw) / name).write_bytes(b"no image")
    first = build(config)
    assert first.planned.older_images == 0
    monkeypatch.setattr(decode, "DECODING_RULE", 99)

    def newer(data: bytes, recipe: decode.Recipe, key: str = "") -> Pictures | decode.Rejection:
        return decode_one((Path(config.raw) / TEMPLE).read_bytes() if data == b"no image" else data, recipe, key)

    monkeypatch.setattr("pipeline.build.quarantine.decode_rows", _in_process(monkeypatch))
    # Nothing that was refused can be read yet: that is found out once.
    decoded.clear()
    assert build(config).snapshot == first.snapshot and len(decoded) == 2
    decoded.clear()
    told = build(config)
    assert told.unchanged and decoded == []
    assert (told.planned.older_images, told.planned.older_rules) == (98, (first.planned.rule,))
    monkeypatch.setattr(decode, "DECODING_RULE", 100)
    monkeypatch.setattr(decode, "decode", newer)
    result = build(config)
    plan = result.planned.plan
    assert plan is not None and result.planned.recovered == 2
    assert (plan.rewrite, plan.drop, plan.new_images, plan.changed_images) == ((), (), 0, 0)
    assert (result.snapshot.rejected, result.snapshot.images()) == ({}, 100)
    assert verify(result.snapshot) == [] and build(config).unchanged
    assert rules(result) == {first.planned.rule: 98, result.planned.rule: 2}
    # A rewritten shard copies what an older rule made.
    Image.new("RGB", (64, 64)).save(Path(config.raw) / TEMPLE)
    assert rules(build(config)) == {first.planned.rule: 97, result.planned.rule: 3}
    remade = build(config, remake=True)
    assert rules(remade) == {result.planned.rule: 100} and remade.planned.older_images == 97
    assert verify(remade.snapshot) == [] and build(config, remake=True).unchanged
    assert remade.snapshot.pixel_counts and counts_are_those_of_the_shards(remade)


def test_an_upgrade_with_other_columns_tries_refused_images_once_more(
    config: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other columns change every version, so that no image counts as unchanged."""
    (Path(config.raw) / "flower/00.jpg").write_bytes(b"no image")
    names = sorted(str(path.relative_to(config.raw)) for path in Path(config.raw).rglob("*.*"))
    rows = "".join(f"{name},{name.split('/')[0]},CC0\n" for name in names)
    (tmp_path / "labels.csv").write_text(f"file_name,label,licence\n{rows}")
    config = replace(config, labels=str(tmp_path / "labels.csv"))
    assert build(config).snapshot.rejected == {"not_an_image": 1}
    decode_one, temple = decode.decode, (Path(config.raw) / TEMPLE).read_bytes()
    monkeypatch.setattr(decode, "DECODING_RULE", 99)
    monkeypatch.setattr(
        decode, "decode", lambda data, *more: decode_one(temple if data == b"no image" else data, *more)
    )
    result = build(replace(config, keep_columns=("licence",)))
    assert (result.snapshot.rejected, result.snapshot.images(), result.images_taken_over) == ({}, 100, 99)
    assert verify(result.snapshot) == []


def test_a_container_that_is_mended_is_no_deletion(config: DatasetConfig) -> None:
    path = write_tar(Path(config.raw) / "more.tar", {"x/1.png": (Path(config.raw) / TEMPLE).read_bytes()})
    whole = path.read_bytes()
    path.write_bytes(whole[:700])
    strict = replace(config, max_deleted_fraction=0.0)
    assert build(strict).snapshot.rejected == {"damaged_container": 1}
    path.write_bytes(whole)
    assert build(strict).snapshot.images() == 101
    path.write_bytes(whole[:700])
    with pytest.raises(
        IgptError, match=r"1 of the 101 images .* are gone.*more\.tar: not a readable tar .*complete tar"
    ):
        build(strict)


def _in_process(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """decode_rows without a child process, which would not know the decoder of the test."""
    from pipeline.build import decode_rows

    return lambda *args, **options: decode_rows.decode_rows(*args, **{**options, "isolated": False})


def rules(result: BuildResult) -> dict[str, int]:
    """The number of images by rule, equally in the entries of the shards and in their indexes."""
    by_entry: dict[str, int] = {}
    by_index: dict[str, int] = {}
    for shard in result.snapshot.shards:
        for part in shard.decoding:
            by_entry[str(part.by)] = by_entry.get(str(part.by), 0) + part.images
        for row in pq.read_table(Path(result.snapshot.dataset) / shard.index_path).to_pylist():
            name = f"rule {row['rule']}, Pillow {row['pillow']}"
            by_index[name] = by_index.get(name, 0) + 1
    assert by_entry == by_index
    return by_entry


def counts_are_those_of_the_shards(result: BuildResult) -> bool:
    tokens = tokens_by_key(result)
    total = sum(result.snapshot.counted_pixels(split) for split in result.snapshot.pixel_counts)
    expected = np.zeros_like(total)
    for tokens_HW in tokens.values():
        np.add.at(expected, (np.arange(tokens_HW.size), tokens_HW.reshape(-1)), 1)
    return np.array_equal(total, expected)


def test_pixel_counts_follow_additions_changes_and_deletions(config: DatasetConfig, photos: np.ndarray) -> None:
    first = build(config)
    assert counts_are_those_of_the_shards(first)
    raw = Path(config.raw)
    Image.fromarray(photos[99]).save(raw / TEMPLE)
    Image.fromarray(photos[98]).save(raw / "temple" / "new.png")
    for path in sorted((raw / "flower").iterdir())[:15]:
        path.unlink()
    second = build(config)
    assert counts_are_those_of_the_shards(second) and verify(second.snapshot) == []
    split = "train"
    assert second.snapshot.pixel_counts[split] != first.snapshot.pixel_counts[split]
    # Lost counts are counted anew.
    for path in (Path(config.dataset) / "counts").iterdir():
        path.unlink()
    (raw / "flower" / "39.jpg").unlink()
    third = build(config)
    assert set(third.snapshot.pixel_counts) == set(second.snapshot.pixel_counts)
    assert counts_are_those_of_the_shards(third)
