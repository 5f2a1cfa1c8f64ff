"""The order in which Prefect's server looks at events, which outlasts a start of the server.

Of a run's states each event names the one before, and waits for it, because it might arrive late. Prefect remembers in
memory only which events it has seen: after a start, whatever follows an earlier event is looked at 15 minutes later, so
that nobody is told meanwhile that a run has failed. The server's setting PREFECT_SERVER_EVENTS_CAUSAL_ORDERING names
this module.
"""

from datetime import UTC, datetime
from uuid import UUID

import sqlalchemy as sa
from prefect.server.database.dependencies import provide_database_interface
from prefect.server.events.ordering import db
from prefect.server.events.schemas.events import Event

_STARTED = datetime.now(UTC)


class CausalOrdering(db.CausalOrdering):
    """Prefect's order with what waits in the database; events that an earlier process has stored count as seen."""

    async def event_has_been_seen(self, event: UUID | Event) -> bool:
        """Whether automations have looked at an event, in this process or before it started."""
        if await super().event_has_been_seen(event):
            return True
        database = provide_database_interface()
        stored = database.Event
        number = event.id if isinstance(event, Event) else event
        async with database.session_context() as session:
            received = await session.scalar(sa.select(stored.received).where(stored.id == number))
        return received is not None and received < _STARTED
