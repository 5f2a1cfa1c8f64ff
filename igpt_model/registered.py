"""Models in the MLflow registry: what a registered Image GPT answers, and how one gets there.

A version is code, safetensors, JSON and a palette: loading it unpickles nothing (it loads with
MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false) and needs none of the pipeline's services.
"""

import json
import logging
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from PIL import Image

import igpt_model
import pipeline
from igpt_model.features import image_features
from igpt_model.model import Condition
from igpt_model.model_folder import ModelFolder
from igpt_model.sample import Drawing, complete, draw
from igpt_model.score import score
from pipeline.errors import IgptError
from pipeline.images import centre_square

TASKS = ("features", "complete", "sample", "upscale", "score")
CANDIDATE = "candidate"
_REQUIREMENTS = ("mlflow", "torch", "numpy", "pillow", "safetensors", "fsspec")
_PROBED = "probed.json"


class RegisteredImageGPT:
    """What `mlflow.pyfunc.load_model` gives: predict(images, params), images uint8 [N, H, W, 3] of any size.

    params["task"]: `features` gives float32 [N, width] of params["layer"] (-1: the layer that probed best); `complete`
    keeps the upper params["rows"] rows (-1: half) and gives uint8 [N, samples, R, R, 3]; `sample` draws
    params["samples"] pictures, uint8 [samples, R, R, 3], whatever the images; `upscale` draws [N, samples, R, R, 3]
    from the small versions of the images; `score` gives bits per pixel, [N]. A class-conditional model draws and scores
    images of the class number params["label"].
    """

    def __init__(self, folder: ModelFolder, best_layer: int) -> None:
        self._folder, self._best_layer = folder, best_layer

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Answer one task; see the class. Raises IgptError for images or parameters that cannot be used."""
        settings = {**default_params(), **(params or {})}
        task = settings["task"]
        if task not in TASKS:
            raise IgptError(f"task is {task!r}: it must be one of {', '.join(TASKS)}")
        if task == "sample":
            condition = self._condition(settings["samples"], settings)
            drawn = draw(self._folder.model, settings["samples"], _drawing(settings), condition=condition)
            return self._folder.pictures(drawn.numpy())
        pictures = self._shrink(np.asarray(model_input))
        if task == "features":
            return self._features(pictures, settings["layer"])
        if task == "score":
            condition = self._condition(len(pictures), settings, pictures)
            return score(self._folder.model, self._tokens(pictures), condition=condition).bits_per_pixel.numpy()
        return self._drawn_from(pictures, settings)

    def _shrink(self, images: np.ndarray) -> np.ndarray:
        """Images of any size at the model's resolution."""
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise IgptError(f"images have shape {images.shape}, {images.dtype}: give uint8 [N, H, W, 3]")
        side = self._folder.model.config.resolution
        return np.stack([centre_square(Image.fromarray(image), side) for image in images])

    def _tokens(self, pictures: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self._folder.quantize(pictures))

    def _condition(self, count: int, settings: dict[str, Any], pictures: np.ndarray | None = None) -> Condition:
        """What the model is given beside the pixels of `count` images: a class, or their small versions."""
        config, label = self._folder.model.config, settings["label"]
        labels_B = low_BP = None
        if config.classes is not None:
            if not 0 <= label < config.classes:
                raise IgptError(f"label is {label}: this model draws by class, it must be 0 to {config.classes - 1}")
            labels_B = torch.full((count,), label)
        if config.low_resolution is not None and pictures is not None:
            low_BP = torch.from_numpy(self._folder.shrink(pictures))
        return Condition(labels_B=labels_B, low_BP=low_BP)

    def _features(self, pictures: np.ndarray, layer: int) -> np.ndarray:
        layers = self._folder.model.config.layers
        layer = self._best_layer if layer == -1 else layer
        if not 0 <= layer <= layers:
            raise IgptError(f"layer is {layer}: it must be 0 to {layers}, or -1 for the layer that probed best")
        return image_features(self._folder, self._tokens(pictures))[layer].numpy()

    def _drawn_from(self, pictures: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
        """Completions or upscaled versions of pictures, uint8 [N, samples, R, R, 3]."""
        side, count = self._folder.model.config.resolution, settings["samples"]
        rows = side // 2 if settings["rows"] == -1 else settings["rows"]
        if not 0 <= rows <= side or count < 1:
            raise IgptError(f"rows is {rows} and samples {count}: rows must be 0 to {side} and samples at least 1")
        repeated = pictures.repeat(count, 0)
        condition = self._condition(len(repeated), settings, repeated if settings["task"] == "upscale" else None)
        tokens_BT = self._tokens(pictures).repeat_interleave(count, 0)
        known_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
        if settings["task"] == "complete":
            known_BT[:, : rows * side] = True
        elif condition.low_BP is None:
            raise IgptError("task is upscale, and this model was trained without low_resolution: it does not upscale")
        drawn = complete(self._folder.model, tokens_BT, known_BT, _drawing(settings), condition=condition)
        return self._folder.pictures(drawn.numpy()).reshape(len(pictures), count, side, side, 3)


def _drawing(settings: dict[str, Any]) -> Drawing:
    """How to draw; 0 stands for no top_k and no top_p."""
    return Drawing(
        temperature=settings["temperature"],
        top_k=settings["top_k"] or None,
        top_p=settings["top_p"] or None,
        seed=settings["seed"],
    )


def _load_pyfunc(data_path: str) -> RegisteredImageGPT:
    """Open a registered model's files. Called by MLflow, which knows this module as the model's loader."""
    folder = Path(data_path)
    best_layer = int(json.loads((folder / _PROBED).read_text())["best_layer"])
    return RegisteredImageGPT(ModelFolder.load(folder), best_layer)


def default_params() -> dict[str, Any]:
    """The parameters of predict and their defaults."""
    drawing = {"temperature": 1.0, "top_k": 0, "top_p": 0.0, "seed": 0}
    return {"task": "features", "layer": -1, "rows": -1, "samples": 1, "label": -1, **drawing}


def _signature() -> ModelSignature:
    kinds = {str: DataType.string, int: DataType.long, float: DataType.double}
    params = [ParamSpec(name, kinds[type(value)], value) for name, value in default_params().items()]
    images = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))
    return ModelSignature(inputs=Schema([images]), params=ParamSchema(params))


def register(
    folder: ModelFolder,
    *,
    name: str,
    tracking_uri: str,
    run_id: str,
    tags: Mapping[str, str],
    best_layer: int,
) -> str:
    """Register a model under a name as the candidate, and return its URI, models:/{name}/{version}.

    A run registers once: its version is found and returned when it is there already.
    """
    client = MlflowClient(tracking_uri)
    existing = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if existing:
        return f"models:/{name}/{max(int(found.version) for found in existing)}"
    code = [str(Path(package.__file__ or "").parent) for package in (pipeline, igpt_model)]
    requirements = [f"{package}=={version(package).split('+')[0]}" for package in _REQUIREMENTS]
    side = folder.model.config.resolution
    mlflow.set_tracking_uri(tracking_uri)
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it tells of each of its steps
    with tempfile.TemporaryDirectory(prefix="igpt-register-") as temporary:
        files = Path(temporary) / "image_gpt"
        files.mkdir()
        folder.save(files)
        (files / _PROBED).write_text(json.dumps({"best_layer": best_layer}))
        with mlflow.start_run(run_id=run_id):
            logged = mlflow.pyfunc.log_model(
                name="model",
                loader_module=__name__,
                data_path=str(files),
                code_paths=code,
                pip_requirements=requirements,
                signature=_signature(),
                input_example=np.zeros((1, side, side, 3), np.uint8),
            )
        _ensure_registered_model(client, name)
        created = client.create_model_version(
            name, logged.model_uri, run_id=run_id, tags=dict(tags), model_id=logged.model_id
        )
    client.set_registered_model_alias(name, CANDIDATE, created.version)
    return f"models:/{name}/{created.version}"


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def fetch(uri: str, tracking_uri: str, local: Path) -> ModelFolder:
    """Download the model of a registry URI, such as models:/igpt@candidate. Raises IgptError when there is none."""
    mlflow.set_tracking_uri(tracking_uri)
    try:
        path = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(local))
    except MlflowException as error:
        raise IgptError(f"{uri}: {error.message.splitlines()[0]}; list the versions in the MLflow page") from None
    found = sorted(Path(path).rglob("model.json"))
    if not found:
        raise IgptError(f"{uri}: not a model of igpt-pipeline, it holds no model.json")
    return ModelFolder.load(found[0].parent)
