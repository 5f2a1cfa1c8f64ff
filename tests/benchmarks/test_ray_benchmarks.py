"""The benchmarks of batches and services run at a tiny size, on a Ray cluster that they share."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import uvicorn
from mlflow.pyfunc import scoring_server

from benchmarks import measure
from tests.infra.command_lines import parse
from tests.rigs.waiting import wait_until

pytestmark = pytest.mark.services

Rehearse = Callable[..., dict[str, Any]]
SIZE = ("--layers", "1", "--width", "16", "--resolution", "4", "--rounds", "1")


@pytest.fixture
def rehearse(own_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Rehearse]:
    """Runs a benchmark and returns what it saves, which has the form of the results that are kept."""
    import ray  # as in the fixture: it reads its variables at import

    threads = torch.get_num_threads()
    # A cluster for each would take five seconds to start.
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)

    def run(name: str, *arguments: str) -> dict[str, Any]:
        kept = json.loads((measure.RESULTS / f"{name}.json").read_text())
        monkeypatch.setattr(measure, "RESULTS", tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *SIZE, *arguments])
        import_module(f"benchmarks.{name}").main()
        saved: dict[str, Any] = json.loads((tmp_path / f"{name}.json").read_text())
        assert form(saved) == form(kept)
        return saved

    yield run
    torch.set_num_threads(threads)


def form(value: Any) -> Any:
    """The names in a result, without its numbers and texts."""
    return {name: form(item) for name, item in value.items()} if isinstance(value, dict) else None


def test_batches(rehearse: Rehearse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # one worker to start
    saved = rehearse("batch", "--images", "8", "--size", "8")
    assert all(rate["median"] > 0 for rate in saved["images_per_second"].values())
    assert saved["largest_difference"]["predict"] < 1e-5 and saved["largest_difference"]["hugging_face"] < 1e-5


@contextmanager
def scoring(command: list[str], url: str, *_: object) -> Iterator[None]:
    """MLflow's scoring server in a thread of this process, where it needs no imports."""
    program, *words = command[2:]
    parse([program, *words])
    options = dict(zip(words[2::2], words[3::2], strict=True))
    app = scoring_server.init(mlflow.pyfunc.load_model(options["--model-uri"]))
    config = uvicorn.Config(app, host=options["--host"], port=int(options["--port"]), log_level="error")
    assert url == f"http://{config.host}:{config.port}/ping"
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield
    finally:
        server.should_exit = True
        thread.join()


def test_services(rehearse: Rehearse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its peer, `mlflow models serve`, is started by the benchmark alone; its command line is checked."""
    monkeypatch.setattr("benchmarks.serving.server", scoring)
    saved = rehearse("serving", "--seconds", "0.05")
    for task in ("features", "complete"):
        assert list(saved[task]) == ["1 clients", "8 clients", "32 clients"]
        for contestants in saved[task].values():
            assert list(contestants) == ["mlflow models serve", "batches", "no batches"]
            assert all(numbers["requests_per_second"]["min"] > 0 for numbers in contestants.values())
