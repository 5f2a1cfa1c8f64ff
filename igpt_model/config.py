"""What a user may set about training and probing; Prefect's form shows the sentence of each field."""

import re
from dataclasses import dataclass, fields
from typing import Literal

from igpt_model.model.config import ModelConfig, Objective, Preset, preset_shape
from pipeline.errors import IgptError
from pipeline.hashing import digest


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
    parent: str = ""
    """Registered version whose weights the training starts from, as models:/igpt/3; empty: random weights."""
    preset: Preset = "igpt-s"
    """Shape of the model: tiny and small for CPUs and trials, igpt-s to igpt-xl as published."""
    layers: int | None = None
    """Number of blocks; none: the preset's."""
    width: int | None = None
    """Width of the residual stream; none: the preset's. A multiple of heads."""
    heads: int | None = None
    """Number of attention heads; none: the preset's."""
    objective: Objective = "autoregressive"
    """What is learnt: each pixel from those before it, or masked pixels from all the others (BERT)."""
    mask_fraction: float = 0.15
    """Masked objective: share of the pixels that are masked, above 0 and below 1."""
    class_conditional: bool = False
    """Whether the model is told the class of each image, by a vector in place of the start vector."""
    low_resolution: int | None = None
    """Super-resolution: side of the small version of each image that the model is given; none: it is given none."""
    flip: bool = False
    """Whether half of the training images, drawn anew each epoch, are mirrored left to right."""
    crop_padding: int = 0
    """Pixels reflected around each training image, from which a crop of its size is taken at random; 0: no crop."""
    steps: int = 1000
    """Number of optimizer steps."""
    global_batch: int = 128
    """Images a step, over all workers."""
    micro_batch: int | None = None
    """Images that a worker computes at a time; their gradients are added up. None: its part of the global batch."""
    learning_rate: float | None = None
    """Peak learning rate of Adam; none: the preset's."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from 0; it then falls to 0 along a cosine."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the matrices; the paper pretrains without."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient; a larger one is scaled down to it."""
    max_skipped_steps: int = 10
    """Steps in a row that are left out because their loss or gradient is not finite before the run fails."""
    ema_decay: float | None = None
    """Keep an average of the weights with this decay a step, evaluate it and save it as the model; none: no average."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the forward and backward pass; weights and optimizer stay float32."""
    compile: bool = False
    """Whether torch.compile makes kernels for the blocks: slower to start, faster on GPUs."""
    activation_checkpointing: bool = False
    """Whether activations inside the blocks are computed again in the backward pass instead of kept in memory."""
    parallelism: Literal["ddp", "fsdp"] = "ddp"
    """How workers share the model: each has all of it (ddp), or a part of weights, gradients and optimizer (fsdp)."""
    window_shards: int = 64
    """Shards that are shuffled into each other; a worker reads from this many at a time."""
    evaluate_every: int = 250
    """Steps between evaluations on the whole validation split."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    sample_every: int = 1000
    """Steps between pictures that the model draws while it is trained, from a checkpoint; 0: only at the end."""
    keep_last: int = 2
    """Number of newest checkpoints kept."""
    keep_best: int = 1
    """Number of checkpoints with the lowest validation loss kept beside them; of steps that are evaluated."""
    upload_seconds: float = 300.0
    """Seconds for which faults of the store are outlasted while a checkpoint is written; then it is given up, with a
    warning, and training goes on as long as there is an older one."""
    seed: int = 0
    """Seed of the initial weights and of the sample order."""
    workers: int = 2
    """Number of training workers (processes, one GPU each with use_gpu); with min_workers the largest number."""
    min_workers: int | None = None
    """Elastic training: smallest number of workers that goes on while nodes are away; none: it waits for them."""
    resize_seconds: float = 60.0
    """Elastic training: seconds between looks whether nodes have come back for more workers."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How Ray places the workers: on few nodes, on many, or strictly on one, strictly on as many as there are."""
    cpus_per_worker: int = 1
    """CPU cores each worker reserves and uses."""
    use_gpu: bool = False
    """Whether each worker gets a GPU."""
    max_restarts: int = 3
    """How often the group of workers is restarted after one has died before the run fails."""
    hang_seconds: float = 900.0
    """Seconds without a step after which a worker writes its stacks to the run's folder and ends, so that the group is
    restarted; 0: never."""
    cache: str | None = None
    """Folder on each node that keeps fetched shards; none: igpt-cache in the node's temporary folder."""
    cache_bytes: int = 100 * 2**30
    """Largest size of that folder in bytes; shards used longest ago are removed, those in use never."""
    experiment: str = "igpt"
    """MLflow experiment of the run."""
    model_name: str = "igpt"
    """Name under which the model is registered."""

    def __post_init__(self) -> None:
        at_least_one = ("steps", "global_batch", "window_shards", "evaluate_every", "checkpoint_every")
        optional = (
            name for name in ("micro_batch", "low_resolution", "min_workers") if getattr(self, name) is not None
        )
        for name in (*at_least_one, "keep_last", "workers", "cpus_per_worker", "cache_bytes", *optional):
            if getattr(self, name) < 1:
                raise IgptError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.global_batch < self.workers:
            raise IgptError(
                f"global_batch {self.global_batch} is smaller than workers {self.workers}: every worker needs an image"
            )
        if self.min_workers is not None and self.min_workers > self.workers:
            raise IgptError(
                f"min_workers is {self.min_workers}: it must not be above workers {self.workers}, the largest number"
            )
        not_negative = (
            "warmup_steps",
            "max_restarts",
            "weight_decay",
            "crop_padding",
            "max_skipped_steps",
            "keep_best",
            "sample_every",
        )
        for name in (*not_negative, "upload_seconds", "resize_seconds", "hang_seconds"):
            if getattr(self, name) < 0:
                raise IgptError(f"{name} is {getattr(self, name)}: it must not be negative")
        if 0 < self.hang_seconds <= self.upload_seconds:
            raise IgptError(
                f"hang_seconds is {self.hang_seconds:g}: it must be above upload_seconds {self.upload_seconds:g}, for "
                "so long a worker may wait for the store, or 0"
            )
        if (self.learning_rate is not None and self.learning_rate <= 0) or self.gradient_clip <= 0:
            raise IgptError("learning_rate and gradient_clip must be positive")
        for name in ("mask_fraction", "ema_decay"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < 1:
                raise IgptError(f"{name} is {getattr(self, name)}: it must be above 0 and below 1")
        for name in ("runs", "experiment", "model_name"):
            if not getattr(self, name):
                raise IgptError(f"{name} is empty: give it a value")
        if self.parent and not re.fullmatch(r"models:/[^/@:]+/[0-9]+", self.parent):
            raise IgptError(
                f"parent is {self.parent!r}: name a version by its number, as in models:/igpt/3; an alias moves, and "
                "the same config would not find its run again"
            )
        self.model_config(resolution=2 * (self.low_resolution or 16), colours=512, classes=1)

    def model_config(self, *, resolution: int, colours: int, classes: int) -> ModelConfig:
        """The model for a dataset of a resolution, with so many colours and classes.

        Raises IgptError for an impossible shape, and when there are no classes to be told.
        """
        if self.class_conditional and not classes:
            raise IgptError(
                "class_conditional is set and the dataset has no classes: put the images of each class in a folder of "
                "their own and build it again, or leave class_conditional out"
            )
        shape = preset_shape(self.preset)
        return ModelConfig(
            layers=shape.layers if self.layers is None else self.layers,
            width=shape.width if self.width is None else self.width,
            heads=shape.heads if self.heads is None else self.heads,
            resolution=resolution,
            colours=colours,
            objective=self.objective,
            classes=classes if self.class_conditional else None,
            low_resolution=self.low_resolution,
        )

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up."""
        return preset_shape(self.preset).learning_rate if self.learning_rate is None else self.learning_rate

    def run_name(self, manifest_digest: str) -> str:
        """The name of the run that this config makes on a snapshot: the same inputs find the same run again."""
        if self.name is not None:
            return self.name
        always = (
            "preset layers width heads steps global_batch learning_rate warmup_steps weight_decay gradient_clip "
            "precision window_shards seed model_name"
        )
        # Fields that came later count where they are set, so that the runs of before are found again.
        later = "objective mask_fraction class_conditional low_resolution flip crop_padding ema_decay parent"
        defaults = {field.name: field.default for field in fields(self)}
        names = [*always.split(), *(name for name in later.split() if getattr(self, name) != defaults[name])]
        recipe = {name: getattr(self, name) for name in names}
        return f"{self.preset}-{digest([recipe, manifest_digest])[:12]}"


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig:
    """How a model is fine-tuned to tell classes apart."""

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    steps: int = 200
    """Number of optimizer steps."""
    batch: int = 64
    """Images a step."""
    learning_rate: float = 0.0003
    """Adam's, after a warm-up over a tenth of the steps; it falls to 0 as a cosine."""
    generative_weight: float = 1.0
    """Weight of the pixels' loss beside the classifier's; the paper found 1 to do better than 0."""
    seed: int = 0
    """Seed of the order of images and of the classifier's first weights."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.learning_rate <= 0 or self.generative_weight < 0:
            raise IgptError(
                "fine_tune: steps, batch and learning_rate must be positive, generative_weight not negative"
            )


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
    features: str = ""
    """URL or path of the folder that keeps extracted features for the next time; empty: {dataset}-features."""
    strengths: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    """Inverse L2 strengths tried for the classifier; the best on the validation split is taken."""
    max_train_images: int = 10_000
    """Largest number of training images that a classifier is fitted on."""
    max_iterations: int = 300
    """Largest number of L-BFGS iterations of a fit."""
    labels_per_class: tuple[int, ...] = ()
    """Low-data probes: numbers of labelled images of each class that a classifier is fitted on; empty: none."""
    draws: int = 5
    """How often those images are drawn."""
    neighbours: tuple[int, ...] = ()
    """Numbers of nearest training images tried for classifying by their vote; empty: not done."""
    fine_tune: FineTuneConfig | None = None
    """Full fine-tuning; none: not done, for it takes as long as training."""
    seed: int = 0
    """Seed of the untrained network that the trained one is compared with, and of the labels that are drawn."""

    def __post_init__(self) -> None:
        if not self.strengths or min(self.strengths) <= 0:
            raise IgptError(f"strengths is {self.strengths}: give at least one positive number")
        if self.max_train_images < 2 or self.max_iterations < 1:
            raise IgptError("max_train_images must be at least 2 and max_iterations at least 1")
        for name in ("labels_per_class", "neighbours"):
            if any(value < 1 for value in getattr(self, name)):
                raise IgptError(f"{name} is {getattr(self, name)}: give numbers of at least 1, or leave it out")
        if self.draws < 1:
            raise IgptError(f"draws is {self.draws}: it must be at least 1")
