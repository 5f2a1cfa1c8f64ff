"""Folders of classes stay in their place and apart, on every system and whatever the classes are called."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.readers.class_folders import UNLABELLED, class_folders


@pytest.mark.parametrize(
    ("classes", "folders"),
    [
        (["flower", "temple"], ["flower", "temple"]),
        (["n01440764", "7", "1e5", "01"], ["n01440764", "7", "1e5", "01"]),
        (["名前", "größer", "a b"], ["名前", "größer", "a b"]),
        (["../../etc", "/etc/passwd", "a/b", "a\\b"], ["_.._etc-0", "_etc_passwd-1", "a_b-2", "a_b-3"]),
        ([".", "..", " ", "~root", "--help"], ["_-0", "_-1", "_-2", "root-3", "help-4"]),
        (["Cat", "cat", "CAT", "dog"], ["Cat-0", "cat-1", "CAT-2", "dog"]),
        (["caf\u00e9", "cafe\u0301"], ["caf\u00e9-0", "caf\u00e9-1"]),
        (["Cat", "cat", "cat-1"], ["Cat-0", "cat-1-", "cat-1"]),
        (["unlabelled", "Unlabelled"], ["unlabelled-0", "Unlabelled-1"]),
        (["nul", "COM1.txt", "console"], ["_nul-0", "_COM1.txt-1", "console"]),
        (["\x1b[31mred", "a\nb", "a\u202eb", "a\x00"], ["_[31mred-0", "a_b-1", "a_b-2", "a_-3"]),
        (["x" * 300, "ß" * 200], ["x" * 200 + "-0", "ß" * 100 + "-1"]),
        ([r"\xff", "\udcff"], ["_xff-0", "_-1"]),
    ],
)  # fmt: skip
def test_folders_of_classes(classes: list[str], folders: list[str]) -> None:
    assert class_folders(classes) == folders


NAMES = st.lists(st.text() | st.sampled_from(["a", "A", "a-0", "a-1", "a-1-", "..", "/", "unlabelled"]), unique=True)


@given(NAMES)
@example(["a", "A", "a-0", "A-1", "a-1-"])
def test_no_folder_is_like_another_or_leads_elsewhere(classes: list[str]) -> None:
    folders = class_folders(classes)
    assert len(folders) == len(classes)
    folded = [unicodedata.normalize("NFC", folder.casefold()) for folder in [*folders, UNLABELLED]]
    assert len(set(folded)) == len(folded)
    for folder in folders:
        assert folder and folder not in (".", "..") and not set(folder) & set("/\\\0\n")
        assert len(folder.encode()) <= 255 and folder == folder.strip(" ")
