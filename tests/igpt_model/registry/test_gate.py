"""The promotion gate: which versions pass, why others are refused, and which metrics are compared."""

import pytest

from igpt_model.registry.gate import ACCURACY, BITS, PALETTE, ROLLED_BACK, SPLITS, GateConfig, decide
from pipeline.errors import IgptError

CHAMPION = {BITS: "3.00000", ACCURACY: "0.80000", PALETTE: "p" * 64, SPLITS: "s" * 64}


def test_the_first_version_needs_only_what_the_gate_asks_for() -> None:
    assert decide({}, None, GateConfig()).passed
    decision = decide({BITS: "2.5"}, None, GateConfig(max_bits_per_pixel=2.6, min_probe_accuracy=0.5))
    assert decision.refusals == (f"it has no probe accuracy (tag {ACCURACY}); probe it, or leave it out of the gate",)
    assert decision.compared == {BITS: 2.5}
    assert decide({BITS: "2.7"}, None, GateConfig(max_bits_per_pixel=2.6)).refusals == (
        "its bits per pixel 2.70000 is above 2.60000",
    )


@pytest.mark.parametrize(
    ("tags", "gate", "refusals"),
    [
        ({}, GateConfig(), []),
        ({BITS: "2.9"}, GateConfig(min_bits_gain=0.1 - 1e-9), []),
        ({BITS: "2.95"}, GateConfig(min_bits_gain=0.1), ["its bits per pixel 2.95000 is not better"]),
        ({BITS: "3.1", ACCURACY: "0.9"}, GateConfig(), ["its bits per pixel 3.10000 is not better"]),
        ({BITS: "3.1", ACCURACY: "0.9"}, GateConfig(min_bits_gain=None), []),
        ({BITS: "2.9", ACCURACY: "0.79"}, GateConfig(), ["its probe accuracy 0.79000 is not better"]),
        ({BITS: "3.1", ACCURACY: "0.1"}, GateConfig(), ["its bits", "its probe accuracy"]),
        ({PALETTE: "q" * 64, BITS: "1"}, GateConfig(), ["it has palette qqqqqqqqqqqq, the champion pppppppppppp"]),
        ({PALETTE: "q" * 64, BITS: "1"}, GateConfig(across_palettes=True), []),
        ({SPLITS: "t" * 64, BITS: "1"}, GateConfig(), ["it has splits tttttttttttt, the champion ssssssssssss"]),
        ({SPLITS: "t" * 64, BITS: "1"}, GateConfig(across_splits=True), []),
        ({ROLLED_BACK: "to version 1"}, GateConfig(), ["it was rolled back (to version 1)"]),
        ({ROLLED_BACK: "to version 1"}, GateConfig(again_after_rollback=True), []),
        ({BITS: "nonsense"}, GateConfig(), ["it has no bits per pixel"]),
    ],
)
def test_against_a_champion(tags: dict[str, str], gate: GateConfig, refusals: list[str]) -> None:
    decision = decide({**CHAMPION, **tags}, CHAMPION, gate)
    assert len(decision.refusals) == len(refusals), decision.refusals
    for refusal, expected in zip(decision.refusals, refusals, strict=True):
        assert refusal.startswith(expected)
    assert decision.passed == (not refusals)


def test_a_missing_tag_is_not_comparable() -> None:
    for tag, word in ((PALETTE, "palette"), (SPLITS, "splits")):
        champion = {key: value for key, value in CHAMPION.items() if key != tag}
        (refusal,) = decide(CHAMPION, champion, GateConfig()).refusals
        assert f"across_{word}" in refusal.replace("across_palettes", "across_palette")
        (refusal,) = decide(champion, champion, GateConfig()).refusals
        assert "(unknown)" in refusal


def test_the_metrics_of_both_versions_are_returned() -> None:
    decision = decide({**CHAMPION, BITS: "2.5", ACCURACY: "0.9"}, CHAMPION, GateConfig())
    assert decision.compared == {BITS: 2.5, f"champion.{BITS}": 3.0, ACCURACY: 0.9, f"champion.{ACCURACY}": 0.8}


@pytest.mark.parametrize("fields", [{"min_probe_accuracy": 90}, {"max_bits_per_pixel": 0}])
def test_an_impossible_gate_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(IgptError, match="it "):
        GateConfig(**fields)
