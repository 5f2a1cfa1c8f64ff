"""`igpt serve` with options or services that cannot be used ends in one line."""

import sys
from collections.abc import Callable

import pytest

from tests.conftest import Command

KNOWN = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")


@pytest.fixture(autouse=True)
def no_services(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--port 0", "--port"),
        ("--port 70000", "--port"),
        ("--replicas 0", "--replicas"),
        ("--replicas two", "--replicas"),
        ("--batch 0", "--batch"),
        ("--queue 0", "--queue"),
        ("--cpus nan", "--cpus"),
        ("--cpus 0", "--cpus"),
        ("--cpus 1.5", "cpus is 1.5"),
        ("--every 0", "--every"),
        ("", "no MLflow server is known"),
    ],
)
def test_options(options: str, said: str, igpt: Callable[..., Command]) -> None:
    refused(igpt("serve", "digits@champion", *options.split()), said)


def test_no_model(igpt: Callable[..., Command]) -> None:
    refused(igpt("serve"), "MODEL")


def test_no_cluster(igpt: Callable[..., Command], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    refused(igpt("serve", "digits@champion"), "no Ray cluster is known")


def test_no_ray_serve(igpt: Callable[..., Command], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.delattr("flows.serving.service", raising=False)
    monkeypatch.setitem(sys.modules, "flows.serving.service", None)
    refused(igpt("serve", "digits@champion"), "pip install 'igpt-pipeline[serve]'")


def refused(command: Command, said: str) -> None:
    assert (command.code, command.out) == (2, ""), command
    assert said in command.err and command.err.count("\n") == 1, command.err
