"""`igpt dataset export` writes pictures, says what it wrote, and refuses in a line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.dataset import snapshot
from tests.conftest import Command

Igpt = Callable[..., Command]
DATASET = Path(__file__).parents[2] / "fixtures" / "b9a78dc" / "dataset"


@pytest.mark.parametrize(("format", "kind"), [("png", "tars"), ("rgb", "tars"), ("folders", "folders")])
def test_it_says_what_it_wrote(igpt: Igpt, tmp_path: Path, format: str, kind: str) -> None:
    chosen = snapshot.read(str(DATASET))
    done = igpt("dataset", "export", DATASET, "--split", "train", "--format", format, "--out", "pictures")
    assert done.code == 0, done.err
    manifest = json.loads((tmp_path / "pictures" / "manifest.json").read_text())
    said = f"{chosen.samples('train')} images of snapshot {chosen.number} in {len(manifest['files'])} {kind}"
    assert done.out.splitlines()[-1] == f"{tmp_path}/pictures: {said}"


def test_json_lists_the_files(igpt: Igpt, tmp_path: Path) -> None:
    done = igpt("dataset", "export", DATASET, 1, "--out", "pictures", "--json")
    told = json.loads(done.out)
    assert sorted(file["name"] for file in told["files"]) == sorted(
        path.name for path in Path("pictures").glob("*.tar")
    )
    assert told["samples"] == snapshot.read(str(DATASET), 1).samples() and told["out"] == str(tmp_path / "pictures")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "x", "--format", "jpeg"), "format is 'jpeg': it must be one of png, rgb, folders"),
        (("--out", "x", "--split", "holdout"), "split is 'holdout': it must be one of train, validation, test"),
        ((), "out"),
        (("--out", ""), "a path or URL is empty"),
        (("--out", str(DATASET)), "lies in the dataset"),
    ],
)
def test_it_refuses_in_a_line(igpt: Igpt, options: tuple[str, ...], message: str) -> None:
    done = igpt("dataset", "export", DATASET, *options)
    assert done.code == 2 and message in done.err and len(done.err.splitlines()) == 1
