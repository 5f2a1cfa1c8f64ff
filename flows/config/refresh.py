"""The config of a whole refresh."""

from dataclasses import dataclass
from typing import ClassVar

from igpt_model.config import PretrainConfig, ProbeConfig
from igpt_model.registry.gate import GateConfig
from pipeline.config import DatasetConfig
from pipeline.errors import IgptError
from pipeline.typed_config.config import Config


@dataclass(frozen=True, kw_only=True)
class RefreshConfig(Config):
    """Raw images to a registered, probed model: the whole pipeline's configuration."""

    shown_by: ClassVar[str] = "`igpt config refresh`"

    dataset: DatasetConfig
    """The dataset to build; its source is what changes from night to night."""
    pretrain: PretrainConfig
    """The model to train on it."""
    probe: ProbeConfig = ProbeConfig()
    """How its features are judged."""
    promotion: GateConfig | None = None
    """What it must show to become the champion at once; none: that is left to `igpt models promote`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        trained_on = self.pretrain.data
        for name, value in (("pretrain.data.dataset", trained_on.dataset), ("probe.dataset", self.probe.dataset)):
            if value:
                raise IgptError(f"{name} is {value!r}: in a refresh it is the dataset just built, leave it out")
        if self.probe.model or trained_on.snapshot is not None or self.probe.snapshot is not None:
            raise IgptError(
                "probe.model, pretrain.data.snapshot and probe.snapshot: a refresh sets them, leave them out"
            )
        if self.pretrain.model.class_conditional:
            raise IgptError(
                "pretrain.model.class_conditional is set: a refresh probes features, and those of a class-conditional "
                "model are told the class; train it with `igpt pretrain`"
            )
