"""The config of a whole refresh."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from igpt_model.config import PretrainConfig, check_names
from igpt_model.probing.config import ProbeConfig
from igpt_model.registry.gate import GateConfig
from pipeline.config import DatasetConfig
from pipeline.errors import IgptError
from pipeline.typed_config.config import Config


@dataclass(frozen=True, kw_only=True)
class UnfinishedConfig(Config):
    """What becomes of a run of the same recipe that was begun on an earlier snapshot and is not finished."""

    earlier: Literal["finish", "abandon"] = "finish"
    """Finish it, with its probe and registration, before the training on the newest snapshot; or abandon it."""
    reason: str = ""
    """With abandon: why. It is recorded in the run's folder and in MLflow."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.earlier == "abandon") != bool(self.reason.strip()):
            raise IgptError(
                f"earlier is {self.earlier} and reason is {self.reason!r}: abandon needs a reason, which is recorded, "
                "and finish takes none"
            )


@dataclass(frozen=True, kw_only=True)
class RefreshConfig(Config):
    """Raw images to a registered, probed model: the whole pipeline's configuration."""

    shown_by: ClassVar[str] = "`igpt config refresh`"

    dataset: DatasetConfig
    """The dataset to build; each refresh picks up the changes of its source."""
    pretrain: PretrainConfig
    """The model to train on it."""
    probe: ProbeConfig = ProbeConfig()
    """How its features are evaluated."""
    unfinished: UnfinishedConfig = UnfinishedConfig()
    """What becomes of an unfinished run on an earlier snapshot."""
    promotion: GateConfig | None = None
    """The gate for promoting it to champion at once; without one, `igpt models promote` does that later."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Else they are refused hours later, when the run is tracked and the model registered.
        check_names(self.pretrain.tracking)
        data = self.pretrain.data
        for name, value in (("pretrain.data.dataset", data.dataset), ("probe.dataset", self.probe.dataset)):
            if value:
                raise IgptError(f"{name} is {value!r}: in a refresh it is the dataset just built, leave it out")
        if self.probe.model or data.snapshot is not None or self.probe.snapshot is not None:
            raise IgptError(
                "probe.model, pretrain.data.snapshot and probe.snapshot: a refresh sets them, leave them out"
            )
        if self.probe.register:
            raise IgptError("probe.register is set: a refresh registers the model with its probe anyway, leave it out")
        if self.probe.checkpoints == "all":
            raise IgptError("probe.checkpoints is all: a refresh probes the new model; use `igpt probe` for a figure")
        if self.pretrain.model.class_conditional:
            raise IgptError(
                "pretrain.model.class_conditional is set: a refresh probes features, and a class-conditional model "
                "is given the class as input; train it with `igpt pretrain`"
            )
