"""The gate between candidate and champion: which numbers of two versions are compared, and what follows from them.

Numbers are those that stand as tags on the versions, all measured on validation images: to choose a model by its test
accuracy would spoil the test.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pipeline.typed_config.config import Config
from pipeline.typed_config.ranges import Range

BITS = "igpt.validation_bits_per_pixel"
ACCURACY = "igpt.probe_validation_accuracy"
PALETTE = "igpt.palette_sha256"
SPLITS = "igpt.splits_digest"
ROLLED_BACK = "igpt.rolled_back"
PROMOTED = "promoted"


@dataclass(frozen=True, kw_only=True)
class GateConfig(Config):
    """What a version must show to become the champion."""

    shown_by: ClassVar[str] = "`igpt config promotion`"

    max_bits_per_pixel: Annotated[float, Range(above=0)] | None = None
    """Largest validation bits per pixel; none: any."""
    min_probe_accuracy: Annotated[float, Range(at_least=0, at_most=1)] | None = None
    """Smallest validation accuracy of the best layer's linear probe; none: any."""
    min_bits_gain: float | None = 0.0
    """How much below the champion's bits per pixel it must be, at least; none: they are not compared."""
    min_accuracy_gain: float | None = 0.0
    """How much above the champion's validation accuracy, 0 to 1, it must be, at least; none: they are not compared."""
    across_palettes: bool = False
    """Compare with a champion of another palette, whose bits per pixel are of other colours."""
    across_splits: bool = False
    """Compare with a champion that was measured on other validation images."""
    again_after_rollback: bool = False
    """Promote a version that was rolled back before."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether a version passes the gate."""

    refusals: tuple[str, ...]
    """Why not, a sentence each; empty: it passes."""
    compared: Mapping[str, float]
    """The numbers that were looked at."""

    @property
    def passed(self) -> bool:
        """Whether it may become the champion."""
        return not self.refusals

    @property
    def text(self) -> str:
        """The decision in a line."""
        return f"not promoted: {'; '.join(self.refusals)}" if self.refusals else PROMOTED


def decide(candidate: Mapping[str, str], champion: Mapping[str, str] | None, gate: GateConfig) -> Decision:
    """Judge a version by its tags and those of the champion (none: there is no champion yet).

    A number that the gate asks for and a version does not have refuses it.
    """
    refusals: list[str] = []
    compared: dict[str, float] = {}
    if ROLLED_BACK in candidate and not gate.again_after_rollback:
        refusals.append(f"it was rolled back ({candidate[ROLLED_BACK]}); set again_after_rollback to promote it again")
    if champion is not None:
        for what, tag, allowed in (("palette", PALETTE, gate.across_palettes), ("splits", SPLITS, gate.across_splits)):
            ours, theirs = candidate.get(tag), champion.get(tag)
            if not allowed and (ours is None or ours != theirs):
                refusals.append(
                    f"it has {what} {_short(ours)}, the champion {_short(theirs)}: their numbers do not compare; "
                    f"set across_{'palettes' if what == 'palette' else what} to do it nevertheless"
                )
    # Of bits less is better, of accuracy more: with the sign turned, more is better for both.
    for name, tag, sign, limit, gain in (
        ("bits per pixel", BITS, -1, gate.max_bits_per_pixel, gate.min_bits_gain),
        ("probe accuracy", ACCURACY, 1, gate.min_probe_accuracy, gate.min_accuracy_gain),
    ):
        if limit is None and (gain is None or champion is None):
            continue
        ours_value = _number(candidate, tag)
        if ours_value is None:
            refusals.append(f"it has no {name} (tag {tag}); probe it, or leave it out of the gate")
            continue
        compared[tag] = ours_value
        if limit is not None and sign * ours_value < sign * limit:
            refusals.append(f"its {name} {ours_value:.5f} is {'above' if sign < 0 else 'below'} {limit:.5f}")
        theirs_value = None if champion is None else _number(champion, tag)
        if gain is None or champion is None:
            continue
        if theirs_value is None:
            refusals.append(f"the champion has no {name} (tag {tag}) to compare with; leave it out of the gate")
            continue
        compared[f"champion.{tag}"] = theirs_value
        if sign * (ours_value - theirs_value) < gain:
            refusals.append(
                f"its {name} {ours_value:.5f} is not better than the champion's {theirs_value:.5f} by {gain:.5f}"
            )
    return Decision(refusals=tuple(refusals), compared=compared)


def _number(tags: Mapping[str, str], tag: str) -> float | None:
    try:
        return float(tags[tag])
    except (KeyError, ValueError):
        return None


def _short(digest: str | None) -> str:
    return "(unknown)" if digest is None else digest[:12]
