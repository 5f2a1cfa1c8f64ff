"""Evaluation while training takes the same few images every time, and the last one takes the whole validation split."""

from pathlib import Path

import numpy as np
import pytest
import torch

from igpt_model.config import PretrainConfig
from igpt_model.data.batches import Preparation
from igpt_model.model.bundle import ModelBundle
from igpt_model.runs import checkpoint
from igpt_model.runs.open_model import load_model
from igpt_model.training.evaluation import chosen_places
from igpt_model.training.loop import train
from igpt_model.training.step import losses
from igpt_model.worker import Worker
from pipeline.dataset.snapshot import Snapshot
from pipeline.samples.shard_cache import Images, ShardCache
from tests.igpt_model.training.test_loop import Recorder, digits_snapshot, short_training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return digits_snapshot(tmp_path_factory.mktemp("digits"), samples_per_shard=20)


@pytest.mark.parametrize(
    ("images", "most", "expected"), [(10, 0, 10), (10, 10, 10), (10, 11, 10), (10, 3, 3), (50_000, 4096, 4096)]
)
def test_the_choice_is_fixed_and_spread_evenly(images: int, most: int, expected: int) -> None:
    places = chosen_places(images, most)
    assert np.array_equal(places, chosen_places(images, most))
    assert len(places) == expected and places[0] == 0 and places[-1] < images
    gaps = np.diff(places)
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


def loss_by_hand(bundle: ModelBundle, config: PretrainConfig, data: Snapshot, places: np.ndarray) -> float:
    """The mean loss over places of the validation split, each image with the mask of its place."""
    cache = ShardCache(data, config.execution.cache)
    views = [cache.open(shard) for shard in data.of_split("validation")]
    tokens = np.concatenate([view.tokens_NHW.reshape(len(view.labels_N), -1) for view in views])[places]
    labels = np.concatenate([view.labels_N for view in views])[places]
    preparation = Preparation(config, bundle.model.config, bundle.palette_K3, torch.device("cpu"))
    with torch.inference_mode():
        images = preparation.on_host(Images(tokens_NT=tokens, labels_N=labels))
        return float(losses(bundle.model, preparation.for_evaluation(images, places)).mean())


@pytest.mark.parametrize("fields", [{}, {"objective": "masked", "ema_decay": 0.9}])
def test_while_training_it_is_on_the_choice_and_at_the_end_on_all(fields: dict, data: Snapshot, tmp_path: Path) -> None:
    config = short_training(data, tmp_path).with_fields(evaluate_images=17, keep_last=3, checkpoint_every=15, **fields)
    run, recorder = str(tmp_path / "run"), Recorder()
    result = train(config, data, run, Worker(), recorder)
    some, every = chosen_places(data.samples("validation"), 17), np.arange(data.samples("validation"))
    assert len(some) == 17 < len(every) == result.validation_images
    by_hand = {
        (step, len(places)): loss_by_hand(load_model(checkpoint.folder_of(run, step)), config, data, places)
        for step in (15, 30)
        for places in (some, every)
    }
    assert abs(by_hand[30, 17] - by_hand[30, len(every)]) > 1e-3, "otherwise this test shows nothing"
    logged = {
        step: values["validation_loss"] for step, values in recorder.values.items() if "validation_loss" in values
    }
    assert logged == pytest.approx({15: by_hand[15, 17], 30: by_hand[30, len(every)]}, abs=1e-5)
    assert result.validation_loss == logged[30]  # what the gate compares
    # Checkpoints are compared by the same images at every step.
    compared = {step: loss for step, loss in checkpoint.losses(run).items() if loss is not None}
    assert compared == pytest.approx({15: by_hand[15, 17], 30: by_hand[30, 17]}, abs=1e-5)


def test_a_run_that_ended_before_its_result_was_written_is_evaluated_on_all(data: Snapshot, tmp_path: Path) -> None:
    config = short_training(data, tmp_path).with_fields(evaluate_images=17)
    run = str(tmp_path / "run")
    first = train(config, data, run, Worker(), Recorder())
    (tmp_path / "run" / "result.json").unlink()
    assert train(config, data, run, Worker(), Recorder()).validation_loss == first.validation_loss
