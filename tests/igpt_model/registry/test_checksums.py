"""A sealed folder opens only while every file is there, unchanged and the only one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from igpt_model.registry import checksums
from pipeline.errors import IgptError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "weights").write_bytes(b"one")
    (tmp_path / "code" / "model.py").write_text("two")
    return tmp_path


def test_a_sealed_folder_is_itself(folder: Path) -> None:
    identity = checksums.seal(folder)
    checksums.verify(folder, "here")
    checksums.verify(folder, "here", identity)
    assert checksums.seal(folder) == identity


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda folder: (folder / "weights").write_bytes(b"two"), "weights is damaged"),
        (lambda folder: (folder / "code" / "model.py").unlink(), "code/model.py is missing"),
        (lambda folder: (folder / "code" / "more.py").write_text(""), "code/more.py does not belong to the model"),
        (lambda folder: (folder / checksums.FILE).unlink(), f"{checksums.FILE} is missing"),
        (lambda folder: (folder / checksums.FILE).write_text("["), f"{checksums.FILE} is damaged"),
    ],
)
def test_what_changed_is_named(folder: Path, harm: Callable[[Path], object], expected: str) -> None:
    checksums.seal(folder)
    harm(folder)
    with pytest.raises(IgptError, match=f"^models:/igpt/3: {expected}") as raised:
        checksums.verify(folder, "models:/igpt/3")
    assert "\n" not in str(raised.value)


def test_files_and_list_replaced_together_are_another_folder(folder: Path) -> None:
    identity = checksums.seal(folder)
    (folder / "weights").write_bytes(b"two")
    assert checksums.seal(folder) != identity
    checksums.verify(folder, "here")
    with pytest.raises(IgptError, match="is not the one that was registered"):
        checksums.verify(folder, "here", identity)
