"""Sizes of a service that make no sense are refused in one line."""

from typing import Any

import pytest

from flows.serving.config import ServeConfig
from pipeline.errors import IgptError


@pytest.mark.parametrize("fields", [{}, {"cpus": 0.5}, {"cpus": 4, "replicas": 3}, {"batch": 1}, {"port": 65535}])
def test_a_size(fields: dict[str, Any]) -> None:
    config = ServeConfig(**fields)
    assert config.requests_at_once > config.batch


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"replicas": 0}, "replicas is 0: it must be at least 1"),
        ({"batch": 0}, "batch is 0"),
        ({"queue": 0}, "queue is 0"),
        ({"port": 0}, "port is 0"),
        ({"port": 65536}, "port is 65536: it must be at most 65535"),
        ({"cpus": 0}, "cpus is 0"),
        ({"cpus": 1.5}, "cpus is 1.5: it must be a whole number, or a part of one"),
        ({"cpus": float("inf")}, "cpus is inf"),
        ({"cpus": float("nan")}, "cpus is nan"),
    ],
)
def test_no_size(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(IgptError, match=said):
        ServeConfig(**fields)
