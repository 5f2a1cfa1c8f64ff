"""The progress artifact of a flow run: what it shows, and that a server that is away changes nothing for the run."""

import time
from types import SimpleNamespace, TracebackType
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from flows.prefect_ops import progress_page
from flows.prefect_ops.progress_page import ProgressPage
from tests.rigs.waiting import wait_until

RUN = str(uuid4())


class Server:
    """Keeps one artifact, unless it is away."""

    def __init__(self) -> None:
        self.shown: list[tuple[float, str]] = []
        self.created: list[UUID] = []
        self.is_away = False

    def __enter__(self) -> "Server":
        if self.is_away:
            raise httpx.ConnectError("refused")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def create_artifact(self, new: Any) -> Any:
        assert (new.type, new.key, str(new.flow_run_id)) == ("progress", "progress", RUN)
        self.created.append(uuid4())
        self.shown.append((new.data, new.description.replace("\\", "")))
        return SimpleNamespace(id=self.created[-1])

    def update_artifact(self, artifact: UUID, update: Any) -> None:
        assert artifact == self.created[0]
        self.shown.append((update.data, update.description.replace("\\", "")))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(progress_page, "get_client", lambda sync_client: made)
    monkeypatch.setattr(progress_page, "flow_run", SimpleNamespace(id=RUN))
    return made


def test_it_shows_what_a_run_does_and_waits_for_and_how_far_it_is(server: Server) -> None:
    with ProgressPage(every=0.01) as page:
        page("start", 0, 0, "2 workers")
        wait_until(lambda: server.shown)
        page("train", 100, 300, "steps")
        time.sleep(0.1)
        page("train", 200, 300, "steps")
        wait_until(lambda: server.shown[-1][0] > 60)
    assert len(server.created) == 1
    texts = [text for _, text in server.shown]
    assert texts[0].startswith("waits for Ray to start 2 workers")
    assert any(text.startswith("train 200 of 300 steps; about 0 s left") for text in texts)
    assert server.shown[-1][0] == 100 and texts[-1].startswith("finished")


def test_a_run_that_fails_keeps_what_it_did_last(server: Server) -> None:
    with pytest.raises(ValueError, match="broken"), ProgressPage(every=0.01) as page:
        page("shards", 5, 10, "images")
        raise ValueError("broken")
    assert server.shown[-1][0] == 50 and server.shown[-1][1].startswith("ended at: shards 5 of 10 images")


def test_while_the_server_is_away_nothing_waits_and_afterwards_the_newest_is_shown(server: Server) -> None:
    server.is_away = True
    with ProgressPage(every=0.01) as page:
        for done in range(10):
            page("shards", done, 10)
        time.sleep(0.1)
        assert not server.shown
        server.is_away = False
        wait_until(lambda: server.shown)
    assert server.shown[0][1].startswith("shards 9 of 10")
