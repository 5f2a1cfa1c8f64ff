"""Before a flow is called: does the Prefect server answer? In a module of its own, which imports in no time."""

import urllib.error
import urllib.request

from flows.settings import Settings
from pipeline.errors import IgptError


def check_prefect(settings: Settings) -> None:
    """Raise IgptError when the Prefect server does not answer. To be called before a flow is: Prefect waits long."""
    url = f"{settings.prefect_api_url.rstrip('/')}/health"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            answer.read()
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise IgptError(
            f"Prefect at {settings.prefect_api_url} does not answer ({getattr(error, 'reason', error)}); "
            "start it (`igpt up`) or correct PREFECT_API_URL"
        ) from None
