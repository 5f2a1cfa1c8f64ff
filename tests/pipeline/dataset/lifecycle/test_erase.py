"""What is erased is in no file of the dataset any more, stays out of later builds, and everything else is as it was."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.build.build import build
from pipeline.build.retry import retry_failed
from pipeline.config import DatasetConfig
from pipeline.dataset import count_shards, erasures, index, measured, record, seen, snapshot
from pipeline.dataset.keys import key_of
from pipeline.dataset.lifecycle import erase as erasing
from pipeline.dataset.lifecycle.compact import compact
from pipeline.dataset.lifecycle.drop_images import drop_images
from pipeline.dataset.lifecycle.erase import Erased, Selection, erase, find
from pipeline.dataset.lifecycle.rollback import rollback
from pipeline.dataset.record import Publisher
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.inspect.verify import verify
from pipeline.store import lease, objects, presence
from tests.conftest import write_tar
from tests.pipeline.dataset.lifecycle.test_compact import arrive, everything

pytestmark = pytest.mark.usefixtures("without_cluster")
PUBLISHER = Publisher(program="igpt 9.9")


def by_key(*names: str, copies: bool = True) -> Selection:
    return Selection(keys=frozenset(map(key_of, names)), copies=copies)


def snapshots(dataset: str) -> list[Snapshot]:
    return [snapshot.read(dataset, number) for number in snapshot.numbers(dataset)]


def text_of(path: Path) -> bytes:
    """The bytes of a file, and if it is Parquet, of all its values, which are compressed in it."""
    data = path.read_bytes()
    if path.suffix != ".parquet":
        return data
    table = pq.read_table(io.BytesIO(data))
    keys = ""
    if "key_high" in table.column_names:
        pairs = zip(table["key_high"].to_pylist(), table["key_low"].to_pylist(), strict=True)
        keys = " ".join(f"{high:016x}{low:04x}" for high, low in pairs)
    return data + json.dumps(table.to_pylist(), default=str).encode() + keys.encode()


def assert_gone(dataset: str, *names: str) -> None:
    """No file in the folder of the dataset names one of these images, or has its samples."""
    for path in Path(dataset).rglob("*"):
        if path.is_file():
            content = text_of(path)
            for name in names:
                assert key_of(name).encode() not in content, (path, name)
                assert name.encode() not in content, (path, name)
    for of in snapshots(dataset):
        assert verify(of) == []
        for split in {shard.split for shard in of.shards if shard.samples}:
            counted = of.counted_pixels(split)
            assert counted is not None
            fresh = count_shards.total(of, of.of_split(split), lambda *_: None)
            assert np.array_equal(counted, fresh)
        rows = index.parent_rows(of)
        assert len(set(rows.keys.text())) == len(rows)


def assert_others_are_as_they_were(before: list[dict], after: list[Snapshot], *names: str) -> None:
    gone = {key_of(name) for name in names}
    for old, new in zip(before, after, strict=True):
        assert everything(new) == {key: rows for key, rows in old.items() if key not in gone}


@pytest.fixture
def nights(config: DatasetConfig, photos: np.ndarray) -> DatasetConfig:
    """Three snapshots: images came, one went, one is unusable."""
    build(config)
    arrive(config, photos, 2)
    (Path(config.raw) / "night0" / "broken.png").write_bytes(b"no image")
    build(config)
    (Path(config.raw) / "temple" / "01.png").unlink()
    arrive(config, photos, 3)
    build(config)
    return config


@pytest.mark.parametrize(
    "names",
    [
        ("temple/00.png",),
        ("temple/01.png",),  # of older snapshots alone
        ("night0/broken.png",),  # in quarantine
        ("night1/3-0.png", "night0/2-3.png", "flower/07.jpg", "digit/03.png"),
    ],
    ids=str,
)
def test_an_image_is_gone_from_every_snapshot_and_stays_out(names: tuple[str, ...], nights: DatasetConfig) -> None:
    before = [everything(of) for of in snapshots(nights.dataset)]
    old = snapshots(nights.dataset)
    found = find(nights.dataset, by_key(*names))
    assert (found.images, found.copies, found.not_found) == (len(names), 0, 0)
    (receipt,) = erase(nights.dataset, by_key(*names), PUBLISHER)
    assert_gone(nights.dataset, *names)
    after = snapshots(nights.dataset)
    assert [of.number for of in after] == [1, 2, 3] and snapshot.latest_number(nights.dataset) == 3
    assert_others_are_as_they_were(before, after, *names)
    changed = {entry["number"]: entry for entry in receipt["snapshots"]}
    assert set(changed) == set(found.by_snapshot)
    for one, new in zip(old, after, strict=True):
        if one.number in changed:
            entry = changed[one.number]
            assert entry["old_digests"] == list(one.digests)
            assert (entry["content_digest"], entry["manifest_digest"]) == (new.content_digest, new.manifest_digest)
            assert entry["images"] + entry["rejected"] == found.by_snapshot[one.number]
        else:
            assert one == new
        beside = record.read(new)
        assert beside is not None and beside.raw_root == nights.raw, "a record goes with its manifest"
    assert erasures.unfinished(nights.dataset) == []
    rerun = build(nights)
    assert rerun.unchanged and rerun.planned.erased == len(
        [name for name in names if (Path(nights.raw) / name).exists()]
    )
    anew = build(replace(nights, seed=7))
    assert_gone(nights.dataset, *names)
    assert not {key_of(name) for name in names} & everything(anew.snapshot).keys()
    assert verify(rollback(nights.dataset, 1, PUBLISHER)) == []


def test_a_copy_under_another_name_goes_too_and_is_not_taken_later(nights: DatasetConfig) -> None:
    raw = Path(nights.raw)
    shutil.copy(raw / "temple" / "00.png", raw / "temple" / "copy.png")
    build(nights)
    found = find(nights.dataset, by_key("temple/00.png"))
    assert (found.images, found.copies) == (2, 1)
    erase(nights.dataset, by_key("temple/00.png"), PUBLISHER)
    assert_gone(nights.dataset, "temple/00.png", "temple/copy.png")
    shutil.copy(raw / "temple" / "00.png", raw / "flower" / "again.png")
    later = build(nights)
    assert later.snapshot.images() == 110 and key_of("flower/again.png") not in everything(later.snapshot)
    assert_gone(nights.dataset, "temple/00.png", "flower/again.png")
    assert build(nights).unchanged, "its name is known by now"
    assert retry_failed(nights).recovered == 0
    write_tar(raw / "more.tar", {"x/1.png": (raw / "temple" / "00.png").read_bytes()})
    write_tar(raw / "other.tar", {"x/1.png": (raw / "temple" / "03.png").read_bytes()})
    in_tar = build(nights).snapshot
    assert key_of("more.tar/x/1.png") not in everything(in_tar)
    assert key_of("other.tar/x/1.png") in everything(in_tar)


def test_copies_may_stay(nights: DatasetConfig) -> None:
    raw = Path(nights.raw)
    shutil.copy(raw / "temple" / "00.png", raw / "temple" / "copy.png")
    build(nights)
    erase(nights.dataset, by_key("temple/00.png", copies=False), PUBLISHER)
    assert key_of("temple/copy.png") in everything(snapshot.read(nights.dataset))
    assert build(nights).unchanged and build(replace(nights, seed=3)).snapshot.images() > 0
    assert key_of("temple/copy.png") in everything(snapshot.read(nights.dataset))
    assert key_of("temple/00.png") not in everything(snapshot.read(nights.dataset))


@pytest.mark.parametrize("of", ["temple/00.png", "temple/copy.png"])
def test_duplicates_go_with_what_they_are_copies_of(of: str, nights: DatasetConfig) -> None:
    raw, config = Path(nights.raw), replace(nights, drop_duplicates=True)
    shutil.copy(raw / "temple" / "00.png", raw / "temple" / "copy.png")
    assert build(config).snapshot.rejected["duplicate"] == 1
    erase(config.dataset, by_key("temple/00.png"), PUBLISHER)
    assert_gone(config.dataset, "temple/00.png", "temple/copy.png")
    shutil.copy(raw / "temple" / "00.png", raw / "temple" / "one.png")
    shutil.copy(raw / "temple" / "00.png", raw / "temple" / "two.png")
    later = build(config)
    assert "duplicate" not in later.snapshot.rejected
    assert_gone(config.dataset, "temple/00.png", "temple/copy.png", "temple/one.png", "temple/two.png")


def test_what_looked_like_it_does_not_name_it_any_more(nights: DatasetConfig) -> None:
    details = {key_of("flower/02.jpg"): f"looks like train image {key_of('temple/00.png')}"}
    drop_images(nights.dataset, details, "near_duplicate", PUBLISHER)
    erase(nights.dataset, by_key("temple/00.png"), PUBLISHER)
    assert_gone(nights.dataset, "temple/00.png")
    newest = snapshot.read(nights.dataset)
    assert newest.rejected["near_duplicate"] == 1
    assert build(nights).unchanged


def test_images_are_named_by_addresses_containers_and_kept_columns(nights: DatasetConfig, tmp_path: Path) -> None:
    raw = Path(nights.raw)
    names = sorted(str(path.relative_to(raw)) for path in raw.rglob("*.*"))
    rows = [f"{name},{name[0]},{'ann' if name.startswith('flower/1') else 'bob'}" for name in names]
    (tmp_path / "labels.csv").write_text("\n".join(["file_name,label,owner", *rows]))
    pictures = {f"x/{number}.png": (raw / "temple" / f"1{number}.png").read_bytes() for number in range(3)}
    write_tar(raw / "in.tar", {name: data + b"\0" for name, data in pictures.items()})
    config = replace(nights, labels=str(tmp_path / "labels.csv"), keep_columns=("owner",))
    build(config)
    of_ann = [name for name in names if name.startswith("flower/1")]
    found = find(nights.dataset, Selection(columns={"owner": "ann"}))
    assert found.images == len(of_ann) == 10
    selected = Selection(
        columns={"owner": "ann"}, addresses=frozenset([str(raw / "temple" / "05.png"), str(raw / "in.tar"), "s3://no"])
    )
    assert find(nights.dataset, selected).not_found == 1
    (receipt,) = erase(nights.dataset, selected, PUBLISHER)
    assert receipt["images"] == 14 and receipt["not_found"] == 1
    assert "ann" not in json.dumps(receipt) and receipt["selected"]["columns"] == ["owner"]
    assert_gone(nights.dataset, *of_ann, "temple/05.png", *(f"in.tar/{name}" for name in pictures))
    assert b'"ann"' not in b"".join(text_of(path) for path in Path(nights.dataset).rglob("*.parquet"))
    assert build(config).unchanged


def test_random_crops_of_an_image_all_go(config: DatasetConfig) -> None:
    config = replace(config, crops_per_image=3, resolution=8)
    before = everything(build(config).snapshot)
    erase(config.dataset, by_key("temple/00.png", "temple/02.png"), PUBLISHER)
    assert_gone(config.dataset, "temple/00.png", "temple/02.png")
    assert_others_are_as_they_were([before], snapshots(config.dataset), "temple/00.png", "temple/02.png")


def test_a_whole_class_can_go(config: DatasetConfig) -> None:
    build(config)
    names = [f"flower/{number:02d}.jpg" for number in range(40)]
    erase(config.dataset, by_key(*names), PUBLISHER)
    assert_gone(config.dataset, *names)
    assert snapshot.read(config.dataset).images() == 60
    assert build(config).unchanged, "what is erased is no deletion of a mass"


def test_what_was_measured_what_was_seen_and_what_builds_left_behind_goes(nights: DatasetConfig) -> None:
    of = snapshot.read(nights.dataset)
    measured.keep(of, "loss.json", b"{}")
    (Path(nights.raw) / "temple" / "00.png").touch()
    (Path(nights.raw) / "temple" / "02.png").touch()
    assert build(nights).unchanged
    beside = record.read(of)
    assert beside is not None and len(seen.read(nights.dataset, beside.seen)) == 2
    stray = objects.join(nights.dataset, "index/train-000099-0123456789abcdef.parquet")
    objects.write_bytes(stray, (Path(nights.dataset) / of.shards[0].index_path).read_bytes())
    erase(nights.dataset, by_key("temple/00.png"), PUBLISHER)
    assert_gone(nights.dataset, "temple/00.png")
    assert not objects.exists(stray) and measured.read(of, "loss.json") is None
    beside = record.read(snapshot.read(nights.dataset))
    assert beside is not None and len(seen.read(nights.dataset, beside.seen)) == 1
    assert build(nights).unchanged


STEPS: dict[str, tuple[object, str]] = {
    "before the tombstones": (erasing.erasures, "begin"),
    "before the first shard": (erasing, "assemble"),
    "before the plan": (erasing.erasures, "write_plan"),
    "before a record": (erasing.record, "write"),
    "between record and manifest": (erasing.objects, "write_bytes"),
    "before files are removed": (erasing, "unnamed_files"),
    "while files are removed": (erasing.objects, "delete"),
    "before measurements are removed": (erasing.objects, "delete_tree"),
    "before the receipt": (erasing.erasures, "end"),
}


@pytest.mark.parametrize("later", [0, 1, 3], ids=lambda later: f"call {later}")
@pytest.mark.parametrize("step", list(STEPS))
def test_after_a_crash_the_same_command_ends_it(
    step: str, later: int, nights: DatasetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("temple/00.png", "night0/broken.png", "flower/03.jpg")
    before = [everything(of) for of in snapshots(nights.dataset)]
    old = {of.number: list(of.digests) for of in snapshots(nights.dataset)}
    module, name = STEPS[step]
    real: Callable[..., object] = getattr(module, name)
    calls = 0

    def dies(*arguments: object, **options: object) -> object:
        nonlocal calls
        if name == "write_bytes" and "/snapshots/" not in str(arguments[0]):
            return real(*arguments, **options)
        if name == "delete" and ("/lease/" in str(arguments[0]) or "/active/" in str(arguments[0])):
            return real(*arguments, **options)
        calls += 1
        if calls > later:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(module, name, dies)
        try:
            erase(nights.dataset, by_key(*names), PUBLISHER)
        except KeyboardInterrupt:
            pass
        else:
            return  # the step is taken less often
    for of in snapshots(nights.dataset):
        assert verify(of) == [], "each snapshot is whole, be it the old one or the new one"
    receipts = erase(nights.dataset, by_key(*names), PUBLISHER)
    assert_gone(nights.dataset, *names)
    assert_others_are_as_they_were(before, snapshots(nights.dataset), *names)
    (receipt,) = receipts
    changed = {entry["number"]: entry["old_digests"] for entry in receipt["snapshots"]}
    assert changed == old, "the receipt has the digests of before the crash"
    assert all(record.read(of) is not None for of in snapshots(nights.dataset))
    assert build(nights).unchanged and erasures.unfinished(nights.dataset) == []


def test_what_is_outside_is_removed_before_an_erasure_ends(nights: DatasetConfig) -> None:
    old = snapshot.read(nights.dataset)
    told: list[Erased] = []

    def away(erased: Erased) -> dict[str, object]:
        told.append(erased)
        if len(told) == 1:
            raise IgptError("MLflow does not answer")
        return {"pictures": 3}

    with pytest.raises(IgptError, match="MLflow does not answer"):
        erase(nights.dataset, by_key("temple/00.png"), PUBLISHER, outside=away)
    assert_gone(nights.dataset, "temple/00.png")
    assert erasures.unfinished(nights.dataset) == [1]
    arrived = build(nights)
    assert arrived.unchanged, "builds go on meanwhile"
    (receipt,) = erase(nights.dataset, Selection(), PUBLISHER, outside=away)
    assert receipt["outside"] == {"pictures": 3}
    assert told[0].shards == told[1].shards and told[0].digests == told[1].digests
    gone = {shard.sha256 for shard in old.shards} - {shard.sha256 for shard in snapshot.read(old.dataset).shards}
    assert gone <= set(told[1].shards) and old.content_digest in told[1].digests
    assert told[1].kept_shards >= {shard.name for shard in snapshot.read(old.dataset).shards}
    with pytest.raises(IgptError, match="no erasure is under way"):
        erase(nights.dataset, Selection(), PUBLISHER)


def test_a_build_that_has_listed_before_an_erasure_lists_again(
    nights: DatasetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its listing has the image still, and with another seed it would make all shards from the raw images."""
    config = replace(nights, seed=11)
    done = []

    def announce(planned: object) -> None:
        if not done:
            done.append(erase(nights.dataset, by_key("temple/00.png"), PUBLISHER))

    built = build(config, announce=announce)
    assert built.planned.erased == 1
    assert_gone(nights.dataset, "temple/00.png")


def test_it_is_refused_beside_others_and_without_an_image(nights: DatasetConfig) -> None:
    before = {path: path.read_bytes() for path in Path(nights.dataset).rglob("*.json") if path.parent.name != "lease"}
    with pytest.raises(IgptError, match="no snapshot has an image that is named so"):
        erase(nights.dataset, by_key("temple/none.png"), PUBLISHER)
    with pytest.raises(IgptError, match="owner: no index has this column"):
        erase(nights.dataset, Selection(columns={"owner": "ann"}), PUBLISHER)
    with lease.hold(nights.dataset), pytest.raises(IgptError, match="is working on it"):
        erase(nights.dataset, by_key("temple/00.png"), PUBLISHER)
    with presence.building(nights.dataset), pytest.raises(IgptError, match="a build is running"):
        erase(nights.dataset, by_key("temple/00.png"), PUBLISHER)
    assert all(path.read_bytes() == data for path, data in before.items())
    assert erasures.names(nights.dataset) == ()


def test_a_training_that_needs_a_shard_that_went_is_told_so(nights: DatasetConfig) -> None:
    from pipeline.dataset import verified_shards

    old = snapshot.read(nights.dataset)
    erase(nights.dataset, by_key("temple/00.png"), PUBLISHER)
    names = {shard.name for shard in snapshot.read(nights.dataset).shards}
    gone = next(shard for shard in old.shards if shard.name not in names)
    with pytest.raises(IgptError, match="images were erased from it") as raised:
        verified_shards.read(old, gone)
    assert "\n" not in str(raised.value)


def test_erasures_add_up_and_joined_shards_are_erased_from_too(nights: DatasetConfig) -> None:
    compact(nights.dataset, PUBLISHER)
    before = [everything(of) for of in snapshots(nights.dataset)]
    erase(nights.dataset, by_key("night0/2-1.png"), PUBLISHER)
    erase(nights.dataset, by_key("night1/3-1.png"), PUBLISHER)
    assert_gone(nights.dataset, "night0/2-1.png", "night1/3-1.png")
    assert_others_are_as_they_were(before, snapshots(nights.dataset), "night0/2-1.png", "night1/3-1.png")
    assert build(nights).unchanged and len(erasures.receipts(nights.dataset)) == 2
    Image.new("RGB", (64, 64), (9, 90, 190)).save(Path(nights.raw) / "night0" / "2-1.png")
    assert build(nights).unchanged, "the name stays out, whatever is stored under it"
