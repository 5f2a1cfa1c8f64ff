"""The loss on a split: that of the training's own evaluation, for each kind of model."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from igpt_model.evaluating.split_loss import SplitLoss, check_can_be_evaluated, sum_of_nats
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from igpt_model.runs.open_model import load_model
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.dataset import verified_shards
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.samples.shard_cache import Images
from tests.igpt_model.training.test_loop import Recorder, short_training


def sums(bundle: ModelBundle, data: Snapshot, split: str) -> list[float]:
    """The sum of each shard, evaluated one after the other."""
    found, place = [], 0
    for shard in data.of_split(split):
        view = verified_shards.read(data, shard)
        images = Images(tokens_NT=view.tokens_NHW.reshape(shard.samples, -1), labels_N=view.labels_N)
        found.append(sum_of_nats(bundle, images, place))
        place += shard.samples
    return found


@pytest.mark.parametrize("fields", [{}, {"objective": "masked"}, {"class_conditional": True}, {"low_resolution": 4}])
def test_a_model_gets_the_loss_that_its_training_ended_with(fields: dict, data: Snapshot, tmp_path: Path) -> None:
    config = short_training(data, tmp_path).with_fields(steps=2, **fields)
    run = str(tmp_path / "run")
    result = train(config, data, run, Worker(), Recorder())
    bundle = load_model(run)
    loss = SplitLoss.of_sums(sums(bundle, data, "validation"), bundle, data.samples("validation"))
    assert loss.nats_per_pixel == pytest.approx(result.validation_loss, abs=1e-6)
    assert (loss.images, loss.objective) == (result.validation_images, bundle.model.config.objective)
    assert loss.bits_per_pixel == loss.nats_per_pixel / math.log(2)
    assert SplitLoss.from_bytes(loss.to_bytes()) == loss
    assert SplitLoss.from_bytes(loss.to_bytes()[:-3]) is None and SplitLoss.from_bytes(b"{}") is None


def test_classes_that_are_not_the_models_are_refused(data: Snapshot) -> None:
    config = ModelConfig(layers=1, width=16, heads=2, resolution=8, colours=16, classes=10)
    bundle = ModelBundle(model=ImageGPT(config), palette_K3=data.palette(), classes=data.classes)
    check_can_be_evaluated(bundle, data)
    with pytest.raises(IgptError, match="its classes are not those of the model"):
        check_can_be_evaluated(bundle, replace(data, classes=data.classes[::-1]))
    with pytest.raises(IgptError, match="resolution 16"):
        check_can_be_evaluated(bundle, replace(data, resolution=16))
    images = Images(tokens_NT=torch.zeros(2, 64).short().numpy(), labels_N=torch.tensor([1, -1]).numpy())
    with pytest.raises(IgptError, match="have no class"):
        sum_of_nats(bundle, images, 0)
