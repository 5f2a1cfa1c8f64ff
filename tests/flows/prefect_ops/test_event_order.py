"""Which events count as seen: those of this process, and those that an earlier one has stored."""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect.server.database.dependencies import provide_database_interface
from prefect.server.events.ordering import EventArrivedEarly, get_triggers_causal_ordering
from prefect.server.events.schemas.events import ReceivedEvent, Resource
from prefect.server.events.storage.database import write_events
from prefect.settings import (
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    PREFECT_SERVER_EVENTS_CAUSAL_ORDERING,
    temporary_settings,
)

from flows.prefect_ops import event_order


def event(name: str, received: datetime, follows: UUID | None = None) -> ReceivedEvent:
    resource = Resource({"prefect.resource.id": "prefect.flow-run.x"})
    return ReceivedEvent(
        id=uuid4(), event=name, resource=resource, occurred=received, received=received, follows=follows
    )


@pytest.mark.parametrize(
    ("stored", "handled", "waits"),
    [
        ("before the start", False, False),
        ("after the start", False, True),  # another thread is about to look at it
        ("after the start", True, False),
        ("not yet", False, True),
        ("not yet", True, False),
    ],
)
def test_an_event_waits_for_the_one_before_unless_that_was_seen(
    tmp_path: Path, stored: str, handled: bool, waits: bool
) -> None:
    now = datetime.now(UTC)
    before = event("prefect.flow-run.Running", now - timedelta(minutes=5) if "before" in stored else now)
    after = event("prefect.flow-run.Crashed", now, follows=before.id)
    looked_at = []

    async def look(seen: ReceivedEvent, depth: int = 0) -> None:
        async with get_triggers_causal_ordering().preceding_event_confirmed(look, seen, depth):
            looked_at.append(seen.event)

    async def run() -> None:
        database = provide_database_interface()
        tables = [
            table.__table__ for table in (database.Event, database.EventResource, database.AutomationEventFollower)
        ]
        async with (await database.engine()).begin() as connection:
            await connection.run_sync(partial(database.Base.metadata.create_all, tables=tables))
        if stored != "not yet":
            async with database.session_context(begin_transaction=True) as session:
                await write_events(session, [before])
        if handled:
            await look(before)
        try:
            await look(after)
        except EventArrivedEarly:
            assert waits
            await look(before)
        else:
            assert not waits

    with temporary_settings(
        {
            PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}",
            PREFECT_SERVER_EVENTS_CAUSAL_ORDERING: event_order.__name__,
        }
    ):
        asyncio.run(run())
    assert looked_at[-1] == after.event
