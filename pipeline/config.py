"""What a user may set about a dataset. Every field has a sentence, which Prefect's form and `igpt config` show."""

import math
from dataclasses import asdict, dataclass
from typing import Literal

from pipeline.errors import IgptError
from pipeline.hashing import digest
from pipeline.images.decode import Recipe

# What decides the bytes of an image's samples; of the rest, what decides into which split and shard they come; what
# remains (where raw images and dataset lie, limits of patience and of rejects) changes nothing that was built.
_RECIPE = ("resolution", "colours", "crops_per_image", "decode", "min_size", "max_pixels")
_LAYOUT = ("samples_per_shard", "splits", "validation_fraction", "test_fraction", "drop_duplicates", "seed")


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Where raw images come from, how they become palette tokens, and where the dataset is kept."""

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    raw: str
    """URL or path of the raw images: a folder (class names are the folder names), tars, or Parquet files of images."""
    dataset: str
    """URL or path of the dataset: the folder that holds its shards, palettes and snapshots."""
    labels: str | None = None
    """URL of a CSV or Parquet file with the columns file_name and label; none: what containers and folders say."""
    splits: Literal["hash", "folders"] = "hash"
    """How images come into splits: hash, by the fractions below; folders, by folders named train, val or test."""
    validation_fraction: float = 0.04
    """Share of the images held out to choose by, 0 to 1; the paper holds out 4% of ImageNet."""
    test_fraction: float = 0.04
    """Share of the images held out to report on, 0 to 1; nothing is ever fitted or chosen on them."""
    resolution: int = 32
    """Side of the square token images, in pixels; even, 4 to 256. The paper uses 32, 48 and 64."""
    colours: int = 512
    """Number of palette colours, 2 to 65536. The paper uses 512."""
    palette: str | None = None
    """URL of a ready palette (.npy [colours, 3] in [-1, 1], or a JSON list of clusters); none: fit one by k-means."""
    palette_images: int = 10_000
    """Number of training images whose pixels the palette is fitted on, at most."""
    crops_per_image: int = 0
    """Random crops of each training image, as in the paper for ImageNet; 0: its centre square, as held-out images."""
    decode: Literal["exact", "fast"] = "exact"
    """How JPEGs are decoded: exact, in full; fast, at an eighth to a half of their size where that is large enough."""
    min_size: int | None = None
    """Smallest accepted short side of a raw image, in pixels; none: so large that nothing is enlarged."""
    max_pixels: int = 80_000_000
    """Largest accepted raw image, in pixels, checked before it is decoded."""
    max_seconds: float = 60.0
    """Longest time that decoding one image may take, in seconds."""
    drop_duplicates: bool = False
    """Whether of images with the same bytes only one is taken, a held-out one before a training one."""
    samples_per_shard: int = 8192
    """Number of images in a full shard; at 32x32 a shard of 8192 takes 32 MiB."""
    max_reject_fraction: float = 0.05
    """Largest share of rejected images with which a snapshot is still published, 0 to 1."""
    seed: int = 0
    """Seed of the split, the shard order, the random crops and the palette fit."""

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
        if not 0 <= self.crops_per_image <= 999:
            raise IgptError(f"crops_per_image is {self.crops_per_image}: it must be 0 to 999")
        if self.min_size is not None and self.min_size < 1:
            raise IgptError(f"min_size is {self.min_size}: it must be at least 1")
        if self.max_seconds <= 0:
            raise IgptError(f"max_seconds is {self.max_seconds}: it must be positive")
        for name in ("splits", "decode"):
            allowed = {"splits": ("hash", "folders"), "decode": ("exact", "fast")}[name]
            if getattr(self, name) not in allowed:
                raise IgptError(f"{name} is {getattr(self, name)!r}: it must be {' or '.join(allowed)}")
        for name in ("raw", "dataset"):
            if not getattr(self, name):
                raise IgptError(f"{name} is empty: give a URL such as s3://bucket/prefix or a path")

    @property
    def smallest_side(self) -> int:
        """The smallest accepted short side, in pixels."""
        if self.min_size is not None:
            return self.min_size
        # The smallest random crop shows 224/384 of the short side.
        return math.ceil(self.resolution * 384 / 224) if self.crops_per_image else self.resolution

    def recipe(self, split: str) -> Recipe:
        """How the images of a split are decoded."""
        return Recipe(
            resolution=self.resolution,
            smallest_side=self.smallest_side,
            max_pixels=self.max_pixels,
            crops=self.crops_per_image if split == "train" else 0,
            fast=self.decode == "fast",
            seed=self.seed,
        )

    def fingerprint(self) -> dict[str, object]:
        """What of the config decides the dataset: not where it is read from and kept, nor where a given palette lies.

        The palette's colours are known by the snapshot's palette checksum, the labels by the images' versions.
        """
        fields = asdict(self)
        return {name: fields[name] for name in (*_RECIPE, *_LAYOUT)}

    def recipe_digest(self, palette_sha256: str) -> str:
        """Digest of what decides the bytes of a sample, its image and label apart."""
        fields = asdict(self)
        recipe = {name: fields[name] for name in _RECIPE}
        if self.crops_per_image:
            recipe["seed"] = self.seed
        return digest({**recipe, "palette": palette_sha256})
