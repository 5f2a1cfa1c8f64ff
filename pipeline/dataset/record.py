"""The record beside a manifest: what is no part of a snapshot's content, and may change after it is published.

That is when and by what it was published, its tags, where the raw images are, and what a rerun need not read again.
Snapshots of schema 2 have none, and one that is lost is written anew by the next build.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pipeline.dataset import seen
from pipeline.dataset import snapshot as snapshots
from pipeline.dataset.decoding import Rule
from pipeline.dataset.snapshot import Snapshot, scan_path
from pipeline.store import objects

_LISTS = ("tags", "former_roots", "scans")


@dataclass(frozen=True, kw_only=True)
class Publisher:
    """Who publishes a snapshot."""

    program: str = "igpt"
    """Program and version, as in a user agent."""
    flow_run: str | None = None
    """URL or id of the Prefect flow run."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known about a snapshot besides its content."""

    published_at: str | None = None
    """Time in ISO 8601, UTC; None: not recorded, for a snapshot of schema 2."""
    published_by: str | None = None
    """Program and version, as in a user agent."""
    flow_run: str | None = None
    """URL or id of the Prefect flow run."""
    tags: tuple[str, ...] = ()
    raw_root: str
    """URL or path of the raw images; addresses in the index are relative to it."""
    former_roots: tuple[str, ...] = ()
    """Where the raw images were before, with which addresses in indexes of schema 2 begin."""
    refused_by: Rule
    """The rule by which its images in quarantine were tried last."""
    scans: tuple[str, ...] = ()
    """Names of the scans of the source's containers; a rerun reads them instead of the containers."""
    seen: str | None = None
    """Name of the table of images that are listed with another version than the snapshot has, but are the same."""
    restores: int | None = None
    """Number of the snapshot whose content a rollback published anew; None: this one is no rollback."""
    manifest: str = ""
    """Digest of the manifest that it belongs to. A build that lost against another may have left its record."""

    def moved_to(self, raw_root: str) -> "Record":
        """A copy for raw images that are in another place now."""
        if raw_root == self.raw_root:
            return self
        former = [root for root in (*self.former_roots, self.raw_root) if root != raw_root]
        return replace(self, raw_root=raw_root, former_roots=tuple(dict.fromkeys(former)))

    def published(self, publisher: Publisher, *, restores: int | None = None) -> "Record":
        """A copy for a snapshot that is published now."""
        return replace(
            self,
            published_at=now(),
            published_by=publisher.program,
            flow_run=publisher.flow_run,
            tags=(),
            restores=restores,
            manifest="",
        )

    @property
    def published_seconds(self) -> float | None:
        """When it was published, in seconds since 1970."""
        return None if self.published_at is None else datetime.fromisoformat(self.published_at).timestamp()

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all files that the record names, relative to the dataset."""
        tables = () if self.seen is None else (seen.path_of(self.seen),)
        return (*tables, *(scan_path(name) for name in self.scans))

    def address(self, address: str, *, relative: bool) -> str:
        """The URL of a raw image today, from the address in an index (`relative`) or in one of schema 2."""
        if relative:
            return absolute_address(self.raw_root, address)
        for root in self.former_roots:
            if address == root or address.startswith((f"{root}/", f"{root}#")):
                return self.raw_root + address[len(root) :]
        return address


def now() -> str:
    """The time in ISO 8601, UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def root_of(raw: str) -> str:
    """The root of raw images from the URL or path that a user gave."""
    return objects.absolute(raw).rstrip("/")


def relative_address(root: str, url: str) -> str:
    """An address below a root without the root; the root itself is the empty address."""
    if not (url == root or url.startswith((f"{root}/", f"{root}#"))):
        return url
    below = url[len(root) :]
    return f".{below}" if below.startswith("/#") else below.removeprefix("/")


def absolute_address(root: str, address: str) -> str:
    """The inverse of relative_address."""
    if address.startswith("./#"):  # an object whose name begins as the name of a member does
        address = address[2:]
    elif not address or address.startswith("#"):  # the root is a container, or an image
        return f"{root}{address}"
    return f"{root}/{address}"


def path_of(number: int) -> str:
    """Path of a record, relative to the dataset."""
    return f"records/{number:06d}.json"


def write(snapshot: Snapshot, record: Record) -> None:
    """Put the record of a snapshot beside its manifest, in place of the one that is there."""
    fields = asdict(replace(record, manifest=snapshot.manifest_digest))
    data = (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode()
    objects.write_bytes(objects.join(snapshot.dataset, path_of(snapshot.number)), data)


def read(snapshot: Snapshot) -> Record | None:
    """The record of a snapshot; None when it has none, or one that is damaged or belongs to another manifest."""
    try:
        fields = json.loads(objects.read_bytes(objects.join(snapshot.dataset, path_of(snapshot.number))))
        record = _from_fields(fields)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if record.manifest == snapshot.manifest_digest else None


def of_addresses(of: Snapshot) -> Record | None:
    """The record that says where the raw images of a snapshot are today: the newest snapshot's, which follows them.

    None when no snapshot has a record.
    """
    newest = snapshots.read(of.dataset)
    return read(newest) or read(of)


def _from_fields(fields: Mapping[str, Any]) -> Record:
    known = {name: value for name, value in fields.items() if name in Record.__dataclass_fields__}
    lists = {name: tuple(known.pop(name)) for name in _LISTS if name in known}
    return Record(**{**known, **lists, "refused_by": Rule(**known["refused_by"])})
