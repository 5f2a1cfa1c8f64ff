"""A linear probe of all layers in seconds: scikit-learn's objective, minimized on the device that has the features.

With 43,000 images of 512 features and four strengths, scikit-learn takes minutes for the layers of a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from igpt_model.inference.features import pooled_features
from igpt_model.inference.pooling import Pooling
from igpt_model.model.bundle import ModelBundle
from pipeline.dataset.snapshot import Snapshot
from pipeline.samples.shard_cache import ShardCache, batches

_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Features:
    """Of the labelled images of a split: float32 [layers, N, numbers], and class numbers, int64 [N]."""

    features_LNC: Tensor
    labels_N: Tensor


@dataclass(frozen=True, kw_only=True)
class Score:
    """How a layer did, with the strength that did best on validation."""

    test_accuracy: float
    validation_accuracy: float
    strength: float


def features_of(
    bundle: ModelBundle,
    data: Snapshot,
    cache: ShardCache,
    split: str,
    *,
    layers: Sequence[int] | None = None,
    pooling: Pooling = "mean",
) -> Features:
    """The features of layers, none: of all, on the model's device; the numbers of an image in one row.

    The last batch is filled up, so that all have one size.
    """
    device = bundle.model.positions.device
    tokens_NT, labels_N = [], []
    for images in batches([cache.open(shard) for shard in data.of_split(split)], 8192):
        kept = images.labels_N >= 0
        tokens_NT.append(images.tokens_NT[kept])
        labels_N.append(images.labels_N[kept])
    all_NT = torch.from_numpy(np.concatenate(tokens_NT)).to(device)
    parts = []
    for begin in range(0, len(all_NT), _BATCH):
        part_BT = all_NT[begin : begin + _BATCH].long()
        missing = _BATCH - len(part_BT)
        full_BT = torch.cat([part_BT, part_BT[:1].expand(missing, -1)]) if missing else part_BT
        made = pooled_features(bundle.model, full_BT, layers=layers, pooling=pooling)
        parts.append(made[:, : len(part_BT)].flatten(2))
    return Features(
        features_LNC=torch.cat(parts, 1).clone(), labels_N=torch.from_numpy(np.concatenate(labels_N)).to(device)
    )


def fit(
    train: Features, validation: Features, test: Features, layer: int, strengths: Sequence[float], iterations: int
) -> Score:
    """Fit a logistic regression for every strength, take the best on validation, and score that one on test.

    What is minimized is scikit-learn's: half the squared weights plus the strength times the sum of the losses, over
    standardized features. Each strength begins from the weights of the one before.
    """
    features_NC = train.features_LNC[layer]
    mean_C, scale_C = features_NC.mean(0), 1 / (features_NC.std(0, correction=0) + 1e-6)
    inputs_NC = (features_NC - mean_C) * scale_C
    classes = int(train.labels_N.max()) + 1
    weight_KC = torch.zeros(classes, inputs_NC.shape[1], device=inputs_NC.device, requires_grad=True)
    bias_K = torch.zeros(classes, device=inputs_NC.device, requires_grad=True)
    best: Score | None = None
    for strength in sorted(strengths):
        _minimize(weight_KC, bias_K, inputs_NC, train.labels_N, strength, iterations)
        held, shown = (
            _accuracy((split.features_LNC[layer] - mean_C) * scale_C, split.labels_N, weight_KC, bias_K)
            for split in (validation, test)
        )
        if best is None or held > best.validation_accuracy:
            best = Score(test_accuracy=shown, validation_accuracy=held, strength=strength)
    assert best is not None
    return best


def _minimize(
    weight_KC: Tensor, bias_K: Tensor, inputs_NC: Tensor, labels_N: Tensor, strength: float, iterations: int
) -> None:
    optimizer = torch.optim.LBFGS(
        [weight_KC, bias_K], max_iter=iterations, history_size=10, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(inputs_NC, weight_KC, bias_K), labels_N)
        # Divided by strength and images, so that steps and tolerances mean the same for all.
        loss = loss + weight_KC.square().sum() / (2 * strength * len(labels_N))
        loss.backward()
        return loss

    optimizer.step(objective)  # type: ignore[no-untyped-call]


@torch.no_grad()
def _accuracy(inputs_NC: Tensor, labels_N: Tensor, weight_KC: Tensor, bias_K: Tensor) -> float:
    return (F.linear(inputs_NC, weight_KC, bias_K).argmax(1) == labels_N).double().mean().item()
