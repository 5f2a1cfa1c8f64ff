"""A model's process is stopped, replaced after its death, and gone in the end."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from flows.playground.model_process import ModelProcess
from flows.playground.protocol import Draw, Growing, Look
from pipeline.errors import IgptError
from tests.flows.playground.test_worker import make_model

pytestmark = pytest.mark.programs

MANY = Draw(task="sample", picture_RR3=None, known_RR=None, params={"samples": 2000})
FEW = Draw(task="sample", picture_RR3=None, known_RR=None, params={"samples": 2, "seed": 3})


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 200))


def child() -> psutil.Process:
    (process,) = [child for child in psutil.Process().children() if "flows.playground.worker" in child.cmdline()]
    return process


def test_the_life_of_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    process = ModelProcess(str(make_model(tmp_path / "model")))
    assert process.start().name == "model"

    async def ask() -> None:
        first = await process.draw(FEW, lambda _: None)
        assert first is not None and first.pictures_BRR3.shape == (2, 8, 8, 3)

        def stop(growing: Growing) -> None:
            process.stop()

        assert await process.draw(MANY, stop) is None
        # Who asks no more leaves the process to the next one.
        begun = asyncio.Event()
        gone = asyncio.create_task(process.draw(MANY, lambda _: begun.set()))
        await begun.wait()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        again = await process.draw(FEW, lambda _: None)
        assert again is not None and np.array_equal(again.pictures_BRR3, first.pictures_BRR3)
        with pytest.raises(IgptError, match="temperature is -1"):
            await process.draw(replace(FEW, params={"temperature": -1.0}), lambda _: None)
        # One that dies is told of, and the next request starts another.
        child().kill()
        with pytest.raises(IgptError, match="ended with status -9"):
            await process.look(Look(picture_RR3=np.zeros((8, 8, 3), np.uint8), label=None))
        seen = await process.look(Look(picture_RR3=np.zeros((8, 8, 3), np.uint8), label=None))
        assert seen.nats_RR is not None
        # A stop holds also for a drawing that is not sent yet, since the process must be started first.
        child().kill()
        with pytest.raises(IgptError, match="ended with status -9"):
            await process.draw(FEW, lambda _: None)
        late = asyncio.create_task(process.draw(MANY, lambda _: None))
        await asyncio.sleep(0)
        process.stop()
        assert await late is None

    run(ask)
    last = child()
    assert len(list(temporary.iterdir())) == 1
    process.end()
    assert not psutil.pid_exists(last.pid)
    assert not list(temporary.iterdir())
    process.end()
    with pytest.raises(IgptError, match="has ended"):
        process.start()


def test_a_restart_that_fails_leaves_no_process(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    process = ModelProcess(str(folder))
    process.start()
    for file in folder.iterdir():
        file.unlink()
    child().kill()

    async def ask() -> None:
        for said in ("ended with status -9", "no model there", "no model there"):
            with pytest.raises(IgptError, match=said):
                await process.draw(FEW, lambda _: None)

    run(ask)
    assert not [each for each in psutil.Process().children() if "flows.playground.worker" in each.cmdline()]
    process.end()


def test_a_model_that_cannot_be_opened(tmp_path: Path) -> None:
    process = ModelProcess(str(tmp_path / "nothing"))
    with pytest.raises(IgptError, match="nothing"):
        process.start()
    process.end()
