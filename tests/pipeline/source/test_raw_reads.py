"""Images that were replaced or removed after they were listed."""

from pathlib import Path

import pytest

from pipeline.source.raw_reads import SourceChangedError, read_images
from tests.conftest import write_tar
from tests.pipeline.source.test_list_source import contents, listed, write


def test_an_image_that_is_replaced_after_it_was_listed_is_noticed(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write(tmp_path / name, b"as listed")
    source = listed(tmp_path)
    write(tmp_path / "b.png", b"as it is now")
    (tmp_path / "a.png").unlink()
    with pytest.raises(SourceChangedError, match=r"b\.png: replaced since|a\.png: removed since"):
        contents(source)
    reasons = {
        image.row: image.rejection.reason.value for image in read_images(source.table, tolerant=True) if image.rejection
    }
    assert reasons == {0: "unreadable_object", 1: "replaced_while_read"}


def test_a_tar_that_is_replaced_after_it_was_listed_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "all.tar", {"a.png": b"first", "b.png": b"other"})
    source = listed(path)
    write_tar(path, {"a.png": b"FIRST", "b.png": b"other"})
    with pytest.raises(SourceChangedError, match=r"all\.tar: its container was replaced"):
        contents(source)
    path.unlink()
    with pytest.raises(SourceChangedError, match=r"all\.tar was removed"):
        contents(source)
