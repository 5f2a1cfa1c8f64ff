"""Converts token images on the host to model inputs on the device: augmentation, conditioning and masks."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from igpt_model.config import PretrainConfig
from igpt_model.data.augment import augment
from igpt_model.data.shard_cache import Images
from igpt_model.model.config import ModelConfig
from igpt_model.model.losses import draw_masks
from igpt_model.model.low_resolution import Reducer
from igpt_model.model.network import Condition
from pipeline.errors import IgptError


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of a batch of images, on the model's device."""

    tokens_BT: Tensor
    """int64."""
    condition: Condition
    masked_BT: Tensor | None
    """Which pixels are masked, bool; None for an autoregressive model."""


class Preparation:
    """Prepares inputs for the model and objective of a config.

    Random choices for a training image depend only on the seed and its position in the sample order; for an evaluation
    image, on the seed and its position in the split, so every evaluation masks the same pixels.
    """

    def __init__(
        self, config: PretrainConfig, model: ModelConfig, palette_K3: np.ndarray, device: torch.device
    ) -> None:
        if config.data.crop_padding >= model.resolution:
            raise IgptError(
                f"crop_padding is {config.data.crop_padding}: it must be below the resolution {model.resolution}"
            )
        self._config, self._model, self._device = config, model, device
        self._reduce: Reducer | None = None
        if model.low_resolution is not None:
            self._reduce = Reducer(
                palette_K3, resolution=model.resolution, low_resolution=model.low_resolution, device=device
            )

    def for_training(self, images: Images, first_position: int) -> Inputs:
        """Inputs of images at consecutive positions of the sample order."""
        config = self._config
        numbers_B = self._numbers(images, first_position)
        tokens_BT = augment(
            self._tokens(images),
            numbers_B,
            seed=config.optimizer.seed,
            flip=config.data.flip,
            crop_padding=config.data.crop_padding,
        )
        return self._inputs(tokens_BT, images, numbers_B, "training mask")

    def for_evaluation(self, images: Images, first_place: int) -> Inputs:
        """Inputs of images at consecutive positions of their split, without augmentation."""
        return self._inputs(self._tokens(images), images, self._numbers(images, first_place), "evaluation mask")

    def _numbers(self, images: Images, first: int) -> Tensor:
        return torch.arange(first, first + len(images.labels_N), device=self._device)

    def _tokens(self, images: Images) -> Tensor:
        return self._to_device(images.tokens_NT.astype(np.uint16)).long()

    def _to_device(self, values: np.ndarray) -> Tensor:
        """Values on the device. A copy from unpinned memory would first wait for all queued work of a GPU."""
        tensor = torch.from_numpy(values)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def _inputs(self, tokens_BT: Tensor, images: Images, numbers_B: Tensor, purpose: str) -> Inputs:
        config, labels_B, masked_BT = self._config, None, None
        if self._model.classes is not None:
            if (images.labels_N < 0).any():
                raise IgptError(
                    "class_conditional is set and some images of the dataset have no class: put the images of each "
                    "class in a separate folder and rebuild the dataset, or leave class_conditional out"
                )
            labels_B = self._to_device(images.labels_N)
        if self._model.objective == "masked":
            positions = self._model.positions
            masked_BT = draw_masks(
                numbers_B, positions, seed=config.optimizer.seed, purpose=purpose, fraction=config.model.mask_fraction
            )
        low_BP = None if self._reduce is None else self._reduce(tokens_BT)
        return Inputs(tokens_BT=tokens_BT, condition=Condition(labels_B=labels_B, low_BP=low_BP), masked_BT=masked_BT)
