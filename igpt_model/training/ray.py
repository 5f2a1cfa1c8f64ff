"""Training on a Ray cluster: Ray Train V2 places and restarts the workers, which run the training loop of loop.py."""

import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from igpt_model.config import ExecutionSettings, PretrainConfig
from igpt_model.runs.events import Listener
from igpt_model.runs.result import TrainResult, read_result
from igpt_model.training.host_metrics import host_monitor
from igpt_model.training.ray_mailbox import Mailbox, MailboxListener, News
from igpt_model.worker import Worker, collective_timeout
from pipeline.background import Ended, in_background
from pipeline.cluster import tasks
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.progress import Progress, silent
from pipeline.store import credentials, objects
from pipeline.store.credentials import StoreKey
from pipeline.store.lease import Fence

_POLL_SECONDS = 0.5
_HEARTBEAT_SECONDS = 0.25  # a message at every step would slow short steps down by some percent
_SHORT_WAIT_SECONDS = 2.0
_MAX_LISTED_NODES = 8  # in an error message


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """The arguments of a training worker."""

    config: PretrainConfig
    snapshot: Snapshot
    run: str
    mlflow_run: str
    """Id of the MLflow run, stored in checkpoints."""
    flow_run_id: str = ""
    """Id of the flow run, for the workers' logs."""
    key: StoreKey | None = None
    """The key with which the workers use the object store; None: that of their node."""
    fence: Fence | None = None
    """Allows checkpoints to be completed only while the run's lease is held."""


class WorkersDiedError(IgptError):
    """A training was ended by the death of its workers, not by its input: taken up again, it may succeed."""


class ClusterTooSmallError(IgptError):
    """The cluster has no room for the workers, so the training did not begin."""


def _worker_loop(arguments: dict[str, Any]) -> None:
    """The function that each training worker runs."""
    # Loads a third of PyTorch's modules, which the driver and Ray Train's controller do not need.
    from igpt_model.training.loop import train  # noqa: PLC0415

    job: TrainJob = arguments["job"]
    if job.key is not None:
        credentials.use(job.key)
    mailbox = arguments["mailbox"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    tasks.log_as_json(job.flow_run_id)()  # again, because Ray Train has replaced the handlers
    torch.set_num_threads(job.config.execution.cpus_per_worker)
    worker = Worker(rank=rank, world_size=context.get_world_size(), device=get_device())
    listener = MailboxListener(mailbox)

    last_beat = -_HEARTBEAT_SECONDS

    def heartbeat(step: int) -> None:
        nonlocal last_beat
        now = time.monotonic()
        if rank == 0 and (now - last_beat >= _HEARTBEAT_SECONDS or step == job.config.optimizer.steps):
            last_beat = now
            mailbox.beat.remote(step, worker.world_size)

    def leaving() -> bool:
        return ray.train.get_preemption_info() is not None

    address = ray.util.get_node_ip_address()
    measures_host = context.get_local_rank() == 0  # one worker per machine
    monitor = host_monitor(lambda values: mailbox.host.remote(address, values)) if measures_host else nullcontext()
    try:
        arguments["before_work"]()
        if rank == 0:
            mailbox.begin.remote()
        if job.fence is not None:
            job.fence.check()  # on every rank: a restarted group without the lease ends without failing
        with monitor:
            train(
                job.config,
                job.snapshot,
                job.run,
                worker,
                listener,
                mlflow_run=job.mlflow_run,
                heartbeat=heartbeat,
                leaving=leaving,
                fence=job.fence,
            )
        listener.deliver()
    except IgptError as error:
        # Retrying does not help with invalid input: report it to the driver, and end without a failure to restart from.
        ray.get(mailbox.fail.remote(error))


def train_on_cluster(job: TrainJob, listener: Listener, *, progress: Progress = silent) -> TrainResult:
    """Run or continue a training job on the cluster that this process is connected to.

    `listener` is called in this process. Raises ClusterTooSmallError, WorkersDiedError when workers died more than
    `max_restarts` times (the same job then continues from its last checkpoint), and IgptError for invalid input.
    """
    config, execution = job.config, job.config.execution
    check_resources(config, tasks.node_resources())
    # On the node of this process: if another node were lost, the messages would be too.
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = ray.remote(num_cpus=0, scheduling_strategy=this_node)(Mailbox).remote()
    filesystem, path = objects.arrow_filesystem(objects.join(job.run, "ray"), job.key)
    trainer = TorchTrainer(
        _worker_loop,
        train_loop_config={"job": job, "mailbox": mailbox, "before_work": tasks.before_work()},
        torch_config=process_group(execution),
        scaling_config=ScalingConfig(
            num_workers=execution.workers
            if execution.min_workers is None
            else (execution.min_workers, execution.workers),
            elastic_resize_monitor_interval_s=execution.resize_seconds,
            use_gpu=execution.use_gpu,
            resources_per_worker=_worker_resources(config),
            placement_strategy=execution.placement,
        ),
        run_config=RunConfig(
            # A unique name: Ray would resume a run of the same name from its own state instead of our checkpoints.
            name=uuid.uuid4().hex,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=execution.max_restarts),
            worker_runtime_env=None if job.key is None else tasks.own_processes(job.key),
        ),
    )
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # failures are reported below, in one line
    with _MailboxPoller(mailbox, config, listener, progress) as poller:
        try:
            trainer.fit()
        except SystemExit:
            # Ray's handler of Ctrl-C stops the workers and exits this process; the flow must still close its run.
            raise KeyboardInterrupt from None
        except ray.train.TrainingFailedError as error:
            raise WorkersDiedError(
                f"{job.run}: training workers died more often than max_restarts {config.execution.max_restarts} allows "
                f"({_root_cause(error)}); run the same command again to continue from the last checkpoint"
            ) from None
    if poller.failure is not None:
        raise poller.failure
    objects.delete_tree(objects.join(job.run, "ray"))
    result = read_result(job.run)
    if result is None:
        raise WorkersDiedError(f"{job.run}: training ended without a result; run the same command again to continue")
    return result


def process_group(execution: ExecutionSettings) -> TorchConfig:
    """How the workers' process group is set up."""
    timeout = collective_timeout(execution.hang_seconds)
    return TorchConfig(backend="nccl" if execution.use_gpu else "gloo", timeout_s=math.ceil(timeout.total_seconds()))


def _worker_resources(config: PretrainConfig) -> dict[str, float]:
    return {"CPU": config.execution.cpus_per_worker, **({"GPU": 1} if config.execution.use_gpu else {})}


def await_resources(config: PretrainConfig, say: Callable[[str], None]) -> None:
    """Wait up to `nodes_seconds` for room for the workers, which an autoscaler makes; say so when it takes a while.

    Raises ClusterTooSmallError when the nodes that there are then cannot hold the workers, or their minimum number.
    """
    execution = config.execution
    if execution.nodes_seconds:
        # An autoscaler acts on a placement group that waits, and Ray forgets it with this process. Training makes one
        # of its own at once, so no node is idle for long enough to be taken away.
        bundles = [_worker_resources(config)] * execution.workers
        group = placement_group(bundles, strategy=execution.placement)
        try:
            if not group.wait(min(execution.nodes_seconds, _SHORT_WAIT_SECONDS)):
                say(f"waiting up to {execution.nodes_seconds:.0f} s for nodes for {execution.workers} workers")
                group.wait(execution.nodes_seconds)
        finally:
            remove_placement_group(group)
    check_resources(config, tasks.node_resources())


def check_resources(config: PretrainConfig, nodes: Mapping[str, Mapping[str, float]]) -> None:
    """Raise IgptError when the nodes, given their total resources, cannot hold the workers.

    Ray would wait forever. Elastic training needs room for its minimum number of workers.
    """
    need = _worker_resources(config)
    capacities = {
        node: int(min(total.get(name, 0) // amount for name, amount in need.items())) for node, total in nodes.items()
    }
    execution = config.execution
    wanted = execution.workers if execution.min_workers is None else execution.min_workers
    capacity = sum(capacities.values())
    if execution.placement == "STRICT_PACK":
        capacity = max(capacities.values(), default=0)
    elif execution.placement == "STRICT_SPREAD":
        capacity = sum(workers > 0 for workers in capacities.values())
    if capacity >= wanted:
        return
    worker_needs = " and ".join(f"{amount:.0f} {name}" for name, amount in need.items())
    listed = ", ".join(
        f"{node}: " + " and ".join(f"{total.get(name, 0):.0f} {name}" for name in need)
        for node, total in sorted(nodes.items())[:_MAX_LISTED_NODES]
    )
    more = f", and {len(nodes) - _MAX_LISTED_NODES} more" if len(nodes) > _MAX_LISTED_NODES else ""
    field = "workers" if execution.min_workers is None else "min_workers"
    raise ClusterTooSmallError(
        f"{field} {wanted} need {worker_needs} each, placed {execution.placement}, and the Ray cluster has room for "
        f"{capacity} ({listed}{more}): {wanted - capacity} missing; set {field}, cpus_per_worker or placement lower, "
        "or add nodes"
    )


def _root_cause(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


class _MailboxPoller:
    """Forwards messages from the mailbox to the listener within its block, and the rest when the block succeeds."""

    def __init__(self, mailbox: Any, config: PretrainConfig, listener: Listener, progress: Progress) -> None:
        self.failure: IgptError | None = None
        self._mailbox, self._config, self._listener, self._progress = mailbox, config, listener, progress
        self._newest: dict[str, float] = {}
        self._workers: int | None = None
        self._groups = 0
        self._thread = in_background(self._poll, name="training-progress")

    def __enter__(self) -> "_MailboxPoller":
        self._thread.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self._thread.__exit__(kind, *error)
        try:
            if kind is None:
                self._forward()
        finally:
            ray.kill(self._mailbox, no_restart=True)

    def _poll(self, ended: Ended) -> None:
        while not ended(_POLL_SECONDS):
            with suppress(ray.exceptions.RayError):
                self._forward()

    def _forward(self) -> None:
        news: News = ray.get(self._mailbox.read.remote())
        self.failure = news.failure
        for line in news.warnings:
            self._listener.warn(line)
        if news.workers not in (None, self._workers):
            if self._workers is not None:
                self._listener.warn(f"training goes on with {news.workers} workers, it had {self._workers}")
            self._workers = news.workers
        for step, values in news.metrics:
            self._newest.update(values)
            self._listener.metrics(step, values)
        if news.step is not None and news.groups > self._groups:
            self._groups = news.groups
            self._listener.metrics(news.step, {"worker_restarts": news.groups - 1})
        for address, values in news.hosts.items():
            self._listener.metrics(news.step or 0, {f"system/{address}/{name}": v for name, v in values.items()})
        for step in news.saved:
            self._listener.saved(step)
        if news.step is None:
            self._progress("start", 0, 0, f"{self._config.execution.workers} workers")
        else:
            self._progress("train", news.step, self._config.optimizer.steps, _describe(self._newest))


def _describe(metrics: dict[str, float]) -> str:
    parts = ["steps"]
    for name, label in (("train_loss", "loss"), ("validation_loss", "validation"), ("images_per_second", "images/s")):
        if name in metrics:
            value = metrics[name]
            parts.append(f"{value:.0f} {label}" if name == "images_per_second" else f"{label} {value:.3f}")
    return ", ".join(parts)
