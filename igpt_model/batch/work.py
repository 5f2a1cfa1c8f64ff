"""What is computed of every image: features, class probabilities or scores, as columns of a table. Pure."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from igpt_model.batch.config import BatchConfig
from igpt_model.inference.features import check_has_features, image_features
from igpt_model.inference.pooling import Pooling, images_at_once, numbers_of, shape_of
from igpt_model.inference.score import check_has_likelihood, score_images
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.probing.head import ProbeHead
from igpt_model.probing.probed import ProbedModel
from pipeline.errors import IgptError

Task = Literal["features", "classify", "score"]
_PART_BYTES = 64 << 20
_SCORED_AT_ONCE = 128


@dataclass(frozen=True, kw_only=True)
class Work:
    """A task with its settings; the same as a registered model's `predict` of that task."""

    task: Task
    layers: tuple[int, ...] = ()
    """Of features; for `classify` the layer of its probe."""
    pooling: Pooling = "mean"
    head: ProbeHead | None = None
    label: int | None = None

    @classmethod
    def of(cls, task: Task, model: ProbedModel, config: BatchConfig) -> "Work":
        """The work that a config asks for. Raises IgptError when the model cannot do it, or a field is for other work.

        The message names what to change.
        """
        network = model.bundle.model.config
        for name, of_task in (("layers", "features"), ("pooling", "features"), ("label", "score")):
            if getattr(config, name) != BatchConfig.__dataclass_fields__[name].default and task != of_task:
                raise IgptError(f"{name} is {getattr(config, name)!r}, which is for {of_task}: leave it out of {task}")
        if task == "score":
            check_has_likelihood(network)
            if config.label is not None and (network.classes is None or config.label >= network.classes):
                kind = (
                    "this model is not" if network.classes is None else f"this one has {network.classes} classes and is"
                )
                raise IgptError(
                    f"label is {config.label}, for class-conditional models: {kind}; correct or leave it out"
                )
            return cls(task=task, label=config.label)
        check_has_features(network)
        if task == "features":
            layers = config.layers or (model.best_layer,)
            wrong = [layer for layer in layers if layer > network.layers]
            if wrong or len(set(layers)) < len(layers):
                raise IgptError(f"layers are {list(layers)}: they must be different numbers from 0 to {network.layers}")
            return cls(task=task, layers=layers, pooling=config.pooling)
        if model.head is None:
            raise IgptError(
                "no probe is attached to this model, so it cannot classify: `igpt probe model=models:/NAME@candidate "
                "dataset=... register=true` registers a version that can"
            )
        return cls(task=task, layers=(model.best_layer,), pooling=model.head.pooling, head=model.head)

    @property
    def identity(self) -> dict[str, object]:
        """What decides the numbers, beside the network and the images, as JSON."""
        settings: dict[str, object] = {"task": self.task, "layers": list(self.layers), "pooling": self.pooling}
        return {**settings, "label": self.label, "probe": None if self.head is None else _digest(self.head)}

    def images_of_a_part(self, config: ModelConfig, most: int) -> int:
        """How many images a part may have, so that it stays below 64 MiB."""
        numbers = len(self.layers) * numbers_of(config, self.pooling) if self.task == "features" else config.positions
        return max(1, min(most, _PART_BYTES // (4 * numbers)))

    def columns(
        self, bundle: ModelBundle, tokens_NT: np.ndarray, labels: Sequence[str | None], low_NP: np.ndarray | None
    ) -> dict[str, pa.Array]:
        """The columns of some images: int64 tokens, names of classes, and for super-resolution the small versions.

        features: `layer_{l}`, lists of the shape of an image's features. classify: `predicted`, `probability`, and
        `probabilities` in the order of `classes_of`. score: `bits_per_pixel`, `nats_per_pixel`.
        """
        if self.task == "score":
            return self._scores(bundle, tokens_NT, labels, low_NP)
        shape = shape_of(bundle.model.config, self.pooling)
        none_LN = np.zeros((len(self.layers), 0, *shape), np.float32)
        if self.head is None:
            features_LN = np.concatenate([none_LN, *self._features(bundle, tokens_NT)], 1)
            named = zip(self.layers, features_LN, strict=True)
            return {f"layer_{layer}": nested(features_N) for layer, features_N in named}
        # Batch by batch: a probe may be of all pixels, which take many times as much memory as the classes.
        of_batches = (self.head.probabilities(of[0]) for of in chain([none_LN], self._features(bundle, tokens_NT)))
        probabilities_NK = np.concatenate(list(of_batches)).astype(np.float32)
        classes, best_N = self.classes_of(bundle), probabilities_NK.argmax(1)
        return {
            "predicted": pa.array([classes[best] for best in best_N.tolist()], pa.string()),
            "probability": pa.array(probabilities_NK[np.arange(len(best_N)), best_N]),
            "probabilities": nested(probabilities_NK),
        }

    def classes_of(self, bundle: ModelBundle) -> list[str]:
        """The names of the classes that a probe tells apart, in its order."""
        return [] if self.head is None else [bundle.classes[label] for label in self.head.labels_K.tolist()]

    def _features(self, bundle: ModelBundle, tokens_NT: np.ndarray) -> Iterator[np.ndarray]:
        """Features of batches of images, float32 [layers, n, ...]."""
        at_once = images_at_once(bundle.model.config, self.pooling, len(self.layers))
        for first in range(0, len(tokens_NT), at_once):
            tokens_BT = torch.from_numpy(tokens_NT[first : first + at_once]).to(bundle.model.positions.device)
            yield image_features(bundle, tokens_BT, layers=self.layers, pooling=self.pooling).cpu().numpy()

    def _scores(
        self, bundle: ModelBundle, tokens_NT: np.ndarray, labels: Sequence[str | None], low_NP: np.ndarray | None
    ) -> dict[str, pa.Array]:
        labels_N = self._numbers_of(bundle, labels)
        bits, nats = [np.zeros(0)], [np.zeros(0)]
        for first in range(0, len(tokens_NT), _SCORED_AT_ONCE):
            rows = slice(first, first + _SCORED_AT_ONCE)
            done = score_images(
                bundle,
                tokens_NT[rows],
                labels_N=None if labels_N is None else labels_N[rows],
                low_NP=None if low_NP is None else low_NP[rows],
            )
            bits.append(done.bits_per_pixel.cpu().numpy())
            nats.append(done.nats_per_pixel.cpu().numpy())
        return {"bits_per_pixel": pa.array(np.concatenate(bits)), "nats_per_pixel": pa.array(np.concatenate(nats))}

    def _numbers_of(self, bundle: ModelBundle, labels: Sequence[str | None]) -> np.ndarray | None:
        """Class numbers for a class-conditional model, int64 [N]. Raises IgptError for an image without its class."""
        if bundle.model.config.classes is None:
            return None
        if self.label is not None:
            return np.full(len(labels), self.label)
        numbers: dict[Any, int] = {name: number for number, name in enumerate(bundle.classes)}
        unknown = [name for name in labels if name not in numbers]
        if unknown:
            said = "has no class" if unknown[0] is None else f"is of class {unknown[0]!r}, which the model has not"
            raise IgptError(f"the model is class-conditional, and an image {said}: `label=0` scores all with one class")
        return np.array([numbers[name] for name in labels], np.int64)


def nested(array: np.ndarray) -> pa.Array:
    """An array [N, ...] as N nested lists of fixed size."""
    values = pa.array(array.reshape(-1))
    for length in reversed(array.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, length)
    return values


def _digest(head: ProbeHead) -> str:
    """SHA-256, in hex, of a probe."""
    content = hashlib.sha256(head.pooling.encode())
    for name in ("mean_C", "scale_C", "weight_KC", "bias_K", "labels_K"):
        content.update(np.ascontiguousarray(getattr(head, name)).tobytes())
    return content.hexdigest()
