"""Conditional creation: an object is never replaced, and one of two creators wins."""

from pathlib import Path

import pytest

from pipeline.store import objects
from pipeline.store.conditional_create import AlreadyExistsError, create_bytes


def test_creation_never_replaces(tmp_path: Path) -> None:
    url = str(tmp_path / "new" / "object")
    create_bytes(url, b"first")
    for content in (b"second", b"first"):
        with pytest.raises(AlreadyExistsError):
            create_bytes(url, content)
    assert objects.read_bytes(url) == b"first"
    assert [file.name for file in Path(url).parent.iterdir()] == ["object"]


def test_one_of_two_creators_wins_when_both_saw_no_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "object")
    create_bytes(url, b"first")
    monkeypatch.setattr(objects, "exists", lambda url: False)  # looked just before the other created it
    with pytest.raises(AlreadyExistsError):
        create_bytes(url, b"second")
    assert objects.read_bytes(url) == b"first"
