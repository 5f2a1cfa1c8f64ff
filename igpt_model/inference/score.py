"""Log-likelihoods of images under an autoregressive model: exact in float32, to 0.01 nats in bfloat16 on a GPU."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from igpt_model.inference.passes import images_per_pass
from igpt_model.inference.precision import half_on_gpu
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.losses import pixel_losses
from igpt_model.model.network import UNCONDITIONAL, Condition, ImageGPT
from pipeline.errors import IgptError


@dataclass(frozen=True, kw_only=True)
class Score:
    """Negative log-likelihoods of images."""

    pixels_BT: Tensor
    """Negative log-likelihood of each pixel given those before it, in nats, float32."""

    @property
    def nats_per_pixel(self) -> Tensor:
        """The mean over the pixels of each image, float64 [B]."""
        return self.pixels_BT.double().mean(1)

    @property
    def bits_per_pixel(self) -> Tensor:
        """`nats_per_pixel` in bits, float64 [B]."""
        return self.nats_per_pixel / math.log(2)


@torch.inference_mode()
def score(model: ImageGPT, tokens_BT: Tensor, *, condition: Condition = UNCONDITIONAL) -> Score:
    """Score images, tokens int64 [B, T]; a conditional model needs the condition.

    Raises IgptError for a masked model, which has no likelihood.
    """
    check_has_likelihood(model.config)
    batch = images_per_pass(model.config, tokens_BT.device, logits=True)
    parts = [torch.empty(0, model.config.positions, device=tokens_BT.device)]
    for begin in range(0, len(tokens_BT), batch):
        rows = slice(begin, begin + batch)
        with half_on_gpu(tokens_BT.device):
            logits_BTK = model(tokens_BT[rows], condition.rows(rows))
        parts.append(pixel_losses(logits_BTK, tokens_BT[rows]))
    return Score(pixels_BT=torch.cat(parts))


def check_has_likelihood(config: ModelConfig) -> None:
    """Raise IgptError for a masked model."""
    if config.objective == "masked":
        raise IgptError("a masked model has no likelihood of an image, only of some pixels given the others")


def score_images(
    bundle: ModelBundle, tokens_NT: np.ndarray, *, labels_N: np.ndarray | None = None, low_NP: np.ndarray | None = None
) -> Score:
    """Score images given as arrays: tokens, class numbers and small versions."""
    device = bundle.model.positions.device
    labels_B = None if labels_N is None else torch.from_numpy(labels_N).to(device)
    low_BP = None if low_NP is None else torch.from_numpy(low_NP).to(device)
    tokens_BT = torch.from_numpy(tokens_NT).to(device)
    return score(bundle.model, tokens_BT, condition=Condition(labels_B=labels_B, low_BP=low_BP))
