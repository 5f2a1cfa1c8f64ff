"""A model reads a dataset's tokens as the colours that they are, or refuses the dataset in one line."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from igpt_model.data.same_tokens import check_same_tokens
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: data, None),
        (lambda data: replace(data, resolution=16), "has resolution 16, the model 8: build"),
        (lambda data: replace(data, palette_sha256="0" * 64), "has palette 000000000000, the model"),
    ],
)
def test_another_resolution_or_palette_is_refused(
    change: Callable[[Snapshot], Snapshot], expected: str | None, data: Snapshot
) -> None:
    config = ModelConfig(layers=1, width=16, heads=2, resolution=8, colours=16)
    bundle = ModelBundle(model=ImageGPT(config), palette_K3=data.palette(), classes=data.classes)
    if expected is None:
        check_same_tokens(bundle, change(data))
        return
    with pytest.raises(IgptError, match=expected) as raised:
        check_same_tokens(bundle, change(data))
    assert "\n" not in str(raised.value)
