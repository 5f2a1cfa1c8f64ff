"""Before a flow is called: does the Prefect server answer? In a module of its own, which imports in no time."""

import urllib.error
import urllib.request

from pipeline.errors import IgptError


def check_prefect(api_url: str) -> None:
    """Raise IgptError when the Prefect server does not answer. To be called before a flow is: Prefect waits long."""
    url = f"{api_url.rstrip('/')}/health"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            answer.read()
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise IgptError(
            f"Prefect at {api_url} does not answer ({getattr(error, 'reason', error)}); "
            "start it (`igpt up`) or correct PREFECT_API_URL"
        ) from None
