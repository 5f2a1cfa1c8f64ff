"""Events on the Prefect server, which triggers act upon."""

from collections.abc import Mapping

from prefect.client.orchestration import get_client
from prefect.events.schemas.events import Event, Resource


def announce(event: str, resource: str, payload: Mapping[str, object]) -> None:
    """Send an event about a resource, and return when the server has it.

    Prefect's `emit_event` sends in the background, and forgets an event of a run that ends while the server is away.
    """
    sent = Event(event=event, resource=Resource({"prefect.resource.id": resource}), payload=dict(payload))
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[sent.model_dump(mode="json")])
