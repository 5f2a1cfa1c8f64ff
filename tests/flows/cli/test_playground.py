"""`igpt playground` with options or models that cannot be used ends in one line."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Command
from tests.flows.playground.test_worker import make_model


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", "--model"),
        ("--model a --port 70000", "--port"),
        ("--model a --model b --model c", "3 models are given: the page shows 2 side by side at most"),
    ],
)
def test_options(options: str, said: str, igpt: Callable[..., Command]) -> None:
    command = igpt("playground", *options.split())
    assert (command.code, command.out) == (2, ""), command
    assert said in command.err and command.err.count("\n") == 1, command.err


def test_a_port_that_is_taken(igpt: Callable[..., Command], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = igpt("playground", "--model", make_model(tmp_path / "model"), "--port", port)
    assert command.code == 2 and f"port {port} of 127.0.0.1" in command.err and "--port" in command.err


@pytest.mark.programs
def test_what_is_no_model(igpt: Callable[..., Command], tmp_path: Path) -> None:
    command = igpt("playground", "--model", tmp_path / "missing", "--port", "0")
    assert command.code == 2 and "missing" in command.err and command.err.count("\n") == 1, command


def test_without_nicegui(igpt: Callable[..., Command], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("flows.playground.server", raising=False)
    monkeypatch.setitem(sys.modules, "flows.playground.server", None)
    command = igpt("playground", "--model", "models:/digits@champion")
    assert command.code == 2 and "pip install 'igpt-pipeline[playground]'" in command.err
    assert command.err.count("\n") == 1
