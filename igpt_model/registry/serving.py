"""The pyfunc interface of a registered Image GPT. This module and its imports are stored with the model.

A version consists of code, safetensors, JSON and a palette: loading it unpickles nothing (it works with
MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false), verifies checksums, and needs neither this repository nor its services.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import DataType, ParamSchema, ParamSpec

from igpt_model.inference import pooling as poolings
from igpt_model.inference.features import image_features
from igpt_model.inference.images import as_pandas, index_of, to_pictures
from igpt_model.inference.passes import images_per_pass
from igpt_model.inference.sample import Drawing, Watch, complete, draw, unwatched
from igpt_model.inference.score import score
from igpt_model.inference.threads import one_thread_if_forked, threads_for
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.network import Condition
from igpt_model.probing.head import ProbeHead
from igpt_model.probing.probed import ProbedModel
from igpt_model.registry import checksums, short_answers
from pipeline.errors import IgptError, unforeseen_line

TASKS = ("features", "classify", "complete", "sample", "upscale", "score", "surprise")
DRAWING_TASKS = ("complete", "sample", "upscale")
# Name, type and default of every parameter of predict. None: the model chooses.
_PARAMETERS: tuple[tuple[str, DataType, Any], ...] = (
    ("task", DataType.string, "features"),
    ("layer", DataType.long, None),
    ("all_layers", DataType.boolean, False),
    ("pooling", DataType.string, "mean"),
    ("rows", DataType.long, None),
    ("samples", DataType.long, 1),
    ("label", DataType.long, None),
    ("temperature", DataType.double, 1.0),
    ("top_k", DataType.long, None),
    ("top_p", DataType.double, None),
    ("seed", DataType.long, 0),
)


See = Callable[[np.ndarray, np.ndarray], None]
"""Is shown pictures while they are drawn, uint8 [images, R, R, 3], with the final pixels of each, int64 [images].

Those come first, row by row. What it raises ends the drawing.
"""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `RegisteredImageGPT.predict` is asked for, with its images decoded."""

    settings: dict[str, Any]
    """All parameters."""
    pictures: np.ndarray | None
    """uint8 [N, R, R, 3]; None: the task needs no images."""
    index: Any
    """Of the table that held the images, if one did."""


class RegisteredImageGPT:
    """The model that `mlflow.pyfunc.load_model` returns: predict(images, params).

    Images are uint8 [N, H, W, 3] of any size, one image [H, W, 3] or [H, W], a list of images of different sizes
    (arrays, tensors, Pillow's, PNG or JPEG files as bytes), or a table of pandas or pyarrow with one of these in its
    column `image`; over HTTP files are base64. R is the model's resolution.

    A parameter that is None is as if absent. params["task"] is one of:
    - `features`: float32 [N, width] of the best layer in the linear probe, or of params["layer"]; with
      params["all_layers"], [N, layers + 1, width]. params["pooling"] `rows` gives the mean of each row of pixels, from
      the top, [..., R, width]; `none` the vector of every pixel, [..., R, R, width], by row and column
    - `classify`: a table of probabilities with one column per class, and the index of the images' table; needs an
      attached probe
    - `complete`: keeps the upper params["rows"] rows (none: half), uint8 [N, samples, R, R, 3]
    - `sample`: params["samples"] new images, uint8 [samples, R, R, 3]; ignores the input images
    - `upscale`: uint8 [N, samples, R, R, 3], sampled from small versions of the images
    - `score`: bits per pixel, [N]
    - `surprise`: the negative log-likelihood of each pixel given those before it, in nats, float32 [N, R, R]
    Sampling uses temperature, top_k, top_p and seed. A completion depends on its image, the seed and the number of the
    sample, not on the other images. A class-conditional model samples and scores images of the class number
    params["label"].
    """

    def __init__(self, bundle: ModelBundle, best_layer: int, head: ProbeHead | None = None) -> None:
        self._bundle, self._best_layer, self._head = bundle, best_layer, head

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Run one task; see the class.

        Raises MlflowException for invalid images or parameters: callers can catch it without this package, and MLflow's
        server returns its message.
        """
        return self.answer([self.prepare(model_input, params)])[0]

    def predict_watched(
        self,
        model_input: Any,
        params: dict[str, Any] | None = None,
        *,
        see: See,
        known_RR: np.ndarray | None = None,
    ) -> Any:
        """Like `predict` for a task that draws, showing the pictures while they grow.

        `complete` keeps the pixels of `known_RR`, bool [R, R], instead of upper rows. Those after a drawn pixel do not
        influence it.
        """
        request = self.prepare(model_input, params)
        with _errors_of_mlflow():
            settings, task, side = request.settings, request.settings["task"], self._bundle.model.config.resolution
            if task not in DRAWING_TASKS:
                raise IgptError(f"task is {task!r}: only {', '.join(DRAWING_TASKS)} can be watched")
            if known_RR is not None and known_RR.shape != (side, side):
                raise IgptError(f"the known pixels have shape {known_RR.shape}: it must be ({side}, {side})")

            def watch(tokens_BT: torch.Tensor, done_B: torch.Tensor) -> None:
                see(self._bundle.pictures(tokens_BT.numpy()), done_B.numpy().copy())

            if request.pictures is None:
                return self._sample(settings, watch)
            with threads_for(self._bundle.model.config, images=settings["samples"], positions=1):
                return self._complete_or_upscale(request.pictures, settings, watch, known_RR)

    def prepare(self, model_input: Any, params: dict[str, Any] | None = None) -> Request:
        """Decode the images of a request and complete its parameters, for `answer`; raises like `predict`."""
        one_thread_if_forked()
        with _errors_of_mlflow():
            given = {name: value for name, value in (params or {}).items() if value is not None}
            settings = {**default_params(), **given}
            if settings["task"] not in TASKS:
                raise IgptError(f"task is {str(settings['task'])[:50]!r}: it must be one of {', '.join(TASKS)}")
            if settings["samples"] < 1:
                raise IgptError(f"samples is {settings['samples']}: it must be at least 1")
            if settings["task"] == "sample":
                return Request(settings=settings, pictures=None, index=None)
            images = as_pandas(model_input)
            pictures = to_pictures(images, self._bundle.model.config.resolution)
            return Request(settings=settings, pictures=pictures, index=index_of(images))

    def answer(self, requests: Sequence[Request]) -> list[Any]:
        """The answers to requests with equal settings, computed together: each as that of `predict`, up to rounding."""
        one_thread_if_forked()
        with _errors_of_mlflow():
            settings = requests[0].settings
            if settings["task"] == "sample":
                return [self._sample(settings)] * len(requests)  # the same seed gives the same images
            pictures = [request.pictures for request in requests if request.pictures is not None]
            together = self._of_pictures(np.concatenate(pictures), settings)
            ends = np.cumsum([len(part) for part in pictures])
            parts = [together[end - len(part) : end] for part, end in zip(pictures, ends, strict=True)]
            if settings["task"] != "classify":
                return parts
            return [
                part.reset_index(drop=True) if request.index is None else part.set_axis(request.index)
                for part, request in zip(parts, requests, strict=True)
            ]

    def _sample(self, settings: dict[str, Any], watch: Watch = unwatched) -> np.ndarray:
        count, config = settings["samples"], self._bundle.model.config
        condition = self._condition(count, settings)
        with threads_for(config, images=count, positions=1):
            drawn = draw(self._bundle.model, count, _drawing(settings), condition=condition, watch=watch)
        return self._bundle.pictures(drawn.numpy())

    def _of_pictures(self, pictures: np.ndarray, settings: dict[str, Any]) -> Any:
        """A row for each picture, of what the task gives; pictures are uint8 [N, R, R, 3]."""
        config, task = self._bundle.model.config, settings["task"]
        if task in ("complete", "upscale"):
            with threads_for(config, images=settings["samples"] * len(pictures), positions=1):
                return self._complete_or_upscale(pictures, settings)
        a_pass = min(len(pictures), images_per_pass(config, self._bundle.model.positions.device))
        with threads_for(config, images=a_pass, positions=config.sequence):
            if task == "features":
                return self._features(pictures, settings)
            if task == "classify":
                return self._classify(pictures)
            condition = self._condition(len(pictures), settings, pictures)
            scores = score(self._bundle.model, self._tokens(pictures), condition=condition)
            if task == "surprise":
                return scores.pixels_BT.reshape(-1, config.resolution, config.resolution).numpy()
            return scores.bits_per_pixel.numpy()

    def _tokens(self, pictures: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self._bundle.quantize(pictures))

    def _condition(self, count: int, settings: dict[str, Any], pictures: np.ndarray | None = None) -> Condition:
        """The conditioning inputs of `count` images: a class, or their small versions."""
        config, label = self._bundle.model.config, settings["label"]
        labels_B = low_BP = None
        if config.classes is not None:
            if label is None or not 0 <= label < config.classes:
                raise IgptError(
                    f"label is {label}: this model is class-conditional, it must be 0 to {config.classes - 1}"
                )
            labels_B = torch.full((count,), label)
        if config.low_resolution is not None and pictures is not None:
            low_BP = torch.from_numpy(self._bundle.shrink(pictures))
        return Condition(labels_B=labels_B, low_BP=low_BP)

    def _features(self, pictures: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
        layers, layer = self._bundle.model.config.layers, settings["layer"]
        if layer is not None and settings["all_layers"]:
            raise IgptError(f"layer is {layer} and all_layers is set: leave one of them out")
        layer = self._best_layer if layer is None else layer
        if not 0 <= layer <= layers:
            raise IgptError(f"layer is {layer}: it must be 0 to {layers}, or left out for the best layer of the probe")
        pooling = poolings.checked(settings["pooling"])
        wanted = None if settings["all_layers"] else [layer]
        features_LN = image_features(self._bundle, self._tokens(pictures), layers=wanted, pooling=pooling)
        return features_LN.transpose(0, 1).numpy() if settings["all_layers"] else features_LN[0].numpy()

    def _classify(self, pictures: np.ndarray) -> Any:
        if self._head is None:
            raise IgptError("task is classify, and no probe is attached to this version: use task features")
        import pandas as pd  # noqa: PLC0415 (a dependency of the pyfunc flavor, not of training)

        layers, pooling = [self._best_layer], self._head.pooling
        features_N = image_features(self._bundle, self._tokens(pictures), layers=layers, pooling=pooling)[0].numpy()
        names = [self._bundle.classes[label] for label in self._head.labels_K]
        return pd.DataFrame(self._head.probabilities(features_N), columns=names)

    def _complete_or_upscale(
        self,
        pictures: np.ndarray,
        settings: dict[str, Any],
        watch: Watch = unwatched,
        known_RR: np.ndarray | None = None,
    ) -> np.ndarray:
        """Completions or upscaled versions of pictures, uint8 [N, samples, R, R, 3]."""
        side, count = self._bundle.model.config.resolution, settings["samples"]
        rows = side // 2 if settings["rows"] is None else settings["rows"]
        if not 0 <= rows <= side:
            raise IgptError(f"rows is {rows}: it must be 0 to {side}, or left out to keep half of them")
        repeated = pictures.repeat(count, 0)
        condition = self._condition(len(repeated), settings, repeated if settings["task"] == "upscale" else None)
        tokens_BT = self._tokens(pictures).repeat_interleave(count, 0)
        known_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
        if settings["task"] == "complete":
            known_T = np.arange(side * side) < rows * side if known_RR is None else known_RR.reshape(-1)
            known_BT[:] = torch.from_numpy(known_T)
        elif condition.low_BP is None:
            raise IgptError("task is upscale, and this model was trained without low_resolution: it does not upscale")
        drawing = _drawing(settings)
        drawn = complete(
            self._bundle.model, tokens_BT, known_BT, drawing, condition=condition, draws=count, watch=watch
        )
        return self._bundle.pictures(drawn.numpy()).reshape(len(pictures), count, side, side, 3)


@contextmanager
def _errors_of_mlflow() -> Iterator[None]:
    """Raise what goes wrong within the block as MlflowException, with one line."""
    try:
        yield
    except IgptError as error:
        raise MlflowException.invalid_parameter_value(str(error)) from None
    except Exception as error:
        # MLflow's server puts the traceback of any other error into its answer.
        raise MlflowException(f"this is a bug, or too little memory: {unforeseen_line(error)}") from error


def _drawing(settings: dict[str, Any]) -> Drawing:
    return Drawing(**{name: settings[name] for name in ("temperature", "top_k", "top_p", "seed")})


def default_params() -> dict[str, Any]:
    """The parameters of predict and their defaults."""
    return {name: default for name, _, default in _PARAMETERS}


def signature() -> ModelSignature:
    """The typed parameters. Input images are validated by predict.

    No MLflow schema accepts arrays, files and tables alike: a tensor schema refuses lists and tables of images, a
    column schema refuses arrays.
    """
    return ModelSignature(params=ParamSchema([ParamSpec(name, kind, value) for name, kind, value in _PARAMETERS]))


def write_files(folder: Path, model: ModelBundle, best_layer: int, head: ProbeHead | None) -> str:
    """Write the files that `_load_pyfunc` loads into an empty folder; returns its identity (checksums.py)."""
    ProbedModel(bundle=model, best_layer=best_layer, head=head).save(folder)
    return checksums.seal(folder)


def _load_pyfunc(data_path: str) -> RegisteredImageGPT:
    """Load a registered model from its files. MLflow calls this through igpt_model.registered."""
    short_answers.shorten()
    folder = Path(data_path)
    checksums.verify(folder, data_path)
    loaded = ProbedModel.load(folder)
    return RegisteredImageGPT(loaded.bundle, loaded.best_layer, loaded.head)
