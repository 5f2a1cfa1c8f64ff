"""Pictures of checkpoints: drawn when they are due, one at a time, and never in the way of the training."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import previews
from flows.previews import CheckpointPreviews, draw_all, held_out_images, shown_keys
from igpt_model.config import PretrainConfig
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from pipeline.cluster import tasks
from pipeline.inspect import tables
from pipeline.progress import silent
from tests.igpt_model.training.test_loop import digits_snapshot

CONFIG = PretrainConfig.from_fields(runs="r", preset="tiny", sample_every=10, steps=50)


class Run:
    """Stands for the MLflow run, and for the terminal."""

    def __init__(self) -> None:
        self.pictures: list[tuple[int, str]] = []
        self.lines: list[str] = []

    def picture_at(self, step: int, image: np.ndarray, name: str) -> None:
        self.pictures.append((step, name))

    def say(self, line: str) -> None:
        self.lines.append(line)


def drawing(draw: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `draw` called with a checkpoint's folder instead of a task on a cluster."""

    def map_tasks(function: Any, calls: list[tuple], **_: Any) -> Iterator[tuple[int, Any]]:
        for number, call in enumerate(calls):
            draw(call[0])
            yield number, ("samples", np.zeros((2, 2, 3), np.uint8))

    monkeypatch.setattr(previews.tasks, "map_tasks", map_tasks)
    monkeypatch.setattr(previews, "held_out_images", lambda config, data: (np.zeros((1, 4)), np.zeros(1)))


def previews_of(run: Run, config: PretrainConfig = CONFIG) -> CheckpointPreviews:
    return CheckpointPreviews(config, None, "runs/a", run, run)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "due"), [({}, [10, 20, 30, 40]), ({"sample_every": 0}, []), ({"steps": 30}, [10, 20])]
)
def test_pictures_are_drawn_at_their_steps_and_those_of_the_last_step_elsewhere(
    fields: dict, due: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folders = Run(), []
    drawing(folders.append, monkeypatch)
    for step in range(5, 55, 5):
        with previews_of(run, CONFIG.with_fields(**fields)) as previews:
            previews.saved(step)
    assert (run.pictures, run.lines) == ([(step, "samples") for step in due], [])
    assert folders == [f"runs/a/checkpoints/{step:08d}" for step in due]


def test_one_that_is_due_while_another_is_drawn_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    run, begun, finish = Run(), threading.Event(), threading.Event()

    def draw(folder: str) -> None:
        begun.set()
        assert finish.wait(30)

    drawing(draw, monkeypatch)
    with previews_of(run) as previews:
        previews.saved(10)
        assert begun.wait(30)
        previews.saved(20)
        finish.set()
    assert run.pictures == [(10, "samples")]
    assert run.lines == ["skipped the picture of step 20: an earlier one is still being drawn"]


@pytest.mark.parametrize(("error", "words"), [(RuntimeError("no\nroom"), "no"), (ValueError(), "ValueError")])
def test_one_that_fails_is_told_in_one_line(error: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: str) -> None:
        raise error

    run = Run()
    drawing(fail, monkeypatch)
    with previews_of(run) as previews:
        previews.saved(10)
    assert (run.pictures, run.lines) == ([], [f"no picture of step 10: {words}"])


def test_the_shown_images_are_held_out(tmp_path: Path) -> None:
    data = digits_snapshot(tmp_path)
    config = CONFIG.with_fields(cache=str(tmp_path / "cache"))
    tokens_NT, labels_N = held_out_images(config, data)
    assert tokens_NT.shape == (6, 64) and labels_N.shape == (6,)
    rows = next(iter(tables.images(data, "validation"))).slice(0, 6)
    assert shown_keys(config, data, "completions") == tuple(rows["key"].to_pylist())
    assert shown_keys(config, data, "samples") == ()


@pytest.mark.parametrize(("width", "on_gpu", "by_tasks"), [(64, False, False), (512, False, True), (64, True, True)])
def test_a_small_model_is_drawn_here_and_any_other_by_tasks(
    width: int, on_gpu: bool, by_tasks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = digits_snapshot(tmp_path)
    network = ImageGPT(ModelConfig(layers=1, width=width, heads=2, resolution=8, colours=16))
    bundle = ModelBundle(model=network.eval(), palette_K3=data.palette(), classes=data.classes)
    config = CONFIG.with_fields(cache=str(tmp_path / "cache"), use_gpu=on_gpu)
    drawn: list[tuple[str, str, float]] = []

    def draw(
        bundle: ModelBundle, name: str, tokens_NT: np.ndarray, labels_N: np.ndarray, seed: int, device: str
    ) -> np.ndarray:
        drawn.append((name, device, used[-1] if used else -1))
        return np.zeros((1, 1, 3), np.uint8)

    used: list[float] = []

    def map_tasks(function: Any, calls: Any, *, num_gpus: float) -> Iterator[tuple[int, Any]]:
        used.append(num_gpus)
        return tasks.map_here(function, calls)

    monkeypatch.setattr(previews, "draw_sheet", draw)
    monkeypatch.setattr(previews.tasks, "map_tasks", map_tasks)
    assert list(draw_all(config, data, bundle, silent)) == ["samples", "completions"]
    gpus, device = (1, "cuda") if on_gpu else (0, "cpu")
    assert drawn == [(name, device, gpus if by_tasks else -1) for name in ("samples", "completions")]
