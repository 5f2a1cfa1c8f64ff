"""A check that the Prefect server answers, before a flow is called. A module of its own, to keep its import fast."""

import http.client
import urllib.request

from pipeline.errors import IgptError


def check_prefect(api_url: str) -> None:
    """Raise IgptError when the Prefect server does not answer. Calling a flow without it would wait for long."""
    url = f"{api_url.rstrip('/')}/health"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            answer.read()
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise IgptError(
            f"Prefect at {api_url} does not answer ({getattr(error, 'reason', error)}); "
            "start it (`igpt up`) or correct PREFECT_API_URL"
        ) from None
