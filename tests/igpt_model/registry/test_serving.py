"""The pyfunc interface for each kind of model, and loading of damaged or malicious files, without a registry."""

import base64
import hashlib
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from igpt_model.inference.features import image_features
from igpt_model.inference.score import score
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import Condition, ImageGPT
from igpt_model.probing.head import ProbeHead
from igpt_model.registry import checksums
from igpt_model.registry.serving import RegisteredImageGPT, _load_pyfunc, default_params, write_files
from pipeline.errors import IgptError
from pipeline.images.decode import centre_square


def make_bundle(**fields: object) -> ModelBundle:
    torch.manual_seed(0)
    config = ModelConfig(layers=2, width=32, heads=4, resolution=8, colours=16, **fields)  # type: ignore[arg-type]
    model = ImageGPT(config).eval()
    torch.nn.init.normal_(model.head.weight, std=0.3)
    colours = np.linspace(-1, 1, 16, dtype=np.float32)[:, None].repeat(3, 1)
    return ModelBundle(model=model, palette_K3=colours, classes=("a", "b", "c"))


def make_head() -> ProbeHead:
    random = np.random.default_rng(0)
    return ProbeHead(
        mean_C=np.zeros(32, np.float32),
        scale_C=np.ones(32, np.float32),
        weight_KC=random.normal(size=(2, 32)).astype(np.float32),
        bias_K=np.zeros(2, np.float32),
        labels_K=np.array([0, 2]),
    )


def make(**fields: object) -> RegisteredImageGPT:
    return RegisteredImageGPT(make_bundle(**fields), best_layer=1, head=make_head())


@pytest.fixture
def images(photos: np.ndarray) -> np.ndarray:
    return photos[[0, 70], :48]


def test_a_version_classifies_by_the_features_that_its_probe_was_fitted_on(images: np.ndarray, tmp_path: Path) -> None:
    random, bundle = np.random.default_rng(0), make_bundle()
    head = replace(
        make_head(),
        mean_C=np.zeros(8 * 32, np.float32),
        scale_C=np.ones(8 * 32, np.float32),
        weight_KC=random.normal(size=(2, 8 * 32)).astype(np.float32),
        pooling="rows",
    )
    write_files(tmp_path, bundle, 1, head)
    model = _load_pyfunc(str(tmp_path))
    assert model.predict(images).shape == (2, 32), "features are averaged unless asked for otherwise"
    rows = model.predict(images, {"pooling": "rows"})
    table = model.predict(images, {"task": "classify"})
    assert list(table.columns) == ["a", "c"]
    assert np.array_equal(table.to_numpy(), head.probabilities(rows))


def test_a_plain_model(images: np.ndarray) -> None:
    model = make()
    features = [model.predict(images, {"layer": layer}) for layer in (None, 0, 1, 2)]
    assert features[0].shape == (2, 32)
    assert np.array_equal(features[0], features[2]) and not np.array_equal(features[0], features[1])
    every = model.predict(images, {"all_layers": True})
    assert np.array_equal(every, np.stack(features[1:], 1))
    for pooling, shape in (("mean", (32,)), ("rows", (8, 32)), ("none", (8, 8, 32))):
        pooled = model.predict(images, {"pooling": pooling})
        assert pooled.shape == (2, *shape) and pooled.dtype == np.float32
        assert pooled.reshape(2, -1, 32).mean(1) == pytest.approx(features[0], abs=1e-6)
        of_all = model.predict(images, {"pooling": pooling, "all_layers": True})
        assert of_all.shape == (2, 3, *shape) and np.array_equal(of_all[:, 1], pooled)
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
        ({"pooling": "median"}, "pooling is 'median': it must be one of mean, rows, none"),
        ({"layer": 1, "all_layers": True}, "leave one of them out"),
        ({"task": "complete", "rows": 9}, "rows is 9"),
        ({"task": "complete", "rows": -1}, "rows is -1"),
        ({"task": "sample", "samples": 0}, "samples is 0"),
        ({"task": "sample", "top_k": 0}, "top_k is 0"),
        ({"task": "sample", "temperature": -1.0}, "temperature is -1.0"),
    ):
        with pytest.raises(MlflowException, match=expected):
            model.predict(images, params)


def test_surprise_is_the_score_by_pixel(images: np.ndarray) -> None:
    for model, label in ((make(), None), (make(classes=3), 1), (make(low_resolution=2), None)):
        nats = model.predict(images, {"task": "surprise", "label": label})
        assert nats.shape == (2, 8, 8) and nats.dtype == np.float32
        bits = model.predict(images, {"task": "score", "label": label})
        assert nats.mean((1, 2)) / math.log(2) == pytest.approx(bits, rel=1e-5)


@pytest.mark.parametrize("task", ["complete", "sample", "upscale"])
def test_a_drawing_that_is_watched_is_the_same(task: str, images: np.ndarray) -> None:
    model = make(low_resolution=2) if task == "upscale" else make()
    params = {"task": task, "samples": 2, "rows": 3, "seed": 5}
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    answer = model.predict_watched(images[:1], params, see=lambda pictures, done: seen.append((pictures, done)))
    assert np.array_equal(answer, model.predict(images[:1], params))
    assert [done[0] for _, done in seen] == [*range(25 if task == "complete" else 1, 65), 64]
    final = answer.reshape(2, 64, 3)
    for pictures, done in seen:
        assert np.array_equal(pictures.reshape(2, 64, 3)[:, : done[0]], final[:, : done[0]])


def test_any_pixels_are_kept_in_a_completion_that_is_watched(images: np.ndarray) -> None:
    model, known = make(), np.random.default_rng(0).random((8, 8)) < 0.5
    params = {"task": "complete", "samples": 3}

    def complete(known: np.ndarray | None) -> np.ndarray:
        return model.predict_watched(images[:1], params, see=lambda *_: None, known_RR=known)[0]

    whole = complete(np.ones((8, 8), bool))
    drawn = complete(known)
    assert np.array_equal(drawn[:, known], whole[:, known])
    assert not np.array_equal(drawn[:, ~known], whole[:, ~known])
    assert np.array_equal(complete(np.arange(64).reshape(8, 8) < 32), complete(None))
    with pytest.raises(MlflowException, match=r"shape \(4, 4\): it must be \(8, 8\)"):
        complete(known[:4, :4])
    with pytest.raises(MlflowException, match="task is 'score': only complete, sample, upscale"):
        model.predict_watched(images, {"task": "score"}, see=lambda *_: None)


def test_a_probe_classifies(images: np.ndarray) -> None:
    model = make()
    probabilities = model.predict(images, {"task": "classify"})
    assert list(probabilities.columns) == ["a", "c"]
    assert probabilities.sum(axis=1).to_numpy() == pytest.approx(1)
    expected = make_head().probabilities(model.predict(images))
    assert np.array_equal(probabilities.to_numpy(), expected)
    with pytest.raises(MlflowException, match="no probe is attached"):
        RegisteredImageGPT(make_bundle(), best_layer=1).predict(images, {"task": "classify"})


def file_of(image: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    return buffer.getvalue()


def test_images_of_every_kind_give_the_same_features(images: np.ndarray) -> None:
    model = make()
    expected = model.predict(images)
    files = [file_of(image, "PNG") for image in images]
    texts = [base64.b64encode(data).decode() for data in files]
    nested = images.tolist()
    for same in (
        list(images),
        files,
        np.array(files, object),
        texts,
        [Image.fromarray(image) for image in images],
        [Image.open(io.BytesIO(data)) for data in files],  # whose pixels are not read yet
        nested,
        np.array(nested),
        pd.DataFrame({"image": files}),
        pd.DataFrame({"image": list(images), "name": ["x", "y"]}),
        pd.DataFrame({"image": texts}, index=[7, 3]),
        {"image": files},
    ):
        assert np.array_equal(model.predict(same), expected)
    assert np.array_equal(model.predict(files[0]), expected[:1])
    mixed = [images[0][:40], images[1], file_of(images[0], "PNG")]  # of different sizes and kinds
    assert model.predict(mixed)[1:] == pytest.approx(expected[[1, 0]], abs=1e-6)
    jpeg = model.predict([file_of(image, "JPEG") for image in images])
    assert np.abs(jpeg - expected).mean() < 0.3 * np.abs(expected).mean()


@pytest.mark.parametrize("index", [["c", "a"], [7, 2], [5, 5]])
def test_a_table_keeps_its_index(index: list[Any], images: np.ndarray) -> None:
    files = [file_of(image, "PNG") for image in images]
    table = pd.DataFrame({"image": files}, index=index)
    expected = make().predict(files, {"task": "classify"})
    assert list(expected.index) == [0, 1]
    for given in (table, table["image"], pa.Table.from_pandas(table)):
        answer = make().predict(given, {"task": "classify"})
        assert list(answer.index) == index
        assert np.array_equal(answer.to_numpy(), expected.to_numpy())


def test_parameters_that_are_none_are_as_if_absent(images: np.ndarray) -> None:
    model = make()
    for task in (None, "sample", "complete"):
        expected = model.predict(images, {"task": task} if task else None)
        assert np.array_equal(model.predict(images, {**dict.fromkeys(default_params()), "task": task}), expected)


def test_a_completion_is_the_same_wherever_its_image_stands(images: np.ndarray) -> None:
    for model, task in ((make(), "complete"), (make(low_resolution=2), "upscale")):
        params = {"task": task, "samples": 2, "seed": 3}
        both = model.predict(images, params)
        assert np.array_equal(model.predict(images[::-1], params), both[::-1])
        assert np.array_equal(model.predict(images[1:], params), both[1:])
        assert not np.array_equal(both[:, 0], both[:, 1])


def test_an_invalid_image_is_an_error_that_mlflows_server_passes_on() -> None:
    with pytest.raises(MlflowException, match="image 0: not_an_image"):
        make().predict([b"no image"])


def test_a_class_conditional_model(images: np.ndarray) -> None:
    model = make(classes=3)
    bits = [model.predict(images, {"task": "score", "label": label}) for label in range(3)]
    bundle = model._bundle
    squares = np.stack([centre_square(Image.fromarray(image), 8) for image in images])
    tokens = torch.from_numpy(bundle.quantize(squares))
    expected = score(bundle.model, tokens, condition=Condition(labels_B=torch.tensor([2, 2]))).nats_per_pixel
    assert bits[2] == pytest.approx(expected.numpy() / math.log(2))
    assert not np.array_equal(bits[0], bits[1])
    for task in ("sample", "complete"):
        assert model.predict(images, {"task": task, "samples": 2, "label": 1}).shape[-3:] == (8, 8, 3)
        with pytest.raises(MlflowException, match="label is None: this model is class-conditional, it must be 0 to 2"):
            model.predict(images, {"task": task})
    with pytest.raises(MlflowException, match="gets the class of an image as input"):
        model.predict(images)


def test_a_super_resolution_and_a_masked_model(images: np.ndarray) -> None:
    model = make(low_resolution=2)
    drawn = model.predict(images, {"task": "upscale", "samples": 3})
    assert drawn.shape == (2, 3, 8, 8, 3)
    assert model.predict(images).shape == (2, 32)
    assert model.predict(images, {"task": "score"}).shape == (2,)
    with pytest.raises(MlflowException, match="give the tokens of a small image"):
        model.predict(images, {"task": "sample"})
    masked = make(objective="masked")
    assert masked.predict(images).shape == (2, 32)
    for task in ("sample", "complete", "score"):
        with pytest.raises(MlflowException, match="a masked model"):
            masked.predict(images, {"task": task})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of a registered model."""
    folder = tmp_path / "image_gpt"
    folder.mkdir()
    write_files(folder, make_bundle(), 1, make_head())
    return folder


def test_a_loaded_model_gives_the_same_results(folder: Path, images: np.ndarray) -> None:
    opened = _load_pyfunc(str(folder))
    for task in ("features", "classify", "score"):
        assert np.array_equal(opened.predict(images, {"task": task}), make().predict(images, {"task": task}))


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (flip_a_bit, "weights.safetensors is damaged"),
        (lambda folder: (folder / "palette.npy").unlink(), "palette.npy is missing"),
        (lambda folder: (folder / "python_model.pkl").write_bytes(b"x"), "python_model.pkl does not belong"),
        (lambda folder: (folder / "checksums.json").unlink(), "checksums.json is missing"),
        (lambda folder: (folder / "checksums.json").write_text("{"), "checksums.json is damaged"),
    ],
)
def test_damaged_files_are_not_opened(folder: Path, harm: Callable[[Path], object], expected: str) -> None:
    harm(folder)
    with pytest.raises(IgptError, match=expected):
        _load_pyfunc(str(folder))


class Harm:
    """Unpickling it creates a file."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("harm-was-done"),))


@pytest.mark.parametrize("name", ["weights.safetensors", "palette.npy", "probe.safetensors"])
def test_a_pickle_in_place_of_a_file_is_not_unpickled(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "palette.npy":
        np.save(folder / name, np.array([Harm()], object), allow_pickle=True)
    else:
        torch.save(Harm(), folder / name)
    identity = hashlib.sha256((folder / checksums.FILE).read_bytes()).hexdigest()
    (folder / checksums.FILE).unlink()
    assert checksums.seal(folder) != identity  # the list of checksums was replaced too
    with pytest.raises(IgptError, match=r"damaged|not a palette"):
        _load_pyfunc(str(folder))
    assert not Path("harm-was-done").exists()
    with pytest.raises(IgptError, match="is not the one that was registered"):
        checksums.verify(folder, "here", identity)


def test_features_are_those_of_the_layers(images: np.ndarray) -> None:
    bundle = make_bundle()
    tokens = torch.from_numpy(bundle.quantize(np.stack([centre_square(Image.fromarray(i), 8) for i in images])))
    assert np.array_equal(make().predict(images, {"layer": 2}), image_features(bundle, tokens)[2].numpy())
    assert json.loads(json.dumps(make().predict(images).tolist()))


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"all_layers": True},
        {"task": "classify"},
        {"task": "score"},
        {"task": "complete", "samples": 2, "seed": 3},
        {"task": "sample", "samples": 2},
    ],
)
def test_requests_that_are_answered_together_get_what_each_gets_alone(
    params: dict[str, Any], images: np.ndarray
) -> None:
    model = make()
    table = pd.DataFrame({"image": [file_of(image, "PNG") for image in images]}, index=["left", "right"])
    inputs = [images[:1], table, images[1]]
    together = model.answer([model.prepare(part, params) for part in inputs])
    assert len(together) == len(inputs)
    for part, answer in zip(inputs, together, strict=True):
        alone = model.predict(part, params)
        assert type(answer) is type(alone) and answer.shape == alone.shape
        assert np.asarray(answer) == pytest.approx(np.asarray(alone), abs=1e-5)
        if params.get("task") == "classify":
            assert list(answer.index) == list(alone.index) and list(answer.columns) == list(alone.columns)
