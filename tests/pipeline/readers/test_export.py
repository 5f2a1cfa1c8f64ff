"""A snapshot as pictures: whole, the same twice, readable by others, and never over what is there."""

import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline.dataset import snapshot
from pipeline.dataset.snapshot import SPLITS, Snapshot
from pipeline.errors import IgptError
from pipeline.hashing import sha256_of_file
from pipeline.readers import arrow
from pipeline.readers.export import Export, export
from pipeline.store import objects

FORMATS = ("png", "rgb", "folders")


def expected(built: Snapshot, split: str | None = None) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """Picture and columns of each sample, by its key in the shard."""
    table = arrow.table(built.dataset, split=split, pixels="rgb")
    rows = table.drop_columns(["rgb"]).to_pylist()
    keys = [f"{row['key']}-{row['crop']:03d}" if row["split"] == "train" else row["key"] for row in rows]
    return dict(zip(keys, zip(arrow.pixels_of(table["rgb"]), rows, strict=True), strict=True))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", ["png", "rgb"])
@pytest.mark.parametrize("split", [None, "train", "test"])
def test_tars_have_every_picture_with_its_label_and_columns(
    built: Snapshot, tmp_path: Path, split: str | None, format: str
) -> None:
    done = export(built.dataset, str(tmp_path / "out"), split=split, format=format)
    pictures = expected(built, split)
    names = sorted(path.name for path in (tmp_path / "out").glob("*.tar"))
    assert sorted(file.name for file in done.files) == names and done.samples == len(pictures) == built.samples(split)
    for file in done.files:
        assert file.sha256 == sha256_of_file(tmp_path / "out" / file.name)
    samples = webdataset.WebDataset([str(tmp_path / "out" / name) for name in names], shardshuffle=False).decode("rgb8")
    for sample in samples:
        picture, row = pictures.pop(sample["__key__"])
        assert np.array_equal(sample["png" if format == "png" else "npy"], picture)
        assert sample["cls"] == row["label"]
        assert sample["json"] == {name: row[name] for name in sample["json"]}
        assert {"class_name", "key", "crop", "split", "uri", "licence"} <= sample["json"].keys()
    assert not pictures
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["classes"] == list(built.classes) and manifest["content_digest"] == built.content_digest
    assert [file["name"] for file in manifest["files"]] == [file.name for file in done.files]


def test_folders_have_a_file_for_every_picture(built: Snapshot, tmp_path: Path) -> None:
    done = export(built.dataset, str(tmp_path / "out"), format="folders")
    for key, (picture, row) in expected(built).items():
        path = tmp_path / "out" / row["split"] / (row["class_name"] or "unlabelled") / f"{key}.png"
        assert np.array_equal(np.asarray(Image.open(path)), picture)
    assert len(files(tmp_path / "out")) == built.samples() + 1
    assert {file.name for file in done.files} <= {
        f"{s}/{name}" for s in SPLITS for name in (*built.classes, "unlabelled")
    }
    assert done.samples == built.samples() and {file.class_name for file in done.files} == {*built.classes, None}


def test_classes_with_hostile_names_stay_in_their_place(
    built: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = replace(built, classes=("../../escaped", "\x1b[2J"))
    monkeypatch.setattr(snapshot, "read", lambda dataset, number=None: hostile)
    done = export(built.dataset, str(tmp_path / "deep" / "out"), format="folders")
    assert (
        {path.name for path in tmp_path.iterdir()}
        == {"deep"}
        == {path.parent.parent.name for path in [tmp_path / "deep" / "out" / "x"]}
    )
    folders = Counter(name.split("/")[1] for name in files(tmp_path / "deep" / "out") if "/" in name)
    assert set(folders) == {"_.._escaped-0", "_[2J-1", "unlabelled"}
    assert {file.class_name for file in done.files} == {*hostile.classes, None}


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_snapshot_gives_the_same_bytes(built: Snapshot, tmp_path: Path, format: str) -> None:
    for name in ("first", "second"):
        export(built.dataset, str(tmp_path / name), split="test", format=format)
    assert files(tmp_path / "first") == files(tmp_path / "second")


def into(out: Path, name: str) -> Path:
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_bytes(b"mine")
    return out


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        (lambda out: into(out, "notes.txt"), {}, "is not empty; give another folder, or remove it first"),
        (lambda out: into(out, "a/b/notes.txt"), {}, "is not empty; give another folder, or remove it first"),
        (lambda out: into(out, "manifest.json"), {}, "holds an export already"),
        (lambda out: into(out.parent, out.name), {}, "is a file; give a folder"),
        (lambda out: None, {"format": "jpeg"}, "format is 'jpeg': it must be one of png, rgb, folders"),
        (lambda out: None, {"split": "holdout"}, "split is 'holdout': it must be one of"),
        (lambda out: None, {"snapshot": 9}, "there is no snapshot 9"),
    ],
)
def test_what_is_there_is_not_written_over(
    built: Snapshot, tmp_path: Path, prepare: Any, options: dict[str, Any], message: str
) -> None:
    out = tmp_path / "out"
    prepare(out)
    before = files(tmp_path)
    with pytest.raises(IgptError, match=message):
        export(built.dataset, str(out), **options)
    assert files(tmp_path) == before


def test_the_dataset_itself_is_no_target(built: Snapshot) -> None:
    for out in (built.dataset, f"{built.dataset}/export"):
        with pytest.raises(IgptError, match="lies in the dataset"):
            export(built.dataset, out)


def test_an_interrupted_export_has_no_manifest(built: Snapshot, damaged: str, tmp_path: Path) -> None:
    shards = built.of_split("train")
    path = Path(damaged) / shards[0].path
    path.write_bytes((Path(built.dataset) / shards[0].path).read_bytes())
    (Path(damaged) / shards[2].path).unlink()
    with pytest.raises(IgptError, match="the shard is gone"):
        export(damaged, str(tmp_path / "out"), split="train")
    assert sorted(files(tmp_path / "out")) == ["train-000000.tar", "train-000001.tar"]
    with pytest.raises(IgptError, match=r"an export without manifest.json was interrupted"):
        export(built.dataset, str(tmp_path / "out"), split="train")


def test_progress_counts_the_pictures(built: Snapshot, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    export(
        built.dataset, str(tmp_path / "out"), progress=lambda step, done, total, detail="": told.append((done, total))
    )
    assert told[0] == (0, built.samples()) and told[-1] == (built.samples(), built.samples())


def test_one_tar_is_in_memory_at_a_time(built: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tar is put before the next shard is read."""
    events: list[str] = []
    put, read = objects.write_bytes, arrow.table_of

    monkeypatch.setattr(objects, "write_bytes", lambda url, data: (events.append("put"), put(url, data))[1])
    monkeypatch.setattr(arrow, "table_of", lambda *what: (events.append("read"), read(*what))[1])
    done: Export = export(built.dataset, str(tmp_path / "out"), format="rgb")
    assert events == ["read", "put"] * len(done.files) + ["put"]


def test_json_has_no_numbers_that_are_not_finite(
    built: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = arrow.table_of

    def with_nan(*what: Any) -> Any:
        table = read(*what)
        return table.append_column("score", [[float("nan")] * len(table)])

    monkeypatch.setattr(arrow, "table_of", with_nan)
    export(built.dataset, str(tmp_path / "out"), split="test")
    with tarfile.open(next((tmp_path / "out").glob("*.tar"))) as tar:
        (first, *_) = [member for member in tar if member.name.endswith(".json")]
        content = tar.extractfile(first)
        assert content is not None
        assert json.load(io.TextIOWrapper(content))["score"] is None
