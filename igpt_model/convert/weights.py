"""What reading a model of others has in common: taking weights by name and shape, and leaving none over."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from pipeline.errors import IgptError

# Layers of a block under our names and under those that OpenAI gave them, which Hugging Face kept.
NORMS = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}


class ForeignWeights:
    """The tensors of a file by their names there; `origin` is what errors call the file."""

    def __init__(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        self._tensors, self._origin = dict(tensors), origin

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str, *shape: int) -> Tensor:
        """Remove a weight from those that are left. Raises IgptError when it is missing or of another shape."""
        if name not in self._tensors:
            raise IgptError(f"{self._origin}: {name} is missing")
        weight = self._tensors.pop(name)
        if tuple(weight.shape) != shape:
            raise IgptError(f"{self._origin}: {name} has the shape {list(weight.shape)}, expected {list(shape)}")
        return weight

    def assemble(self, config: ModelConfig, ours: Mapping[str, Tensor], palette_K3: np.ndarray) -> ModelBundle:
        """The model of weights that were taken. Raises IgptError when some are left, or for another palette's size."""
        if self._tensors:
            raise IgptError(f"{self._origin}: {min(self._tensors)} has no place in an Image GPT; is it another model?")
        if len(palette_K3) != config.colours:
            raise IgptError(
                f"{self._origin}: the model has {config.colours} colours and the palette {len(palette_K3)}: "
                "give the model's own palette"
            )
        with torch.device("meta"):
            model = ImageGPT(config)
        # Copies, as what was taken are also parts and transposed views of one memory.
        kept = {name: weight.float().clone(memory_format=torch.contiguous_format) for name, weight in ours.items()}
        model.load_state_dict(kept, assign=True)
        return ModelBundle(model=model.eval(), palette_K3=palette_K3, classes=())


def side_of(positions: int, origin: str) -> int:
    """The side of a square image of so many pixels. Raises IgptError when there is none."""
    side = round(positions**0.5)
    if side**2 != positions:
        raise IgptError(f"{origin}: {positions} positions are not those of a square image")
    return side
