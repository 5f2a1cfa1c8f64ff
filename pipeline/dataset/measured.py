"""What was measured on a snapshot and is no part of it: kept beside the dataset, by the digest of the content.

Files are in {dataset}-measured/{content digest}/, so that snapshots stay immutable and a snapshot that is published
again finds its measurements. They may be deleted at any time: whoever needs one measures again.
"""

from contextlib import suppress

from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.store import objects


def folder_of(dataset: str, content_digest: str) -> str:
    """Where the measurements of a content are."""
    return objects.join(f"{dataset.rstrip('/')}-measured", content_digest)


def url_of(data: Snapshot, name: str) -> str:
    """The file of a measurement."""
    return objects.join(folder_of(data.dataset, data.content_digest), name)


def read(data: Snapshot, name: str) -> bytes | None:
    """A measurement that was kept; None: there is none."""
    try:
        return objects.read_bytes(url_of(data, name))
    except FileNotFoundError:
        return None


def keep(data: Snapshot, name: str, content: bytes) -> None:
    """Keep a measurement for the next reader; who may only read the store has to measure again."""
    with suppress(IgptError, OSError):
        objects.write_bytes(url_of(data, name), content)
