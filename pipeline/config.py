"""What a user may set about a dataset. Every field has a sentence, which Prefect's form and `igpt config` show."""

import hashlib
import json
from dataclasses import asdict, dataclass

from pipeline.errors import IgptError


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Where raw images come from, how they become palette tokens, and where the dataset is kept."""

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    raw: str
    """URL or path of the raw images: a folder (class names are the folder names), or a tar file of one."""
    dataset: str
    """URL or path of the dataset: the folder that holds its shards, palettes and snapshots."""
    resolution: int = 32
    """Side of the square token images, in pixels; even, 4 to 256. The paper uses 32, 48 and 64."""
    colours: int = 512
    """Number of palette colours, 2 to 65536. The paper uses 512."""
    palette: str | None = None
    """URL of a ready palette (.npy [colours, 3] in [-1, 1], or a JSON list of clusters); none: fit one by k-means."""
    palette_images: int = 10_000
    """Number of training images whose pixels the palette is fitted on, at most."""
    samples_per_shard: int = 8192
    """Number of images in a full shard; at 32x32 a shard of 8192 takes 32 MiB."""
    validation_fraction: float = 0.04
    """Share of the images held out to choose by, 0 to 1; the paper holds out 4% of ImageNet."""
    test_fraction: float = 0.04
    """Share of the images held out to report on, 0 to 1; nothing is ever fitted or chosen on them."""
    min_size: int | None = None
    """Smallest accepted short side of a raw image, in pixels; none: the resolution, so that nothing is enlarged."""
    max_pixels: int = 80_000_000
    """Largest accepted raw image, in pixels, checked before it is decoded."""
    max_reject_fraction: float = 0.05
    """Largest share of rejected images with which a snapshot is still published, 0 to 1."""
    seed: int = 0
    """Seed of the split, the shard order and the palette fit."""

    def __post_init__(self) -> None:
        if not 4 <= self.resolution <= 256 or self.resolution % 2:
            raise IgptError(f"resolution is {self.resolution}: it must be an even number from 4 to 256")
        if not 2 <= self.colours <= 65536:
            raise IgptError(f"colours is {self.colours}: it must be 2 to 65536")
        for name in ("validation_fraction", "test_fraction", "max_reject_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise IgptError(f"{name} is {getattr(self, name)}: it must be 0 to 1")
        if self.validation_fraction + self.test_fraction >= 1:
            raise IgptError(
                f"validation_fraction {self.validation_fraction} and test_fraction {self.test_fraction} leave nothing "
                "to train on: their sum must be below 1"
            )
        for name in ("samples_per_shard", "palette_images", "max_pixels"):
            if getattr(self, name) < 1:
                raise IgptError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.min_size is not None and self.min_size < 1:
            raise IgptError(f"min_size is {self.min_size}: it must be at least 1")
        for name in ("raw", "dataset"):
            if not getattr(self, name):
                raise IgptError(f"{name} is empty: give a URL such as s3://bucket/prefix or a path")

    @property
    def smallest_side(self) -> int:
        """The smallest accepted short side, in pixels."""
        return self.resolution if self.min_size is None else self.min_size

    def fingerprint(self) -> dict[str, object]:
        """What of the config decides the bytes of the dataset: not where it is read from and kept.

        Nor where a given palette lies: its colours are known by the snapshot's palette checksum.
        """
        fields = asdict(self)
        for name in ("raw", "dataset", "max_reject_fraction", "palette"):
            del fields[name]
        return fields


def digest(value: object) -> str:
    """SHA-256, in hex, of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
