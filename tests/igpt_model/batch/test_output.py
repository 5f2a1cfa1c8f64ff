"""The folder of a batch: each part is created once, other work is refused, and damage is told."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from igpt_model.batch import output
from pipeline.errors import IgptError
from pipeline.samples.parts import Part, RejectedImage

IDENTITY = {"task": "features", "layers": [1], "network": "n" * 64}
BROKEN = RejectedImage(key="k", uri="/raw/k.png", reason="not_an_image", detail="no header")


def rows(*numbers: float) -> pa.Table:
    return pa.table({"key": [str(number) for number in numbers], "layer_1": pa.array(numbers, pa.float32())})


def create(out: Path, name: str, table: pa.Table, *rejected: RejectedImage) -> output.WrittenPart:
    return output.create_part(str(out), name, table, rejected, IDENTITY)


def test_the_first_of_two_that_make_a_part_counts(tmp_path: Path) -> None:
    first = create(tmp_path, "000000-a", rows(1, 2), BROKEN)
    late = create(tmp_path, "000000-a", rows(1.0001, 2))  # as another kind of processor may compute it
    assert late == first and (first.images, first.reasons, first.rejected) == (2, {"not_an_image": 1}, (BROKEN,))
    file = tmp_path / "parts" / "000000-a.parquet"
    assert pq.read_table(file)["layer_1"].to_pylist() == [1, 2] and file.stat().st_size == first.bytes


def test_what_is_there_is_taken_over_with_its_rejected_images(tmp_path: Path) -> None:
    create(tmp_path, "000000-a", rows(1, 2), BROKEN)
    create(tmp_path, "000001-b", rows(3))
    there = output.written_parts(str(tmp_path), ["000000-a", "000001-b", "000002-c"])
    assert {name: (part.images, part.reasons) for name, part in there.items()} == {
        "000000-a": (2, {"not_an_image": 1}),
        "000001-b": (1, {}),
    }
    (rejected,) = pq.read_table(tmp_path / "rejected").to_pylist()
    assert rejected == {"key": "k", "uri": "/raw/k.png", "reason": "not_an_image", "detail": "no header"}
    create(tmp_path, "000001-old", rows(9), BROKEN)
    output.written_parts(str(tmp_path), ["000001-old"])
    output.remove_others(str(tmp_path), there.values())
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.parquet"))
    assert files == ["parts/000000-a.parquet", "parts/000001-b.parquet", "rejected/000000-a.parquet"]


def test_a_damaged_part_is_told(tmp_path: Path) -> None:
    create(tmp_path, "000000-a", rows(1))
    file = tmp_path / "parts" / "000000-a.parquet"
    for content in (file.read_bytes()[:-10], b""):
        file.write_bytes(content)
        with pytest.raises(
            IgptError, match=r"000000-a\.parquet: damaged .*; delete it, and run the same command again"
        ):
            output.written_parts(str(tmp_path), ["000000-a"])


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        (IDENTITY, None),
        ({**IDENTITY, "layers": [2]}, r"holds a batch whose layers is \[1\], not \[2\]; give another folder"),
        ({**IDENTITY, "network": "m" * 64}, "whose network is .nnn"),
        ({**IDENTITY, "raw": "/photos"}, 'whose raw is null, not "/photos"'),
    ],
)
def test_a_folder_has_one_job(identity: dict, expected: str | None, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    output.begin(out, IDENTITY, {"model": "models:/a/1"})
    if expected is None:
        output.begin(out, identity, {"model": "models:/a/2"})
        assert json.loads((tmp_path / "out" / "job.json").read_bytes())["about"] == {"model": "models:/a/1"}
        return
    with pytest.raises(IgptError, match=expected):
        output.begin(out, identity, {})


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("photo.png", b"x", "is not empty, and holds no batch"),
        ("job.json", b'{"format": 7}', "of another version"),
        ("job.json", b"[", r"job\.json: damaged"),
    ],
)
def test_a_folder_with_other_things_is_refused(name: str, content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(IgptError, match=expected):
        output.begin(str(tmp_path), IDENTITY, {})


def test_the_manifest_is_created_once(tmp_path: Path) -> None:
    parts = [create(tmp_path, "000000-a", rows(1, 2), BROKEN), create(tmp_path, "000001-b", rows(3))]
    assert output.manifest_of(str(tmp_path)) is None
    more = {
        "identity": IDENTITY,
        "about": {"model": "models:/a/1"},
        "columns": output.columns_of(str(tmp_path), parts[0]),
        "classes": [],
    }
    for _ in range(2):
        output.create_manifest(str(tmp_path), parts, **more)
    manifest = output.manifest_of(str(tmp_path))
    assert (manifest["images"], manifest["rejected"], manifest["task"]) == (3, {"not_an_image": 1}, "features")
    assert manifest["columns"] == {"key": "string", "layer_1": "float"}
    assert [part["name"] for part in manifest["parts"]] == ["000000-a", "000001-b"]
    with pytest.raises(IgptError, match="another process has completed it with other images"):
        output.create_manifest(str(tmp_path), parts[:1], **more)


def test_names_are_of_place_content_and_work() -> None:
    part = Part(number=3, digest="d", images=2, content=None)
    other = Part(number=3, digest="e", images=2, content=None)
    names = {output.name_of(part, IDENTITY), output.name_of(other, IDENTITY), output.name_of(part, {"task": "score"})}
    assert len(names) == 3 and all(name.startswith("000003-") and len(name) == 23 for name in names)
