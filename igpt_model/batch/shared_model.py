"""A model as arrays that processes of a node share: it is in memory once, whatever the number of tasks."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT


@dataclass(frozen=True, kw_only=True)
class SharedModel:
    """A model whose weights are arrays, which Ray's object store hands out without a copy."""

    config: ModelConfig
    weights: dict[str, np.ndarray]
    palette_K3: np.ndarray
    classes: tuple[str, ...]

    @classmethod
    def of(cls, bundle: ModelBundle) -> "SharedModel":
        """The weights of a model; on a CPU they share its memory."""
        weights = {name: weight.detach().cpu().numpy() for name, weight in bundle.model.state_dict().items()}
        return cls(
            config=bundle.model.config, weights=weights, palette_K3=bundle.palette_K3, classes=tuple(bundle.classes)
        )

    def open(self) -> ModelBundle:
        """The model over the shared weights, which must not be written to."""
        with torch.device("meta"):
            model = ImageGPT(self.config)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            weights = {name: torch.from_numpy(array) for name, array in self.weights.items()}
        model.load_state_dict(weights, assign=True)
        return ModelBundle(model=model.eval(), palette_K3=self.palette_K3, classes=self.classes)
