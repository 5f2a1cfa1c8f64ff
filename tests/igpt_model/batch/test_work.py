"""The numbers of a batch are those of a registered model's `predict`, task by task."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from igpt_model.batch.config import BatchConfig
from igpt_model.batch.work import Work
from igpt_model.probing.probed import ProbedModel
from igpt_model.registry.serving import RegisteredImageGPT
from pipeline.errors import IgptError
from pipeline.readers import arrow
from tests.igpt_model.registry.test_serving import make_bundle, make_head

LABELS = ["a", "c", "b", "a", None]


def model(probed: bool = True, **fields: object) -> ProbedModel:
    return ProbedModel(bundle=make_bundle(**fields), best_layer=1, head=make_head() if probed else None)


@pytest.fixture(scope="module")
def pictures(photos: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(photos[[0, 20, 40, 70, 100], :8, :8])


def columns(of: ProbedModel, work: Work, pictures: np.ndarray) -> dict[str, pa.Array]:
    tokens_NT = of.bundle.quantize(pictures)
    low_NP = of.bundle.shrink(pictures) if of.bundle.model.config.low_resolution is not None else None
    return work.columns(of.bundle, tokens_NT, LABELS, low_NP)


def as_array(column: pa.Array) -> np.ndarray:
    return arrow.pixels_of(pa.chunked_array([column]))


@pytest.mark.parametrize("fields", [{}, {"objective": "masked"}, {"low_resolution": 2}], ids=str)
@pytest.mark.parametrize("pooling", ["mean", "rows", "none"])
def test_features(pooling: str, fields: dict, pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    of = model(**fields)
    served = RegisteredImageGPT(of.bundle, of.best_layer, of.head)
    work = Work.of("features", of, BatchConfig(layers=(2, 0), pooling=pooling))
    done = columns(of, work, pictures)
    assert list(done) == ["layer_2", "layer_0"]
    for layer in (2, 0):
        expected = served.predict(pictures, {"layer": layer, "pooling": pooling})
        assert as_array(done[f"layer_{layer}"]) == pytest.approx(expected, abs=1e-6)
    (best,) = columns(of, Work.of("features", of, BatchConfig(pooling=pooling)), pictures)
    assert best == "layer_1"
    monkeypatch.setattr("igpt_model.batch.work.images_at_once", lambda *_: 2)
    again = columns(of, work, pictures)
    assert as_array(again["layer_0"]) == pytest.approx(as_array(done["layer_0"]), abs=1e-6)


def test_classes(pictures: np.ndarray) -> None:
    of = model()
    done = columns(of, work := Work.of("classify", of, BatchConfig()), pictures)
    expected = RegisteredImageGPT(of.bundle, of.best_layer, of.head).predict(pictures, {"task": "classify"})
    assert list(done) == ["predicted", "probability", "probabilities"]
    assert work.classes_of(of.bundle) == list(expected.columns) == ["a", "c"]
    assert as_array(done["probabilities"]) == pytest.approx(expected.to_numpy(), abs=1e-6)
    assert done["predicted"].to_pylist() == expected.idxmax(axis=1).tolist()
    assert done["probability"].to_numpy() == pytest.approx(expected.max(axis=1).to_numpy(), abs=1e-6)


@pytest.mark.parametrize("fields", [{}, {"low_resolution": 2}, {"classes": 3}], ids=str)
def test_scores(fields: dict, pictures: np.ndarray) -> None:
    of = model(**fields)
    served = RegisteredImageGPT(of.bundle, of.best_layer, of.head)
    label = 2 if "classes" in fields else None
    done = columns(of, Work.of("score", of, BatchConfig(label=label)), pictures)
    expected = served.predict(pictures, {"task": "score", "label": label})
    assert done["bits_per_pixel"].to_numpy() == pytest.approx(expected, abs=1e-6)
    assert done["nats_per_pixel"].to_numpy() == pytest.approx(expected * np.log(2), abs=1e-6)


def test_scores_by_the_class_of_each_image(pictures: np.ndarray) -> None:
    of = model(classes=3)
    served = RegisteredImageGPT(of.bundle, of.best_layer, of.head)
    work, tokens_NT = Work.of("score", of, BatchConfig()), of.bundle.quantize(pictures)
    done = work.columns(of.bundle, tokens_NT[:4], LABELS[:4], None)["bits_per_pixel"].to_numpy()
    for row, label in enumerate((0, 2, 1, 0)):
        assert done[row] == pytest.approx(served.predict(pictures[[row]], {"task": "score", "label": label})[0])
    for labels, expected in (
        (LABELS, "an image has no class"),
        (["d"] * 5, "is of class 'd', which the model has not"),
    ):
        with pytest.raises(IgptError, match=expected):
            work.columns(of.bundle, tokens_NT, labels, None)


@pytest.mark.parametrize("task", ["features", "classify", "score"])
def test_no_images_have_the_columns_and_types_of_some(task: str, pictures: np.ndarray) -> None:
    of = model()
    work = Work.of(task, of, BatchConfig())
    none = work.columns(of.bundle, np.zeros((0, 64), np.int64), [], None)
    assert {name: column.type for name, column in none.items()} == {
        name: column.type for name, column in columns(of, work, pictures).items()
    }
    assert {len(column) for column in none.values()} == {0}


@pytest.mark.parametrize(
    ("task", "of", "fields", "expected"),
    [
        ("features", model(), {"layers": (3,)}, r"layers are \[3\]: they must be different numbers from 0 to 2"),
        ("features", model(), {"layers": (1, 1)}, "different numbers"),
        ("features", model(), {"label": 1}, "label is 1, which is for score"),
        ("features", model(classes=3), {}, "gets the class of an image as input"),
        ("classify", model(probed=False), {}, "no probe is attached"),
        (
            "classify",
            model(),
            {"pooling": "rows"},
            "pooling is 'rows', which is for features: leave it out of classify",
        ),
        ("score", model(), {"layers": (1,)}, "which is for features: leave it out of score"),
        ("score", model(), {"label": 1}, "label is 1, for class-conditional models: this model is not"),
        ("score", model(classes=3), {"label": 3}, "this one has 3 classes"),
        ("score", model(objective="masked"), {}, "a masked model has no likelihood"),
    ],
)
def test_what_a_model_cannot_do_is_told_before_it_starts(
    task: str, of: ProbedModel, fields: dict, expected: str
) -> None:
    with pytest.raises(IgptError, match=expected):
        Work.of(task, of, BatchConfig(**fields))


def test_parts_are_as_large_as_memory_allows() -> None:
    config = replace(make_bundle().model.config, resolution=32, width=512)
    for pooling, expected in (("mean", 2048), ("rows", 512), ("none", 16)):
        assert Work(task="features", layers=(1, 2), pooling=pooling).images_of_a_part(config, 2048) == expected
    assert Work(task="score").images_of_a_part(config, 100) == 100


def test_other_work_has_another_identity() -> None:
    works = [
        Work(task="features", layers=(1,)),
        Work(task="features", layers=(2,)),
        Work(task="features", layers=(1,), pooling="rows"),
        Work(task="score"),
        Work(task="score", label=1),
        Work(task="classify", layers=(1,), head=make_head()),
        Work(task="classify", layers=(1,), head=replace(make_head(), bias_K=np.ones(2, np.float32))),
    ]
    assert len({repr(work.identity) for work in works}) == len(works)
