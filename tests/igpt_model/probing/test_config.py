"""The settings of the probes refuse values out of range."""

from typing import Any

import pytest

from igpt_model.probing.config import FineTuneConfig, ProbeConfig
from pipeline.errors import IgptError


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: FineTuneConfig(generative_weight=-1), "generative_weight is -1: it must be at least 0"),
        (lambda: FineTuneConfig(learning_rate=0), "learning_rate is 0: it must be above 0"),
        (lambda: ProbeConfig(strengths=(1.0, 0.0)), "strengths is 0.0: it must be above 0"),
        (lambda: ProbeConfig(strengths=()), "strengths is empty"),
        (lambda: ProbeConfig(checkpoints="all", register=True), "checkpoints is all and register is set"),
        (lambda: ProbeConfig(checkpoints="all", neighbours=(1,)), "checkpoints is all and neighbours is set"),
        (lambda: ProbeConfig(beside=("s3://runs/a",)), "beside names runs, and checkpoints is newest"),
        (lambda: ProbeConfig(neighbours=(0,)), "neighbours is 0: it must be at least 1"),
        (lambda: ProbeConfig(max_train_images=1), "max_train_images is 1: it must be at least 2"),
    ],
)
def test_ranges_hold_however_a_config_is_made(make: Any, expected: str) -> None:
    with pytest.raises(IgptError, match=expected):
        make()
