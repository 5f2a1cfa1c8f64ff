"""The picture of a page, its square and its known pixels."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from flows.playground.facts import Facts
from flows.playground.session import Session
from igpt_model.model.config import ModelConfig

FACTS = Facts(
    name="model",
    config=ModelConfig(layers=1, width=8, heads=2, resolution=8, colours=2),
    classes=(),
    palette_K3=np.array([[0, 0, 0], [255, 255, 255]], np.uint8),
    classifies=False,
    is_watched=True,
    rows=(),
    loss_nats=None,
)


@pytest.mark.parametrize(("asked", "kept"), [(0, 0), (3, 3), (8, 8), (9, 8), (-1, 0)])
def test_the_upper_rows_are_kept(asked: int, kept: int) -> None:
    session = Session(8)
    assert session.known_RR.sum() == 4 * 8, "half of the rows, as `igpt complete` does"
    session.keep_rows(asked)
    assert session.known_RR[:kept].all() and not session.known_RR[kept:].any()


def test_each_model_is_given_its_own_resolution(photos: np.ndarray) -> None:
    session, larger = Session(8), replace(FACTS, config=replace(FACTS.config, resolution=16))
    session.use(Image.fromarray(photos[3]))
    assert session.picture_for(FACTS).shape == (8, 8, 3)
    assert session.picture_for(larger).shape == (16, 16, 3)
    assert np.array_equal(session.known_for(larger)[::2, ::2], session.known_for(FACTS))
