"""Before a run starts: does everything answer that it will need? One line for the first that does not."""

import urllib.error
import urllib.request

from flows.settings import Settings
from igpt_model import tracking
from pipeline import ray_cluster
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


def check_tracking(settings: Settings) -> None:
    """Raise IgptError when the MLflow server does not answer."""
    tracking.check_reachable(settings.mlflow_tracking_uri)


def connect_ray(settings: Settings) -> None:
    """Connect to the Ray cluster. Raises IgptError when it does not answer or refuses the token."""
    ray_cluster.connect(settings.ray_address)
