"""A service on Ray Serve: starts it, gives it a version, replaces the version while it serves, and ends it."""

import logging
import re
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import BackpressureConfig
from ray.serve.context import _get_global_client  # Ray has no public name for it
from ray.serve.exceptions import RayServeException

from flows.services import cluster
from flows.services.ports import is_free
from flows.serving import again
from flows.serving.config import DRAIN_SECONDS, END_SECONDS, ServeConfig
from flows.serving.replica import Replica, read_files
from igpt_model.registry.client import Registry, Version
from pipeline.cluster import tasks
from pipeline.errors import IgptError, first_line

RETRY_AFTER_SECONDS = 1
# Of Serve's controller, and of the proxies that it starts.
_VARIABLES = {
    # On busy nodes a process takes longer to start than Serve waits by itself before it ends it.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{again.__name__}.{again.middlewares.__name__}",
}
_POLL_SECONDS = 0.2
_SLOW_SECONDS = 60.0


def connect(address: str) -> None:
    """Connect this process to the Ray cluster on which the service shall run."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    cluster.connect(address, "probe")


def metrics_urls() -> list[str]:
    """Where each node of the cluster serves its metrics, those of its replicas among them."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return sorted(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes)


def application(files: Any, config: ServeConfig) -> serve.Application:
    """What Serve runs: replicas of a version, from a reference to its Files."""
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="model",
        num_replicas=config.replicas,
        ray_actor_options={"num_cpus": config.cpus},
        max_ongoing_requests=config.requests_at_once,
        max_queued_requests=config.queue,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_SECONDS),
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        max_surge_percent=1,  # one replica more than there shall be
    )
    return deployment.bind([files], config)


class Service:
    """The service of one registered model on the Ray cluster that this process is connected to."""

    def __init__(self, name: str, config: ServeConfig, registry: Registry, say: Callable[[str], None]) -> None:
        """`name`: of the registered model."""
        self._config, self._registry, self._say = config, registry, say
        self._application = re.sub(r"[^\w.-]", "_", name)
        self._version: Version | None = None
        # Ray keeps the files for replicas that start later as long as this process lives.
        self._files: Any = None

    def start(self) -> None:
        """Start Serve on the cluster, or take over the service of an earlier command that has ended.

        Raises IgptError when the cluster has too few cores, or Serve runs there for others or elsewhere.
        """
        needed, cores = (self._config.replicas + 1) * self._config.cpus, tasks.total_resources().get("CPU", 0.0)
        if needed > cores:
            raise IgptError(
                f"{self._config.replicas} replicas of {self._config.cpus:g} cores, and one more while a version is "
                f"replaced, need {needed:g} cores: the Ray cluster has {cores:g}; give fewer --replicas or --cpus"
            )
        self._start()
        others = sorted(set(serve.status().applications) - {self._application})
        if others:
            raise IgptError(
                f"Ray Serve on this cluster serves {', '.join(others)[:200]}, which would lose its address; end that "
                "first, or use another cluster"
            )

    def _start(self) -> None:
        host, port = self._config.host, self._config.port
        refused = f"Ray Serve cannot listen on {host}:{port}"
        advice = "give another --port, or end what listens there"
        try:
            proxies = serve.status().proxies
        except RayServeException:  # it does not run
            proxies = {}
        if not proxies and not is_free(port):  # Serve would share the port
            raise IgptError(f"{refused}: the port is in use; {advice}")
        try:
            serve.start(
                proxy_location="EveryNode",
                http_options={"host": host, "port": port},
                controller_options={"runtime_env": {"env_vars": _VARIABLES}},
            )
            listens = _get_global_client().http_config
        except (RayError, RayServeException, RuntimeError, TimeoutError, ValueError) as error:
            raise IgptError(f"{refused} ({first_line(error)}); {advice}") from None
        if (listens.host, listens.port) != (host, port):
            raise IgptError(
                f"{refused}: it runs on this cluster already, on {listens.host}:{listens.port}; give these, or end it"
            )

    def give(self, version: Version, ended: threading.Event) -> None:
        """Serve a version, instead of the one before if there is one: new replicas start before old ones end.

        Returns when it is served, or `ended` is set. Raises IgptError if it cannot start; then the one before goes on.
        """
        with tempfile.TemporaryDirectory(prefix="igpt-serve-") as temporary:
            files = ray.put(read_files(self._registry.download(version, Path(temporary))))
        self._deploy(files)
        reason = self._wait(ended)
        if reason is None:
            self._version, self._files = version, files
            return
        if self._version is not None:  # whose replicas serve on, and start again if they are lost
            self._deploy(self._files)
            self._wait(ended)
        raise IgptError(f"{version.uri} does not start ({reason}); see Ray's logs of serve")

    def _deploy(self, files: Any) -> None:
        target = serve.RunTarget(application(files, self._config), self._application, "/")
        serve.run_many([target], wait_for_applications_running=False)

    def _wait(self, ended: threading.Event) -> str | None:
        """Wait until the replicas run; returns the reason if they cannot, else None."""
        slow_at = time.monotonic() + _SLOW_SECONDS
        while not ended.wait(_POLL_SECONDS):
            status = serve.status().applications[self._application]
            if status.status == "RUNNING":
                return None
            if status.status == "DEPLOY_FAILED":
                messages = [deployment.message for deployment in status.deployments.values()]
                lines = [line.strip() for line in "\n".join(messages).splitlines() if line.strip()]
                return lines[-1][:300] if lines else "without a reason"
            if time.monotonic() > slow_at:
                slow_at = float("inf")
                self._say(f"waits for a replica to start, which needs {self._config.cpus:g} free cores of the cluster")
        return None

    def check(self) -> None:
        """Raise IgptError when the service is gone, with the cluster or by another program."""
        try:
            gone = self._application not in serve.status().applications
        except (RayError, RayServeException) as error:
            raise IgptError(
                f"Ray Serve does not answer any more ({first_line(error)}); run the same command again"
            ) from None
        if gone:
            raise IgptError("the service was ended by another program; run the same command again")

    def end(self) -> None:
        """End the service, and Serve with it; requests that are being answered are finished."""
        # Unlike serve.shutdown(), this waits as long as replicas may finish requests, and its call is not retried when
        # Serve's controller, which kills itself in the end, does not answer it: Ray would print that it retries.
        with suppress(RayError, RayServeException):  # it is gone
            shut_down = _get_global_client()._controller.graceful_shutdown.options(max_task_retries=0)
            ray.get(shut_down.remote(), timeout=END_SECONDS)


def follow(
    service: Service,
    reference: str,
    registry: Registry,
    *,
    every: float,
    ended: threading.Event,
    say: Callable[[str], None],
) -> None:
    """Serve the version that a reference names, and whenever it names another one, that; until `ended` is set.

    A version that does not start, or a registry that does not answer, is told once and changes nothing. Raises
    IgptError when the first version does not start, or the service is gone.
    """
    served = registry.find(reference)
    service.give(served, ended)
    if ended.is_set():
        return
    say(f"{served.uri} is served")
    refused, told = "", ""
    while not ended.wait(every):
        service.check()
        try:
            wanted = registry.find(reference)
            if wanted.uri in (served.uri, refused):
                continue
            refused = wanted.uri
            service.give(wanted, ended)
        except IgptError as error:
            if str(error) != told:
                say(f"{error}; {served.uri} is served on")
            told = str(error)
            continue
        if not ended.is_set():
            say(f"{wanted.uri} is served, in place of {served.uri}")
        served, refused, told = wanted, "", ""
