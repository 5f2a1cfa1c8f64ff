"""Settings of training; Prefect's form shows the docstring of each field."""

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
from pipeline.typed_config.ranges import NotEmpty, Range, WideSeed

NotNegative = Annotated[int, Range(at_least=0)]
Positive = Annotated[float, Range(above=0)]
Seconds = Annotated[float, Range(at_least=0)]
Part = Annotated[float, Range(above=0, below=1)]
Named = Annotated[str, NotEmpty()]
LONGEST_NAME = 250
"""Characters that MLflow's databases hold of a name."""
Precision = Literal["float32", "tf32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Config):
    """The network to train, its initial weights and its number format."""

    preset: Preset = "igpt-s"
    """Shape of the model: tiny and small for CPUs and experiments, igpt-s to igpt-xl as published."""
    layers: Count | None = None
    """Number of blocks; none: the preset's."""
    width: Count | None = None
    """Width of the residual stream; none: the preset's. A multiple of heads."""
    heads: Count | None = None
    """Number of attention heads; none: the preset's."""
    objective: Objective = "autoregressive"
    """What the model predicts: each pixel from those before it, or masked pixels from all the others (BERT)."""
    mask_fraction: Part = 0.15
    """Masked objective: share of the pixels that are masked."""
    class_conditional: bool = False
    """Whether the model is given the class of each image, as a learned start vector per class."""
    low_resolution: Count | None = None
    """Super-resolution: side of the small image that the model is given; none: no super-resolution."""
    parent: str = ""
    """Registered version whose weights training starts from, as in models:/igpt/3 or models:/igpt@champion; empty:
    random weights. An alias is resolved when a run begins, and the run keeps that version. While model_name has no such
    version yet, a run begins with random weights."""
    precision: Precision | None = None
    """Number format of the forward and backward pass: float32; tf32, in which a GPU rounds the factors of products to
    10 bits; or bfloat16, and tf32 for what stays float32. None: bfloat16 with use_gpu, float32 without. Weights and
    optimizer stay float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shape = self.shape
        check_heads(shape.width, shape.heads)
        check_objective(self.objective, by_class=self.class_conditional, upscales=self.low_resolution is not None)
        if self.parent and not re.fullmatch(r"models:/[^/@:]+(/[0-9]+|@[A-Za-z0-9_-]+)", self.parent):
            raise IgptError(
                f"parent is {self.parent!r}: name a version by its number or an alias, as in models:/igpt/3 or "
                "models:/igpt@champion"
            )

    @property
    def parent_is_alias(self) -> bool:
        """Whether the parent is named by an alias, which may move to another version."""
        return "@" in self.parent

    @property
    def shape(self) -> Shape:
        """The preset's shape, with the fields that override it."""
        overrides = {"layers": self.layers, "width": self.width, "heads": self.heads}
        return replace(
            preset_shape(self.preset), **{name: value for name, value in overrides.items() if value is not None}
        )

    def resolved(self) -> "ModelSettings":
        """A copy with the preset's layers, width and heads filled in."""
        return replace(self, layers=self.shape.layers, width=self.shape.width, heads=self.shape.heads)

    def for_images(self, *, resolution: int, colours: int, classes: int) -> ModelConfig:
        """The model for images of this resolution and these numbers of colours and classes.

        Raises IgptError for an invalid shape, and for a class-conditional model without classes.
        """
        if self.class_conditional and not classes:
            raise IgptError(
                "class_conditional is set and the dataset has no classes: put the images of each class in a separate "
                "folder and rebuild the dataset, or leave class_conditional out"
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
    """The training data, its augmentation and its shuffling."""

    dataset: str = ""
    """URL or path of a dataset written by `igpt dataset build`; in a refresh, empty: the dataset just built."""
    snapshot: int | None = None
    """Number of the dataset snapshot to train on; none: the newest."""
    flip: bool = False
    """Whether training images are randomly mirrored left to right, half of them in each epoch."""
    crop_padding: NotNegative = 0
    """Pixels of reflection padding around each training image before a random crop to its size; 0: no crop."""
    augmented_share: Annotated[float, Range(above=0, at_most=1)] = 1.0
    """Share of the steps, from the first on, whose images are mirrored or cropped; in those after them the model learns
    to draw images as they are. Without either it changes nothing."""
    tell_augmentation: bool = False
    """Whether the model is told how an image was mirrored or cropped, by an offset of its start vector: it then draws
    images as they are, also where all steps augment. Without augmentation it changes nothing."""
    window_shards: Count = 64
    """Number of shards that are shuffled together; a worker has this many open at a time."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(Config):
    """The optimizer and its schedule."""

    steps: Count = 1000
    """Number of optimizer steps."""
    global_batch: Count = 128
    """Images per step, over all workers."""
    optim: Literal["adam", "muon"] = "adam"
    """adam, as in the paper, or muon for the matrices of the blocks, with adam for all other weights."""
    learning_rate: Positive | None = None
    """Peak learning rate; none: the preset's."""
    warmup_steps: NotNegative = 100
    """Steps of linear warm-up from 0; the learning rate then decays to 0 along a cosine."""
    weight_decay: Annotated[float, Range(at_least=0)] = 0.0
    """Decoupled weight decay of the matrices; the paper pretrains without weight decay."""
    gradient_clip: Positive = 1.0
    """Maximum norm of the gradient; larger gradients are scaled down to it."""
    spike_deviations: Positive | None = None
    """A step whose loss or gradient norm is more than this many standard deviations above the mean of the last 100
    steps is skipped, and told; 6 is usual. None: no step is skipped for that."""
    ema_decay: Part | None = None
    """Decay per step of an average of the weights, which is evaluated and saved as the model; none: no average."""
    seed: WideSeed = 0
    """Seed of the initial weights and of the sample order."""


@dataclass(frozen=True, kw_only=True)
class ExecutionSettings(Config):
    """Workers, devices and timeouts; nothing here changes what is learnt."""

    workers: Count = 2
    """Number of training workers (processes; one GPU each with use_gpu); with min_workers, the maximum."""
    min_workers: Count | None = None
    """Elastic training: minimum number of workers to continue with when nodes are lost; none: wait for the nodes."""
    resize_seconds: Seconds = 60.0
    """Elastic training: seconds between checks for nodes that can take more workers."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How Ray places workers: on few nodes (PACK), on many (SPREAD), or strictly on one node or one per node."""
    cpus_per_worker: Count = 1
    """CPU cores each worker reserves and uses."""
    use_gpu: bool = False
    """Whether each worker gets a GPU."""
    nodes_seconds: Seconds = 0.0
    """Seconds to wait for free nodes when a training begins: for an autoscaler to add them, or for other work to leave
    them. Elastic training then begins with the nodes that there are; 0: do not wait."""
    micro_batch: Count | None = None
    """Images per forward and backward pass of a worker, with gradient accumulation; none: its whole batch at once."""
    compile: bool | None = None
    """Whether to compile the blocks with torch.compile: slower to start, faster on GPUs; none: with use_gpu."""
    activation_checkpointing: bool = False
    """Whether to recompute activations of the blocks in the backward pass, which saves memory."""
    parallelism: Literal["ddp", "fsdp"] = "ddp"
    """Replicate the model on each worker (ddp), or shard weights, gradients and optimizer over them (fsdp)."""
    max_restarts: NotNegative = 3
    """How often the workers are restarted after one has died before the training is ended."""
    max_failures: Count = 3
    """How often in a row a run may fail or its process die without a new checkpoint; then it is given up. A training
    that ended because its workers died is taken up again by itself until then."""
    pause_seconds: Seconds = 60.0
    """Seconds to wait before a run that failed is taken up again; doubled with each failure in a row, up to an hour."""
    max_skipped_steps: NotNegative = 10
    """Consecutive steps skipped for a loss or gradient that is not finite before the run fails."""
    hang_seconds: Seconds = 900.0
    """Seconds without a step after which a worker writes its stack traces to the run's folder and exits, so that the
    workers are restarted; 0: never."""
    cache: str | None = None
    """Folder on each node that caches shards; none: igpt-cache-UID in the node's temporary folder."""
    cache_bytes: Count = 100 * 2**30
    """Maximum size of that folder in bytes; the least recently used shards are removed, never those in use."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_workers is not None and self.min_workers > self.workers:
            raise IgptError(
                f"min_workers is {self.min_workers}: it must not be above workers {self.workers}, the maximum"
            )


@dataclass(frozen=True, kw_only=True)
class KeepingSettings(Config):
    """The folder of the run, and which of its checkpoints are kept."""

    runs: Named
    """URL or path of the folder of training runs; the same config and snapshot continue the same run."""
    name: Named | None = None
    """Name of the run's folder; none: derived from the config and the snapshot."""
    checkpoint_every: Count = 250
    """Steps between checkpoints."""
    keep_last: Count = 2
    """Number of newest checkpoints kept."""
    keep_best: NotNegative = 1
    """Number of checkpoints kept in addition for the lowest validation loss; only evaluated steps count."""
    keep_every: NotNegative = 0
    """Steps between checkpoints that are kept beside these, a multiple of checkpoint_every, until `igpt clean` removes
    those of finished runs; 0: none. `igpt probe checkpoints=all` draws by them how features get better."""
    upload_seconds: Seconds = 300.0
    """Seconds to retry store errors while a checkpoint is written; then it is given up with a warning, and training
    continues as long as there is an older checkpoint."""


@dataclass(frozen=True, kw_only=True)
class TrackingSettings(Config):
    """Evaluation, previews, and names in MLflow."""

    evaluate_every: Count = 250
    """Steps between evaluations."""
    evaluate_images: NotNegative = 4096
    """Maximum number of validation images in an evaluation while training; 0: all. They are always the same ones,
    spread evenly over the split; keep_best compares checkpoints by them. The last evaluation is on the whole split."""
    sample_every: NotNegative = 1000
    """Steps between sample images drawn from a checkpoint during training; 0: only at the end."""
    experiment: Named = "igpt"
    """MLflow experiment of the run."""
    model_name: Named = "igpt"
    """Name under which the model is registered."""


def check_names(tracking: TrackingSettings) -> None:
    """Raise IgptError for a name that MLflow does not take."""
    check_model_name(tracking.model_name, "model_name")
    _check_length(tracking.experiment, "experiment")


def check_model_name(name: str, field: str) -> None:
    """Raise IgptError for a name of a model that MLflow does not take; `field` is what it was given as."""
    if not name.strip() or "/" in name or ":" in name or name == "." or name.startswith(".."):
        raise IgptError(
            f"{field} is {name!r}: MLflow takes names that are not blank, without / and :, and that do not begin "
            "with .."
        )
    _check_length(name, field)


def _check_length(text: str, field: str) -> None:
    if len(text) > LONGEST_NAME:
        raise IgptError(f"{field} has {len(text)} characters: it must have at most {LONGEST_NAME}")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(SectionedConfig):
    """Settings of a training run.

    `model`, `data` and `optimizer` determine the weights; the other sections may change when a run is continued. (Where
    precision is none, a run keeps the one that it began with; see `runs.record`.) Field names are unique over all
    sections, so that the flat form can be read: configs, run records and deployments were
    stored in that form before there were sections.
    """

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
        keep, every = self.keeping.keep_every, self.keeping.checkpoint_every
        if keep % every:
            raise IgptError(f"keep_every is {keep}: it must be a multiple of checkpoint_every {every}, or 0")
        if self.data.tell_augmentation and self.model.objective == "masked":
            raise IgptError(
                "tell_augmentation is set and objective is masked: a masked model has no start vector to tell it by; "
                "leave one of them out"
            )
        hang, upload = self.execution.hang_seconds, self.keeping.upload_seconds
        if 0 < hang <= upload:
            raise IgptError(
                f"hang_seconds is {hang:g}: it must be above upload_seconds {upload:g}, the time a worker may wait for "
                "the store, or 0"
            )

    @property
    def given_dataset(self) -> str:
        """URL or path of the dataset. Raises IgptError when it is empty, which is allowed only in a refresh."""
        if not self.data.dataset:
            raise IgptError("dataset is empty: give the URL or path of a dataset that `igpt dataset build` wrote")
        return self.data.dataset

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up."""
        rate = self.optimizer.learning_rate
        return preset_shape(self.model.preset).learning_rate if rate is None else rate

    @property
    def _augments(self) -> bool:
        return self.data.flip or self.data.crop_padding > 0

    @property
    def tells_augmentation(self) -> bool:
        """Whether images are augmented, and the model is told how."""
        return self.data.tell_augmentation and self._augments

    @property
    def _has_plain_steps(self) -> bool:
        """Whether images are augmented, and those of the last steps are not."""
        return self.data.augmented_share < 1 and self._augments

    @property
    def augmented_images(self) -> int:
        """How many images, from the first of the sample order on, are augmented."""
        return round(self.data.augmented_share * self.optimizer.steps) * self.optimizer.global_batch

    @property
    def training_precision(self) -> Precision:
        """The number format of the forward and backward pass."""
        return self.model.precision or ("bfloat16" if self.execution.use_gpu else "float32")

    @property
    def is_compiled(self) -> bool:
        """Whether the blocks are compiled."""
        return self.execution.use_gpu if self.execution.compile is None else self.execution.compile

    def model_for(self, snapshot: Snapshot) -> ModelConfig:
        """The model for a dataset snapshot. Raises IgptError when the config does not match the dataset."""
        return self.model.for_images(
            resolution=snapshot.resolution, colours=snapshot.colours, classes=len(snapshot.classes)
        )

    def resolved(self) -> "PretrainConfig":
        """A copy with what the preset and the device stand for: shape, learning rate, precision, compilation."""
        filled = self.with_fields(model=self.model.resolved(), learning_rate=self.peak_learning_rate)
        return filled.with_fields(precision=self.training_precision, compile=self.is_compiled)

    def flat(self) -> dict[str, Any]:
        """All fields by name, without their sections."""
        sections = (getattr(self, field.name) for field in fields(self))
        return {name: value for section in sections for name, value in asdict(section).items()}

    def run_name(self, manifest_digest: str) -> str:
        """The name of this config's run on a snapshot: the same config and snapshot give the same name.

        It is a hash of the recipe and the snapshot. Raises IgptError while the parent is an alias.
        """
        if self.keeping.name is not None:
            return self.keeping.name
        if self.model.parent_is_alias:
            raise IgptError(
                f"parent is {self.model.parent}: only `igpt pretrain` and `igpt refresh` look up an alias; name the "
                "version by its number, as in models:/igpt/3"
            )
        return f"{self.model.preset}-{digest([self.recipe, manifest_digest])[:12]}"

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides the result on any snapshot: `model`, `data` and `optimizer`, with the numbers of the preset and
        the precision filled in, except the location of the dataset.

        A new field must be left out at its default, or existing runs are no longer found.
        """
        resolved = values.typed(PretrainConfig, asdict(self.resolved()))  # 1 and 1.0 are the same number
        recipe = {section: resolved[section] for section in ("model", "data", "optimizer")}
        del recipe["model"]["preset"], recipe["data"]["dataset"], recipe["data"]["snapshot"]
        if recipe["optimizer"]["optim"] == "adam":  # all runs of before there was a choice
            del recipe["optimizer"]["optim"]
        if not self._has_plain_steps:  # as in runs of before there could be some
            del recipe["data"]["augmented_share"]
        if not self.tells_augmentation:  # as in runs of before models could be told
            del recipe["data"]["tell_augmentation"]
        if recipe["optimizer"]["spike_deviations"] is None:  # as in runs of before steps were judged
            del recipe["optimizer"]["spike_deviations"]
        return recipe

    def flat_run_name(self, manifest_digest: str) -> str:
        """The name that this config's run had when configs were flat: it hashed the preset's name, not its numbers."""
        always = (
            "preset layers width heads steps global_batch learning_rate warmup_steps weight_decay gradient_clip "
            "precision window_shards seed model_name"
        )
        later = (
            "objective mask_fraction class_conditional low_resolution flip crop_padding ema_decay parent "
            "augmented_share spike_deviations tell_augmentation"
        )
        given, defaults = self.flat(), PretrainConfig.from_fields(runs=self.keeping.runs).flat()
        given["precision"] = self.model.precision or "float32"  # the default then, on every device
        if not self._has_plain_steps:
            given["augmented_share"] = defaults["augmented_share"]
        if not self.tells_augmentation:
            given["tell_augmentation"] = defaults["tell_augmentation"]
        names = [*always.split(), *(name for name in later.split() if given[name] != defaults[name])]
        recipe = {name: given[name] for name in names}
        return f"{self.model.preset}-{digest([recipe, manifest_digest])[:12]}"
