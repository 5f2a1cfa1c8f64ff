"""What a user may set about the model, its training and its probe; Prefect's form shows the sentence of each field."""

from dataclasses import dataclass
from typing import Literal

from pipeline.config import digest
from pipeline.errors import IgptError

Preset = Literal["tiny", "small", "igpt-s", "igpt-m", "igpt-l", "igpt-xl"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of an Image GPT."""

    layers: int
    width: int
    heads: int
    resolution: int
    colours: int

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "resolution", "colours"):
            if getattr(self, name) < 1:
                raise IgptError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.width % self.heads:
            raise IgptError(
                f"width {self.width} is not divisible by heads {self.heads}: choose a width that is a multiple of heads"
            )

    @property
    def positions(self) -> int:
        """Length of a pixel sequence: one token a pixel."""
        return self.resolution**2

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        block = 12 * self.width**2 + 2 * self.width
        return self.layers * block + self.width * (2 * self.colours + self.positions + 2)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Layers, width and heads of a preset, and the learning rate that suits it."""

    layers: int
    width: int
    heads: int
    learning_rate: float


def preset_shape(preset: Preset) -> Shape:
    """The shape of a preset: S, M, L and XL as in table 5 of Chen et al. 2020, the smaller ones for CPUs."""
    match preset:
        case "tiny":
            return Shape(layers=6, width=64, heads=4, learning_rate=0.005)
        case "small":
            return Shape(layers=8, width=128, heads=8, learning_rate=0.003)
        case "igpt-s":
            return Shape(layers=24, width=512, heads=8, learning_rate=0.003)
        case "igpt-m":
            return Shape(layers=36, width=1024, heads=8, learning_rate=0.003)
        case "igpt-l":
            return Shape(layers=48, width=1536, heads=16, learning_rate=0.001)
        case "igpt-xl":
            return Shape(layers=60, width=3072, heads=16, learning_rate=0.0003)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Which model is trained on a dataset, how, where, and under which names it is tracked and registered."""

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    runs: str
    """URL or path of the folder that holds training runs; the same config and snapshot find the same run again."""
    dataset: str = ""
    """URL or path of the dataset, as `igpt dataset build` wrote it; in a refresh, empty: the one just built."""
    name: str | None = None
    """Name of the run in its folder; none: made from the config and the snapshot."""
    snapshot: int | None = None
    """Number of the dataset snapshot to train on; none: the newest."""
    preset: Preset = "igpt-s"
    """Shape of the model: tiny and small for CPUs and trials, igpt-s to igpt-xl as published."""
    layers: int | None = None
    """Number of blocks; none: the preset's."""
    width: int | None = None
    """Width of the residual stream; none: the preset's. A multiple of heads."""
    heads: int | None = None
    """Number of attention heads; none: the preset's."""
    steps: int = 1000
    """Number of optimizer steps."""
    global_batch: int = 128
    """Images a step, over all workers."""
    learning_rate: float | None = None
    """Peak learning rate of Adam; none: the preset's."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from 0; it then falls to 0 along a cosine."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the matrices; the paper pretrains without."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient; a larger one is scaled down to it."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the forward and backward pass; weights and optimizer stay float32."""
    window_shards: int = 64
    """Shards that are shuffled into each other; a worker reads from this many at a time."""
    evaluate_every: int = 250
    """Steps between evaluations on the whole validation split."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints kept."""
    seed: int = 0
    """Seed of the initial weights and of the sample order."""
    workers: int = 2
    """Number of training workers (processes, one GPU each with use_gpu)."""
    cpus_per_worker: int = 1
    """CPU cores each worker reserves and uses."""
    use_gpu: bool = False
    """Whether each worker gets a GPU."""
    max_restarts: int = 3
    """How often the group of workers is restarted after one has died before the run fails."""
    cache: str | None = None
    """Folder on each node that keeps fetched shards; none: igpt-cache in the node's temporary folder."""
    experiment: str = "igpt"
    """MLflow experiment of the run."""
    model_name: str = "igpt"
    """Name under which the model is registered."""

    def __post_init__(self) -> None:
        at_least_one = ("steps", "global_batch", "window_shards", "evaluate_every", "checkpoint_every")
        for name in (*at_least_one, "keep_checkpoints", "workers", "cpus_per_worker"):
            if getattr(self, name) < 1:
                raise IgptError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.global_batch < self.workers:
            raise IgptError(
                f"global_batch {self.global_batch} is smaller than workers {self.workers}: every worker needs an image"
            )
        if self.warmup_steps < 0 or self.max_restarts < 0 or self.weight_decay < 0:
            raise IgptError("warmup_steps, max_restarts and weight_decay must not be negative")
        if (self.learning_rate is not None and self.learning_rate <= 0) or self.gradient_clip <= 0:
            raise IgptError("learning_rate and gradient_clip must be positive")
        for name in ("runs", "experiment", "model_name"):
            if not getattr(self, name):
                raise IgptError(f"{name} is empty: give it a value")
        self.model_config(resolution=32, colours=512)

    def model_config(self, *, resolution: int, colours: int) -> ModelConfig:
        """The model for a dataset. Raises IgptError for an impossible shape."""
        shape = preset_shape(self.preset)
        return ModelConfig(
            layers=shape.layers if self.layers is None else self.layers,
            width=shape.width if self.width is None else self.width,
            heads=shape.heads if self.heads is None else self.heads,
            resolution=resolution,
            colours=colours,
        )

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up."""
        return preset_shape(self.preset).learning_rate if self.learning_rate is None else self.learning_rate

    def run_name(self, manifest_digest: str) -> str:
        """The name of the run that this config makes on a snapshot: the same inputs find the same run again."""
        if self.name is not None:
            return self.name
        decisive = (
            "preset layers width heads steps global_batch learning_rate warmup_steps weight_decay gradient_clip "
            "precision window_shards seed model_name"
        )
        recipe = {name: getattr(self, name) for name in decisive.split()}
        return f"{self.preset}-{digest([recipe, manifest_digest])[:12]}"


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How the features of a model are judged by linear classifiers."""

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    model: str = ""
    """A training run's folder, or a registry URI such as models:/igpt@candidate; in a refresh, empty: the new one."""
    dataset: str = ""
    """URL or path of the labelled dataset, of the model's resolution and palette; in a refresh, empty: the new one."""
    snapshot: int | None = None
    """Number of the dataset snapshot; none: the newest."""
    strengths: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    """Inverse L2 strengths tried for the classifier; the best on the validation split is taken."""
    max_train_images: int = 10_000
    """Largest number of training images that a classifier is fitted on."""
    max_iterations: int = 300
    """Largest number of L-BFGS iterations of a fit."""
    seed: int = 0
    """Seed of the untrained network that the trained one is compared with."""

    def __post_init__(self) -> None:
        if not self.strengths or min(self.strengths) <= 0:
            raise IgptError(f"strengths is {self.strengths}: give at least one positive number")
        if self.max_train_images < 2 or self.max_iterations < 1:
            raise IgptError("max_train_images must be at least 2 and max_iterations at least 1")
