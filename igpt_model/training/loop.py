"""The training loop, independent of the launcher.

Runs the same under Ray Train, torchrun and plain Python: the launcher sets up the process group, if there are several
workers, and passes the Worker. `python -m igpt_model.train CONFIG.yaml` is the simplest launcher.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

from igpt_model.config import PretrainConfig
from igpt_model.data.batches import Inputs, Preparation
from igpt_model.data.training_images import TrainingImages
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.network import ImageGPT
from igpt_model.runs import checkpoint, initial_model, record
from igpt_model.runs.checkpoint import Checkpoint, Fetch, TrainingState
from igpt_model.runs.events import Listener
from igpt_model.runs.metric_log import LoggedMetrics
from igpt_model.runs.record import RunRecord
from igpt_model.runs.result import TrainResult, check_same_data
from igpt_model.runs.saver import Saver
from igpt_model.training.compiler import require_compiler
from igpt_model.training.evaluation import Evaluation
from igpt_model.training.optim import learning_rate
from igpt_model.training.parallel import allow_tf32
from igpt_model.training.spikes import WINDOW, SpikeGuard, told
from igpt_model.training.step import StepOutcome, train_step
from igpt_model.training.throughput import Throughput
from igpt_model.training.train_state import Learner
from igpt_model.training.watchdog import Watchdog
from igpt_model.worker import Worker
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.samples.shard_cache import ShardCache
from pipeline.samples.window_reader import check_room
from pipeline.store import objects
from pipeline.store.lease import Fence

_log = logging.getLogger(__name__)
_LOG_EVERY = 10  # steps; the logged loss is their mean


def train(
    config: PretrainConfig,
    snapshot: Snapshot,
    run: str,
    worker: Worker,
    listener: Listener,
    *,
    mlflow_run: str | None = None,
    heartbeat: Callable[[int], None] = lambda step: None,
    leaving: Callable[[], bool] = lambda: False,
    fence: Fence | None = None,
) -> TrainResult:
    """Train, or resume, the run in the folder `run` until its last step; every rank returns the same result.

    `heartbeat` is called on every rank after every step. `leaving` tells that workers will be preempted soon; it is
    called on every rank at the same steps, must return the same value on all, and the first True saves a checkpoint.
    Raises IgptError when a checkpoint belongs to another dataset, palette or shape, when more than `max_skipped_steps`
    consecutive steps have no finite loss and gradient, when checkpoints cannot be written, when another process
    took over the lease of the `fence`, or when compile is set and there is no compiler.
    """
    if config.is_compiled:
        require_compiler(worker, why="compile is set" if config.execution.compile else "use_gpu compiles by default")
    allow_tf32(config, worker.device)
    training = _Training(config, snapshot, run, worker, listener, mlflow_run, fence)
    try:
        with Watchdog(config.execution.hang_seconds, training.report_stacks) as training.watchdog:
            return training.run_to_end(heartbeat, leaving)
    finally:
        training.saver.close()
        training.images.close()


class _Training:
    """One worker's part of a run."""

    watchdog: Watchdog

    def __init__(
        self,
        config: PretrainConfig,
        snapshot: Snapshot,
        run: str,
        worker: Worker,
        listener: Listener,
        mlflow_run: str | None,
        fence: Fence | None,
    ) -> None:
        self.config, self.snapshot, self.run, self.worker, self.listener = config, snapshot, run, worker, listener
        self.fence = fence
        shards, held_out = snapshot.of_split("train"), snapshot.of_split("validation")
        check_room(shards, held_out, config.data.window_shards, config.execution.cache_bytes)
        cache = ShardCache(snapshot, config.execution.cache, config.execution.cache_bytes)
        model_config = config.model_for(snapshot)
        palette_K3 = snapshot.palette()
        preparation = Preparation(config, model_config, palette_K3, worker.device)
        views = [cache.open(shard) for shard in held_out]
        self.evaluation = Evaluation(views, preparation, config, worker, lambda: self.watchdog.beat())
        self.learner = Learner(model_config, config, worker, self._parent())
        self.bundle = ModelBundle(model=self.learner.evaluated, palette_K3=palette_K3, classes=tuple(snapshot.classes))
        self.state = TrainingState(
            step=0,
            cursor=0,
            restarts=0,
            seconds=0.0,
            mlflow_run=mlflow_run,
            snapshot=snapshot.number,
            snapshot_digest=snapshot.content_digest,
            palette_sha256=snapshot.palette_sha256,
        )
        self._continue()
        deviations = config.optimizer.spike_deviations
        self.spikes = None if deviations is None else SpikeGuard(deviations, self.state.recent, worker)
        self.saver = Saver(run, config, worker, listener, fence)
        if worker.rank == 0:
            record.write(run, RunRecord(config=record.pinned(config, snapshot), mlflow_run=mlflow_run))
        self.throughput = Throughput(model_config, config, worker)
        cursor, steps = self.state.cursor, config.optimizer.steps - self.state.step
        self.images = TrainingImages(config, snapshot, cache, preparation, worker, cursor=cursor, steps=steps)
        self.learner.settle(self.images.example(cursor))
        _log.info("rank %d of %d goes on with %s after step %d", worker.rank, worker.world_size, run, self.state.step)
        self._began = time.monotonic() - self.state.seconds
        self._last: dict[str, float] = {}
        self._unread: tuple[int, StepOutcome] | None = None

    def _parent(self) -> ImageGPT | None:
        """The parent of a run that has no checkpoint yet; None: start from random weights or a checkpoint."""
        if not self.worker.from_first(lambda: initial_model.is_needed(self.run, self.config)):
            return None
        parent, error = None, None
        try:
            parent = initial_model.read(self.run, self.config, self.snapshot).model
        except Exception as local_error:  # noqa: BLE001 (raised on every worker)
            error = local_error
        error = self.worker.first_error(error)
        if error is not None:
            raise error
        return parent

    def _continue(self) -> None:
        """Load the newest undamaged checkpoint of the run, if there is one."""

        def restore(saved: Checkpoint, fetch: Fetch) -> TrainingState:
            check_same_data(saved.state, self.snapshot, self.run)
            self.learner.restore(saved, fetch)
            return saved.state

        state = checkpoint.use_newest(self.run, restore, worker=self.worker, warn=self._warn)
        if state is not None:
            self.state = replace(state, restarts=state.restarts + 1)

    def report_stacks(self, text: str) -> None:
        """Store the stacks of this worker, which made no progress, and warn."""
        name = f"{self.state.step:08d}-{self.worker.rank:05d}.txt"
        url = objects.join(self.run, "stacks", name)
        try:
            objects.write_bytes(url, text.encode(), patient=False)
            where = f"its stacks are in {url}"
        except (IgptError, OSError) as error:
            where = f"its stacks could not be kept ({error})"
        self.listener.warn(
            f"worker {self.worker.rank} made no step for {self.config.execution.hang_seconds:.0f} s after step "
            f"{self.state.step}: it is ended, {where}"
        )

    def _warn(self, line: str) -> None:
        if self.worker.rank == 0:
            self.listener.warn(line)

    def run_to_end(self, heartbeat: Callable[[int], None], leaving: Callable[[], bool]) -> TrainResult:
        config = self.config
        saved_to_leave = False
        validation_loss: float | None = None
        while self.state.step < config.optimizer.steps:
            with self.throughput.step():
                self._step()
            heartbeat(self.state.step)
            self.watchdog.beat()
            self.saver.check()
            step = self.state.step
            last = step == config.optimizer.steps
            if last or step % config.tracking.evaluate_every == 0:
                validation_loss = self._evaluate(whole=last)
            elif step % _LOG_EVERY == 0:
                self._log_metrics()
            leave = step % _LOG_EVERY == 0 and not saved_to_leave and leaving()
            if (
                last
                or leave
                or _is_due(step, config.keeping.checkpoint_every)
                or _is_due(step, config.tracking.sample_every)
            ):
                self._save()
            if leave:
                saved_to_leave = True
                self.saver.wait()
        self.saver.wait(needed=True)
        if validation_loss is None:  # resumed after the last step
            validation_loss = self.evaluation.loss(self.learner.evaluated, whole=True).evaluated
        result = TrainResult(
            steps=self.state.step,
            images=self.state.cursor,
            validation_loss=validation_loss,
            validation_images=self.evaluation.images,
            train_loss=_mean(self.state.losses) if self.state.losses else float("nan"),
            seconds=self.state.seconds,
            images_per_second=self.state.cursor / max(self.state.seconds, 1e-9),
            restarts=self.state.restarts,
            parameters=self.learner.model.config.parameters,
            snapshot_digest=self.state.snapshot_digest,
            palette_sha256=self.snapshot.palette_sha256,
            skipped_steps=self.state.skipped,
            skipped_spikes=self.state.spikes,
        )
        if self.worker.rank == 0:
            if self.fence is not None:
                self.fence.check()
            objects.write_bytes(objects.join(self.run, "result.json"), json.dumps(asdict(result)).encode())
        return result

    def _step(self) -> None:
        """One step on the next global batch."""
        config, worker, state = self.config, self.worker, self.state
        rate = learning_rate(state.step, config)
        ranges = self.images.ranges(state.cursor)
        # For audits: which rank trained on which positions.
        _log.debug(
            "restart %d step %d: rank %d of %d has positions %d to %d",
            state.restarts,
            state.step + 1,
            worker.rank,
            worker.world_size,
            ranges[0].start,
            ranges[-1].stop,
        )
        parts = [partial(self._take, part) for part in ranges]
        outcome = train_step(self.learner.parallel, self.learner.optimizer, parts, rate, config, worker, self.spikes)
        self._note_outcome()  # of the step before; this one is queued by now, so that a GPU has work meanwhile
        self._unread = state.step + 1, outcome
        if self._is_read_at_once(state.step + 1):
            self._note_outcome()
        self.state = replace(
            self.state,
            step=state.step + 1,
            cursor=state.cursor + config.optimizer.global_batch,
            seconds=time.monotonic() - self._began,
            workers=worker.world_size,
            validation_loss=None,
        )
        self.learner.follow(self.state.step, outcome.applied)
        self._last["learning_rate"] = rate

    def _is_read_at_once(self, step: int) -> bool:
        """Whether a step is followed by a log line, an evaluation or a checkpoint."""
        keeping, tracking = self.config.keeping, self.config.tracking
        often = (_LOG_EVERY, tracking.evaluate_every, keeping.checkpoint_every, tracking.sample_every)
        return step == self.config.optimizer.steps or any(_is_due(step, every) for every in often)

    def _note_outcome(self) -> None:
        """Add the outcome of the last unread step to the state. Waits until that step is done."""
        if self._unread is None:
            return
        (step, outcome), self._unread = self._unread, None
        state = self.state
        in_a_row = 0 if outcome.finite else state.skipped_in_a_row + 1
        if in_a_row > self.config.execution.max_skipped_steps:
            raise IgptError(
                f"{self.run}: the loss is {outcome.loss} and the norm of the gradient {outcome.gradient_norm} at step "
                f"{step}, as in the {in_a_row - 1} steps before; lower learning_rate and run again, it continues from "
                "the last checkpoint"
            )
        self.state = replace(
            state,
            skipped=state.skipped + (not outcome.finite),
            skipped_in_a_row=in_a_row,
            losses=(*state.losses, *([outcome.loss] if outcome.finite else []))[-_LOG_EVERY:],
        )
        if self.spikes is not None and outcome.finite:
            value = outcome.loss, outcome.gradient_norm
            if outcome.is_spike:
                self._warn(told(step, value, state.recent))
            recent = (*state.recent, value)[-WINDOW:]
            self.state = replace(self.state, spikes=state.spikes + outcome.is_spike, recent=recent)
        self._last["gradient_norm"] = outcome.gradient_norm

    def _take(self, positions: range) -> Inputs:
        """The model inputs of the next micro batch, which has these positions of the sample order."""
        with self.throughput.waiting():
            images = self.images.take()
        return self.images.inputs(images, positions)

    def _evaluate(self, *, whole: bool) -> float:
        """Evaluate the model, log that, and return the loss."""
        loss = self.evaluation.loss(self.learner.evaluated, whole=whole)
        self.state = replace(self.state, validation_loss=loss.chosen)
        bits = loss.evaluated / math.log(2)
        self._log_metrics({"validation_loss": loss.evaluated, "validation_bits_per_pixel": bits})
        return loss.evaluated

    def _log_metrics(self, evaluated: Mapping[str, float] | None = None) -> None:
        if self.worker.rank == 0:
            values = {
                **({"train_loss": _mean(self.state.losses)} if self.state.losses else {}),
                **(evaluated or {}),
                **self._last,
                **self.throughput.values(),
                "skipped_steps": self.state.skipped,
                **({} if self.spikes is None else {"skipped_spikes": self.state.spikes}),
            }
            self.saver.log(LoggedMetrics(step=self.state.step, values=values))
            self.listener.metrics(self.state.step, values)
            _log.info("step %d: %s", self.state.step, ", ".join(f"{key} {value:.5g}" for key, value in values.items()))

    def _save(self) -> None:
        self.saver.save(self.state, self.learner.tensors(), self.bundle.described())


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
