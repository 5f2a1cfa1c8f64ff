"""A config determines the name of its run and the model for a dataset, and refuses invalid values."""

import json
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch

from igpt_model import config as configs
from igpt_model.config import PretrainConfig
from igpt_model.model import config as shapes
from igpt_model.registry.gate import GateConfig
from igpt_model.training.parallel import allow_tf32
from pipeline.errors import IgptError
from pipeline.typed_config import values

BASE = PretrainConfig.from_fields(runs="r", preset="tiny")


def variants() -> Iterator[tuple[str, str, PretrainConfig]]:
    """Each field that has another valid value, set to it: section, field name and config."""
    given: dict[str, Any] = {
        **{"preset": "small", "layers": 3, "width": 128, "heads": 8, "objective": "masked", "mask_fraction": 0.3},
        **{"class_conditional": True, "low_resolution": 4, "parent": "models:/igpt/3", "precision": "bfloat16"},
        **{"dataset": "d", "snapshot": 3, "learning_rate": 0.1, "ema_decay": 0.9, "augmented_share": 0.5},
        "spike_deviations": 6.0,
        **{
            "parallelism": "fsdp",
            "placement": "SPREAD",
            "optim": "muon",
            "min_workers": 1,
            "cache": "c",
            "micro_batch": 1,
            "keep_every": 500,
            "name": "mine",
            "compile": True,
        },
    }
    for name, value in BASE.flat().items():
        if isinstance(value, bool):
            given.setdefault(name, not value)
        elif isinstance(value, int | float):
            given.setdefault(name, value + 1)
        elif isinstance(value, str):
            given.setdefault(name, f"{value}2")
        yield values.sections_of(PretrainConfig)[name], name, BASE.with_fields(**{name: given[name]})


def test_the_name_of_a_run_is_decided_by_model_data_and_optimizer_alone() -> None:
    name, seen = BASE.run_name("a"), set()
    for section, field, other in variants():
        seen.add(field)
        if field == "name":
            assert other.run_name("a") == "mine"
            continue
        decides = section in ("model", "data", "optimizer") and field not in ("dataset", "snapshot")
        decides = decides or field == "use_gpu"  # by the precision that it stands for
        decides = decides and field not in ("augmented_share", "tell_augmentation")  # nothing is augmented here
        assert (other.run_name("a") != name) == decides, field
    assert len(seen) == 57
    assert BASE.run_name("b") != name, "the dataset counts by its contents"


def test_a_preset_counts_by_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    name = BASE.run_name("a")
    assert BASE.with_fields(layers=6, width=64, heads=4, learning_rate=0.005).run_name("a") == name
    before = shapes.preset_shape
    assert BASE.with_fields(gradient_clip=1, weight_decay=0).run_name("a") == name, "a number counts by its value"
    for change in ({"learning_rate": 0.01}, {"layers": 7}):
        monkeypatch.setattr(configs, "preset_shape", lambda preset, change=change: replace(before(preset), **change))
        assert BASE.run_name("a") != name, "an edited preset is another run"


def test_names_stay_what_they_are() -> None:
    """A change of these names makes every training start over."""
    assert BASE.with_fields(steps=500).run_name("a" * 64) == "tiny-d7c48e361922"


def test_names_of_flat_configs_are_known() -> None:
    """As in the version before sections: later fields count only when set."""
    assert BASE.with_fields(steps=500).flat_run_name("a" * 64) == "tiny-c6d8858b2252"
    assert BASE.with_fields(flip=True).flat_run_name("a") != BASE.flat_run_name("a")


def test_resolved_values_are_numbers() -> None:
    flat = BASE.resolved().flat()
    assert (flat["layers"], flat["width"], flat["heads"], flat["learning_rate"]) == (6, 64, 4, 0.005)
    assert BASE.with_fields(layers=2, learning_rate=0.1).resolved().flat()["layers"] == 2
    assert BASE.resolved().resolved() == BASE.resolved()


@pytest.fixture
def tf32_flag() -> Iterator[Any]:
    """PyTorch's switches of float32 products, which are as before at the end."""
    before = torch.backends.cuda.matmul.allow_tf32
    yield torch.backends.cuda.matmul
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("augmentation", [{"flip": True}, {"crop_padding": 1}])
@pytest.mark.parametrize("field", [{"augmented_share": 0.5}, {"tell_augmentation": True}])
def test_how_images_are_augmented_counts_where_they_are(field: dict[str, Any], augmentation: dict[str, Any]) -> None:
    part = BASE.with_fields(**field)
    for name in (PretrainConfig.run_name, PretrainConfig.flat_run_name):
        assert name(part, "a") == name(BASE, "a")
        assert name(part.with_fields(**augmentation), "a") != name(BASE.with_fields(**augmentation), "a")


@pytest.mark.parametrize(
    ("given", "precision", "compiled", "tf32"),
    [
        ({}, "float32", False, False),
        ({"precision": "bfloat16"}, "bfloat16", False, True),
        ({"precision": "tf32"}, "tf32", False, True),
        ({"compile": True}, "float32", True, False),
        ({"use_gpu": True}, "bfloat16", True, True),
        ({"use_gpu": True, "precision": "float32"}, "float32", True, False),
        ({"use_gpu": True, "precision": "tf32"}, "tf32", True, True),
        ({"use_gpu": True, "compile": False}, "bfloat16", False, True),
        ({"use_gpu": True, "precision": None, "compile": None}, "bfloat16", True, True),
    ],
)
def test_a_gpu_computes_in_bfloat16_compiled_unless_told_otherwise(
    given: dict, precision: str, compiled: bool, tf32: bool, tf32_flag: Any
) -> None:
    config = BASE.with_fields(**given)
    assert (config.training_precision, config.is_compiled) == (precision, compiled)
    flat = config.resolved().flat()  # what MLflow gets
    assert (flat["precision"], flat["compile"]) == (precision, compiled)
    assert config.resolved().resolved() == config.resolved()
    assert config.run_name("a") == BASE.with_fields(precision=precision).run_name("a")
    assert config.flat_run_name("a") == BASE.with_fields(precision=given.get("precision")).flat_run_name("a")
    for before in (True, False):
        tf32_flag.allow_tf32 = before
        allow_tf32(config, torch.device("cpu"))
        assert tf32_flag.allow_tf32 == before, "on a CPU nothing changes"
        allow_tf32(config, torch.device("cuda"))
        assert tf32_flag.allow_tf32 == tf32


def test_names_of_fields_are_unique_over_the_sections() -> None:
    """Required for reading the flat form."""
    names = [name for section in asdict(BASE).values() for name in section]
    assert len(set(names)) == len(names) == 57
    assert not set(names) & {field.name for field in fields(PretrainConfig)}


def test_flat_and_nested_are_one() -> None:
    for _, _, config in variants():
        assert PretrainConfig.from_fields(**config.flat()) == config
        assert PretrainConfig.from_fields(**asdict(config)) == config
        assert PretrainConfig.from_fields(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"runs": "r", "steps": 5, "optimizer": {"steps": 6}}, "steps and optimizer.steps are the same field"),
        ({"runs": "r", "optimizer": 5}, "optimizer is 5: it must be a mapping of fields"),
        ({"runs": "r", "optimizer": 5, "steps": 5}, "unknown field steps"),
        ({"runs": "r", "optimizer": {"runs": "s"}}, "unknown field optimizer.runs"),
        ({"runs": "r", "optimizer": {"stepz": 5}}, "unknown field optimizer.stepz"),
    ],
)
def test_a_field_stands_in_one_place(given: dict, expected: str) -> None:
    with pytest.raises(IgptError, match=expected):
        PretrainConfig.from_fields(**given)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: BASE.with_fields(steps=0), "steps is 0: it must be at least 1"),
        (lambda: BASE.with_fields(gradient_clip=0.0), "gradient_clip is 0.0: it must be above 0"),
        (lambda: BASE.with_fields(learning_rate=-1.0), "learning_rate is -1.0: it must be above 0"),
        (lambda: BASE.with_fields(warmup_steps=-1), "warmup_steps is -1: it must be at least 0"),
        (lambda: BASE.with_fields(preset="gpt-5"), "preset is 'gpt-5': it must be tiny or"),
        (lambda: BASE.with_fields(runs=""), "runs is empty"),
        (lambda: BASE.with_fields(global_batch=1), "global_batch 1 is smaller than workers 2"),
        (lambda: BASE.with_fields(min_workers=3), "min_workers is 3: it must not be above workers 2"),
        (
            lambda: BASE.with_fields(objective="masked", tell_augmentation=True),
            "tell_augmentation is set and objective is masked",
        ),
        (lambda: BASE.with_fields(keep_every=300), "keep_every is 300: it must be a multiple of checkpoint_every 250"),
        (lambda: BASE.with_fields(hang_seconds=300.0), "hang_seconds is 300: it must be above upload_seconds 300"),
        (lambda: GateConfig(min_probe_accuracy=1.5), "min_probe_accuracy is 1.5: it must be from 0 to 1"),
        (lambda: GateConfig(max_bits_per_pixel=float("nan")), "max_bits_per_pixel is nan: it must be above 0"),
    ],
)
def test_ranges_hold_however_a_config_is_made(make: Any, expected: str) -> None:
    with pytest.raises(IgptError, match=expected):
        make()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"width": 30, "heads": 4}, "width 30 is not divisible by heads 4"),
        ({"objective": "masked", "class_conditional": True}, "objective is masked"),
        ({"objective": "masked", "low_resolution": 8}, "objective is masked"),
        ({"mask_fraction": 1.0}, "mask_fraction is 1.0"),
        ({"ema_decay": 1.5}, "ema_decay is 1.5"),
        ({"low_resolution": 0}, "low_resolution is 0"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"crop_padding": -1}, "crop_padding is -1"),
    ],
)
def test_an_impossible_config_is_refused(fields: dict, expected: str) -> None:
    with pytest.raises(IgptError, match=expected):
        PretrainConfig.from_fields(runs="runs", **fields)
