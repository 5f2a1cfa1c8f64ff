"""The commands that look at a dataset: what they print, for people and programs. Builds are in integration/."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from PIL import Image

from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.dataset.snapshot import SPLITS, Snapshot
from tests.conftest import Command, run_here

Igpt = Callable[..., Command]


@pytest.fixture(scope="module")
def data(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A snapshot of 100 images in three classes."""
    folder = tmp_path_factory.mktemp("dataset")
    config = DatasetConfig(
        raw=str(image_folder), dataset=str(folder / "built"), resolution=16, colours=24, samples_per_shard=20
    )
    with mock.patch("pipeline.cluster.tasks.map_tasks", run_here):
        return build(config).snapshot


@pytest.fixture
def copy(data: Snapshot, tmp_path: Path) -> Path:
    """A copy of the dataset that the test may change."""
    shutil.copytree(data.dataset, tmp_path / "copy")
    return tmp_path / "copy"


def test_ls_lists_the_snapshots(igpt: Igpt, data: Snapshot) -> None:
    (listed,) = json.loads(igpt("dataset", "ls", data.dataset, "--json").out)
    assert (listed["number"], listed["images"], listed["latest"]) == (1, 100, True)
    heading, line = igpt("dataset", "ls", data.dataset).out.splitlines()
    assert heading.split()[:2] == ["snapshot", "published"]
    assert line.startswith("1 (latest)") and "16x16" in line and "24 colours" in line


def test_show_counts_by_split_and_class(igpt: Igpt, data: Snapshot) -> None:
    shown = json.loads(igpt("dataset", "show", data.dataset, "--json").out)
    assert (shown["content_digest"], shown["resolution"]) == (data.content_digest, 16)
    assert shown["images_by_split"] == {split: data.images(split) for split in SPLITS}
    text = igpt("dataset", "show", data.dataset, 1).out
    assert f"content {data.content_digest[:12]}" in text and "resolution=16" in text
    heading = next(number for number, line in enumerate(text.splitlines()) if line.split() == ["class", *SPLITS])
    counted = [line.split() for line in text.splitlines()[heading + 1 :]]
    assert [name for name, *_ in counted] == list(data.classes)
    assert sum(int(number) for _, *numbers in counted for number in numbers) == 100


def test_diff_of_a_snapshot_with_itself_is_empty(igpt: Igpt, data: Snapshot) -> None:
    changes = json.loads(igpt("dataset", "diff", data.dataset, 1, 1, "--json").out)
    assert (changes["unchanged"], changes["added"], changes["same_palette"]) == (100, 0, True)
    assert "palette: the same" in igpt("dataset", "diff", data.dataset, 1, 1).out


def test_verify_exits_with_one_where_a_file_is_damaged(igpt: Igpt, data: Snapshot, copy: Path) -> None:
    ended = igpt("dataset", "verify", copy)
    assert (ended.code, ended.out.splitlines()[-1].endswith("100 images, everything matches the manifest")) == (0, True)
    (copy / data.shards[0].path).write_bytes(b"damaged")
    ended = igpt("dataset", "verify", copy, "--json")
    assert ended.code == 1
    (problem,) = json.loads(ended.out)["problems"]
    assert problem["path"] == data.shards[0].path


def test_gc_says_what_it_would_remove_and_removes_it(igpt: Igpt, copy: Path) -> None:
    litter = copy / "shards" / "train-000077-0123456789abcdef.tar"
    litter.write_bytes(b"litter")
    young = igpt("dataset", "gc", copy)
    assert "0 files, 0 B, are removed" in young.out and "1 unreferenced files are younger than 24 h" in young.out
    dry = igpt("dataset", "gc", copy, "--dry-run", "--min-age-hours", 0)
    assert litter.exists() and "1 files, 6 B, would be removed" in dry.out
    removed = json.loads(igpt("dataset", "gc", copy, "--min-age-hours", 0, "--json").out)
    assert removed["files"] == ["shards/train-000077-0123456789abcdef.tar"] and not litter.exists()


def test_sample_writes_a_contact_sheet(igpt: Igpt, data: Snapshot) -> None:
    ended = igpt("dataset", "sample", data.dataset, "--images", 3, "--split", "validation", "--out", "sheet.png")
    assert (ended.code, ended.out) == (0, "sheet.png: validation images of snapshot 1, raw beside quantized\n")
    assert Image.open("sheet.png").width > 300


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("ls {empty}", "no dataset snapshot there"),
        ("show {data} 7", "there is no snapshot 7"),
        ("sample {data} --split holdout", "split is 'holdout': it must be one of train, validation, test"),
        ("sample {data} --out no/where.png", "the folder no does not exist; create it first"),
        ("build raw=r dataset=d resolution=7", "resolution is 7"),
        ("build raw=r", "dataset is missing"),
        ("retry-failed raw=r dataset=d colours=1", "colours is 1"),
    ],
)
def test_bad_input_is_one_line(arguments: str, expected: str, igpt: Igpt, data: Snapshot, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ended = igpt("dataset", *arguments.format(data=data.dataset, empty=tmp_path / "empty").split())
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert line.startswith("igpt: ") and expected in line
