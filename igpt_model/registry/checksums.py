"""Checksums of the files in a folder: written once, verified whenever the folder is opened."""

import json
from pathlib import Path

from pipeline.errors import IgptError
from pipeline.hashing import sha256_of_file

FILE = "checksums.json"


def seal(folder: Path) -> str:
    """Write the SHA-256 of every file into the folder; returns the SHA-256 of that list, the folder's identity."""
    checksums = {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in _files(folder)}
    (folder / FILE).write_text(json.dumps(checksums, indent=1, sort_keys=True))
    return sha256_of_file(folder / FILE)


def verify(folder: Path, origin: str, identity: str | None = None) -> None:
    """Raise IgptError unless a folder holds exactly the files of its list, all unchanged.

    With an `identity`, the list itself must be the one that `seal` wrote, so that replacing files and list is detected.
    """
    try:
        checksums = json.loads((folder / FILE).read_text())
    except FileNotFoundError:
        raise IgptError(f"{origin}: {FILE} is missing; register the model again") from None
    except ValueError:
        raise IgptError(f"{origin}: {FILE} is damaged; download it again, or register the model again") from None
    if identity is not None and sha256_of_file(folder / FILE) != identity:
        raise IgptError(f"{origin}: {FILE} is not the one that was registered; do not use this version")
    names = {path.relative_to(folder).as_posix() for path in _files(folder)}
    if unknown := sorted(names - set(checksums)):
        raise IgptError(f"{origin}: {unknown[0]} does not belong to the model; do not use this version")
    for name, expected in sorted(checksums.items()):
        if name not in names:
            raise IgptError(f"{origin}: {name} is missing; download it again, or register the model again")
        if sha256_of_file(folder / name) != expected:
            raise IgptError(
                f"{origin}: {name} is damaged (its checksum differs); download it again, or register the model again"
            )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / FILE)
