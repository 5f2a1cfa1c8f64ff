"""What a user may set about training and probing; Prefect's form shows the sentence of each field."""

import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal

from igpt_model.model.config import (
    Count,
    ModelConfig,
    Objective,
    Preset,
    Shape,
    check_heads,
    check_objective,
    preset_shape,
)
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.hashing import digest
from pipeline.typed_config import values
from pipeline.typed_config.config import Config, SectionedConfig
from pipeline.typed_config.ranges import NotEmpty, Range

NotNegative = Annotated[int, Range(at_least=0)]
Positive = Annotated[float, Range(above=0)]
Seconds = Annotated[float, Range(at_least=0)]
Part = Annotated[float, Range(above=0, below=1)]
Named = Annotated[str, NotEmpty()]


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Config):
    """Which network is trained, from which weights, and in which numbers."""

    preset: Preset = "igpt-s"
    """Shape of the model: tiny and small for CPUs and trials, igpt-s to igpt-xl as published."""
    layers: Count | None = None
    """Number of blocks; none: the preset's."""
    width: Count | None = None
    """Width of the residual stream; none: the preset's. A multiple of heads."""
    heads: Count | None = None
    """Number of attention heads; none: the preset's."""
    objective: Objective = "autoregressive"
    """What is learnt: each pixel from those before it, or masked pixels from all the others (BERT)."""
    mask_fraction: Part = 0.15
    """Masked objective: share of the pixels that are masked."""
    class_conditional: bool = False
    """Whether the model is told the class of each image, by a vector in place of the start vector."""
    low_resolution: Count | None = None
    """Super-resolution: side of the small version of each image that the model is given; none: it is given none."""
    parent: str = ""
    """Registered version whose weights the training starts from, as models:/igpt/3; empty: random weights."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the forward and backward pass; weights and optimizer stay float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shape = self.shape
        check_heads(shape.width, shape.heads)
        check_objective(self.objective, by_class=self.class_conditional, upscales=self.low_resolution is not None)
        if self.parent and not re.fullmatch(r"models:/[^/@:]+/[0-9]+", self.parent):
            raise IgptError(
                f"parent is {self.parent!r}: name a version by its number, as in models:/igpt/3; an alias moves, and "
                "the same config would not find its run again"
            )

    @property
    def shape(self) -> Shape:
        """The preset's shape, with what is given instead."""
        given = {"layers": self.layers, "width": self.width, "heads": self.heads}
        return replace(preset_shape(self.preset), **{name: value for name, value in given.items() if value is not None})

    def resolved(self) -> "ModelSettings":
        """With the numbers that the preset stands for."""
        return replace(self, layers=self.shape.layers, width=self.shape.width, heads=self.shape.heads)

    def for_images(self, *, resolution: int, colours: int, classes: int) -> ModelConfig:
        """The model for images of a resolution, with so many colours and classes.

        Raises IgptError for an impossible shape, and when there are no classes to be told.
        """
        if self.class_conditional and not classes:
            raise IgptError(
                "class_conditional is set and the dataset has no classes: put the images of each class in a folder of "
                "their own and build it again, or leave class_conditional out"
            )
        shape = self.shape
        return ModelConfig(
            layers=shape.layers,
            width=shape.width,
            heads=shape.heads,
            resolution=resolution,
            colours=colours,
            objective=self.objective,
            classes=classes if self.class_conditional else None,
            low_resolution=self.low_resolution,
        )


@dataclass(frozen=True, kw_only=True)
class DataSettings(Config):
    """What it is trained on, and how its images are varied and shuffled."""

    dataset: str = ""
    """URL or path of the dataset, as `igpt dataset build` wrote it; in a refresh, empty: the one just built."""
    snapshot: int | None = None
    """Number of the dataset snapshot to train on; none: the newest."""
    flip: bool = False
    """Whether half of the training images, drawn anew each epoch, are mirrored left to right."""
    crop_padding: NotNegative = 0
    """Pixels reflected around each training image, from which a crop of its size is taken at random; 0: no crop."""
    window_shards: Count = 64
    """Shards that are shuffled into each other; a worker reads from this many at a time."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(Config):
    """How the weights are found."""

    steps: Count = 1000
    """Number of optimizer steps."""
    global_batch: Count = 128
    """Images a step, over all workers."""
    learning_rate: Positive | None = None
    """Peak learning rate of Adam; none: the preset's."""
    warmup_steps: NotNegative = 100
    """Steps over which the learning rate rises from 0; it then falls to 0 along a cosine."""
    weight_decay: Annotated[float, Range(at_least=0)] = 0.0
    """Decoupled weight decay of the matrices; the paper pretrains without."""
    gradient_clip: Positive = 1.0
    """Largest norm of the gradient; a larger one is scaled down to it."""
    ema_decay: Part | None = None
    """Keep an average of the weights with this decay a step, evaluate it and save it as the model; none: no average."""
    seed: int = 0
    """Seed of the initial weights and of the sample order."""


@dataclass(frozen=True, kw_only=True)
class ExecutionSettings(Config):
    """On which machines it runs, and how patient it is with them; nothing here decides what is learnt."""

    workers: Count = 2
    """Number of training workers (processes, one GPU each with use_gpu); with min_workers the largest number."""
    min_workers: Count | None = None
    """Elastic training: smallest number of workers that goes on while nodes are away; none: it waits for them."""
    resize_seconds: Seconds = 60.0
    """Elastic training: seconds between looks whether nodes have come back for more workers."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How Ray places the workers: on few nodes, on many, or strictly on one, strictly on as many as there are."""
    cpus_per_worker: Count = 1
    """CPU cores each worker reserves and uses."""
    use_gpu: bool = False
    """Whether each worker gets a GPU."""
    micro_batch: Count | None = None
    """Images that a worker computes at a time; their gradients are added up. None: its part of the global batch."""
    compile: bool = False
    """Whether torch.compile makes kernels for the blocks: slower to start, faster on GPUs."""
    activation_checkpointing: bool = False
    """Whether activations inside the blocks are computed again in the backward pass instead of kept in memory."""
    parallelism: Literal["ddp", "fsdp"] = "ddp"
    """How workers share the model: each has all of it (ddp), or a part of weights, gradients and optimizer (fsdp)."""
    max_restarts: NotNegative = 3
    """How often the group of workers is restarted after one has died before the run fails."""
    max_skipped_steps: NotNegative = 10
    """Steps in a row that are left out because their loss or gradient is not finite before the run fails."""
    hang_seconds: Seconds = 900.0
    """Seconds without a step after which a worker writes its stacks to the run's folder and ends, so that the group is
    restarted; 0: never."""
    cache: str | None = None
    """Folder on each node that keeps fetched shards; none: igpt-cache in the node's temporary folder."""
    cache_bytes: Count = 100 * 2**30
    """Largest size of that folder in bytes; shards used longest ago are removed, those in use never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_workers is not None and self.min_workers > self.workers:
            raise IgptError(
                f"min_workers is {self.min_workers}: it must not be above workers {self.workers}, the largest number"
            )


@dataclass(frozen=True, kw_only=True)
class KeepingSettings(Config):
    """Where the run lies, and which of its checkpoints are kept."""

    runs: Named
    """URL or path of the folder that holds training runs; the same config and snapshot find the same run again."""
    name: Named | None = None
    """Name of the run in its folder; none: made from the config and the snapshot."""
    checkpoint_every: Count = 250
    """Steps between checkpoints."""
    keep_last: Count = 2
    """Number of newest checkpoints kept."""
    keep_best: NotNegative = 1
    """Number of checkpoints with the lowest validation loss kept beside them; of steps that are evaluated."""
    upload_seconds: Seconds = 300.0
    """Seconds for which faults of the store are outlasted while a checkpoint is written; then it is given up, with a
    warning, and training goes on as long as there is an older one."""


@dataclass(frozen=True, kw_only=True)
class TrackingSettings(Config):
    """What is measured and shown of it, and under which names."""

    evaluate_every: Count = 250
    """Steps between evaluations on the whole validation split."""
    sample_every: NotNegative = 1000
    """Steps between pictures that the model draws while it is trained, from a checkpoint; 0: only at the end."""
    experiment: Named = "igpt"
    """MLflow experiment of the run."""
    model_name: Named = "igpt"
    """Name under which the model is registered."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(SectionedConfig):
    """Which model is trained on a dataset, how, where, and under which names it is tracked and registered."""

    # What decides the weights is in model, data and optimizer; the other sections may change under a run that goes on.
    # Names of fields are unique over all sections, so that the flat form can be read, in which configs, run records and
    # deployments were stored before there were sections.

    shown_by: ClassVar[str] = "`igpt config pretrain`"

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    execution: ExecutionSettings = ExecutionSettings()
    keeping: KeepingSettings
    tracking: TrackingSettings = TrackingSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        batch, workers = self.optimizer.global_batch, self.execution.workers
        if batch < workers:
            raise IgptError(f"global_batch {batch} is smaller than workers {workers}: every worker needs an image")
        hang, upload = self.execution.hang_seconds, self.keeping.upload_seconds
        if 0 < hang <= upload:
            raise IgptError(
                f"hang_seconds is {hang:g}: it must be above upload_seconds {upload:g}, for so long a worker may wait "
                "for the store, or 0"
            )

    @property
    def given_dataset(self) -> str:
        """URL or path of the dataset. Raises IgptError when none is given, which is right in a refresh alone."""
        if not self.data.dataset:
            raise IgptError("dataset is empty: give the URL or path of a dataset that `igpt dataset build` made")
        return self.data.dataset

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up."""
        rate = self.optimizer.learning_rate
        return preset_shape(self.model.preset).learning_rate if rate is None else rate

    def model_for(self, snapshot: Snapshot) -> ModelConfig:
        """The model for a dataset snapshot. Raises IgptError when it does not go with the dataset."""
        return self.model.for_images(
            resolution=snapshot.resolution, colours=snapshot.colours, classes=len(snapshot.classes)
        )

    def resolved(self) -> "PretrainConfig":
        """With numbers where the preset's were taken."""
        return self.with_fields(model=self.model.resolved(), learning_rate=self.peak_learning_rate)

    def flat(self) -> dict[str, Any]:
        """Each field by its own name."""
        sections = (getattr(self, field.name) for field in fields(self))
        return {name: value for section in sections for name, value in asdict(section).items()}

    def run_name(self, manifest_digest: str) -> str:
        """The name of the run that this config makes on a snapshot: the same inputs find the same run again.

        All of `model`, `data` and `optimizer` decides it, with the numbers that a preset stands for; where the dataset
        lies does not. A field that comes later must be left out while it changes nothing, or runs are not found again.
        """
        if self.keeping.name is not None:
            return self.keeping.name
        resolved = values.typed(PretrainConfig, asdict(self.resolved()))  # 1 and 1.0 are the same number
        recipe = {section: resolved[section] for section in ("model", "data", "optimizer")}
        del recipe["model"]["preset"], recipe["data"]["dataset"], recipe["data"]["snapshot"]
        return f"{self.model.preset}-{digest([recipe, manifest_digest])[:12]}"

    def flat_run_name(self, manifest_digest: str) -> str:
        """The name that this config's run had when configs were flat: a preset counted by its name alone."""
        always = (
            "preset layers width heads steps global_batch learning_rate warmup_steps weight_decay gradient_clip "
            "precision window_shards seed model_name"
        )
        later = "objective mask_fraction class_conditional low_resolution flip crop_padding ema_decay parent"
        given, unset = self.flat(), PretrainConfig.from_fields(runs=self.keeping.runs).flat()
        names = [*always.split(), *(name for name in later.split() if given[name] != unset[name])]
        recipe = {name: given[name] for name in names}
        return f"{self.model.preset}-{digest([recipe, manifest_digest])[:12]}"


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig(Config):
    """How a model is fine-tuned to tell classes apart."""

    steps: Count = 200
    """Number of optimizer steps."""
    batch: Count = 64
    """Images a step."""
    learning_rate: Positive = 0.0003
    """Adam's, after a warm-up over a tenth of the steps; it falls to 0 as a cosine."""
    generative_weight: Annotated[float, Range(at_least=0)] = 1.0
    """Weight of the pixels' loss beside the classifier's; the paper found 1 to do better than 0."""
    seed: int = 0
    """Seed of the order of images and of the classifier's first weights."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(Config):
    """How the features of a model are judged by linear classifiers."""

    shown_by: ClassVar[str] = "`igpt config probe`"

    model: str = ""
    """A training run's folder, or a registry URI such as models:/igpt@candidate; in a refresh, empty: the new one."""
    dataset: str = ""
    """URL or path of the labelled dataset, of the model's resolution and palette; in a refresh, empty: the new one."""
    snapshot: int | None = None
    """Number of the dataset snapshot; none: the newest."""
    features: str = ""
    """URL or path of the folder that keeps extracted features for the next time; empty: {dataset}-features."""
    strengths: tuple[Positive, ...] = (0.001, 0.01, 0.1, 1.0)
    """Inverse L2 strengths tried for the classifier; the best on the validation split is taken."""
    max_train_images: Annotated[int, Range(at_least=2)] = 10_000
    """Largest number of training images that a classifier is fitted on."""
    max_iterations: Count = 300
    """Largest number of L-BFGS iterations of a fit."""
    labels_per_class: tuple[Count, ...] = ()
    """Low-data probes: numbers of labelled images of each class that a classifier is fitted on; empty: none."""
    draws: Count = 5
    """How often those images are drawn."""
    neighbours: tuple[Count, ...] = ()
    """Numbers of nearest training images tried for classifying by their vote; empty: not done."""
    fine_tune: FineTuneConfig | None = None
    """Full fine-tuning; none: not done, for it takes as long as training."""
    seed: int = 0
    """Seed of the untrained network that the trained one is compared with, and of the labels that are drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strengths:
            raise IgptError("strengths is empty: give at least one positive number")
