"""A dataset snapshot: the immutable manifest that names every file of a dataset, and how to read it.

Writing the manifest is the commit (see publish.py): all files that it names exist before. It contains no time, no host
and no address of a raw image: record.py keeps those beside it. `content_digest` tells whether two snapshots hold the
same data.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.dataset import pixel_counts
from pipeline.dataset.decoding import FIRST_RULE, Decoding
from pipeline.errors import IgptError
from pipeline.hashing import digest, sha256
from pipeline.images import palette
from pipeline.store import objects

SCHEMA = 3
SPLITS = ("train", "validation", "test")
_READABLE = (2, 3)
_SPLIT_RULE = ("splits", "validation_fraction", "test_fraction", "seed")
# What schema 3 added to the manifest and to the entry of a shard.
_ADDED = ("decoding", "pixel_counts", "earlier_digests")


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard of a snapshot."""

    name: str
    """File name without extension: {split}-{index}-{hash}."""
    split: str
    samples: int
    """Number of token images; several per image with random crops."""
    images: int
    """Number of images that have samples: the rows of the index."""
    bytes: int
    sha256: str
    rejected: dict[str, int] = field(hash=False)
    """Number of the shard's images that are in quarantine instead, by reason."""
    quarantine: str | None
    """Name of the quarantine file without extension; None when no image was rejected."""
    index_sha256: str
    quarantine_sha256: str | None
    decoding: tuple[Decoding, ...] = ()
    """By which rules its images were decoded; several after an upgrade, because unchanged samples are copied."""

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any], **more: str) -> "ShardEntry":
        """An entry from JSON. Entries of schema 2 do not name a rule: their images were decoded by the first."""
        given = {**fields, **more}
        rules = given.pop("decoding", None)
        if rules is None:
            rules = [{**asdict(FIRST_RULE), "images": given["images"]}] if given["images"] else []
        return cls(**given, decoding=tuple(Decoding(**rule) for rule in rules))

    @property
    def number(self) -> int:
        """The shard's number in its split."""
        return int(self.name.split("-")[1])

    @property
    def path(self) -> str:
        """Path of the tar, relative to the dataset."""
        return f"shards/{self.name}.tar"

    @property
    def index_path(self) -> str:
        """Path of the index, relative to the dataset."""
        return f"index/{self.name}.parquet"

    @property
    def quarantine_path(self) -> str | None:
        """Path of the quarantine, relative to the dataset."""
        return None if self.quarantine is None else f"quarantine/{self.quarantine}.parquet"

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all files of the shard, relative to the dataset."""
        return (self.path, self.index_path, *((self.quarantine_path,) if self.quarantine_path else ()))


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The contents of a dataset at one commit."""

    number: int
    parent: int | None
    resolution: int
    classes: tuple[str, ...]
    palette_sha256: str
    colours: int
    config: dict[str, object]
    source_digest: str
    """Digest of the keys, versions and splits of its images, those in quarantine included (keys.source_digest)."""
    shards: tuple[ShardEntry, ...]
    pixel_counts: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the file of pixel counts by split; empty where nobody has counted."""
    earlier_digests: tuple[str, ...] = ()
    """Manifest digests of snapshots of schema 2 with the same content, which runs on them hold."""
    schema: int = SCHEMA
    scans: tuple[str, ...] = ()
    """Schema 2: names of the scans of the source's containers, which are in the record since."""
    dataset: str = field(compare=False)
    """URL of the dataset that the manifest was read from; not part of the manifest."""

    def samples(self, split: str | None = None) -> int:
        """Number of token images in a split, or in all splits."""
        return sum(shard.samples for shard in self.shards if split in (None, shard.split))

    def images(self, split: str | None = None) -> int:
        """Number of images in the shards of a split, or of all splits, without those in quarantine."""
        return sum(shard.images for shard in self.shards if split in (None, shard.split))

    @property
    def rejected(self) -> dict[str, int]:
        """Images in quarantine by reason."""
        return dict(sorted(sum((Counter(shard.rejected) for shard in self.shards), Counter()).items()))

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all files that the snapshot names, relative to the dataset."""
        of_shards = (path for shard in self.shards for path in shard.paths)
        counts = (pixel_counts.path_of(name) for name in self.pixel_counts.values())
        return (palette_path(self.palette_sha256), *of_shards, *counts, *(scan_path(name) for name in self.scans))

    def of_split(self, split: str) -> tuple[ShardEntry, ...]:
        """The shards of a split, by number. Raises IgptError when it has none."""
        shards = tuple(shard for shard in self.shards if shard.split == split and shard.samples)
        if not shards:
            raise IgptError(
                f"{self.dataset}: snapshot {self.number} has no images in split {split!r}; "
                f"rebuild it with a larger {'validation' if split == 'train' else split}_fraction"
            )
        return shards

    @cached_property
    def content_digest(self) -> str:
        """SHA-256, in hex, of what decides a training: two snapshots with one content digest hold the same data.

        It is of canonical JSON: the checksums and sample counts of the shards in order, the palette, the class names
        and the rule of the splits. The number, the parent, names of files and addresses of raw images are not in it.
        """
        return digest(
            {
                "shards": [[shard.split, shard.sha256, shard.samples] for shard in self.shards],
                "palette": self.palette_sha256,
                "classes": self.classes,
                "splits": {name: self.config.get(name) for name in _SPLIT_RULE},
            }
        )

    @cached_property
    def manifest_digest(self) -> str:
        """SHA-256, in hex, of the manifest's bytes: which publication this is. Runs and versions of before hold it."""
        return sha256(self.to_bytes())

    @property
    def digests(self) -> tuple[str, ...]:
        """All digests by which runs and versions may know this snapshot's content, that of today first."""
        return (self.content_digest, self.manifest_digest, *self.earlier_digests)

    def is_known_as(self, other: str | None) -> bool:
        """Whether a digest that a run or a version holds is of this snapshot's content."""
        return other in self.digests

    def to_bytes(self) -> bytes:
        """The manifest as JSON, in its own schema."""
        fields = asdict(self)
        del fields["dataset"]
        if self.schema == 2:
            for entry in fields["shards"]:
                del entry["decoding"]
            fields = {name: value for name, value in fields.items() if name not in _ADDED}
        else:
            del fields["scans"]
            fields["parts"] = []
        return (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, dataset: str) -> "Snapshot":
        """Parse a manifest. Raises IgptError when it is damaged or has another schema."""
        try:
            fields = json.loads(data)
            schema = fields["schema"]
            if schema not in _READABLE:
                remedy = "upgrade igpt-pipeline" if schema > SCHEMA else "build the dataset again in another folder"
                raise IgptError(f"{dataset}: the manifest has schema {schema}, this version reads {SCHEMA}; {remedy}")
            # Reserved for large manifests: references to files that hold the entries of shards.
            if fields.pop("parts", []):
                raise IgptError(
                    f"{dataset}: the manifest is in parts, which this version does not read; upgrade igpt-pipeline"
                )
            shards = tuple(ShardEntry.from_fields(entry) for entry in fields.pop("shards"))
            fields |= {name: tuple(fields[name]) for name in ("classes", "scans", "earlier_digests") if name in fields}
            return cls(**fields, shards=shards, dataset=dataset)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IgptError(f"{dataset}: damaged snapshot manifest ({error}); restore it or rebuild") from None

    def following(self, parent: "Snapshot | None") -> "Snapshot":
        """This snapshot as the next one after `parent`; the first for None.

        A run on a snapshot of schema 2 holds the digest of its manifest, so a snapshot that has the parent's content
        keeps the digests of the parent.
        """
        if parent is None:
            return replace(self, number=1, parent=None)
        kept = parent.digests[1:] if parent.content_digest == self.content_digest else ()
        return replace(
            self,
            number=parent.number + 1,
            parent=parent.number,
            earlier_digests=tuple(sorted({*self.earlier_digests, *kept})),
        )

    def palette(self) -> np.ndarray:
        """Load the palette, float32 [K, 3]. Raises IgptError when its checksum is not the manifest's."""
        url = objects.join(self.dataset, palette_path(self.palette_sha256))
        palette_K3 = palette.from_bytes(objects.read_bytes(url), url)
        if palette.sha256(palette_K3) != self.palette_sha256:
            raise IgptError(f"{url}: the palette is damaged (its checksum differs from the manifest's); restore it")
        return palette_K3

    def counted_pixels(self, split: str) -> np.ndarray | None:
        """How often each colour is at each position of a split's samples, [T, K]; None where nobody has counted.

        Raises IgptError when the file is missing or damaged.
        """
        name = self.pixel_counts.get(split)
        return None if name is None else pixel_counts.read(self.dataset, name)


def sort_shards(entries: Sequence[ShardEntry]) -> tuple[ShardEntry, ...]:
    """Shards in the order of a manifest: by split, then by number."""
    return tuple(sorted(entries, key=lambda entry: (SPLITS.index(entry.split), entry.number, entry.name)))


def palette_path(sha256: str) -> str:
    """Path of a palette, relative to the dataset."""
    return f"palettes/{sha256}.npy"


def scan_path(name: str) -> str:
    """Path of the scan of a container, relative to the dataset."""
    return f"scans/{name}.parquet"


def snapshot_path(number: int) -> str:
    """Path of a manifest, relative to the dataset."""
    return f"snapshots/{number:06d}.json"


def numbers(dataset: str) -> list[int]:
    """The numbers of all snapshots of a dataset, ascending."""
    names = (file.url.rsplit("/", 1)[-1] for file in objects.list_files(objects.join(dataset, "snapshots")))
    return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())


def latest_number(dataset: str) -> int | None:
    """The number of the newest snapshot, or None when the dataset has none."""
    try:
        text = objects.read_bytes(objects.join(dataset, "LATEST")).decode()
        return int(text)
    except FileNotFoundError:
        return None
    except ValueError:
        raise IgptError(f"{dataset}/LATEST does not hold a number; restore it from the newest of snapshots/") from None


def read(dataset: str, number: int | None = None) -> Snapshot:
    """Read a snapshot, the newest unless a number is given. Raises IgptError when it does not exist."""
    dataset = objects.absolute(dataset)
    objects.check_reachable(dataset)
    if number is None:
        number = latest_number(dataset)
    if number is None:
        raise IgptError(f"{dataset}: no dataset snapshot there; build one with `igpt dataset build`")
    try:
        return Snapshot.from_bytes(objects.read_bytes(objects.join(dataset, snapshot_path(number))), dataset)
    except FileNotFoundError:
        raise IgptError(f"{dataset}: there is no snapshot {number}") from None
