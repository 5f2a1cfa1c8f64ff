"""A fitted linear probe that can be stored: standardization, weights and class numbers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from igpt_model.inference import pooling as poolings
from igpt_model.inference.pooling import Pooling
from pipeline.errors import IgptError, first_line

FILE = "probe.safetensors"
_POOLING = "pooling"  # in the metadata of the file, where it is not the mean


@dataclass(frozen=True, kw_only=True)
class ProbeHead:
    """A linear classifier on standardized features of a layer; C is their number, with rows or pixels flattened."""

    mean_C: np.ndarray
    """Subtracted from features, float32 [C]; the result is multiplied by scale_C."""
    scale_C: np.ndarray
    weight_KC: np.ndarray
    """float32 [classes, C]."""
    bias_K: np.ndarray
    labels_K: np.ndarray
    """The class number of each row, int64; classes without training images have no row."""
    pooling: Pooling = "mean"
    """Of the features."""

    def probabilities(self, features_NC: np.ndarray) -> np.ndarray:
        """Class probabilities of features, float32 [N, C] or [N, ...] of C numbers each, to float32 [N, classes]."""
        features_NC = features_NC.reshape(len(features_NC), len(self.mean_C))
        logits_NK = (features_NC - self.mean_C) * self.scale_C @ self.weight_KC.T + self.bias_K
        exp_NK = np.exp(logits_NK - logits_NK.max(1, keepdims=True))
        return exp_NK / exp_NK.sum(1, keepdims=True)

    def save(self, folder: Path) -> None:
        """Write the probe into a model's folder."""
        arrays = {name: np.ascontiguousarray(value) for name, value in vars(self).items() if name != _POOLING}
        metadata = None if self.pooling == "mean" else {_POOLING: self.pooling}
        safetensors.numpy.save_file(arrays, folder / FILE, metadata=metadata)

    @classmethod
    def load(cls, folder: Path) -> "ProbeHead | None":
        """Read the probe from a model's folder; None: it has no probe. Raises IgptError when it is damaged."""
        if not (folder / FILE).exists():
            return None
        try:
            with safetensors.safe_open(folder / FILE, "numpy") as file:
                pooling = poolings.checked((file.metadata() or {}).get(_POOLING, "mean"))
            return cls(**safetensors.numpy.load_file(folder / FILE), pooling=pooling)
        except (SafetensorError, TypeError, ValueError, IgptError) as error:
            raise IgptError(f"{folder / FILE}: damaged ({first_line(error)})") from None
