"""A rerun processes only what changed, gives the samples of a first build, and announces its plan."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.build.build import BuildResult, build, plan_build
from pipeline.config import DatasetConfig
from pipeline.dataset import snapshot
from pipeline.dataset.keys import key_of
from pipeline.images import decode, palette
from pipeline.inspect.verify import verify
from tests.conftest import write_tar
from tests.pipeline.build.test_build import contents, rows, times, tokens_by_key

pytestmark = pytest.mark.usefixtures("without_cluster")


def save(config: DatasetConfig, name: str, pixels: np.ndarray) -> None:
    path = Path(config.raw) / name
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


def assert_sound(result: BuildResult) -> None:
    assert verify(result.snapshot) == []


def assert_holds_what_a_first_build_holds(result: BuildResult, config: DatasetConfig, tmp_path: Path) -> None:
    """The same samples, labels and splits as a full build with the same palette, whatever the shards."""
    palette_path = Path(config.dataset) / snapshot.palette_path(result.snapshot.palette_sha256)
    fresh = build(replace(config, dataset=str(tmp_path / "fresh"), palette=str(palette_path)))
    assert fresh.snapshot.source_digest == result.snapshot.source_digest
    assert fresh.snapshot.rejected == result.snapshot.rejected
    actual, expected = tokens_by_key(result), tokens_by_key(fresh)
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[key], expected[key]) for key in expected)
    labels = [
        {
            row["key"]: outcome.snapshot.classes[row["label"]]
            for row in rows(outcome.snapshot.dataset, "index")
            if row["key"] in actual
        }
        for outcome in (result, fresh)
    ]
    assert labels[0] == labels[1]
    for split in snapshot.SPLITS:
        assert result.snapshot.images(split) == fresh.snapshot.images(split)


def class_names(of: snapshot.Snapshot) -> dict[str, str]:
    accounts = [row for shard in of.shards for row in rows_of(of.dataset, shard.index_path)]
    return {row["key"]: of.classes[row["label"]] for row in accounts}


def rows_of(dataset: str, path: str) -> list[dict]:
    return pq.read_table(Path(dataset) / path).to_pylist()


def test_unchanged_writes_nothing(config: DatasetConfig) -> None:
    first = build(config)
    before = times(config.dataset)
    assert plan_build(config).plan is None
    again = build(config)
    assert again.unchanged and again.snapshot == first.snapshot
    assert times(config.dataset) == before


def test_added_images_make_new_shards_alone(config: DatasetConfig, photos: np.ndarray, tmp_path: Path) -> None:
    first = build(config)
    before = contents(config.dataset)
    for number in range(12):
        save(config, f"bud/{number}.png", photos[100 + number])
    result = build(config)
    plan = result.planned.plan
    assert plan is not None
    assert (plan.keep, plan.rewrite, plan.drop) == (first.snapshot.shards, (), ())
    assert (plan.new_images, plan.changed_images, plan.deleted_images) == (12, 0, 0)
    assert set(first.snapshot.shards) < set(result.snapshot.shards)
    assert {n: d for n, d in contents(config.dataset).items() if n in before} == {**before, "LATEST": b"2\n"}
    # The classes keep their numbers, though a new one sorts first.
    assert result.snapshot.classes == ("digit", "flower", "temple", "bud")
    assert (result.snapshot.number, result.snapshot.parent) == (2, 1)
    assert_sound(result)
    assert_holds_what_a_first_build_holds(result, config, tmp_path)


def test_a_changed_and_a_deleted_image_rewrite_their_own_shards(
    config: DatasetConfig, photos: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(config)
    save(config, "temple/01.png", photos[99])
    (Path(config.raw) / "flower" / "05.jpg").unlink()
    decoded: list[str] = []
    decode_one = decode.decode
    monkeypatch.setattr(decode, "decode", lambda *a: (decoded.append(a[2]), decode_one(*a))[1])
    result = build(config)
    plan = result.planned.plan
    assert plan is not None
    assert (plan.new_images, plan.changed_images, plan.deleted_images) == (0, 1, 1)
    assert 1 <= len(plan.rewrite) <= 2
    assert len(plan.keep) == len(first.snapshot.shards) - len(plan.rewrite)
    assert decoded == [key_of("temple/01.png")], "the other images of the shard are taken over, not decoded"
    assert result.images_taken_over == sum(len(shard.rows) for shard in plan.rewrite) - 1
    assert_sound(result)
    assert_holds_what_a_first_build_holds(result, config, tmp_path)
    # The old snapshot stays as it was.
    assert verify(first.snapshot) == []
    assert snapshot.read(config.dataset, 1) == first.snapshot


def test_an_image_that_moves_to_another_class_is_one_gone_and_one_new(config: DatasetConfig, tmp_path: Path) -> None:
    build(config)
    shutil.move(Path(config.raw) / "temple" / "07.png", Path(config.raw) / "flower" / "07.png")
    result = build(config)
    plan = result.planned.plan
    assert plan is not None and (plan.new_images, plan.deleted_images) == (1, 1)
    assert_holds_what_a_first_build_holds(result, config, tmp_path)


def test_a_label_that_changes_in_the_label_file_rewrites_its_shard(config: DatasetConfig, tmp_path: Path) -> None:
    names = sorted(str(path.relative_to(config.raw)) for path in Path(config.raw).rglob("*.*"))
    labels = tmp_path / "labels.csv"
    labels.write_text("file_name,label\n" + "".join(f"{name},{name[0]}\n" for name in names))
    labelled = replace(config, labels=str(labels))
    assert build(labelled).snapshot.classes == ("d", "f", "t")
    labels.write_text(labels.read_text().replace("temple/03.png,t", "temple/03.png,f"))
    result = build(labelled)
    assert result.planned.plan is not None and result.planned.plan.changed_images == 1
    (row,) = [r for r in rows(config.dataset, "index")[::-1] if r["uri"].endswith("temple/03.png") and r["label"] == 1]
    assert row["key"] == key_of("temple/03.png")
    assert_sound(result)


def test_one_more_image_in_a_tar_changes_no_other(config: DatasetConfig, photos: np.ndarray, tmp_path: Path) -> None:
    members = {str(p.relative_to(config.raw)): p.read_bytes() for p in sorted(Path(config.raw).rglob("*.*"))}
    tar = write_tar(tmp_path / "all.tar", members)
    in_tar = replace(config, raw=str(tar))
    first = build(in_tar)
    save(config, "temple/new.png", photos[119])
    write_tar(tar, {"temple/new.png": (Path(config.raw) / "temple" / "new.png").read_bytes(), **members})
    result = build(in_tar)
    plan = result.planned.plan
    assert plan is not None
    assert (plan.keep, plan.new_images, plan.changed_images) == (first.snapshot.shards, 1, 0)
    assert_sound(result)


@pytest.mark.parametrize(
    "change",
    [{"resolution": 8}, {"min_size": 20}, {"samples_per_shard": 50}, {"validation_fraction": 0.3}, {"decode": "fast"}],
    ids=str,
)
def test_another_config_rebuilds_everything_and_says_so(config: DatasetConfig, change: dict, tmp_path: Path) -> None:
    first = build(config)
    other = replace(config, **change)
    before = contents(config.dataset)
    planned = plan_build(other)
    assert contents(config.dataset) == before, "a dry run writes nothing"
    assert planned.changed_config == tuple(change)
    assert planned.plan is not None
    assert (planned.plan.keep, planned.plan.drop) == ((), first.snapshot.shards)
    result = build(other)
    assert result.planned.plan is not None
    assert len(result.planned.plan.make) == len(planned.plan.make)
    assert result.snapshot.palette_sha256 == first.snapshot.palette_sha256, "the palette stays unless asked"
    assert_sound(result)
    assert_holds_what_a_first_build_holds(result, other, tmp_path)


def test_the_palette_is_refitted_when_asked(config: DatasetConfig, photos: np.ndarray) -> None:
    first = build(config)
    for number in range(40):
        save(config, f"blue/{number}.png", (photos[number] * [0.1, 0.3, 1.0]).astype(np.uint8))
    kept = build(config)
    assert kept.snapshot.palette_sha256 == first.snapshot.palette_sha256
    assert plan_build(config, refit_palette=True).palette == "refitted"
    refitted = build(config, refit_palette=True)
    assert refitted.snapshot.palette_sha256 != first.snapshot.palette_sha256
    assert refitted.planned.plan is not None and not refitted.planned.plan.keep
    assert_sound(refitted)


def test_a_given_palette_replaces_that_of_the_dataset(config: DatasetConfig, tmp_path: Path) -> None:
    build(config)
    grey = np.repeat(np.linspace(-1, 1, 24, dtype=np.float32)[:, None], 3, 1)
    (tmp_path / "grey.npy").write_bytes(palette.to_bytes(grey))
    given = build(replace(config, palette=str(tmp_path / "grey.npy")))
    assert np.array_equal(given.snapshot.palette(), grey)
    assert build(config).unchanged, "it then stays with the dataset"


def damage(config: DatasetConfig, *names: str) -> dict[str, bytes]:
    """Truncate some images; returns their former contents."""
    whole = {name: (Path(config.raw) / name).read_bytes() for name in names}
    for name, data in whole.items():
        (Path(config.raw) / name).write_bytes(data[: len(data) // 2])
    return whole


def test_a_repaired_image_leaves_quarantine_in_a_rerun(config: DatasetConfig, tmp_path: Path) -> None:
    whole = damage(config, "flower/03.jpg", "temple/04.png")
    assert sum(build(config).snapshot.rejected.values()) == 2
    (Path(config.raw) / "flower/03.jpg").write_bytes(whole["flower/03.jpg"])
    result = build(config)
    assert sum(result.snapshot.rejected.values()) == 1
    assert_sound(result)
    assert_holds_what_a_first_build_holds(result, config, tmp_path)


def test_random_crops_are_samples_of_training_images_alone(config: DatasetConfig, tmp_path: Path) -> None:
    result = build(replace(config, crops_per_image=3, resolution=8))
    assert result.snapshot.images() == 100
    assert result.snapshot.samples("train") == 3 * result.snapshot.images("train")
    assert result.snapshot.samples("test") == result.snapshot.images("test")
    assert_sound(result)
    save(config, "temple/01.png", np.full((64, 64, 3), 200, np.uint8))
    again = build(replace(config, crops_per_image=3, resolution=8))
    assert again.planned.plan is not None and again.planned.plan.changed_images == 1
    assert_sound(again)
    fresh = build(
        replace(
            config,
            crops_per_image=3,
            resolution=8,
            dataset=str(tmp_path / "fresh"),
            palette=str(Path(config.dataset) / snapshot.palette_path(again.snapshot.palette_sha256)),
        )
    )
    actual, expected = tokens_by_key(again), tokens_by_key(fresh)
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[key], expected[key]) for key in expected)
