"""Raw images in parts: each in one part or rejected by it, decoded as a registered model does."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from igpt_model.inference.images import decode_picture
from pipeline.dataset.keys import key_of
from pipeline.errors import IgptError
from pipeline.pictures.raw_parts import RawParts, raw_parts
from pipeline.progress import silent
from pipeline.samples.parts import Part, PartImages
from tests.conftest import write_tar


@pytest.fixture
def raw(image_folder: Path, tmp_path: Path) -> Path:
    """A folder of images, one of them broken, and a tar of others."""
    folder = tmp_path / "raw"
    for name in ("digit", "flower"):
        shutil.copytree(image_folder / name, folder / name)
    (folder / "flower" / "broken.jpg").write_bytes(b"no image")
    members = {f"temple/{path.name}": path.read_bytes() for path in sorted((image_folder / "temple").iterdir())}
    write_tar(folder / "more.tar", members)
    return folder


def opened(raw: Path, out: Path, **fields: object):
    return raw_parts(str(raw), str(out), resolution=8, on_cluster=False, progress=silent, **fields)


def read(source: RawParts, most: int) -> Iterator[tuple[Part, PartImages]]:
    for part in source.fill(source.plan(most)):
        yield part, source.reader.read(part)


def test_every_image_is_in_one_part_or_rejected_as_a_model_decodes_it(raw: Path, tmp_path: Path) -> None:
    with opened(raw, tmp_path / "out") as source:
        done = list(read(source, 30))
    assert [len(images.keys) + len(images.rejected) for _, images in done] == [part.images for part, _ in done]
    assert [part.images for part, _ in done] == [30, 30, 30, 11]
    uris = [uri for _, images in done for uri in images.uris]
    files = [path for path in raw.rglob("*.*g") if path.name != "broken.jpg"]
    members = [f"{raw}/more.tar#more.tar/temple/{number:02d}.png" for number in range(40)]
    assert sorted(uris) == sorted([*map(str, files), *members])
    (broken,) = [image for _, images in done for image in images.rejected]
    assert (broken.key, broken.uri) == (key_of("flower/broken.jpg"), f"{raw}/flower/broken.jpg") and broken.reason
    for _, images in done:
        for key, uri, label, split, picture in zip(
            images.keys, images.uris, images.labels, images.splits, images.pictures_NHW3, strict=True
        ):
            path = Path(uri.partition("#")[0])
            name = uri.removeprefix(f"{raw}/").rpartition("#")[2]
            assert (key, label, split) == (key_of(name), name.split("/")[-2], None)
            if path.suffix != ".tar":
                assert np.array_equal(picture, decode_picture(path.read_bytes(), uri, 8))


def test_the_same_images_make_the_same_parts_in_whatever_order_they_are_listed(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(raw, tmp_path / "out") as source:
        first = [part.digest for part in source.plan(30)]
    scandir = os.scandir

    class Reversed(list):
        def __init__(self, path: object) -> None:
            with scandir(path) as entries:
                super().__init__(list(entries)[::-1])

        def __enter__(self) -> "Reversed":
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr("pipeline.store.local_files.os.scandir", Reversed)
    with opened(raw, tmp_path / "out") as source:
        assert [part.digest for part in source.plan(30)] == first
    monkeypatch.undo()
    (raw / "digit" / "00.png").write_bytes((raw / "digit" / "01.png").read_bytes())
    with opened(raw, tmp_path / "out") as source:
        again = [part.digest for part in source.plan(30)]
        assert sum(a != b for a, b in zip(first, again, strict=True)) == 1


def test_labels_of_a_file_take_the_place_of_folders(raw: Path, tmp_path: Path) -> None:
    labels = raw / "labels.csv"
    labels.write_text("file_name,label\ndigit/00.png,seven\nmore.tar/temple/03.png,Kyoto\n")
    with opened(raw, tmp_path / "out", labels=str(labels)) as source:
        assert source.identity["labels"] == str(labels)
        first = [part.digest for part in source.plan(30)]
        given = {
            key: label for _, images in read(source, 30) for key, label in zip(images.keys, images.labels, strict=True)
        }
    named = {key: label for key, label in given.items() if label is not None}
    assert named == {key_of("digit/00.png"): "seven", key_of("more.tar/temple/03.png"): "Kyoto"} and len(given) == 100
    # Another label makes another part, so that no part keeps an earlier one.
    labels.write_text(labels.read_text().replace("seven", "one"))
    with opened(raw, tmp_path / "out", labels=str(labels)) as source:
        assert sum(a != b for a, b in zip(first, [part.digest for part in source.plan(30)], strict=True)) == 1
    labels.write_text("file_name,label\nother.png,x\n")
    with pytest.raises(IgptError, match=r"labels\.csv"), opened(raw, tmp_path / "out", labels=str(labels)):
        pass


def test_what_was_removed_since_the_listing_is_rejected(raw: Path, tmp_path: Path) -> None:
    with opened(raw, tmp_path / "out") as source:
        shutil.rmtree(raw / "digit")
        rejected = [image for _, images in read(source, 1000) for image in images.rejected]
    assert sorted(image.reason for image in rejected) == ["not_an_image", *["unreadable_object"] * 20]


def test_what_lies_below_the_output_is_not_read_and_other_sources_are_one_line(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw / "digit", raw / "out" / "digit")
    with opened(raw, raw / "out") as source:
        assert sum(part.images for part in source.plan(1000)) == 20 + 41 + 40
    for where, fields, expected in (
        (tmp_path / "nothing", {}, "nothing is there"),
        (raw / "digit" / "00.png" / "x", {}, "a file stands where the path has a folder|nothing is there"),
    ):
        with pytest.raises(IgptError, match=expected), opened(where, tmp_path / "out", **fields):
            pass
    with (
        pytest.raises(IgptError, match=r"cannot be given raw images: resolution is 3"),
        raw_parts(str(raw), str(tmp_path / "out"), resolution=3, on_cluster=False, progress=silent),
    ):
        pass
