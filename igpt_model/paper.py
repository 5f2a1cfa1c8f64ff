"""Accuracies, in percent of test images, from the abstract of Chen et al. 2020, to stand beside measured ones."""

from collections.abc import Mapping

Accuracies = Mapping[str, Mapping[str, float]]
"""By benchmark and model."""

# Pretrained on ImageNet at 32x32 pixels.
LINEAR_PROBE: Accuracies = {"cifar10": {"iGPT-L": 96.3}}
FINE_TUNED: Accuracies = {"cifar10": {"iGPT-L": 99.0}}
_CIFAR10 = frozenset(["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"])


def benchmark_of(classes: tuple[str, ...]) -> str | None:
    """The benchmark that a dataset's classes are those of; none: not one of the paper's."""
    if frozenset(classes) == _CIFAR10:
        return "cifar10"
    return None
