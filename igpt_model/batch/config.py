"""Settings of a batch: features, classes or scores of many images, written to a folder."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from igpt_model.inference.pooling import Pooling
from igpt_model.model.config import Count
from pipeline.typed_config.config import Config
from pipeline.typed_config.ranges import Range

Index = Annotated[int, Range(at_least=0)]


@dataclass(frozen=True, kw_only=True)
class BatchConfig(Config):
    """Which images of a source go through a model, and what is kept of them."""

    shown_by: ClassVar[str] = "`igpt config batch`"

    snapshot: int | None = None
    """Number of the dataset snapshot; none: the newest."""
    split: Literal["all", "train", "validation", "test"] = "all"
    """The images of a dataset; raw images have no splits."""
    labels: str | None = None
    """URL of a CSV or Parquet file with the columns file_name and label of raw images; none: as a build finds them."""
    image_column: str | None = None
    """Column of raw Parquet files with the bytes of the images; none: image or img."""
    label_column: str | None = None
    """Column of raw Parquet files and of the label file with the class of an image; none: label."""
    layers: tuple[Index, ...] = ()
    """Layers of the features, each a column; empty: the layer that probed best, without a probe the middle one."""
    pooling: Pooling = "mean"
    """Features: mean of an image's pixels, as in the paper; rows, the mean of each row; none, of every pixel."""
    label: Index | None = None
    """Class number with which a class-conditional model scores all images; none: the class of each image."""
    part_images: Count = 2048
    """Largest number of images in a part: what the loss of a worker costs. Large features make smaller parts."""
    tasks_per_gpu: Count = 1
    """Tasks that share a GPU, so that it computes for one while others read and decode."""
