"""What a registered model of each kind answers, without a registry."""

import math

import numpy as np
import pytest
import torch

from igpt_model.model import Condition, ImageGPT
from igpt_model.model_config import ModelConfig
from igpt_model.model_folder import ModelFolder
from igpt_model.registered import RegisteredImageGPT
from igpt_model.score import score
from pipeline.errors import IgptError


def make(**fields: object) -> RegisteredImageGPT:
    torch.manual_seed(0)
    config = ModelConfig(layers=2, width=32, heads=4, resolution=8, colours=16, **fields)  # type: ignore[arg-type]
    model = ImageGPT(config).eval()
    torch.nn.init.normal_(model.head.weight, std=0.3)
    colours = np.linspace(-1, 1, 16, dtype=np.float32)[:, None].repeat(3, 1)
    return RegisteredImageGPT(ModelFolder(model=model, palette_K3=colours, classes=("a", "b", "c")), best_layer=1)


@pytest.fixture
def images(photos: np.ndarray) -> np.ndarray:
    return photos[[0, 70], :48]


def test_a_plain_model(images: np.ndarray) -> None:
    model = make()
    features = [model.predict(images, {"layer": layer}) for layer in (-1, 0, 1, 2)]
    assert features[0].shape == (2, 32)
    assert np.array_equal(features[0], features[2]) and not np.array_equal(features[0], features[1])
    assert model.predict(images, {"task": "sample", "samples": 3}).shape == (3, 8, 8, 3)
    complete = {"task": "complete", "samples": 2, "rows": 5}
    drawn = model.predict(images, complete)
    assert drawn.shape == (2, 2, 8, 8, 3)
    assert np.array_equal(drawn[:, 0, :5], drawn[:, 1, :5])
    assert not np.array_equal(drawn[:, 0, 5:], drawn[:, 1, 5:])
    assert np.array_equal(drawn, model.predict(images, complete))
    cold = model.predict(images, {**complete, "top_k": 1})
    assert np.array_equal(cold, model.predict(images, {**complete, "top_p": 1e-9, "seed": 4}))
    assert model.predict(images, {"task": "score"}).shape == (2,)
    for params, expected in (
        ({"task": "upscale"}, "does not upscale"),
        ({"task": "dream"}, "task is 'dream'"),
        ({"layer": 7}, "layer is 7"),
        ({"task": "complete", "rows": 9}, "rows is 9"),
    ):
        with pytest.raises(IgptError, match=expected):
            model.predict(images, params)
    with pytest.raises(IgptError, match="give uint8"):
        model.predict(images.astype(np.float32))


def test_a_class_conditional_model(images: np.ndarray) -> None:
    model = make(classes=3)
    bits = [model.predict(images, {"task": "score", "label": label}) for label in range(3)]
    folder = model._folder
    from PIL import Image

    from pipeline.images import centre_square

    squares = np.stack([centre_square(Image.fromarray(image), 8) for image in images])
    tokens = torch.from_numpy(folder.quantize(squares))
    expected = score(folder.model, tokens, condition=Condition(labels_B=torch.tensor([2, 2]))).nats_per_pixel
    assert bits[2] == pytest.approx(expected.numpy() / math.log(2))
    assert not np.array_equal(bits[0], bits[1])
    for task in ("sample", "complete"):
        assert model.predict(images, {"task": task, "samples": 2, "label": 1}).shape[-3:] == (8, 8, 3)
        with pytest.raises(IgptError, match="label is -1: this model draws by class, it must be 0 to 2"):
            model.predict(images, {"task": task})
    with pytest.raises(IgptError, match="told the class"):
        model.predict(images)


def test_a_super_resolution_and_a_masked_model(images: np.ndarray) -> None:
    model = make(low_resolution=2)
    drawn = model.predict(images, {"task": "upscale", "samples": 3})
    assert drawn.shape == (2, 3, 8, 8, 3)
    assert model.predict(images).shape == (2, 32)
    assert model.predict(images, {"task": "score"}).shape == (2,)
    with pytest.raises(IgptError, match="give the tokens of a small image"):
        model.predict(images, {"task": "sample"})
    masked = make(objective="masked")
    assert masked.predict(images).shape == (2, 32)
    for task in ("sample", "complete", "score"):
        with pytest.raises(IgptError, match="a masked model"):
            masked.predict(images, {"task": task})
