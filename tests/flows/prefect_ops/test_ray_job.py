"""The id that the workers of a flow run log: that of the uppermost run, also where Prefect cannot be asked."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from flows.prefect_ops import ray_job


@pytest.fixture(autouse=True)
def asked_again() -> Iterator[None]:
    ray_job.flow_run_id.cache_clear()
    yield
    ray_job.flow_run_id.cache_clear()


class Away:
    """A flow run whose server does not answer."""

    id = "own"

    @property
    def root_flow_run_id(self) -> str:
        raise RuntimeError("the server is away")


@pytest.mark.parametrize(
    ("flow_run", "expected"),
    [
        (SimpleNamespace(root_flow_run_id="uppermost", id="own"), "uppermost"),
        (SimpleNamespace(root_flow_run_id=None, id="own"), "own"),
        (SimpleNamespace(root_flow_run_id=None, id=None), ""),
        (Away(), "own"),
    ],
)
def test_workers_log_the_uppermost_run(flow_run: object, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_job, "flow_run", flow_run)
    assert ray_job.flow_run_id() == expected


def test_a_process_keeps_the_id_that_it_connected_with(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[tuple[str, str, str]] = []
    lines: list[tuple] = []
    monkeypatch.setattr(
        ray_job.cluster,
        "connect",
        lambda address, step, flow_run_id, heard: connected.append((address, step, flow_run_id)),
    )
    monkeypatch.setattr(ray_job.tasks, "job_id", lambda: "01000000")
    monkeypatch.setattr(ray_job, "get_run_logger", lambda: SimpleNamespace(info=lambda *words: lines.append(words)))
    for number in ("first", "second"):
        monkeypatch.setattr(ray_job, "flow_run", SimpleNamespace(root_flow_run_id=number, id=number))
        ray_job.begin("127.0.0.1:6379", "build")
    assert connected == [("127.0.0.1:6379", "build", "first")] * 2
    assert [words[0] % words[1:] for words in lines] == ["this run is job 01000000 of Ray"] * 2
