"""The Ray cluster: connecting to it, what it has, and running many tasks with few in flight."""

import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.errors import IgptError

# A task that dies with its worker or node is run again this often before the build gives up: so often, because a node
# on which every worker dies at once (a full disk) is always free and takes many of them.
_TASK_RETRIES = 12
_LONGEST_WAIT_SECONDS = 2.0


def connect(address: str) -> None:
    """Connect this process to a running cluster. Raises IgptError when it does not answer or refuses the token."""
    if ray.is_initialized():
        return
    _check_listening(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        raise IgptError(
            f"Ray at {address} does not answer ({_first_line(error)}); start it (`igpt up`) or correct RAY_ADDRESS"
        ) from None
    except Exception as error:
        if "Authentication" in type(error).__name__:
            raise IgptError(
                f"Ray at {address} refused the token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as on the cluster"
            ) from None
        raise


def _check_listening(address: str) -> None:
    """Raise IgptError when nothing listens at host:port. Ray itself would try for minutes, and say so each second."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "//" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise IgptError(
            f"Ray at {address} does not answer ({error.strerror or error}); start it (`igpt up`) or correct RAY_ADDRESS"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def disconnect() -> None:
    """Leave the cluster; its tasks of this process end."""
    ray.shutdown()


def total_resources() -> dict[str, float]:
    """What the cluster has in all: CPU, GPU, memory in bytes, ..."""
    return {name: float(value) for name, value in ray.cluster_resources().items()}


def node_resources() -> dict[str, dict[str, float]]:
    """What each living node has in all, by its address."""
    return {
        node["NodeManagerAddress"]: {name: float(value) for name, value in node["Resources"].items()}
        for node in ray.nodes()
        if node["Alive"]
    }


def map_tasks(
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    *,
    shared: tuple[Any, ...] = (),
    num_cpus: float = 1,
    num_gpus: float = 0,
    after_crash: Callable[[tuple[Any, ...]], tuple[Any, ...]] = lambda call: call,
) -> Iterator[tuple[int, Any]]:
    """Run function(*call, *shared) as a task for every call; yield (number of the call, result) as they finish.

    What is `shared` is put once into the object store of each node and read there without a copy. As many tasks are in
    flight as the cluster runs at a time and as many again, so that memory does not grow with the number of calls. A
    task lost with its worker or node is run again, as what `after_crash` makes of its call, and after some tries gives
    an IgptError; what the function itself raises is raised here, once. The tasks that are in flight then run on until
    this process disconnects or ends: ray.cancel is no choice, Ray 2.60 aborts the process when a task ends while it is
    being cancelled.
    """
    remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=0)(function)
    references = tuple(ray.put(value) for value in shared)
    limit = max(2, 2 * int(total_resources().get("CPU", 1) / max(num_cpus, 0.01)))
    waiting = enumerate(calls)
    in_flight: dict[Any, _Attempt] = {}
    while True:
        for number, call in waiting:
            in_flight[remote.remote(*call, *references)] = _Attempt(number, call, 1)
            if len(in_flight) >= limit:
                break
        if not in_flight:
            return
        (done, *_), _ = ray.wait(list(in_flight), num_returns=1)
        attempt = in_flight.pop(done)
        try:
            result = ray.get(done)
        except RayError as error:
            if not _is_loss(error):
                raise _cause(error) from None
            if attempt.tries > _TASK_RETRIES:
                raise IgptError(
                    f"a task was lost {attempt.tries} times ({_loss(error)}); look into the logs of the Ray nodes, "
                    "then run the same command again: what was finished is kept"
                ) from None
            time.sleep(min(_LONGEST_WAIT_SECONDS, 0.05 * 2**attempt.tries))
            call = after_crash(attempt.call)
            in_flight[remote.remote(*call, *references)] = _Attempt(attempt.number, call, attempt.tries + 1)
            continue
        yield attempt.number, result


@dataclass(frozen=True)
class _Attempt:
    number: int
    call: tuple[Any, ...]
    tries: int


def _is_loss(error: RayError) -> bool:
    """Tell a task that was lost with its worker, its node or its arguments from one whose function raised."""
    return not isinstance(error, RayTaskError) or isinstance(error.cause, RayError)


def _loss(error: RayError) -> str:
    """A few words on how a task was lost; Ray's own text fills a screen."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return type(cause).__name__.removesuffix("Error")


def _cause(error: RayError) -> BaseException:
    """The exception that the task's function raised, without Ray's wrapping when it is meant for the user."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    return cause if isinstance(cause, IgptError) else error
