"""Converting weights of other implementations: takes tensors by name and shape, and checks that all were used."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from pipeline.errors import IgptError

# Normalizations of a block: name in ImageGPT and name in OpenAI's code, which Hugging Face kept.
NORMS = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}


class ForeignWeights:
    """The tensors of a file by their original names; error messages name the file as `origin`."""

    def __init__(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        self._tensors, self._origin = dict(tensors), origin

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str, *shape: int) -> Tensor:
        """Remove and return a weight. Raises IgptError when it is missing or has another shape."""
        if name not in self._tensors:
            raise IgptError(f"{self._origin}: {name} is missing")
        weight = self._tensors.pop(name)
        if tuple(weight.shape) != shape:
            raise IgptError(f"{self._origin}: {name} has the shape {list(weight.shape)}, expected {list(shape)}")
        return weight

    def assemble(self, config: ModelConfig, weights: Mapping[str, Tensor], palette_K3: np.ndarray) -> ModelBundle:
        """Build the model from converted weights. Raises IgptError for unused tensors, or a palette of another size."""
        if self._tensors:
            raise IgptError(f"{self._origin}: {min(self._tensors)} is not a weight of an Image GPT; give a file of one")
        if len(palette_K3) != config.colours:
            raise IgptError(
                f"{self._origin}: the model has {config.colours} colours and the palette {len(palette_K3)}: "
                "give the model's own palette"
            )
        with torch.device("meta"):
            model = ImageGPT(config)
        # Copies, because some weights are slices or transposed views of one tensor.
        kept = {name: weight.float().clone(memory_format=torch.contiguous_format) for name, weight in weights.items()}
        model.load_state_dict(kept, assign=True)
        return ModelBundle(model=model.eval(), palette_K3=palette_K3, classes=())


def side_of(positions: int, origin: str) -> int:
    """The side of a square image with `positions` pixels. Raises IgptError when the number is not a square."""
    side = round(positions**0.5)
    if side**2 != positions:
        raise IgptError(f"{origin}: {positions} positions are not the pixels of a square image")
    return side
