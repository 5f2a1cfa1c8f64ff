"""A dataset snapshot: the immutable manifest that names everything a dataset consists of, its reading and its commit.

The manifest is the commit: it is written after all it names is in place. It holds no time and no host, so the same
inputs give the same bytes wherever and whenever they are built.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np

from pipeline import palette as palettes
from pipeline import storage
from pipeline.errors import IgptError

SCHEMA = 1
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard of a snapshot."""

    name: str
    """File name without extension: {split}-{index}-{hash}."""
    split: str
    samples: int
    bytes: int
    sha256: str
    rejected: int
    """Images of the shard's plan that are in quarantine/{name}.parquet instead."""

    @property
    def path(self) -> str:
        """Where the tar lies, relative to the dataset."""
        return f"shards/{self.name}.tar"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a dataset is at one commit."""

    number: int
    parent: int | None
    resolution: int
    classes: tuple[str, ...]
    palette_sha256: str
    colours: int
    config: dict[str, object]
    source_digest: str
    """SHA-256 of the source listing."""
    shards: tuple[ShardEntry, ...]
    rejected: dict[str, int]
    """Rejected images by reason."""
    dataset: str = field(compare=False)
    """URL of the dataset that the manifest was read from; not part of the manifest."""

    def samples(self, split: str | None = None) -> int:
        """Number of images in one split, or in all."""
        return sum(shard.samples for shard in self.shards if split in (None, shard.split))

    def of_split(self, split: str) -> tuple[ShardEntry, ...]:
        """The shards of a split, in order. Raises IgptError when it has none."""
        shards = tuple(shard for shard in self.shards if shard.split == split and shard.samples)
        if not shards:
            raise IgptError(
                f"{self.dataset}: snapshot {self.number} has no images in split {split!r}; "
                f"rebuild it with a larger {'validation' if split == 'train' else split}_fraction"
            )
        return shards

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of the manifest's bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The manifest as JSON."""
        fields = {"schema": SCHEMA, **asdict(self)}
        del fields["dataset"]
        return (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, dataset: str) -> "Snapshot":
        """Read a manifest. Raises IgptError when it is not one, or of another schema."""
        try:
            fields = json.loads(data)
            schema = fields.pop("schema")
            if schema != SCHEMA:
                raise IgptError(
                    f"{dataset}: the manifest has schema {schema}, this version reads {SCHEMA}; upgrade igpt-pipeline"
                )
            shards = tuple(ShardEntry(**entry) for entry in fields.pop("shards"))
            classes = tuple(fields.pop("classes"))
            return cls(**fields, shards=shards, classes=classes, dataset=dataset)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IgptError(f"{dataset}: damaged snapshot manifest ({error}); restore it or rebuild") from None

    def palette(self) -> np.ndarray:
        """Load the palette, float32 [K, 3], verified against the manifest."""
        url = storage.join(self.dataset, palette_path(self.palette_sha256))
        palette_K3 = palettes.from_bytes(storage.read_bytes(url), url)
        if palettes.sha256(palette_K3) != self.palette_sha256:
            raise IgptError(f"{url}: the palette is damaged (its checksum differs from the manifest's); restore it")
        return palette_K3


def palette_path(sha256: str) -> str:
    """Where a palette lies, relative to the dataset."""
    return f"palettes/{sha256}.npy"


def snapshot_path(number: int) -> str:
    """Where a manifest lies, relative to the dataset."""
    return f"snapshots/{number:06d}.json"


def latest_number(dataset: str) -> int | None:
    """The number of the newest snapshot, or None when the dataset has none yet."""
    try:
        text = storage.read_bytes(storage.join(dataset, "LATEST")).decode()
        return int(text)
    except FileNotFoundError:
        return None
    except ValueError:
        raise IgptError(f"{dataset}/LATEST does not hold a number; restore it from the newest of snapshots/") from None


def read(dataset: str, number: int | None = None) -> Snapshot:
    """Read a snapshot, the newest unless a number is given. Raises IgptError when it is not there."""
    dataset = storage.absolute(dataset)
    storage.check_reachable(dataset)
    if number is None:
        number = latest_number(dataset)
    if number is None:
        raise IgptError(f"{dataset}: no dataset snapshot there; build one with `igpt dataset build`")
    try:
        return Snapshot.from_bytes(storage.read_bytes(storage.join(dataset, snapshot_path(number))), dataset)
    except FileNotFoundError:
        raise IgptError(f"{dataset}: there is no snapshot {number}") from None


def commit(snapshot: Snapshot) -> None:
    """Publish a snapshot: verify that everything it names is in place, create the manifest, then point LATEST at it.

    Raises IgptError when another builder has published the same number first; nothing of its work is touched.
    """
    for shard in snapshot.shards:
        size = storage.size(storage.join(snapshot.dataset, shard.path))
        if size != shard.bytes:
            raise IgptError(
                f"{snapshot.dataset}: {shard.path} has {size} bytes, {shard.bytes} were written; run the build again"
            )
    try:
        storage.create_bytes(storage.join(snapshot.dataset, snapshot_path(snapshot.number)), snapshot.to_bytes())
    except storage.AlreadyExistsError:
        existing = read(snapshot.dataset, snapshot.number)
        if existing.digest != snapshot.digest:
            _point_latest(snapshot)  # whoever published it may have died before this step
            raise IgptError(
                f"{snapshot.dataset}: another build published snapshot {snapshot.number} meanwhile; run this one again"
            ) from None
    _point_latest(snapshot)


def _point_latest(snapshot: Snapshot) -> None:
    """Name the snapshot's number as the newest, unless a newer one is named already."""
    if (latest_number(snapshot.dataset) or 0) < snapshot.number:
        storage.write_bytes(storage.join(snapshot.dataset, "LATEST"), f"{snapshot.number}\n".encode())
