"""Training on a Ray cluster: Ray Train V2 places the workers and restarts their group; train.py does the rest."""

import logging
import time
import uuid
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from igpt_model.config import PretrainConfig
from igpt_model.runs.events import Listener
from igpt_model.runs.result import TrainResult, read_result
from igpt_model.training.host_metrics import host_monitor
from igpt_model.training.loop import train
from igpt_model.training.ray_mailbox import Mailbox, MailboxListener, News
from igpt_model.worker import Worker
from pipeline.background import Ended, in_background
from pipeline.cluster import tasks
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.progress import Progress, silent
from pipeline.store import objects
from pipeline.store.lease import Fence

_POLL_SECONDS = 0.5
_BEAT_SECONDS = 0.25  # a message at every step would cost a fast one some percent
_NAMED_NODES = 8  # in an error


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """What a training worker is told."""

    config: PretrainConfig
    snapshot: Snapshot
    run: str
    mlflow_run: str
    """Id of its MLflow run, which its checkpoints keep."""
    flow_run_id: str = ""
    """Id of the flow run it is part of, for its workers' logs."""
    fence: Fence | None = None
    """Lets its checkpoints pass as long as the run's lease is held."""


def _worker_loop(arguments: dict[str, Any]) -> None:
    """What each training worker runs."""
    job: TrainJob = arguments["job"]
    mailbox = arguments["mailbox"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    tasks.log_as_json(job.flow_run_id)()  # once more: Ray Train has put its own handlers there
    torch.set_num_threads(job.config.execution.cpus_per_worker)
    worker = Worker(rank=rank, world_size=context.get_world_size(), device=get_device())
    listener = MailboxListener(mailbox)

    beaten = -_BEAT_SECONDS

    def heartbeat(step: int) -> None:
        nonlocal beaten
        now = time.monotonic()
        if rank == 0 and (now - beaten >= _BEAT_SECONDS or step == job.config.optimizer.steps):
            beaten = now
            mailbox.beat.remote(step, worker.world_size)

    def leaving() -> bool:
        return ray.train.get_preemption_info() is not None

    address = ray.util.get_node_ip_address()
    alone = context.get_local_rank() == 0  # the one of its machine that measures it
    monitor = host_monitor(lambda values: mailbox.host.remote(address, values)) if alone else nullcontext()
    try:
        if job.fence is not None:
            job.fence.check()  # on every rank, so that a group that is started again after one ends in peace
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
        # A fault of the input stays one however often it is tried: told to the driver, and the group ends in peace.
        ray.get(mailbox.fail.remote(error))


def train_on_cluster(job: TrainJob, listener: Listener, *, progress: Progress = silent) -> TrainResult:
    """Run a training job to its end on the cluster this process is connected to, or continue it.

    `listener` hears in this process. Raises IgptError when the cluster is too small, when the input is at fault, or
    when workers died more often than `max_restarts` allows; the checkpoints stay, and the same job continues from them.
    """
    config, wanted = job.config, job.config.execution
    check_resources(config, tasks.node_resources())
    # On this process's node: with any other one the news would be lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()
    filesystem, path = objects.arrow_filesystem(objects.join(job.run, "ray"))
    trainer = TorchTrainer(
        _worker_loop,
        train_loop_config={"job": job, "mailbox": mailbox},
        torch_config=TorchConfig(backend="nccl" if wanted.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=wanted.workers if wanted.min_workers is None else (wanted.min_workers, wanted.workers),
            elastic_resize_monitor_interval_s=wanted.resize_seconds,
            use_gpu=wanted.use_gpu,
            resources_per_worker=_worker_resources(config),
            placement_strategy=wanted.placement,
        ),
        run_config=RunConfig(
            # A name of its own: Ray would continue a run of the same name from its records; the checkpoints are ours.
            name=uuid.uuid4().hex,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=wanted.max_restarts),
        ),
    )
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # its failures are told below, in one line
    with _Watch(mailbox, config, listener, progress) as watch:
        try:
            trainer.fit()
        except SystemExit:
            # Ray's own handler of Ctrl-C ends the workers and then this process; the flow still has a run to close.
            raise KeyboardInterrupt from None
        except ray.train.TrainingFailedError as error:
            raise IgptError(
                f"{job.run}: training workers died more often than max_restarts {config.execution.max_restarts} allows "
                f"({_root_cause(error)}); run the same command again to continue from the last checkpoint"
            ) from None
    if watch.failure is not None:
        raise watch.failure
    objects.delete_tree(objects.join(job.run, "ray"))
    result = read_result(job.run)
    if result is None:
        raise IgptError(f"{job.run}: training ended without a result; run the same command again to continue")
    return result


def _worker_resources(config: PretrainConfig) -> dict[str, float]:
    return {"CPU": config.execution.cpus_per_worker, **({"GPU": 1} if config.execution.use_gpu else {})}


def check_resources(config: PretrainConfig, nodes: Mapping[str, Mapping[str, float]]) -> None:
    """Refuse what the nodes, with what each has in all, cannot hold; the error names what is missing.

    Ray would wait for it for ever. An elastic training needs room for its smallest number of workers.
    """
    need = _worker_resources(config)
    rooms = {
        node: int(min(have.get(name, 0) // amount for name, amount in need.items())) for node, have in nodes.items()
    }
    execution = config.execution
    wanted = execution.workers if execution.min_workers is None else execution.min_workers
    room = sum(rooms.values())
    if execution.placement == "STRICT_PACK":
        room = max(rooms.values(), default=0)
    elif execution.placement == "STRICT_SPREAD":
        room = sum(has > 0 for has in rooms.values())
    if room >= wanted:
        return
    each = " and ".join(f"{amount:.0f} {name}" for name, amount in need.items())
    found = ", ".join(
        f"{node}: " + " and ".join(f"{have.get(name, 0):.0f} {name}" for name in need)
        for node, have in sorted(nodes.items())[:_NAMED_NODES]
    )
    more = f", and {len(nodes) - _NAMED_NODES} more" if len(nodes) > _NAMED_NODES else ""
    field = "workers" if execution.min_workers is None else "min_workers"
    raise IgptError(
        f"{field} {wanted} need {each} each, placed {execution.placement}, and the Ray cluster has room for "
        f"{room} ({found}{more}): {wanted - room} missing; set {field}, cpus_per_worker or placement lower, "
        "or add nodes"
    )


def _root_cause(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


class _Watch:
    """Passes on what is in the mailbox while its block runs, and what is left when the block ends in peace."""

    def __init__(self, mailbox: Any, config: PretrainConfig, listener: Listener, progress: Progress) -> None:
        self.failure: IgptError | None = None
        self._mailbox, self._config, self._listener, self._progress = mailbox, config, listener, progress
        self._newest: dict[str, float] = {}
        self._workers: int | None = None
        self._thread = in_background(self._poll, name="training-progress")

    def __enter__(self) -> "_Watch":
        self._thread.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self._thread.__exit__(kind, *error)
        try:
            if kind is None:
                self._pass_on()
        finally:
            ray.kill(self._mailbox, no_restart=True)

    def _poll(self, ended: Ended) -> None:
        while not ended(_POLL_SECONDS):
            with suppress(ray.exceptions.RayError):
                self._pass_on()

    def _pass_on(self) -> None:
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
