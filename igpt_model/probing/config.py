"""Settings of the probes; Prefect's form shows the docstring of each field."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from igpt_model.config import Positive
from igpt_model.inference.pooling import Pooling
from igpt_model.model.config import Count
from pipeline.errors import IgptError
from pipeline.typed_config.config import Config
from pipeline.typed_config.ranges import Range, Seed


@dataclass(frozen=True, kw_only=True)
class ClassifierTraining(Config):
    """What trainings of a classifier have in common."""

    steps: Count = 200
    """Number of optimizer steps."""
    batch: Count = 64
    """Images per step."""
    learning_rate: Positive = 0.0003
    """Peak learning rate of Adam, after a warm-up over a tenth of the steps; it then decays to 0 along a cosine."""
    seed: Seed = 0
    """Seed of the order of images and of the classifier's initial weights."""


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig(ClassifierTraining):
    """Settings of full fine-tuning for classification."""

    generative_weight: Annotated[float, Range(at_least=0)] = 1.0
    """Weight of the generative loss added to the classification loss; the paper found 1 better than 0."""


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(ClassifierTraining):
    """Settings of the convolutional network that learns from the labels alone."""

    steps: Count = 1000
    """Number of optimizer steps, also on few labels."""
    batch: Annotated[int, Range(at_least=2)] = 128
    """Images per step."""
    learning_rate: Positive = 0.005
    """Peak learning rate of Adam, after a warm-up over a tenth of the steps; it then decays to 0 along a cosine."""
    flip: bool = False
    """Whether half of the images are mirrored while training: for photographs, not for digits or letters."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(Config):
    """Settings of the linear probe, which evaluates the features of a model."""

    shown_by: ClassVar[str] = "`igpt config probe`"

    model: str = ""
    """A run, checkpoint, model folder or registry URI (models:/igpt@candidate); in a refresh, empty: the new model."""
    dataset: str = ""
    """URL or path of a labelled dataset of the model's resolution and palette; in a refresh, empty: the new dataset."""
    snapshot: int | None = None
    """Number of the dataset snapshot; none: the newest."""
    checkpoints: Literal["newest", "all"] = "newest"
    """all: probe every checkpoint of a run, and draw accuracy against validation loss (keep_every keeps some)."""
    beside: tuple[str, ...] = ()
    """Further runs for the same figure, such as those of other sizes; only with checkpoints all."""
    features: str = ""
    """URL or path of the folder that caches extracted features; empty: {dataset}-features.

    Where steps have keys of their own (also under `igpt up`), tasks of a probe may write s3://datasets/*-features only.
    """
    pooling: Pooling = "mean"
    """Features: mean of an image's pixels, as in the paper; rows, those of each row in turn; none, of each pixel."""
    strengths: tuple[Positive, ...] = (0.001, 0.01, 0.1, 1.0)
    """Inverse L2 regularization strengths to try; the best on the validation split is used."""
    max_train_images: Annotated[int, Range(at_least=2)] = 10_000
    """Maximum number of training images to fit a classifier on."""
    max_iterations: Count = 300
    """Maximum number of L-BFGS iterations per fit."""
    labels_per_class: tuple[Count, ...] = ()
    """Low-data probes: numbers of labelled images per class to fit a classifier on; empty: none."""
    draws: Count = 5
    """Number of random draws of these images."""
    neighbours: tuple[Count, ...] = ()
    """Nearest-neighbour classifier: numbers of neighbours to try; empty: none."""
    fine_tune: FineTuneConfig | None = None
    """Full fine-tuning, which takes about as long as training; none: not done."""
    supervised: SupervisedConfig | None = None
    """A small residual network trained on the same labels, all of them and few; none: not done."""
    seed: Seed = 0
    """Seed of the untrained network to compare with, and of the images drawn for low-data probes."""

    register: bool = False
    """Whether to register the model with its fitted probe as a new version of the same name, which classifies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strengths:
            raise IgptError("strengths is empty: give at least one positive number")
        if self.beside and self.checkpoints != "all":
            raise IgptError("beside names runs, and checkpoints is newest: set checkpoints=all")
        further = ("labels_per_class", "neighbours", "fine_tune", "supervised", "register")
        if self.checkpoints == "all" and (given := [name for name in further if getattr(self, name)]):
            raise IgptError(
                f"checkpoints is all and {given[0]} is set: of many checkpoints only linear probes are fitted; leave "
                f"{', '.join(given)} out"
            )
