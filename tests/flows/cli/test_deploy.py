"""`igpt deploy --check` says which deployments can be registered; registering is in integration/test_scheduled.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Command

Igpt = Callable[..., Command]
FILE = Path(__file__).parents[3] / "infra" / "prefect.yaml"


def test_the_deployments_of_the_file_are_checked_without_a_server(igpt: Igpt) -> None:
    ended = igpt("deploy", "--check", "--file", FILE)
    lines = ended.out.splitlines()
    assert ended.code == 0, ended.err
    assert "scheduled-build/nightly can be deployed" in lines and len(lines) > 2
    assert igpt("deploy", "nightly", "--check", "--file", FILE).out.splitlines() == [
        "scheduled-build/nightly can be deployed"
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing", "--check", "--file", FILE], "nothing"),
        (["--check", "--file", "gone.yaml"], "gone.yaml"),
        (["--file", FILE], "no Prefect server is known: start the services with `igpt up`, or set PREFECT_API_URL"),
    ],
)
def test_bad_input_is_one_line(arguments: list, expected: str, igpt: Igpt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    ended = igpt("deploy", *arguments)
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert line.startswith("igpt: ") and expected in line
