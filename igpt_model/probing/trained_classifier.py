"""Trains a network that classifies, and keeps the weights that are best on the validation split."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from igpt_model.probing.config import ClassifierTraining
from igpt_model.probing.labelled import LabelledTokens, SplitTokens
from igpt_model.probing.result import TrainedScore

_EVALUATIONS = 8
_BATCH = 128


def train_and_score(
    network: nn.Module,
    splits: SplitTokens,
    config: ClassifierTraining,
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    logits: Callable[[Tensor], Tensor],
) -> TrainedScore:
    """Train a network, evaluate it eight times, and score the weights with the best validation accuracy on test.

    `loss` is called with tokens int64 [B, T] and classes int64 [B] and returns a scalar; `logits` with tokens, of a
    network in evaluation mode, and returns [B, classes]. Which images come when is determined by the seed.
    """
    device = next(network.parameters()).device
    images = len(splits.train.labels_N)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, betas=(0.9, 0.95))
    random = np.random.default_rng(config.seed)
    order = np.concatenate([random.permutation(images) for _ in range(1 + config.steps * config.batch // images)])
    best_accuracy, best_step, best_weights = -1.0, 0, copy.deepcopy(network.state_dict())
    every = max(1, config.steps // _EVALUATIONS)
    network.train()
    for step in range(1, config.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config.steps)
        rows = order[(step - 1) * config.batch : step * config.batch]
        tokens_BT = torch.from_numpy(splits.train.tokens_NT[rows]).to(device)
        labels_B = torch.from_numpy(splits.train.labels_N[rows]).to(device)
        optimizer.zero_grad(set_to_none=True)
        loss(tokens_BT, labels_B).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % every == 0 or step == config.steps:
            accuracy = _accuracy(network, logits, splits.validation, device)
            if accuracy > best_accuracy:
                best_accuracy, best_step = accuracy, step
                best_weights = copy.deepcopy(network.state_dict())
    network.load_state_dict(best_weights)
    test_accuracy = _accuracy(network, logits, splits.test, device)
    return TrainedScore(test_accuracy=test_accuracy, validation_accuracy=best_accuracy, step=best_step)


def _schedule(step: int, steps: int) -> float:
    warmup = max(1, steps // 10)
    if step <= warmup:
        return step / warmup
    return 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, steps - warmup))))


@torch.inference_mode()
def _accuracy(
    network: nn.Module, logits: Callable[[Tensor], Tensor], images: LabelledTokens, device: torch.device
) -> float:
    network.eval()
    right = 0
    for begin in range(0, len(images.labels_N), _BATCH):
        rows = slice(begin, begin + _BATCH)
        tokens_BT = torch.from_numpy(images.tokens_NT[rows]).to(device)
        right += int((logits(tokens_BT).argmax(1).cpu().numpy() == images.labels_N[rows]).sum())
    network.train()
    return right / len(images.labels_N)
