"""A model and its palette: quantized pictures, and the folder that it is stored in and read from."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from igpt_model.model.bundle import FILES, ModelBundle
from pipeline.errors import IgptError
from pipeline.images import palette
from tests.igpt_model.model.test_network import SMALL, UPSCALING, make, some_tokens

COLOURS = np.linspace(-1, 1, 11, dtype=np.float32)[:, None].repeat(3, 1)


def bundle_of(config: object = SMALL) -> ModelBundle:
    return ModelBundle(model=make(config), palette_K3=COLOURS, classes=("a", "b"))  # type: ignore[arg-type]


def test_a_stored_model_is_the_same(tmp_path: Path) -> None:
    source = bundle_of()
    source.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)
    loaded = ModelBundle.load(tmp_path)
    assert (loaded.model.config, loaded.classes) == (SMALL, ("a", "b"))
    assert np.array_equal(loaded.palette_K3, COLOURS)
    assert not loaded.model.training
    assert torch.equal(loaded.model(some_tokens()), source.model(some_tokens()))


def test_pictures_are_quantized_to_the_nearest_colours(photos: np.ndarray) -> None:
    bundle, pictures = bundle_of(), photos[:3, :16, :16]
    tokens_NT = bundle.quantize(pictures)
    expected = palette.quantize(pictures, palette.compute_lookup_table(COLOURS))
    assert np.array_equal(tokens_NT, expected.reshape(3, 256))
    assert np.array_equal(bundle.quantize(bundle.pictures(tokens_NT)), tokens_NT)


def test_only_a_model_that_upscales_has_small_versions(photos: np.ndarray) -> None:
    assert bundle_of(UPSCALING).shrink(photos[:3]).shape == (3, 4)
    with pytest.raises(IgptError, match="does not upscale"):
        bundle_of().shrink(photos[:3])


def describe_as(folder: Path, **changes: object) -> None:
    path = folder / "model.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps({**description, "model": {**description["model"], **changes}}))


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        *(
            (lambda folder, name=name: (folder / name).unlink(), f"not a model folder, {name} is missing")
            for name in FILES
        ),
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"x" * 40), "damaged model folder"),
        (lambda folder: (folder / "model.json").write_text("{"), "damaged model folder"),
        (lambda folder: (folder / "model.json").write_text("{}"), "damaged model folder"),
        (lambda folder: describe_as(folder, width=64), "damaged model folder"),
        (lambda folder: describe_as(folder, wings=2), "damaged model folder"),
        (lambda folder: (folder / "palette.npy").write_bytes(palette.to_bytes(-COLOURS)), "not the model's"),
    ],
)
def test_a_folder_that_does_not_fit_together_is_refused_in_one_line(
    harm: Callable[[Path], object], expected: str, tmp_path: Path
) -> None:
    bundle_of().save(tmp_path)
    harm(tmp_path)
    with pytest.raises(IgptError, match=f"^where it is from: .*{expected}") as raised:
        ModelBundle.load(tmp_path, origin="where it is from")
    assert "\n" not in str(raised.value)
