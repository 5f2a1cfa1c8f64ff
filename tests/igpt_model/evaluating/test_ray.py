"""An evaluation by tasks: one for each shard, none when the result of these weights on this content is kept."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from igpt_model.evaluating.ray import Executor, split_loss
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from pipeline.cluster import tasks
from pipeline.dataset import measured
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from tests.igpt_model.training.test_loop import digits_snapshot


@pytest.fixture
def data(tmp_path: Path) -> Snapshot:
    """Digits in small shards, with measurements of their own."""
    return digits_snapshot(tmp_path / "digits", samples_per_shard=20)


def model(data: Snapshot, seed: int = 0) -> ModelBundle:
    torch.manual_seed(seed)
    network = ImageGPT(ModelConfig(layers=1, width=16, heads=2, resolution=8, colours=16))
    torch.nn.init.normal_(network.head.weight)
    return ModelBundle(model=network.eval(), palette_K3=data.palette(), classes=data.classes)


class Counting:
    """Runs tasks here, and counts them and how often the model was opened."""

    def __init__(self, data: Snapshot, seed: int = 0) -> None:
        self.shards, self.opened = 0, 0
        self.bundle = model(data, seed)
        self.executor = Executor(run=self._run, device="cpu")

    def open(self) -> ModelBundle:
        self.opened += 1
        return self.bundle

    def _run(self, function: Callable[..., Any], calls: Any, **options: Any) -> Iterator[tuple[int, Any]]:
        results = list(tasks.map_here(function, calls, **options))
        self.shards += len(results)
        yield from reversed(results)  # as tasks finish in any order


def test_a_result_is_kept_by_weights_content_and_split(data: Snapshot) -> None:
    first = Counting(data)
    loss = split_loss(first.open, None, data, "validation", first.executor)
    shards = len(data.of_split("validation"))
    assert (first.shards, first.opened, loss.images) == (shards, 1, data.samples("validation")) and shards > 1
    published_again = replace(data, number=data.number + 1)
    again = Counting(data)
    assert split_loss(again.open, None, published_again, "validation", again.executor) == loss
    assert (again.shards, again.opened) == (0, 1)
    other = Counting(data, seed=1)
    assert split_loss(other.open, None, data, "validation", other.executor) != loss
    assert split_loss(other.open, None, data, "test", other.executor).images == data.samples("test")
    fewer = replace(data, shards=tuple(shard for shard in data.shards if shard != data.of_split("validation")[0]))
    assert split_loss(other.open, None, fewer, "validation", other.executor).images < loss.images


def test_a_version_that_was_evaluated_is_not_opened_again(data: Snapshot) -> None:
    counting, identity = Counting(data), "a" * 64
    loss = split_loss(counting.open, identity, data, "validation", counting.executor)
    assert split_loss(counting.open, identity, data, "validation", counting.executor) == loss
    assert counting.opened == 1
    (name,) = Path(measured.url_of(data, "x")).parent.glob("loss-validation-*.json")
    name.write_text("damaged")
    assert split_loss(counting.open, identity, data, "validation", counting.executor) == loss
    assert counting.opened == 2


def test_numbers_of_gpus_are_kept_apart(data: Snapshot) -> None:
    counting = Counting(data)
    loss = split_loss(counting.open, None, data, "validation", counting.executor)
    on_gpu = Executor(run=lambda function, calls, **_: ((n, 0.5 * call[0].samples) for n, call in enumerate(calls)),
                      device="cuda")  # fmt: skip
    assert split_loss(counting.open, None, data, "validation", on_gpu).nats_per_pixel == 0.5
    assert split_loss(counting.open, None, data, "validation", counting.executor) == loss


def test_what_does_not_match_is_refused_before_a_task_runs(data: Snapshot) -> None:
    counting = Counting(data)
    with pytest.raises(IgptError, match="has palette"):
        split_loss(counting.open, None, replace(data, palette_sha256="0" * 64), "validation", counting.executor)
    with pytest.raises(IgptError, match="no images in split"):
        split_loss(counting.open, None, replace(data, shards=()), "validation", counting.executor)
    assert counting.shards == 0


@pytest.mark.usefixtures("own_ray")
def test_the_cluster_gives_the_number_of_this_process(data: Snapshot) -> None:
    counting = Counting(data)
    here = split_loss(counting.open, "here", data, "test", Executor.here())
    assert split_loss(counting.open, "cluster", data, "test", Executor.cluster()) == here
