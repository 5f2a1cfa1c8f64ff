"""SHA-256 in hex, of bytes, of a file and of a JSON value: checksums, and names that follow from content."""

import hashlib
import json
from pathlib import Path


def sha256(data: bytes) -> str:
    """SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a local file, read in blocks. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: object) -> str:
    """SHA-256 of a JSON value in canonical form: sorted keys, no white space."""
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
