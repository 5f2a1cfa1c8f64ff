"""A fitted linear probe as something that can be kept: standardization, weights and the classes it tells apart."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from pipeline.errors import IgptError, first_line

FILE = "probe.safetensors"


@dataclass(frozen=True, kw_only=True)
class ProbeHead:
    """A linear classifier on the features of a layer."""

    mean_C: np.ndarray
    """What is subtracted from features, float32 [width]; then they are multiplied by scale_C."""
    scale_C: np.ndarray
    weight_KC: np.ndarray
    """float32 [classes, width]."""
    bias_K: np.ndarray
    labels_K: np.ndarray
    """The class number of each row, int64: classes without a training image have none."""

    def probabilities(self, features_NC: np.ndarray) -> np.ndarray:
        """Features, float32 [N, width], to float32 [N, classes]: a row adds up to 1."""
        logits_NK = (features_NC - self.mean_C) * self.scale_C @ self.weight_KC.T + self.bias_K
        powers_NK = np.exp(logits_NK - logits_NK.max(1, keepdims=True))
        return powers_NK / powers_NK.sum(1, keepdims=True)

    def save(self, folder: Path) -> None:
        """Write it into a model's folder."""
        safetensors.numpy.save_file({name: np.ascontiguousarray(v) for name, v in vars(self).items()}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> "ProbeHead | None":
        """Read it from a model's folder; none: there is none. Raises IgptError when it is damaged."""
        if not (folder / FILE).exists():
            return None
        try:
            return cls(**safetensors.numpy.load_file(folder / FILE))
        except (SafetensorError, TypeError, ValueError) as error:
            raise IgptError(f"{folder / FILE}: damaged ({first_line(error)})") from None
