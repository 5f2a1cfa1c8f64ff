"""The Ray cluster: connecting to it, what it has, and running many tasks with few in flight."""

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.cluster import logs
from pipeline.errors import IgptError, first_line

# A task that dies with its worker or node is run again this often before the build gives up: so often, because a node
# on which every worker dies at once (a full disk) is always free and takes many of them.
_TASK_RETRIES = 12
_LONGEST_WAIT_SECONDS = 2.0
# Nobody hears a machine lose its power. Ray gives its node up after a minute (63 s measured), but waits seven (420 s)
# for the answers of its tasks, and pinging more often is refused (gRPC's "Too many pings" ends the connection).
_LOOK_SECONDS = 5.0
_GRACE_SECONDS = 10.0


def connect(address: str, *, flow_run_id: str = "") -> None:
    """Connect this process to a running cluster, whose workers then log for it as JSON, with the flow run's id.

    Raises IgptError when the cluster does not answer or refuses the token.
    """
    if ray.is_initialized():
        return
    _check_listening(address)
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            runtime_env={"worker_process_setup_hook": log_as_json(flow_run_id)},
        )
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        raise IgptError(
            f"Ray at {address} does not answer ({first_line(error, 200)}); start it (`igpt up`) or correct RAY_ADDRESS"
        ) from None
    except Exception as error:
        if "Authentication" in type(error).__name__:
            raise IgptError(
                f"Ray at {address} refused the token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as on the cluster"
            ) from None
        raise
    # Ray has put its own handler there, which ends the process; whoever set the one before wants to hear of it.
    if callable(terminate) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)


def log_as_json(flow_run_id: str) -> Callable[[], None]:
    """What a worker process does to log with the ids of its flow run, and of the job, node and task of Ray."""

    def ids() -> dict[str, str]:
        if not ray.is_initialized():  # a last word
            return {"flow_run_id": flow_run_id}
        here = ray.get_runtime_context()
        known = {"ray_job_id": here.get_job_id(), "ray_node_id": here.get_node_id(), "ray_task_id": here.get_task_id()}
        return {"flow_run_id": flow_run_id, **{name: value for name, value in known.items() if value}}

    return logs.worker_setup(ids)


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


def disconnect() -> None:
    """Leave the cluster; its tasks of this process end."""
    ray.shutdown()


def job_id() -> str:
    """The cluster's name for this process's work; the files that its tasks log to carry it."""
    return str(ray.get_runtime_context().get_job_id())


def total_resources() -> dict[str, float]:
    """What the cluster has in all: CPU, GPU, memory in bytes, ..."""
    return {name: float(value) for name, value in ray.cluster_resources().items()}


def node_resources() -> dict[str, dict[str, float]]:
    """What each living node has in all, by its address; where several share one, with Ray's number of the node."""
    found: dict[str, dict[str, float]] = {}
    for node in ray.nodes():
        if node["Alive"]:
            address = node["NodeManagerAddress"]
            name = f"{address} {node['NodeID'][:6]}" if address in found else address
            found[name] = {resource: float(value) for resource, value in node["Resources"].items()}
    return found


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
    an IgptError; what the function itself raises is raised here, once. When a node is lost without a word, the tasks
    that may have been there are run a second time, and the first answer counts: functions must bear that. The tasks
    that are in flight at an error run on until this process disconnects or ends: ray.cancel is no choice, Ray 2.60
    aborts the process when a task ends while it is being cancelled.
    """
    remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=0)(function)
    references = tuple(ray.put(value) for value in shared)
    limit = max(2, 2 * int(total_resources().get("CPU", 1) / max(num_cpus, 0.01)))
    waiting = iter(enumerate(calls))
    in_flight: dict[Any, _Attempt] = {}
    nodes = _NodeWatch()

    def begin(number: int, call: tuple[Any, ...], tries: int) -> None:
        # Ray asks for no new worker as long as it has asked for enough ones for tasks of the same needs, and goes on
        # waiting for those that it has asked a lost node for. So after each loss tasks need another byte of memory.
        task = remote.options(memory=nodes.told) if nodes.told else remote
        in_flight[task.remote(*call, *references)] = _Attempt(number, call, tries, time.monotonic())

    while True:
        for number, call in islice(waiting, max(0, limit - len(in_flight))):
            begin(number, call, 1)
        if not in_flight:
            return
        lost = nodes.silent_since()
        if lost is not None:
            for attempt in [each for each in in_flight.values() if each.begun < lost]:
                begin(attempt.number, attempt.call, attempt.tries)
        done, _ = ray.wait(list(in_flight), num_returns=1, timeout=_LOOK_SECONDS)
        if not done:
            continue
        attempt = in_flight.pop(done[0])
        twins = [reference for reference, each in in_flight.items() if each.number == attempt.number]
        try:
            result = ray.get(done[0])
        except RayError as error:
            if not _is_loss(error):
                raise _cause(error) from None
            if twins:
                continue
            if attempt.tries > _TASK_RETRIES:
                raise IgptError(
                    f"a task was lost {attempt.tries} times ({_loss(error)}); look into the logs of the Ray nodes, "
                    "then run the same command again: what was finished is kept"
                ) from None
            time.sleep(min(_LONGEST_WAIT_SECONDS, 0.05 * 2**attempt.tries))
            begin(attempt.number, after_crash(attempt.call), attempt.tries + 1)
            continue
        for twin in twins:
            del in_flight[twin]
        yield attempt.number, result


@dataclass(frozen=True)
class _Attempt:
    number: int
    call: tuple[Any, ...]
    tries: int
    begun: float


class _NodeWatch:
    """Looks at the nodes now and then, and tells when one was lost whose tasks have not been given back since."""

    def __init__(self) -> None:
        self._alive = _alive_nodes()
        self._looked = time.monotonic()
        self._losses: list[float] = []
        self.told = 0
        """How many losses were told."""

    def silent_since(self) -> float | None:
        """The time of a loss, told once, when Ray has had time enough to report the tasks that were lost with it."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return None
        alive = _alive_nodes()
        if self._alive - alive:
            self._losses.append(now)
        self._alive, self._looked = alive, now
        if self._losses and now - self._losses[0] >= _GRACE_SECONDS:
            self.told += 1
            return self._losses.pop(0)
        return None


def _alive_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


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
