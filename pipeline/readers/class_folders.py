"""Names of folders for classes, whatever their names: safe and distinct on every system. Pure."""

import unicodedata
from collections import Counter
from collections.abc import Sequence

from pipeline.printable import UNPRINTABLE

UNLABELLED = "unlabelled"
_LONGEST_BYTES = 200  # a file name has at most 255
_MEANT_BY_SYSTEMS = '/\\:*?"<>|'
# Names that Windows gives to devices, with any extension.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}


def class_folders(classes: Sequence[str]) -> list[str]:
    """A folder for each class: its name where that is a safe name of a file and like no other, else a changed one.

    Names that differ only in case or in the form of Unicode are like each other. A changed name ends in the number of
    the class. No name is UNLABELLED, that of images without a class.
    """
    safe = [_safe(name) for name in classes]
    alike = [_folded(name) for name in safe]
    counts = Counter(alike)
    folders = []
    taken = {_folded(UNLABELLED)}
    # First the names that stay, so that no changed name takes theirs.
    stays = [
        name == wanted and counts[form] == 1 and form not in taken
        for name, wanted, form in zip(classes, safe, alike, strict=True)
    ]
    taken |= {form for form, unchanged in zip(alike, stays, strict=True) if unchanged}
    for number, (name, unchanged) in enumerate(zip(safe, stays, strict=True)):
        folder = name if unchanged else f"{name}-{number}"
        while not unchanged and _folded(folder) in taken:
            folder += "-"
        taken.add(_folded(folder))
        folders.append(folder)
    return folders


def _safe(name: str) -> str:
    """The name without what a system means something by, and not too long."""
    text = UNPRINTABLE.sub("_", unicodedata.normalize("NFC", name))
    text = "".join("_" if character in _MEANT_BY_SYSTEMS else character for character in text)
    text = text.encode()[:_LONGEST_BYTES].decode(errors="ignore").strip(" .")
    text = text.lstrip("-~")  # options and homes, to a shell
    return text if text and text.split(".")[0].strip().lower() not in _DEVICES else f"_{text}"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
