"""A convolutional network that learns from the labels alone, beside which features learned without them stand.

A residual network of He et al. 2016 (section 4.2, the one for CIFAR-10) with one block a stage: 7 convolutions and a
linear layer, 78,000 parameters with ten classes. It sees the pixels that the probe of raw pixels sees.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt_model.probing.config import SupervisedConfig
from igpt_model.probing.labelled import LabelledTokens, SplitTokens
from igpt_model.probing.linear import LowDataScore, draw_labels
from igpt_model.probing.result import TrainedScore
from igpt_model.probing.trained_classifier import train_and_score

_WIDTHS = (16, 32, 64)
_SHIFT = 8  # a crop is moved by up to an eighth of the side, as in the paper of the network (4 of 32 pixels)


class ResNet(nn.Module):
    """Images float32 [B, 3, R, R] to class logits [B, classes]; each stage but the first halves the side."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = nn.Sequential(_convolution(3, _WIDTHS[0], 1), nn.ReLU())
        self.stages = nn.Sequential(
            _Block(_WIDTHS[0], _WIDTHS[0], 1), _Block(_WIDTHS[0], _WIDTHS[1], 2), _Block(_WIDTHS[1], _WIDTHS[2], 2)
        )
        self.head = nn.Linear(_WIDTHS[-1], classes)

    def forward(self, images_B3RR: Tensor) -> Tensor:
        """The logits."""
        return self.head(self.stages(self.first(images_B3RR)).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(before, width, stride), nn.ReLU(), _convolution(width, width, 1))
        same = before == width and stride == 1
        self.skip = nn.Identity() if same else _convolution(before, width, stride, size=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(self.body(x_BCHW) + self.skip(x_BCHW))


def _convolution(before: int, width: int, stride: int, *, size: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(before, width, size, stride=stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width))


def train_supervised(
    splits: SplitTokens, palette_K3: np.ndarray, config: SupervisedConfig, device: torch.device
) -> TrainedScore:
    """Train the network on images given as tokens, and score it on test.

    The palette is float32 [K, 3] from -1 to 1. Images are moved by a few pixels while training, and mirrored where the
    config says so. On a CPU the same seed gives the same network.
    """
    side = round(splits.train.tokens_NT.shape[1] ** 0.5)
    colours_K3 = torch.from_numpy(palette_K3).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = ResNet(splits.classes).to(device)
    random = torch.Generator().manual_seed(config.seed)

    def pictures(tokens_BT: Tensor) -> Tensor:
        return colours_K3[tokens_BT].unflatten(1, (side, side)).permute(0, 3, 1, 2)

    def loss(tokens_BT: Tensor, labels_B: Tensor) -> Tensor:
        moved_B3RR = _augment(pictures(tokens_BT), random, flip=config.flip)
        return F.cross_entropy(network(moved_B3RR), labels_B)

    return train_and_score(network, splits, config, loss=loss, logits=lambda tokens_BT: network(pictures(tokens_BT)))


def low_data_supervised(
    splits: SplitTokens,
    palette_K3: np.ndarray,
    count: int,
    draws: int,
    seed: int,
    config: SupervisedConfig,
    device: torch.device,
) -> LowDataScore:
    """Train the network on several draws of a few labels a class: the draws of `low_data_score`."""
    accuracies = []
    for draw in range(draws):
        rows = draw_labels(splits.train.labels_N, count, (seed, count, draw))
        few = LabelledTokens(tokens_NT=splits.train.tokens_NT[rows], labels_N=splits.train.labels_N[rows])
        drawn = SplitTokens(train=few, validation=splits.validation, test=splits.test)
        accuracies.append(train_supervised(drawn, palette_K3, config, device).test_accuracy)
    return LowDataScore.of(count, accuracies)


def _augment(images_B3RR: Tensor, random: torch.Generator, *, flip: bool) -> Tensor:
    """Move each image by its own number of pixels, with the edge repeated, and mirror half of them."""
    images, side = len(images_B3RR), images_B3RR.shape[-1]
    most = max(1, side // _SHIFT)
    top_B, left_B = torch.randint(0, 2 * most + 1, (2, images), generator=random).to(images_B3RR.device)
    mirrored_B = torch.rand(images, generator=random).to(images_B3RR.device) < (0.5 if flip else 0.0)
    padded_B3PP = F.pad(images_B3RR, (most,) * 4, mode="replicate")
    places_R = torch.arange(side, device=images_B3RR.device)
    columns_BR = torch.where(mirrored_B[:, None], places_R.flip(0), places_R) + left_B[:, None]
    rows_BR = places_R + top_B[:, None]
    image_B = torch.arange(images, device=images_B3RR.device)[:, None, None]
    return padded_B3PP.permute(0, 2, 3, 1)[image_B, rows_BR[:, :, None], columns_BR[:, None]].permute(0, 3, 1, 2)
