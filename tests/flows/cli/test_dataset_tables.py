"""The commands that list what is in a snapshot, in each form."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pyarrow.parquet as pq
import pytest

from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.dataset import snapshot
from pipeline.dataset.snapshot import Snapshot
from tests.conftest import Command, run_here

Igpt = Callable[..., Command]


@pytest.fixture(scope="module")
def data(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """The second snapshot of a dataset: an image with brackets in its name and two rejected ones; one was mended."""
    folder = tmp_path_factory.mktemp("tables")
    raw = folder / "raw"
    shutil.copytree(image_folder, raw)
    for name in ("a", "b", "c"):
        (raw / "temple" / f"bad-{name}.png").write_bytes(b"no image")
    shutil.copy(raw / "temple" / "00.png", raw / "temple" / "[bold] 1.png")
    config = DatasetConfig(raw=str(raw), dataset=str(folder / "built"), resolution=16, colours=24, samples_per_shard=20)
    with mock.patch("pipeline.cluster.tasks.map_tasks", run_here):
        build(config)
        shutil.copy(raw / "temple" / "01.png", raw / "temple" / "bad-a.png")
        return build(config).snapshot


def test_urls_are_printed_a_line_each_in_braces_and_as_json(igpt: Igpt, data: Snapshot) -> None:
    expected = [f"{data.dataset}/{shard.path}" for shard in data.of_split("train")]
    assert igpt("dataset", "urls", data.dataset, "--split", "train").out.splitlines() == expected
    assert json.loads(igpt("dataset", "urls", data.dataset, "--split", "train", "--json").out) == expected
    (line,) = igpt("dataset", "urls", data.dataset, "--split", "train", "--braces").out.splitlines()
    before, names, after = line.partition("{")[0], line[line.index("{") + 1 : line.index("}")], line.partition("}")[2]
    assert [f"{before}{name}{after}" for name in names.split(",")] == expected
    older = [f"{data.dataset}/{shard.path}" for shard in snapshot.read(data.dataset, 1).shards if shard.samples]
    assert igpt("dataset", "urls", data.dataset, 1).out.splitlines() == older


def test_images_are_printed_in_each_form(igpt: Igpt, data: Snapshot) -> None:
    lines = igpt("dataset", "images", data.dataset).out.splitlines()
    assert len(lines) == data.images() == 102
    assert [line for line in lines if line.endswith("/temple/[bold] 1.png")]
    rows = json.loads(igpt("dataset", "images", data.dataset, "--json").out)
    from_csv = list(csv.DictReader(io.StringIO(igpt("dataset", "images", data.dataset, "--csv").out)))
    assert igpt("dataset", "images", data.dataset, "--parquet", "images.parquet").out == "images.parquet: 102 rows\n"
    from_parquet = pq.read_table("images.parquet").to_pylist()
    keys = [row["key"] for row in rows]
    assert keys == [row["key"] for row in from_csv] == [row["key"] for row in from_parquet] and len(set(keys)) == 102
    assert {row["class"] for row in rows} == {"digit", "flower", "temple"}
    assert len(igpt("dataset", "images", data.dataset, 1, "--split", "test").out.splitlines()) == snapshot.read(
        data.dataset, 1
    ).images("test")


def test_rejected_images_are_those_of_now(igpt: Igpt, data: Snapshot) -> None:
    lines = igpt("dataset", "rejected", data.dataset).out.splitlines()
    assert sorted(line.split("/")[-1].split(" ")[0] for line in lines) == ["bad-b.png", "bad-c.png"]
    assert all(line.startswith("not_an_image ") for line in lines)
    assert len(json.loads(igpt("dataset", "rejected", data.dataset, 1, "--json").out)) == 3
    assert igpt("dataset", "rejected", data.dataset, "--csv").out.count("\n") == 3
    assert igpt("dataset", "rejected", data.dataset, "--parquet", "r.parquet").out == "r.parquet: 2 rows\n"


def test_classes_are_listed_with_their_numbers(igpt: Igpt, data: Snapshot) -> None:
    rows = json.loads(igpt("dataset", "classes", data.dataset, "--json").out)
    assert [(row["class"], row["name"]) for row in rows] == list(enumerate(data.classes))
    assert sum(row[split] for row in rows for split in snapshot.SPLITS) == 102
    heading, *lines = igpt("dataset", "classes", data.dataset, 1).out.splitlines()
    assert heading.split() == ["class", "name", *snapshot.SPLITS] and len(lines) == 3


def test_a_difference_is_whole_as_json_and_says_how_much_more_there_is(igpt: Igpt, data: Snapshot) -> None:
    changes = json.loads(igpt("dataset", "diff", data.dataset, 1, 2, "--json").out)
    assert changes["sources"]["changed"] == [f"{Path(data.dataset).parent}/raw/temple/bad-a.png"]
    with mock.patch("flows.cli.datasets._NAMED", 0):
        text = igpt("dataset", "diff", data.dataset, 1, 2).out
    assert "changed: and 1 more; --json names all" in text


def test_a_rollback_is_told(igpt: Igpt, data: Snapshot, tmp_path: Path) -> None:
    shutil.copytree(data.dataset, tmp_path / "copy")
    said = igpt("dataset", "rollback", tmp_path / "copy", 1)
    assert said.out == "snapshot 3 is published: it has the content of snapshot 1\n"
    (newest,) = [row for row in json.loads(igpt("dataset", "ls", tmp_path / "copy", "--json").out) if row["latest"]]
    assert newest["number"] == 3 and newest["published_by"].startswith("igpt ")


def test_tags_are_shown(igpt: Igpt, data: Snapshot, tmp_path: Path) -> None:
    shutil.copytree(data.dataset, tmp_path / "copy")
    said = igpt("dataset", "tag", tmp_path / "copy", 1, "paper", "[red]")
    assert said.out == "snapshot 1 has the tags [red], paper\n"
    assert igpt("dataset", "ls", tmp_path / "copy").out.splitlines()[1].endswith("[red], paper")
    assert igpt("dataset", "tag", tmp_path / "copy", 1, "paper", "[red]", "--remove").out == "snapshot 1 has no tags\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("urls {data} --split holdout", "split is 'holdout': it must be one of train, validation, test"),
        ("images {data} 9", "there is no snapshot 9"),
        ("rejected {data} --parquet no/where.parquet", "the folder no does not exist; create it first"),
        ("rollback {data} 2", "the newest snapshot, 2, has the content of snapshot 2 already"),
    ],
)
def test_bad_input_is_one_line(arguments: str, expected: str, igpt: Igpt, data: Snapshot) -> None:
    ended = igpt("dataset", *arguments.format(data=data.dataset).split())
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert line.startswith("igpt: ") and expected in line
