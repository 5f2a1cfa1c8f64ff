"""The promotion gate: compares the metrics of a candidate with those of the champion.

The metrics are tags of the versions, all measured on validation images: selecting a model by its test accuracy would
bias the test. A champion that was measured on other images than the candidate is measured again by the caller, which
passes the numbers as if they were its tags.
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
    """Requirements for a version to become the champion."""

    shown_by: ClassVar[str] = "`igpt config promotion`"

    max_bits_per_pixel: Annotated[float, Range(above=0)] | None = None
    """Maximum validation bits per pixel; none: no limit."""
    min_probe_accuracy: Annotated[float, Range(at_least=0, at_most=1)] | None = None
    """Minimum validation accuracy of the best layer's linear probe; none: no limit."""
    min_bits_gain: float | None = 0.0
    """Minimum improvement over the champion's bits per pixel; none: not compared."""
    min_accuracy_gain: float | None = 0.0
    """Minimum improvement over the champion's validation accuracy, 0 to 1; none: not compared."""
    across_palettes: bool = False
    """Compare with a champion of another palette, although bits per pixel then refer to other colours."""
    across_splits: bool = False
    """Compare with the numbers that a champion got on other validation images, instead of measuring it on these."""
    again_after_rollback: bool = False
    """Allow promoting a version that was rolled back before."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The tags of a candidate and a champion, with metrics measured on the same images."""

    candidate: Mapping[str, str]
    champion: Mapping[str, str]
    problem: str | None = None
    """Why they could not be measured on the same images, in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether a version passes the gate."""

    refusals: tuple[str, ...]
    """Reasons for refusal, one sentence each; empty: it passes."""
    compared: Mapping[str, float]
    """The compared metrics, by tag."""

    @property
    def passed(self) -> bool:
        """Whether it may become the champion."""
        return not self.refusals

    @property
    def text(self) -> str:
        """The decision in one line."""
        return f"not promoted: {'; '.join(self.refusals)}" if self.refusals else PROMOTED


def decide(candidate: Mapping[str, str], champion: Mapping[str, str] | None, gate: GateConfig) -> Decision:
    """Compare a version's tags with the champion's (none: no champion yet).

    A version without a required metric is refused.
    """
    refusals: list[str] = []
    compared: dict[str, float] = {}
    if ROLLED_BACK in candidate and not gate.again_after_rollback:
        refusals.append(f"it was rolled back ({candidate[ROLLED_BACK]}); set again_after_rollback to promote it again")
    if champion is not None:
        for what, tag, allowed in (("palette", PALETTE, gate.across_palettes), ("splits", SPLITS, gate.across_splits)):
            candidate_digest, champion_digest = candidate.get(tag), champion.get(tag)
            if not allowed and (candidate_digest is None or candidate_digest != champion_digest):
                refusals.append(
                    f"it has {what} {_short(candidate_digest)}, the champion {_short(champion_digest)}: their metrics "
                    f"are not comparable; set across_{'palettes' if what == 'palette' else what} to compare them anyway"
                )
    # Lower bits are better, higher accuracy is better: multiplied by the sign, higher is better for both.
    for name, tag, sign, limit, gain in (
        ("bits per pixel", BITS, -1, gate.max_bits_per_pixel, gate.min_bits_gain),
        ("probe accuracy", ACCURACY, 1, gate.min_probe_accuracy, gate.min_accuracy_gain),
    ):
        if limit is None and (gain is None or champion is None):
            continue
        value = _number(candidate, tag)
        if value is None:
            refusals.append(f"it has no {name} (tag {tag}); probe it, or leave it out of the gate")
            continue
        compared[tag] = value
        if limit is not None and sign * value < sign * limit:
            refusals.append(f"its {name} {value:.5f} is {'above' if sign < 0 else 'below'} {limit:.5f}")
        champion_value = None if champion is None else _number(champion, tag)
        if gain is None or champion is None:
            continue
        if champion_value is None:
            refusals.append(f"the champion has no {name} (tag {tag}) to compare with; leave it out of the gate")
            continue
        compared[f"champion.{tag}"] = champion_value
        if sign * (value - champion_value) < gain:
            refusals.append(
                f"its {name} {value:.5f} is not better than the champion's {champion_value:.5f} by {gain:.5f}"
            )
    return Decision(refusals=tuple(refusals), compared=compared)


def decide_compared(comparison: Comparison, gate: GateConfig) -> Decision:
    """Like `decide`; refuses a candidate that could not be compared."""
    if comparison.problem is not None:
        return Decision(refusals=(comparison.problem,), compared={})
    return decide(comparison.candidate, comparison.champion, gate)


def _number(tags: Mapping[str, str], tag: str) -> float | None:
    try:
        return float(tags[tag])
    except (KeyError, ValueError):
        return None


def _short(digest: str | None) -> str:
    return "(unknown)" if digest is None else digest[:12]
