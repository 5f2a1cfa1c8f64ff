"""Accuracies from Chen et al. 2020 (abstract, sections 4.4 and 4.5), in percent of test images, to compare with."""

import re
from collections.abc import Mapping

Accuracies = Mapping[str, Mapping[str, float]]
"""By benchmark and model."""

# iGPT-L was pretrained on ImageNet at 32x32 pixels, iGPT-XL on ImageNet and web images at 64x64.
LINEAR_PROBE: Accuracies = {
    "cifar10": {"iGPT-L": 96.3},
    "imagenet": {"iGPT-L": 60.3, "iGPT-XL": 72.0},
}
FINE_TUNED: Accuracies = {"cifar10": {"iGPT-L": 99.0}}
LOW_DATA: Mapping[str, Mapping[int, Mapping[str, str]]] = {
    "cifar10": {4: {"iGPT-L": "73.2 ± 1.5"}, 25: {"iGPT-L": "87.6 ± 0.6"}, 400: {"iGPT-L": "94.3 ± 0.1"}}
}
"""Linear probes on few labels: mean and deviation, by benchmark, labels per class (40, 250, 4000 in all) and model."""
_CIFAR10 = frozenset(["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"])
_WORDNET_ID = re.compile(r"n\d{8}")


def benchmark_of(classes: tuple[str, ...]) -> str | None:
    """The benchmark of the paper that has these classes; None: no such benchmark."""
    if frozenset(classes) == _CIFAR10:
        return "cifar10"
    if len(frozenset(classes)) == 1000 and all(_WORDNET_ID.fullmatch(name) for name in classes):
        return "imagenet"
    return None
