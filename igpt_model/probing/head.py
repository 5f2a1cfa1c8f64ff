"""A fitted linear probe that can be stored: standardization, weights and class numbers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from pipeline.errors import IgptError, first_line

FILE = "probe.safetensors"


@dataclass(frozen=True, kw_only=True)
class ProbeHead:
    """A linear classifier on standardized features of a layer."""

    mean_C: np.ndarray
    """Subtracted from features, float32 [width]; the result is multiplied by scale_C."""
    scale_C: np.ndarray
    weight_KC: np.ndarray
    """float32 [classes, width]."""
    bias_K: np.ndarray
    labels_K: np.ndarray
    """The class number of each row, int64; classes without training images have no row."""

    def probabilities(self, features_NC: np.ndarray) -> np.ndarray:
        """Class probabilities of features, float32 [N, width] to float32 [N, classes]."""
        logits_NK = (features_NC - self.mean_C) * self.scale_C @ self.weight_KC.T + self.bias_K
        exp_NK = np.exp(logits_NK - logits_NK.max(1, keepdims=True))
        return exp_NK / exp_NK.sum(1, keepdims=True)

    def save(self, folder: Path) -> None:
        """Write the probe into a model's folder."""
        safetensors.numpy.save_file({name: np.ascontiguousarray(v) for name, v in vars(self).items()}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> "ProbeHead | None":
        """Read the probe from a model's folder; None: it has no probe. Raises IgptError when it is damaged."""
        if not (folder / FILE).exists():
            return None
        try:
            return cls(**safetensors.numpy.load_file(folder / FILE))
        except (SafetensorError, TypeError, ValueError) as error:
            raise IgptError(f"{folder / FILE}: damaged ({first_line(error)})") from None
