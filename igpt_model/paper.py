"""Accuracies that Chen et al. 2020 report, in percent of test images, to stand beside measured ones."""

from collections.abc import Mapping

Accuracies = Mapping[str, Mapping[str, float]]
"""By benchmark and model."""

# The paper's models were pretrained on ImageNet, some on web images too, at 32x32 pixels where nothing else is said.
LINEAR_PROBE: Accuracies = {
    "cifar10": {"iGPT-L": 96.3},  # table 2
    "cifar100": {"iGPT-L": 82.8},
    "imagenet": {"iGPT-L": 60.3, "iGPT-L 48x48": 65.2, "iGPT-XL 64x64": 68.7, "iGPT-XL 64x64, five layers": 72.0},
}
FINE_TUNED: Accuracies = {"cifar10": {"iGPT-L": 99.0}, "cifar100": {"iGPT-L": 88.5}}
# By the number of labels of each class: mean and deviation over five draws, of iGPT-L.
LOW_DATA: Mapping[str, Mapping[int, tuple[float, float]]] = {
    "cifar10": {4: (73.2, 1.5), 25: (87.6, 0.6), 400: (94.3, 0.1)}
}
_CIFAR10 = frozenset(["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"])


def benchmark_of(classes: tuple[str, ...]) -> str | None:
    """The benchmark that a dataset's classes are those of; none: not one of the paper's."""
    if frozenset(classes) == _CIFAR10:
        return "cifar10"
    return None
