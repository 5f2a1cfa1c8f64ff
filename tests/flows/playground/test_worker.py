"""A model's process: it opens every kind of model, and answers with the code that a version brings."""

import json
import math
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from flows.playground import facts, worker
from flows.playground.protocol import Draw, Drawn, Failed, Growing, Look, Ready, Seen, Stop, Stopped
from igpt_model.probing.probed import ProbedModel
from igpt_model.registry import card
from igpt_model.registry.serving import RegisteredImageGPT
from pipeline.errors import IgptError
from tests.igpt_model.registry.test_programs import save
from tests.igpt_model.registry.test_serving import make_bundle, make_head


def make_model(folder: Path, **fields: object) -> Path:
    """The folder of a model with a probe."""
    folder.mkdir()
    head = None if "classes" in fields else make_head()
    ProbedModel(bundle=make_bundle(**fields), best_layer=1, head=head).save(folder)
    return folder


@pytest.fixture
def opened(tmp_path: Path) -> worker.Opened:
    return worker.open_model(str(make_model(tmp_path / "model")), tmp_path)


@pytest.fixture
def picture(photos: np.ndarray) -> np.ndarray:
    return photos[3, :8, :8]


def draw(opened: worker.Opened, asked: Draw) -> np.ndarray:
    return worker.draw(opened, asked, lambda *_: None).pictures_BRR3


def test_it_draws_what_a_registered_model_draws(opened: worker.Opened, picture: np.ndarray) -> None:
    model = RegisteredImageGPT(make_bundle(), best_layer=1, head=make_head())
    params = {"samples": 3, "seed": 4, "temperature": 0.7, "top_k": 5, "top_p": 0.9}
    asked = Draw(task="sample", picture_RR3=None, known_RR=None, params=params)
    assert np.array_equal(draw(opened, asked), model.predict(None, {"task": "sample", **params}))
    known = np.arange(64).reshape(8, 8) < 24
    asked = Draw(task="complete", picture_RR3=picture, known_RR=known, params=params)
    expected = model.predict(picture[None], {"task": "complete", "rows": 3, **params})
    assert np.array_equal(draw(opened, asked), expected[0])


def test_it_upscales(tmp_path: Path, picture: np.ndarray) -> None:
    opened = worker.open_model(str(make_model(tmp_path / "model", low_resolution=2)), tmp_path)
    assert opened.facts.upscales and not opened.facts.draws
    asked = Draw(task="upscale", picture_RR3=picture, known_RR=None, params={"samples": 2})
    assert draw(opened, asked).shape == (2, 8, 8, 3)


def test_it_tells_what_it_makes_of_a_picture(opened: worker.Opened, picture: np.ndarray) -> None:
    seen = worker.look(opened, Look(picture_RR3=picture, label=None))
    model = RegisteredImageGPT(make_bundle(), best_layer=1, head=make_head())
    assert seen.nats_RR is not None and seen.nats_per_pixel == pytest.approx(seen.nats_RR.mean())
    bits = model.predict(picture[None], {"task": "score"})[0]
    assert seen.nats_per_pixel == pytest.approx(bits * math.log(2), rel=1e-5)
    table = model.predict(picture[None], {"task": "classify"}).iloc[0]
    assert dict(seen.classes) == pytest.approx(dict(table))
    assert seen.classes[0][1] >= seen.classes[1][1]


@pytest.mark.parametrize(
    ("fields", "can"),
    [
        ({}, "draws scores classifies"),
        ({"classes": 3}, "draws scores"),
        ({"low_resolution": 2}, "upscales scores classifies"),
        ({"objective": "masked"}, "classifies"),
    ],
)
def test_it_tells_what_a_model_can(fields: dict[str, Any], can: str, tmp_path: Path, picture: np.ndarray) -> None:
    opened = worker.open_model(str(make_model(tmp_path / "model", **fields)), tmp_path)
    names = ("draws", "upscales", "scores", "classifies")
    assert {name for name in names if getattr(opened.facts, name)} == set(can.split())
    seen = worker.look(opened, Look(picture_RR3=picture, label=1 if "classes" in fields else None))
    assert (seen.nats_per_pixel is not None) is opened.facts.scores
    assert bool(seen.classes) is opened.facts.classifies


def test_what_a_version_is_comes_from_its_tags() -> None:
    config = make_bundle().model.config
    tags = {
        card.ARCHITECTURE: "an Image GPT: 2 layers",
        card.LICENCE: "MIT\nnot a line",
        "igpt.dataset": "s3://datasets/digits",
        "igpt.snapshot": "4",
        "igpt.validation_bits_per_pixel": "2",
        "igpt.probe_test_accuracy": "0.872",
    }
    told = dict(facts.rows(config, tags))
    assert told["What it is"] == "an Image GPT: 2 layers"
    assert told["Trained on"] == "s3://datasets/digits, snapshot 4"
    assert told["Licence"] == "MIT\\nnot a line"
    assert told["Bits per pixel"] == "2.000 (1.386 nats), on its validation split"
    assert told["Accuracy of a linear probe"] == "87.2%, on its test split"
    assert facts.loss_nats(tags) == pytest.approx(2 * math.log(2))
    assert facts.loss_nats({}) is None
    assert dict(facts.rows(config, {}))["Licence"] == "not stated"


class Earlier:
    """The interface of versions that were registered before pictures could be watched."""

    def __init__(self, model: RegisteredImageGPT) -> None:
        self.predict = model.predict


def test_an_earlier_version_answers_as_it_can(opened: worker.Opened, picture: np.ndarray) -> None:
    """With whole pictures, and upper rows; it says so where more is asked for."""
    earlier = worker.Opened(model=Earlier(opened.model), facts=replace(opened.facts, is_watched=False))
    rows = np.arange(64).reshape(8, 8) < 16
    asked = Draw(task="complete", picture_RR3=picture, known_RR=rows, params={"samples": 2, "seed": 1})
    assert np.array_equal(draw(earlier, asked), draw(opened, asked))
    hole = rows.copy()
    hole[7, 7] = True
    with pytest.raises(IgptError, match="keeps whole upper rows only"):
        draw(earlier, replace(asked, known_RR=hole))
    seen, of_today = (worker.look(model, Look(picture_RR3=picture, label=None)) for model in (earlier, opened))
    assert seen.nats_RR is None and seen.nats_per_pixel == pytest.approx(of_today.nats_per_pixel, rel=1e-5)
    assert seen.classes == of_today.classes


@pytest.mark.programs
def test_a_version_runs_the_code_that_it_brings(tmp_path: Path) -> None:
    opened = worker.open_model(str(save(tmp_path)), tmp_path)
    assert type(opened.model).__module__.startswith("igpt_code_") and opened.facts.is_watched
    asked = Draw(task="sample", picture_RR3=None, known_RR=None, params={"samples": 2})
    assert draw(opened, asked).shape[0] == 2


class Conversation:
    """A worker in a thread, and the end of the pipe that its server holds."""

    def __init__(self, reference: str, folder: Path) -> None:
        self.ours, theirs = Pipe()
        self._thread = Thread(target=self._run, args=(theirs, reference, folder), daemon=True)
        self._thread.start()

    def _run(self, connection: Connection, reference: str, folder: Path) -> None:
        with connection, suppress(EOFError):
            worker.serve(connection, reference, folder)

    def ask(self, asked: object) -> object:
        self.ours.send(asked)
        return self.receive()

    def receive(self) -> object:
        assert self.ours.poll(60)
        return self.ours.recv()

    def end(self) -> None:
        self.ours.close()
        self._thread.join(60)
        assert not self._thread.is_alive()


def test_a_conversation(tmp_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_GROWING_SECONDS", 0.0)
    said = Conversation(str(make_model(tmp_path / "model")), tmp_path)
    ready = said.receive()
    assert isinstance(ready, Ready) and ready.facts.name == "model"
    assert isinstance(said.ask(Look(picture_RR3=picture, label=None)), Seen)
    asked = Draw(task="sample", picture_RR3=None, known_RR=None, params={"samples": 2})
    seen = [said.ask(asked)]
    while not isinstance(seen[-1], Drawn):
        seen.append(said.receive())
    growing = [message for message in seen if isinstance(message, Growing)]
    assert [int(message.done_B[0]) for message in growing] == [*range(1, 65), 64]
    wrong = said.ask(replace(asked, params={"temperature": -1.0}))
    assert isinstance(wrong, Failed) and "temperature is -1.0" in wrong.line
    # A stop ends a drawing; one that comes too late ends nothing.
    said.ours.send(asked)
    said.ours.send(Stop())
    while not isinstance(message := said.receive(), Stopped | Drawn):
        assert isinstance(message, Growing)
    assert isinstance(message, Stopped)
    said.ours.send(Stop())
    assert isinstance(said.ask(Look(picture_RR3=picture, label=None)), Seen)
    said.end()


def test_what_is_no_model_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "damaged").mkdir()
    for file in make_model(tmp_path / "model").iterdir():
        (tmp_path / "damaged" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "damaged" / "model.json").write_text(json.dumps({"model": {}}))
    for name in ("missing", "damaged"):
        said = Conversation(str(tmp_path / name), tmp_path)
        failed = said.receive()
        assert isinstance(failed, Failed) and name in failed.line and "\n" not in failed.line
        said.end()
