"""What a user may set about a dataset. Every field has a sentence, which Prefect's form and `igpt config` show."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar, Literal

from pipeline.errors import IgptError
from pipeline.hashing import digest
from pipeline.images.decode import Recipe
from pipeline.store.path_text import escape, from_text
from pipeline.typed_config.config import Config
from pipeline.typed_config.ranges import NotEmpty, Range, Seed

# What decides the bytes of an image's samples; of the rest, what decides into which split and shard they come; what
# remains (where raw images and dataset lie, limits of patience and of rejects) changes nothing that was built.
_RECIPE = ("resolution", "colours", "crops_per_image", "decode", "min_size", "max_pixels")
_LAYOUT = (
    "samples_per_shard",
    "splits",
    "validation_fraction",
    "test_fraction",
    "drop_duplicates",
    "split_column",
    "seed",
)
# What decides the columns of the index; the shards stay the same.
_INDEX = ("keep_columns",)
# Fields that older snapshots do not name, with the value that they stand for.
_EARLIER: dict[str, object] = {"keep_columns": [], "split_column": None}
Share = Annotated[float, Range(at_least=0, at_most=1)]
Url = Annotated[str, NotEmpty(give="a URL such as s3://bucket/prefix or a path")]


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Config):
    """Where raw images come from, how they become palette tokens, and where the dataset is kept."""

    shown_by: ClassVar[str] = "`igpt config dataset`"

    raw: Url
    """URL or path of the raw images: a folder (class names are the folder names), archives, or Parquet files."""
    dataset: Url
    """URL or path of the dataset: the folder that holds its shards, palettes and snapshots."""
    labels: str | None = None
    """URL of a CSV or Parquet file with the columns file_name and label; none: what containers and folders say."""
    image_column: str | None = None
    """Column of Parquet files with the bytes of the images; none: image or img."""
    label_column: str | None = None
    """Column of Parquet files and of the label file with the class of an image; none: label."""
    split_column: str | None = None
    """Column of Parquet files and of the label file with train, val or test; none: as `splits` says."""
    keep_columns: tuple[str, ...] = ()
    """Columns of Parquet files, of the label file and of WebDataset JSON that the index keeps: licence,owner."""
    splits: Literal["hash", "folders"] = "hash"
    """How images come into splits: hash, by the fractions below; folders, by folders named train, val or test."""
    validation_fraction: Share = 0.04
    """Share of the images held out to choose by; the paper holds out 4% of ImageNet."""
    test_fraction: Share = 0.04
    """Share of the images held out to report on; nothing is ever fitted or chosen on them."""
    resolution: Annotated[int, Range(at_least=4, at_most=256, multiple_of=2)] = 32
    """Side of the square token images, in pixels. The paper uses 32, 48 and 64."""
    colours: Annotated[int, Range(at_least=2, at_most=65536)] = 512
    """Number of palette colours. The paper uses 512."""
    palette: str | None = None
    """URL of a ready palette (.npy [colours, 3] in [-1, 1], or a JSON list of clusters); none: fit one by k-means."""
    palette_images: Annotated[int, Range(at_least=1)] = 10_000
    """Number of training images whose pixels the palette is fitted on, at most."""
    crops_per_image: Annotated[int, Range(at_least=0, at_most=999)] = 0
    """Random crops of each training image, as in the paper for ImageNet; 0: its centre square, as held-out images."""
    decode: Literal["exact", "fast"] = "exact"
    """How JPEGs are decoded: exact, in full; fast, at an eighth to a half of their size where that is large enough."""
    min_size: Annotated[int, Range(at_least=1)] | None = None
    """Smallest accepted short side of a raw image, in pixels; none: so large that nothing is enlarged."""
    max_pixels: Annotated[int, Range(at_least=1)] = 80_000_000
    """Largest accepted raw image, in pixels, checked before it is decoded."""
    max_seconds: Annotated[float, Range(above=0)] = 60.0
    """Longest time that decoding one image may take, in seconds."""
    drop_duplicates: bool = False
    """Whether of images with the same bytes only one is taken: the last snapshot's, else one of the training split."""
    samples_per_shard: Annotated[int, Range(at_least=1)] = 8192
    """Number of images in a full shard; at 32x32 a shard of 8192 takes 32 MiB."""
    max_reject_fraction: Share = 0.05
    """Largest share of rejected images with which a snapshot is still published."""
    max_deleted_fraction: Share = 0.2
    """Largest share of the last snapshot's images that may be gone: an unmounted disk is no deletion of its images."""
    seed: Seed = 0
    """Seed of the split, the shard order, the random crops and the palette fit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("raw", "labels", "palette", "dataset"):
            given = getattr(self, name)
            if given is not None and escape(given) != given:
                # A path that is not UTF-8 has no JSON; as text it is read all the same.
                object.__setattr__(self, name, escape(given))
        if "://" not in self.dataset and from_text(self.dataset) != self.dataset:
            raise IgptError(f"dataset is {self.dataset}, which is not UTF-8: give it a path that is")
        if self.validation_fraction + self.test_fraction >= 1:
            raise IgptError(
                f"validation_fraction {self.validation_fraction} and test_fraction {self.test_fraction} leave nothing "
                "to train on: their sum must be below 1"
            )

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
        fingerprint = {name: fields[name] for name in (*_RECIPE, *_LAYOUT, *_INDEX)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fingerprint.items()}

    def changed_fields(self, fingerprint: Mapping[str, object]) -> tuple[str, ...]:
        """The fields of the fingerprint that differ from those of a snapshot."""
        before = {**_EARLIER, **fingerprint}
        return tuple(name for name, value in self.fingerprint().items() if before.get(name) != value)

    def recipe_digest(self, palette_sha256: str) -> str:
        """Digest of what decides the bytes of a shard and its index, the images and labels apart."""
        fields = asdict(self)
        recipe = {name: fields[name] for name in _RECIPE}
        if self.crops_per_image:
            recipe["seed"] = self.seed
        if self.keep_columns:
            recipe["keep_columns"] = list(self.keep_columns)
        return digest({**recipe, "palette": palette_sha256})
