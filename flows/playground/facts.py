"""What a model is, as a page tells it: its shape, its origin and what was measured. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from igpt_model.model.config import ModelConfig
from igpt_model.registry import card
from igpt_model.registry.gate import BITS
from pipeline.printable import printable

_COMMIT_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A model, and what can be done with it."""

    name: str
    """For people: `igpt-digits, version 3`."""
    config: ModelConfig
    classes: tuple[str, ...]
    palette_K3: np.ndarray
    """uint8 [K, 3]."""
    classifies: bool
    """Whether it has a probe."""
    is_watched: bool
    """Whether its own code shows pictures while they grow, keeps any pixels, and tells the nats of each.

    One that does not answers with whole pictures, and keeps upper rows only.
    """
    rows: tuple[tuple[str, str], ...]
    """Label and text of what is known, in order."""
    loss_nats: float | None
    """Its validation loss, nats per pixel, if known."""

    @property
    def draws(self) -> bool:
        """Whether it draws pictures of its own, and completes."""
        return self.config.objective == "autoregressive" and self.config.low_resolution is None

    @property
    def upscales(self) -> bool:
        """Whether it enlarges."""
        return self.config.low_resolution is not None

    @property
    def scores(self) -> bool:
        """Whether it tells how likely a picture is."""
        return self.config.objective == "autoregressive"


def rows(config: ModelConfig, tags: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What a page tells of a model, from its shape and the tags of its version; none for a run or a folder."""
    what = tags.get(card.ARCHITECTURE, card.architecture(config))
    dataset, snapshot = tags.get("igpt.dataset", ""), tags.get("igpt.snapshot", "unknown")
    told = {
        "What it is": what,
        "Trained on": f"{dataset}, snapshot {snapshot}" if dataset else "",
        "Parent": tags.get("igpt.parent_model", ""),
        "Made from": tags.get(card.ORIGIN, ""),
        "Classifies with a probe on": tags.get(card.PROBED_ON, ""),
        "Licence": tags.get(card.LICENCE, card.NOT_STATED),
        "Commit": tags.get("igpt.git_commit", "")[:_COMMIT_DIGITS],
    }
    measured = [
        (f"{label[:1].upper()}{label[1:]}", f"{_rounded(label, value)}, on {on}")
        for on, label, value in card.numbers(tags)
    ]
    return tuple((label, printable(value)) for label, value in (*told.items(), *measured) if value)


def _rounded(label: str, value: str) -> str:
    """A number as people read it; as it is, where it is none."""
    try:
        number = float(value)
    except ValueError:
        return value
    if label.startswith("bits"):
        return f"{number:.3f} ({number * math.log(2):.3f} nats)"
    return f"{100 * number:.1f}%" if label.startswith("accuracy") else value


def loss_nats(tags: Mapping[str, str]) -> float | None:
    """The validation loss of a version, in nats per pixel; None when it has none."""
    try:
        return float(tags[BITS]) * math.log(2)
    except (KeyError, ValueError):
        return None
