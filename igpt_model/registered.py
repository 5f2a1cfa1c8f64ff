"""Models in the MLflow registry: what a registered Image GPT answers, and how one gets there.

A version is code, safetensors, JSON and a palette: loading it unpickles nothing (it loads with
MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false) and needs none of the pipeline's services.
"""

import json
import logging
import math
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
from igpt_model.features import pooled_features
from igpt_model.model_folder import ModelFolder
from igpt_model.objective import image_losses
from igpt_model.sample import complete, draw
from pipeline import palette as palettes
from pipeline.errors import IgptError
from pipeline.images import centre_square

TASKS = ("features", "complete", "sample", "score")
CANDIDATE = "candidate"
_REQUIREMENTS = ("mlflow", "torch", "numpy", "pillow", "safetensors", "fsspec")
_BATCH = 64
_PROBED = "probed.json"


class RegisteredImageGPT:
    """What `mlflow.pyfunc.load_model` gives: predict(images, params), images uint8 [N, H, W, 3] of any size.

    params["task"]: `features` gives float32 [N, width] of params["layer"] (-1: the layer that probed best); `complete`
    keeps the upper params["rows"] rows (-1: half) and gives uint8 [N, samples, R, R, 3]; `sample` draws
    params["samples"] pictures, uint8 [samples, R, R, 3], whatever the images; `score` gives bits per pixel, [N].
    """

    def __init__(self, folder: ModelFolder, best_layer: int) -> None:
        self._folder, self._best_layer = folder, best_layer

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Answer one task; see the class. Raises IgptError for images or parameters that cannot be used."""
        settings = {**default_params(), **(params or {})}
        task = settings["task"]
        if task == "sample":
            drawn = draw(self._folder.model, settings["samples"], **self._drawing(settings))
            return self._pictures(drawn)
        tokens_NT = self._tokens(np.asarray(model_input))
        if task == "features":
            return self._features(tokens_NT, settings["layer"])
        if task == "score":
            return self._score(tokens_NT)
        if task == "complete":
            return self._complete(tokens_NT, settings)
        raise IgptError(f"task is {task!r}: it must be one of {', '.join(TASKS)}")

    def _tokens(self, images: np.ndarray) -> torch.Tensor:
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise IgptError(f"images have shape {images.shape}, {images.dtype}: give uint8 [N, H, W, 3]")
        side = self._folder.model.config.resolution
        small = np.stack([centre_square(Image.fromarray(image), side) for image in images])
        rgb_K3 = palettes.to_rgb(self._folder.palette_K3)
        # A few images: comparing with every colour beats making the table of all 2^24.
        distances = [((image.reshape(-1, 1, 3) - rgb_K3) ** 2).sum(-1).argmin(1) for image in small.astype(np.float64)]
        return torch.from_numpy(np.stack(distances))

    def _features(self, tokens_NT: torch.Tensor, layer: int) -> np.ndarray:
        layers = self._folder.model.config.layers
        layer = self._best_layer if layer == -1 else layer
        if not 0 <= layer <= layers:
            raise IgptError(f"layer is {layer}: it must be 0 to {layers}, or -1 for the layer that probed best")
        parts = [pooled_features(self._folder.model, part)[layer] for part in tokens_NT.split(_BATCH)]
        return torch.cat(parts).numpy()

    @torch.inference_mode()
    def _score(self, tokens_NT: torch.Tensor) -> np.ndarray:
        parts = [image_losses(self._folder.model(part), part) for part in tokens_NT.split(_BATCH)]
        return torch.cat(parts).double().numpy() / math.log(2)

    def _complete(self, tokens_NT: torch.Tensor, settings: dict[str, Any]) -> np.ndarray:
        side, count = self._folder.model.config.resolution, settings["samples"]
        rows = side // 2 if settings["rows"] == -1 else settings["rows"]
        if not 0 <= rows <= side or count < 1:
            raise IgptError(f"rows is {rows} and samples {count}: rows must be 0 to {side} and samples at least 1")
        prefix = tokens_NT[:, : rows * side].repeat_interleave(count, 0)
        drawn = complete(self._folder.model, prefix, **self._drawing(settings))
        return self._pictures(drawn).reshape(len(tokens_NT), count, side, side, 3)

    @staticmethod
    def _drawing(settings: dict[str, Any]) -> dict[str, Any]:
        top_k = settings["top_k"] or None
        return {"temperature": settings["temperature"], "top_k": top_k, "seed": settings["seed"]}

    def _pictures(self, tokens_NT: torch.Tensor) -> np.ndarray:
        side = self._folder.model.config.resolution
        return palettes.to_pixels(tokens_NT.numpy().reshape(-1, side, side), self._folder.palette_K3)


def _load_pyfunc(data_path: str) -> RegisteredImageGPT:
    """Open a registered model's files. Called by MLflow, which knows this module as the model's loader."""
    folder = Path(data_path)
    best_layer = int(json.loads((folder / _PROBED).read_text())["best_layer"])
    return RegisteredImageGPT(ModelFolder.load(folder), best_layer)


def default_params() -> dict[str, Any]:
    """The parameters of predict and their defaults."""
    return {"task": "features", "layer": -1, "rows": -1, "samples": 1, "temperature": 1.0, "top_k": 0, "seed": 0}


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
