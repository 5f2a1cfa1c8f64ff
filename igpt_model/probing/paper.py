"""Accuracies of Chen et al. 2020 (abstract, section 4.4), in percent of test images, to stand beside measured ones."""

import re
from collections.abc import Mapping

Accuracies = Mapping[str, Mapping[str, float]]
"""By benchmark and model."""

# Pretrained on ImageNet at 32x32 pixels, iGPT-XL on ImageNet and images of the web at 64x64.
LINEAR_PROBE: Accuracies = {
    "cifar10": {"iGPT-L": 96.3},
    "imagenet": {"iGPT-L": 60.3, "iGPT-XL": 72.0},
}
FINE_TUNED: Accuracies = {"cifar10": {"iGPT-L": 99.0}}
_CIFAR10 = frozenset(["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"])
_WORDNET_ID = re.compile(r"n\d{8}")


def benchmark_of(classes: tuple[str, ...]) -> str | None:
    """The benchmark that a dataset's classes are those of; none: not one of the paper's."""
    if frozenset(classes) == _CIFAR10:
        return "cifar10"
    if len(frozenset(classes)) == 1000 and all(_WORDNET_ID.fullmatch(name) for name in classes):
        return "imagenet"
    return None
