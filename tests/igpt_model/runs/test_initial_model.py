"""A run that starts from a registered model: with its weights, once, and only if the model matches the config."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from igpt_model.config import PretrainConfig
from igpt_model.model.bundle import ModelBundle
from igpt_model.runs import initial_model, record
from igpt_model.runs.open_model import load_model
from igpt_model.training.loop import train
from igpt_model.training.train_state import Learner
from igpt_model.worker import Worker
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.store import objects
from tests.igpt_model.training.test_loop import KilledError, Recorder, short_training


@pytest.fixture
def first(data: Snapshot, tmp_path: Path) -> tuple[PretrainConfig, ModelBundle]:
    """A config, and the model trained with it for thirty steps."""
    config = short_training(data, tmp_path)
    run = str(tmp_path / "first")
    train(config, data, run, Worker(), Recorder())
    return config.with_fields(parent="models:/digits/1"), load_model(run)


@pytest.fixture
def second(first: tuple[PretrainConfig, ModelBundle], data: Snapshot, tmp_path: Path) -> str:
    """A run that has the model as its parent and has not started."""
    run = str(tmp_path / "second")
    config, model = first
    initial_model.keep(run, model, config, data)
    return run


def test_a_run_starts_from_the_weights_of_its_parent(
    first: tuple[PretrainConfig, ModelBundle], second: str, data: Snapshot
) -> None:
    config, model = first
    recorder = Recorder()
    train(config.with_fields(warmup_steps=0, learning_rate=1e-9, ema_decay=0.5), data, second, Worker(), recorder)
    assert recorder.values[10]["train_loss"] < 2.3  # random weights have 2.77
    weights = load_model(second).model.state_dict()
    assert all(torch.allclose(weights[name], tensor, atol=1e-6) for name, tensor in model.model.state_dict().items())


def test_an_interrupted_run_continues_from_its_checkpoint_and_not_from_the_parent(
    first: tuple[PretrainConfig, ModelBundle], data: Snapshot, tmp_path: Path
) -> None:
    config, model = first
    calm, cut = str(tmp_path / "calm"), str(tmp_path / "cut")
    for run in (calm, cut):
        initial_model.keep(run, model, config, data)
    train(config, data, calm, Worker(), Recorder())

    def die(step: int) -> None:
        if step == 17:
            raise KilledError

    with pytest.raises(KilledError):
        train(config, data, cut, Worker(), Recorder(), heartbeat=die)
    objects.delete(objects.join(cut, "parent", "weights.safetensors"))  # no longer needed
    train(config, data, cut, Worker(), Recorder())
    weights, expected = load_model(cut).model.state_dict(), load_model(calm).model.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_an_incomplete_parent_does_not_count(
    first: tuple[PretrainConfig, ModelBundle], second: str, data: Snapshot
) -> None:
    config, _ = first
    assert initial_model.of_run(second) == "models:/digits/1"
    objects.delete(objects.join(second, "parent", "parent.json"))  # written last
    assert initial_model.of_run(second) == "" and initial_model.is_needed(second, config)
    with pytest.raises(
        IgptError, match=r"parent is models:/digits/1 and its model is not in .*/parent yet; run `igpt pretrain`"
    ):
        train(config, data, second, Worker(), Recorder())


def test_a_run_keeps_the_parent_it_started_from(
    first: tuple[PretrainConfig, ModelBundle], second: str, data: Snapshot, tmp_path: Path
) -> None:
    """The parent is not part of a run name that is given."""
    config, _ = first
    for other in ("models:/digits/2", ""):
        with pytest.raises(IgptError, match=f"it started from models:/digits/1, and parent is {other or 'empty'} now"):
            train(config.with_fields(parent=other), data, second, Worker(), Recorder())
    without = str(tmp_path / "without")
    train(config.with_fields(parent="", steps=10), data, without, Worker(), Recorder())
    with pytest.raises(IgptError, match="it started from random weights, and parent is models:/digits/1 now"):
        train(config, data, without, Worker(), Recorder())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"layers": 3}, "has layers 2, this training 3"),
        ({"objective": "masked"}, "has objective autoregressive, this training masked"),
        ({"class_conditional": True}, "has classes None, this training 10"),
    ],
)
def test_a_parent_of_another_kind_is_refused(
    fields: dict, expected: str, first: tuple[PretrainConfig, ModelBundle], data: Snapshot, tmp_path: Path
) -> None:
    config, model = first
    run = str(tmp_path / "second")
    with pytest.raises(IgptError, match=expected):
        initial_model.keep(run, model, config.with_fields(**fields), data)
    assert not Path(run).exists()


def test_a_parent_with_other_colours_or_classes_is_refused(
    first: tuple[PretrainConfig, ModelBundle], data: Snapshot, tmp_path: Path
) -> None:
    config, model = first
    run = str(tmp_path / "second")
    with pytest.raises(IgptError, match="the same token means another colour"):
        initial_model.keep(run, replace(model, palette_K3=-model.palette_K3), config, data)
    by_class = config.with_fields(class_conditional=True)
    shape = by_class.model.for_images(resolution=8, colours=16, classes=10)
    conditional = Learner(shape, by_class, Worker()).model
    others = ModelBundle(model=conditional, palette_K3=model.palette_K3, classes=tuple(reversed(data.classes)))
    with pytest.raises(IgptError, match="was trained with other classes"):
        initial_model.keep(run, others, by_class, data)
    assert np.array_equal(model.palette_K3, data.palette())


@pytest.mark.parametrize("name", ["models:/digits@", "digits/1", "models:/digits", "models:/a/b/1", "runs:/1", "d@c"])
def test_a_parent_is_named_by_its_number_or_an_alias(name: str) -> None:
    with pytest.raises(IgptError, match="name a version by its number or an alias, as in models:/igpt/3 or"):
        PretrainConfig.from_fields(runs="r", parent=name)


def test_a_run_is_never_named_after_an_alias() -> None:
    by_alias = PretrainConfig.from_fields(runs="r", parent="models:/d@champion")
    with pytest.raises(IgptError, match="parent is models:/d@champion: only `igpt pretrain` and"):
        by_alias.run_name("a")


def test_a_run_keeps_the_version_that_an_alias_meant_when_it_began(
    first: tuple[PretrainConfig, ModelBundle], data: Snapshot
) -> None:
    config, model = first
    alias = "models:/digits@champion"
    by_alias = config.with_fields(parent=alias)
    assert initial_model.begun_from(by_alias, data) is None
    run = record.folder_of(config, data)
    initial_model.keep(run, model, config, data, alias)
    assert (initial_model.of_run(run), initial_model.alias_of(run)) == ("models:/digits/1", alias)
    assert initial_model.begun_from(by_alias, data) == "models:/digits/1"
    for other in ({"seed": 5}, {"parent": "models:/digits@candidate"}):
        assert initial_model.begun_from(by_alias.with_fields(**other), data) is None
    named = by_alias.with_fields(name=objects.name_of(run))
    assert initial_model.begun_from(named, data) == "models:/digits/1"


def test_a_run_that_began_before_there_was_a_champion_keeps_its_random_weights(
    first: tuple[PretrainConfig, ModelBundle], data: Snapshot
) -> None:
    config = first[0].with_fields(parent="")
    run = record.folder_of(config, data)
    initial_model.keep_alias(run, "models:/digits@champion")
    assert initial_model.begun_from(config.with_fields(parent="models:/digits@champion"), data) == ""
    assert initial_model.of_run(run) == "" and not initial_model.is_needed(run, config)


def test_another_parent_is_another_run() -> None:
    one, two, none = (
        PretrainConfig.from_fields(runs="r", parent=p).run_name("a") for p in ("models:/d/1", "models:/d/2", "")
    )
    assert len({one, two, none}) == 3
