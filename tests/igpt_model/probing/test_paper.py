"""Which datasets are compared with values of the paper."""

from igpt_model.probing import paper

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGENET = tuple(f"n{number:08d}" for number in range(1000))


def test_a_benchmark_is_identified_by_its_classes_in_any_order() -> None:
    assert paper.benchmark_of(CIFAR10) == paper.benchmark_of(tuple(reversed(CIFAR10))) == "cifar10"
    assert paper.benchmark_of(IMAGENET) == "imagenet"


def test_subsets_and_similar_class_lists_are_not_benchmarks() -> None:
    stl10 = tuple("car" if name == "automobile" else "monkey" if name == "frog" else name for name in CIFAR10)
    for classes in (CIFAR10[:-1], IMAGENET[:-1], (*IMAGENET[:-1], IMAGENET[0]), stl10, (*IMAGENET[:-1], "dog"), ()):
        assert paper.benchmark_of(classes) is None


def test_every_value_belongs_to_a_known_benchmark() -> None:
    known = {paper.benchmark_of(classes) for classes in (CIFAR10, IMAGENET)}
    for table in (paper.LINEAR_PROBE, paper.FINE_TUNED, paper.LOW_DATA):
        assert set(table) <= known
