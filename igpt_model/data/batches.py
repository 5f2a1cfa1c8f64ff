"""Converts token images on the host to model inputs on the device: augmentation, conditioning and masks."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from igpt_model.config import PretrainConfig
from igpt_model.data.augment import augment, start_offsets
from igpt_model.model.config import ModelConfig
from igpt_model.model.losses import draw_masks
from igpt_model.model.low_resolution import Reducer
from igpt_model.model.network import Condition
from pipeline.errors import IgptError
from pipeline.samples.shard_cache import Images


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of a batch of images, on the model's device."""

    tokens_BT: Tensor
    """int64."""
    condition: Condition
    masked_BT: Tensor | None
    """Which pixels are masked, bool; None for an autoregressive model."""


@dataclass(frozen=True, kw_only=True)
class HostImages:
    """Images in host memory, which for a GPU is pinned: a copy from other memory would wait for all queued work."""

    tokens_BT: Tensor
    """uint16."""
    labels_B: Tensor
    """int64, -1 for no class."""


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

    def on_host(self, images: Images) -> HostImages:
        """Copy images to where the device can fetch them. Raises IgptError when a class is needed and missing.

        Queues nothing on the device, so that another thread than the rest may call it.
        """
        if self._model.classes is not None and (images.labels_N < 0).any():
            raise IgptError(
                "class_conditional is set and some images of the dataset have no class: put the images of each "
                "class in a separate folder and rebuild the dataset, or leave class_conditional out"
            )
        tokens_BT, labels_B = torch.from_numpy(images.tokens_NT), torch.from_numpy(images.labels_N)
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):  # another thread would take the first GPU
                tokens_BT, labels_B = tokens_BT.pin_memory(), labels_B.pin_memory()
        return HostImages(tokens_BT=tokens_BT, labels_B=labels_B)

    def for_training(self, images: HostImages, first_position: int) -> Inputs:
        """Inputs of images at consecutive positions of the sample order."""
        config = self._config
        offsets_BC = None
        numbers_B = torch.arange(first_position, first_position + len(images.labels_B), device=self._device)
        tokens_BT = self._tokens(images)
        if first_position < config.augmented_images:  # which is where a step begins, so no batch is on both sides
            tokens_BT = augment(
                tokens_BT,
                numbers_B,
                seed=config.optimizer.seed,
                flip=config.data.flip,
                crop_padding=config.data.crop_padding,
            )
            if config.tells_augmentation:
                offsets_BC = start_offsets(
                    numbers_B,
                    self._model.width,
                    seed=config.optimizer.seed,
                    flip=config.data.flip,
                    crop_padding=config.data.crop_padding,
                )
        return self._inputs(tokens_BT, images, numbers_B, "training mask", offsets_BC)

    def for_evaluation(self, images: HostImages, places_B: np.ndarray) -> Inputs:
        """Inputs of images at places of their split, int64, without augmentation."""
        numbers_B = torch.from_numpy(places_B).to(self._device)
        return self._inputs(self._tokens(images), images, numbers_B, "evaluation mask")

    def _tokens(self, images: HostImages) -> Tensor:
        return images.tokens_BT.to(self._device, non_blocking=True).long()

    def _inputs(
        self,
        tokens_BT: Tensor,
        images: HostImages,
        numbers_B: Tensor,
        purpose: str,
        offsets_BC: Tensor | None = None,
    ) -> Inputs:
        config, labels_B, masked_BT = self._config, None, None
        if self._model.classes is not None:
            labels_B = images.labels_B.to(self._device, non_blocking=True)
        if self._model.objective == "masked":
            positions = self._model.positions
            masked_BT = draw_masks(
                numbers_B, positions, seed=config.optimizer.seed, purpose=purpose, fraction=config.model.mask_fraction
            )
        low_BP = None if self._reduce is None else self._reduce(tokens_BT)
        condition = Condition(labels_B=labels_B, low_BP=low_BP, start_offsets_BC=offsets_BC)
        return Inputs(tokens_BT=tokens_BT, condition=condition, masked_BT=masked_BT)
