"""The Ray cluster: connect, list its resources, and run many tasks with a bounded number in flight."""

import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import wraps
from itertools import islice
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.logs import WorkerLine, parse
from pipeline.errors import IgptError, first_line
from pipeline.store import credentials
from pipeline.store.credentials import StoreKey

_log = logging.getLogger(__name__)

# How often a task is retried that was lost with its worker or node. So often because a node on which every worker dies
# at once (a full disk) is always idle and receives many tasks.
_TASK_RETRIES = 12
_LONGEST_WAIT_SECONDS = 2.0
# A machine that loses power closes no connection. Ray declares its node dead after a minute (63 s measured), but waits
# seven minutes (420 s) for the results of its tasks; more frequent pings are refused (gRPC's "Too many pings" ends the
# connection). So the list of nodes is checked this often, and tasks lost with a node are retried after a grace period.
_CHECK_SECONDS = 5.0
_GRACE_SECONDS = 10.0
# A node that is starting its first worker on busy cores takes some seconds, a lost one takes Ray a minute to notice.
_ANSWER_SECONDS = 60.0
_told: set[str] = set()  # messages of the cluster
_HEARD = "igpt"  # the name of what Ray calls with lines of workers

# Of the connection, of which this process has only one. The key is that of the flow at work: flows follow each other,
# and their threads start tasks, too.
_key: StoreKey | None = None
_before_work: Callable[[], None] | None = None


def key() -> StoreKey | None:
    """The key of the object store for what this process starts on the cluster; None: that of the node."""
    return _key


def connect(
    address: str,
    *,
    flow_run_id: str = "",
    key: StoreKey | None = None,
    heard: Callable[[WorkerLine], None] | None = None,
    check: Callable[[], None] | None = None,
) -> None:
    """Connect this process to a running cluster. Its workers log JSON with the id of the flow run.

    From now on, tasks use the object store with the key; without one, with what their node has. `heard` is called, in a
    thread, with each line that workers write, within about a second; so the lines of a node that is lost later are
    here. Workers call `check` before they run a task; what it raises, the task raises. Raises IgptError when the
    cluster does not respond, runs another version of Ray or refuses the token.
    """
    global _key, _before_work
    _key = key
    if ray.is_initialized():
        return
    _before_work = check
    _check_listening(address)
    # Ray would print messages of the cluster to the standard output, between a command's JSON. It has no public name.
    ray._private.worker.print_to_stdstream = _log_messages
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            log_to_driver=heard is not None,
            logging_level=logging.ERROR,
            configure_logging=True,
            runtime_env={"worker_process_setup_hook": worker_setup(flow_run_id)},
        )
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        if "Version mismatch" in str(error):
            raise IgptError(
                f"Ray at {address} is of another version than this process's ({' '.join(str(error).split())[:300]}); "
                "install the same one on both (infra/UPGRADE.md)"
            ) from None
        raise IgptError(
            f"Ray at {address} does not answer ({first_line(error, 200)}); start it (`igpt up`) or correct RAY_ADDRESS"
        ) from None
    except Exception as error:
        if "Authentication" in type(error).__name__:
            raise IgptError(
                f"Ray at {address} refused the token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH as on the cluster"
            ) from None
        raise
    if heard is not None:
        _hear(heard)
    # ray.init installs a handler that ends the process; restore the one that was set before.
    if callable(terminate) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)


def _log_messages(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    # Ray repeats them, and its own logs have them whole.
    for message in {first_line(Exception(message)) for message in data["lines"]} - _told:
        _told.add(message)
        _log.info("Ray: %s", message)


def _hear(heard: Callable[[WorkerLine], None]) -> None:
    """Call a function with the lines of this job's workers, which Ray would print."""

    def receive(data: Mapping[str, Any]) -> None:
        if data.get("job"):  # not a line of Ray's own processes
            for line in data["lines"]:
                heard(parse(data["ip"], line))

    # Ray has no public name for it.
    dispatcher = ray._private.worker.global_worker_stdstream_dispatcher
    for name in ("ray_print_logs", _HEARD):
        dispatcher.remove_handler(name)
    dispatcher.add_handler(_HEARD, receive)


def before_work() -> Callable[[], None]:
    """What workers of this process's job must call before they work; it can be sent to them."""
    return _before_work or _nothing


def _nothing() -> None:
    pass


def worker_setup(flow_run_id: str) -> Callable[[], None]:
    """The setup hook of a worker process: log as JSON, and let its imports take less time."""
    log = log_as_json(flow_run_id)

    def set_up() -> None:
        # A worker process whose hook fails does not start. One of another commit must, to be asked for its code.
        try:
            from pipeline.garbage import collect_less_often  # noqa: PLC0415 (imported by the worker)
        except ImportError:
            return
        collect_less_often()
        log()

    return set_up


def log_as_json(flow_run_id: str) -> Callable[[], None]:
    """Makes a worker process log JSON with the ids of the flow run and of Ray's job, node and task."""

    def ids() -> dict[str, str]:
        if not ray.is_initialized():  # while the worker shuts down
            return {"flow_run_id": flow_run_id}
        context = ray.get_runtime_context()
        ray_ids = {
            "ray_job_id": context.get_job_id(),
            "ray_node_id": context.get_node_id(),
            "ray_task_id": context.get_task_id(),
        }
        return {"flow_run_id": flow_run_id, **{name: value for name, value in ray_ids.items() if value}}

    def set_up() -> None:
        with suppress(ImportError):  # of another commit, as above
            from pipeline.cluster import logs  # noqa: PLC0415 (imported by the worker)

            logs.worker_setup(ids)()

    return set_up


def _check_listening(address: str) -> None:
    """Raise IgptError when nothing listens at host:port. Ray itself would try for minutes, and log it every second."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "//" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError, ValueError) as error:  # a port above 65535, a name that no host can have
        reason = getattr(error, "strerror", None) or error
        raise IgptError(
            f"Ray at {address} does not answer ({reason}); start it (`igpt up`) or correct RAY_ADDRESS"
        ) from None


def job_id() -> str:
    """Ray's id of this process's job, which is part of the names of its tasks' log files."""
    return str(ray.get_runtime_context().get_job_id())


def total_resources() -> dict[str, float]:
    """Resources of the whole cluster: CPU, GPU, memory in bytes, ..."""
    return {name: float(value) for name, value in ray.cluster_resources().items()}


def node_resources() -> dict[str, dict[str, float]]:
    """Resources of each live node, by its address; nodes that share an address have part of their id in the name."""
    return {
        name: {resource: float(value) for resource, value in node["Resources"].items()}
        for name, node in _named_nodes().items()
    }


def _named_nodes() -> dict[str, dict[str, Any]]:
    """Ray's record of each live node, by its name in `node_resources`."""
    nodes: dict[str, dict[str, Any]] = {}
    for node in ray.nodes():
        if node["Alive"]:
            address = node["NodeManagerAddress"]
            nodes[f"{address} {node['NodeID'][:6]}" if address in nodes else address] = node
    return nodes


def ask_nodes(question: Callable[[], Any], sent_by_value: Sequence[str] = ()) -> dict[str, Any]:
    """What a function returns on each node that runs tasks, by the names of `node_resources`.

    Functions of the modules `sent_by_value` need not be installed on the nodes; they use no other module of ours. Nodes
    that are lost meanwhile or do not answer in time are left out.
    """
    names = {node["NodeID"]: name for name, node in _named_nodes().items() if {"CPU", "GPU"} & node["Resources"].keys()}
    with ExitStack() as registered:
        for module in [sys.modules[name] for name in sent_by_value]:
            ray.cloudpickle.register_pickle_by_value(module)
            registered.callback(ray.cloudpickle.unregister_pickle_by_value, module)
        # A closure, because Ray keeps the pickled form of a function that it has seen.
        remote = ray.remote(num_cpus=0, max_retries=0)(lambda: question())
        asked = {
            remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(): name
            for node_id, name in names.items()
        }
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS) if asked else ([], [])
    answers = {}
    for reference in answered:
        try:
            answers[asked[reference]] = ray.get(reference)
        except RayError as error:
            if not _is_loss(error):
                raise _cause(error) from None
    return answers


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

    `shared` values are put into the object store once and read on each node without a copy. At most twice as many tasks
    are in flight as the cluster runs at a time, so that memory does not grow with the number of calls; nodes that join
    get tasks within seconds. A task that is
    lost with its worker or node is retried with the call that `after_crash` returns, and raises IgptError after too
    many tries; an exception of the function itself is raised here, without retries. When a node disappears without
    closing its connections, the tasks that may have been on it are started a second time and the first result counts,
    so functions must be idempotent. After an error, tasks in flight run on until this process disconnects or ends:
    ray.cancel is no option, Ray 2.60 aborts the process when a task ends while it is being cancelled.
    """
    check = before_work()

    def checked(*arguments: Any) -> Any:
        check()
        return function(*arguments)

    # Named like the function, for Ray's pages and metrics.
    options = {"name": function.__name__, "num_cpus": num_cpus, "num_gpus": num_gpus, "max_retries": 0}
    with_key = () if _key is None else (_key,)
    if _key is None:
        remote = ray.remote(**options)(checked)
    else:
        # The key goes by value with the call: it is in no runtime environment, function or object that others can read.
        remote = ray.remote(**options, runtime_env=own_processes(_key))(_with_key(checked))
    references = tuple(ray.put(value) for value in shared)
    waiting = iter(enumerate(calls))
    in_flight: dict[Any, _Attempt] = {}
    nodes = _NodeMonitor()

    def begin(number: int, call: tuple[Any, ...], tries: int) -> None:
        # Ray requests no new worker while enough requests for tasks with the same resources are pending, and it keeps
        # waiting for those it sent to a lost node. So tasks require one more byte of memory after each loss.
        task = remote.options(memory=nodes.losses) if nodes.losses else remote
        in_flight[task.remote(*with_key, *call, *references)] = _Attempt(number, call, tries, time.monotonic())

    while True:
        limit = max(2, 2 * int(nodes.cpus / max(num_cpus, 0.01)))
        for number, call in islice(waiting, max(0, limit - len(in_flight))):
            begin(number, call, 1)
        if not in_flight:
            return
        lost_at = nodes.overdue_loss()
        if lost_at is not None:
            for attempt in [attempt for attempt in in_flight.values() if attempt.begun < lost_at]:
                begin(attempt.number, attempt.call, attempt.tries)
        done, _ = ray.wait(list(in_flight), num_returns=1, timeout=_CHECK_SECONDS)
        if not done:
            continue
        attempt = in_flight.pop(done[0])
        duplicates = [reference for reference, other in in_flight.items() if other.number == attempt.number]
        try:
            result = ray.get(done[0])
        except RayError as error:
            if not _is_loss(error):
                raise _cause(error) from None
            if duplicates:
                continue
            if attempt.tries > _TASK_RETRIES:
                raise IgptError(
                    f"a task was lost {attempt.tries} times ({_loss(error)}); see the logs of the Ray nodes, then run "
                    "the same command again: finished work is kept"
                ) from None
            time.sleep(min(_LONGEST_WAIT_SECONDS, 0.05 * 2**attempt.tries))
            begin(attempt.number, after_crash(attempt.call), attempt.tries + 1)
            continue
        for duplicate in duplicates:
            del in_flight[duplicate]
        yield attempt.number, result


def own_processes(key: StoreKey) -> dict[str, Any]:
    """A runtime environment that keeps the processes of one role apart from those of another, which Ray would reuse."""
    return {"env_vars": {"IGPT_ROLE": key.role}}


def _with_key(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, for a task whose first argument is the key that it uses."""

    @wraps(function)
    def with_key(key: StoreKey, *arguments: Any) -> Any:
        credentials.use(key)
        return function(*arguments)

    del with_key.__wrapped__  # Ray would check calls by the function's own signature
    return with_key


def map_here(
    function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *, shared: tuple[Any, ...] = (), **_: object
) -> Iterator[tuple[int, Any]]:
    """Like map_tasks, but in this process, one call after the other, where no cluster is at hand."""
    for number, call in enumerate(calls):
        yield number, function(*call, *shared)


@dataclass(frozen=True)
class _Attempt:
    number: int
    call: tuple[Any, ...]
    tries: int
    begun: float


class _NodeMonitor:
    """Checks the list of nodes at intervals, and returns losses of nodes for which Ray has reported no lost tasks."""

    def __init__(self) -> None:
        alive = _alive_nodes()
        self._alive = set(alive)
        self.cpus = sum(alive.values())
        """CPUs of the nodes that were alive when they were checked last."""
        self._checked = time.monotonic()
        self._lost_at: list[float] = []
        self.losses = 0
        """Number of losses returned so far."""

    def overdue_loss(self) -> float | None:
        """The time of a loss, returned once, when Ray has had enough time to report the tasks lost with the node."""
        now = time.monotonic()
        if now - self._checked < _CHECK_SECONDS:
            return None
        cpus_of = _alive_nodes()
        alive = set(cpus_of)
        if self._alive - alive:
            self._lost_at.append(now)
        self._alive, self._checked, self.cpus = alive, now, sum(cpus_of.values())
        if self._lost_at and now - self._lost_at[0] >= _GRACE_SECONDS:
            self.losses += 1
            return self._lost_at.pop(0)
        return None


def _alive_nodes() -> dict[str, float]:
    """The CPUs of each live node, by its id."""
    return {node["NodeID"]: float(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}


def _is_loss(error: RayError) -> bool:
    """Whether a task was lost with its worker, its node or its arguments, rather than its function raised."""
    return not isinstance(error, RayTaskError) or isinstance(error.cause, RayError)


def _loss(error: RayError) -> str:
    """How a task was lost, in a word; Ray's own text fills a screen."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return type(cause).__name__.removesuffix("Error")


def _cause(error: RayError) -> BaseException:
    """The exception that the task's function raised; an IgptError without Ray's wrapper, since users see it."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    return cause if isinstance(cause, IgptError) else error
