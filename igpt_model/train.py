"""The training loop: plain functions over a model, an order of samples and a run's folder. No framework.

Runs the same under Ray Train, torchrun and plain Python: whoever starts it sets up the process group, if there are
several workers, and says which of them this is. `python -m igpt_model.train CONFIG.yaml` is the plain way.
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from igpt_model import checkpoint, standalone
from igpt_model.checkpoint import TrainingState
from igpt_model.config import PretrainConfig
from igpt_model.data import ShardCache, batches, gather
from igpt_model.execution import Worker, parallelize, prepare_blocks
from igpt_model.inputs import Inputs, Preparation
from igpt_model.model import ImageGPT
from igpt_model.model_folder import ModelFolder
from igpt_model.optim import learning_rate, make_optimizer, update_average
from igpt_model.order import SampleOrder, rank_range
from igpt_model.step import StepOutcome, mean_loss, train_step
from igpt_model.train_result import TrainResult, check_same_data, finished
from pipeline import snapshot as snapshots
from pipeline import storage
from pipeline.errors import IgptError
from pipeline.lease import Fence
from pipeline.snapshot import Snapshot

_EVALUATION_BATCH = 64
_REPORT_EVERY = 10  # steps


class Listener(Protocol):
    """Hears on rank 0 how training goes. Metrics are named as in MLflow."""

    def metrics(self, step: int, values: dict[str, float]) -> None: ...

    def warn(self, line: str) -> None: ...


def train(
    config: PretrainConfig,
    snapshot: Snapshot,
    run: str,
    worker: Worker,
    listener: Listener,
    *,
    mlflow_run: str | None = None,
    heartbeat: Callable[[int], None] = lambda step: None,
    fence: Fence | None = None,
) -> TrainResult:
    """Train, or continue, the run in the folder `run` until its last step; every rank returns the same result.

    `heartbeat` is called on every rank at every step. Raises IgptError when a checkpoint belongs to another dataset,
    palette or shape, when more steps in a row than `max_skipped_steps` have no finite loss and gradient, or when the
    `fence` lets no checkpoint pass any more.
    """
    training = _Training(config, snapshot, run, worker, listener, mlflow_run)
    training.fence = fence
    return training.run_to_end(heartbeat)


class _Training:
    """One worker's part of a run."""

    def __init__(
        self,
        config: PretrainConfig,
        snapshot: Snapshot,
        run: str,
        worker: Worker,
        listener: Listener,
        mlflow_run: str | None,
    ) -> None:
        self.config, self.snapshot, self.run, self.worker, self.listener = config, snapshot, run, worker, listener
        self.fence: Fence | None = None
        cache = ShardCache(snapshot, config.cache)
        self.train_views = [cache.open(shard) for shard in snapshot.of_split("train")]
        self.validation_views = [cache.open(shard) for shard in snapshot.of_split("validation")]
        samples = [shard.samples for shard in snapshot.of_split("train")]
        self.order = SampleOrder(samples, seed=config.seed, window_shards=config.window_shards)
        torch.manual_seed(config.seed)
        model_config = config.model_config(
            resolution=snapshot.resolution, colours=snapshot.colours, classes=len(snapshot.classes)
        )
        self.model = ImageGPT(model_config).to(worker.device)
        self.average: ImageGPT | None = None
        if config.ema_decay is not None:
            self.average = ImageGPT(model_config).to(worker.device).requires_grad_(False)
            self.average.load_state_dict(self.model.state_dict())
        palette_K3 = snapshot.palette()
        self.preparation = Preparation(config, model_config, palette_K3, worker.device)
        self.folder = ModelFolder(
            model=self.average or self.model, palette_K3=palette_K3, classes=tuple(snapshot.classes)
        )
        self.optimizer = make_optimizer(self.model, config)
        self.state = TrainingState(
            step=0,
            cursor=0,
            restarts=0,
            seconds=0.0,
            mlflow_run=mlflow_run,
            snapshot=snapshot.number,
            manifest_digest=snapshot.digest,
            palette_sha256=snapshot.palette_sha256,
        )
        self._continue()
        prepare_blocks(self.model, config)
        if self.average is not None:
            prepare_blocks(self.average, config)
        self.parallel = parallelize(self.model, worker)
        self._started = time.monotonic()
        self._began = self._started - self.state.seconds
        self._loading = 0.0  # seconds spent on getting images since the start
        self._last: dict[str, float] = {}

    def _continue(self) -> None:
        """Load the newest good checkpoint of the run, if there is one."""
        with tempfile.TemporaryDirectory(prefix="igpt-checkpoint-") as temporary:
            found = checkpoint.load_newest(self.run, Path(temporary), warn=self.listener.warn)
            if found is None:
                return
            check_same_data(found.state, self.snapshot, self.run)
            try:
                found.restore(self.model, self.optimizer, self.average)
            except RuntimeError as error:
                raise IgptError(
                    f"{self.run}: the checkpoint has another model shape ({str(error).splitlines()[0]}); "
                    "use the preset, objective, resolution and colours it was trained with, or another runs folder"
                ) from None
            self.state = replace(found.state, restarts=found.state.restarts + 1)

    def run_to_end(self, heartbeat: Callable[[int], None]) -> TrainResult:
        config = self.config
        evaluated: dict[str, float] = {}
        losses: list[float] = []  # of the steps since the last evaluation that were not left out
        while self.state.step < config.steps:
            outcome = self._step()
            losses += [outcome.loss] if outcome.finite else []
            heartbeat(self.state.step)
            step = self.state.step
            last = step == config.steps
            if last or step % config.evaluate_every == 0:
                evaluated = self._evaluate()
                self._report(losses, evaluated)
                losses = losses[-1:] if last else []
            elif step % _REPORT_EVERY == 0:
                self._report(losses[-_REPORT_EVERY:])
            if last or step % config.checkpoint_every == 0:
                self._save()
        if not evaluated:
            evaluated = self._evaluate()
        result = TrainResult(
            steps=self.state.step,
            images=self.state.cursor,
            validation_loss=evaluated["validation_loss"],
            validation_images=sum(len(view.tokens_NHW) for view in self.validation_views),
            train_loss=losses[-1] if losses else float("nan"),
            seconds=self.state.seconds,
            images_per_second=self.state.cursor / max(self.state.seconds, 1e-9),
            restarts=self.state.restarts,
            parameters=self.model.config.parameters,
            manifest_digest=self.snapshot.digest,
            palette_sha256=self.snapshot.palette_sha256,
            skipped_steps=self.state.skipped,
        )
        if self.worker.rank == 0:
            if self.fence is not None:
                self.fence.check()
            storage.write_bytes(storage.join(self.run, "result.json"), json.dumps(asdict(result)).encode())
        return result

    def _step(self) -> StepOutcome:
        """One step on the next global batch."""
        config, worker, state = self.config, self.worker, self.state
        rate = learning_rate(state.step, config)
        start, stop = rank_range(state.cursor, config.global_batch, worker.rank, worker.world_size)
        size = config.micro_batch or stop - start
        parts = [partial(self._load, begin, min(begin + size, stop)) for begin in range(start, stop, size)]
        outcome = train_step(self.parallel, self.optimizer, parts, rate, config, worker)
        in_a_row = 0 if outcome.finite else state.skipped_in_a_row + 1
        if in_a_row > config.max_skipped_steps:
            raise IgptError(
                f"{self.run}: the loss is {outcome.loss} and the norm of the gradient {outcome.gradient_norm} at step "
                f"{state.step}, as in the {in_a_row - 1} steps before; lower learning_rate and run again, it continues "
                "from the last checkpoint"
            )
        self.state = replace(
            state,
            step=state.step + 1,
            cursor=state.cursor + config.global_batch,
            seconds=time.monotonic() - self._began,
            skipped=state.skipped + (not outcome.finite),
            skipped_in_a_row=in_a_row,
        )
        if self.average is not None and config.ema_decay is not None and outcome.finite:
            weights = (list(model.parameters()) for model in (self.average, self.model))
            update_average(*weights, decay=config.ema_decay, step=self.state.step)
        self._last = {"learning_rate": rate, "gradient_norm": outcome.gradient_norm}
        return outcome

    def _load(self, start: int, stop: int) -> Inputs:
        """The images at some positions of the endless order, as inputs."""
        began = time.monotonic()
        images = gather(self.train_views, self.order.at(start, stop))
        self._loading += time.monotonic() - began
        return self.preparation.for_training(images, start)

    def _evaluate(self) -> dict[str, float]:
        """The loss on the whole validation split, each worker on its part."""
        model = self.average or self.model
        loss = mean_loss(model, self._validation(), self.config, self.worker)
        return {"validation_loss": loss, "validation_bits_per_pixel": loss / math.log(2)}

    def _validation(self) -> Iterator[Inputs]:
        """This worker's part of the validation split."""
        rank, world_size = self.worker.rank, self.worker.world_size
        place = sum(len(view.tokens_NHW) for view in self.validation_views) * rank // world_size
        size = min(_EVALUATION_BATCH, self.config.micro_batch or _EVALUATION_BATCH)
        for images in batches(self.validation_views, size, part=rank, parts=world_size):
            yield self.preparation.for_evaluation(images, place)
            place += len(images.labels_N)

    def _report(self, losses: Sequence[float], evaluated: Mapping[str, float] | None = None) -> None:
        if self.worker.rank == 0:
            here = max(time.monotonic() - self._started, 1e-9)
            values = {
                **({"train_loss": sum(losses) / len(losses)} if losses else {}),
                **(evaluated or {}),
                **self._last,
                "images_per_second": self.state.cursor / max(self.state.seconds, 1e-9),
                "loader_share": self._loading / here,
                "skipped_steps": self.state.skipped,
            }
            self.listener.metrics(self.state.step, values)

    def _save(self) -> None:
        if self.worker.rank == 0:
            training = self.model if self.average is not None else None
            keep = self.config.keep_checkpoints
            checkpoint.save(self.run, self.state, self.folder, self.optimizer, training, keep=keep, fence=self.fence)


def main() -> None:
    """Train as a worker of torchrun, or as the only one. Exits with 2 after bad input, in one line."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0].startswith("-"):
        sys.exit(standalone.USAGE)
    try:
        config = standalone.read_config(Path(arguments[0]), arguments[1:])
        with standalone.worker(config) as worker:
            data = snapshots.read(config.dataset, config.snapshot)
            run = storage.join(storage.absolute(config.runs), config.run_name(data.digest))
            config = replace(config, workers=worker.world_size)
            result = finished(config, data, run) or train(config, data, run, worker, standalone.Printer())
            if worker.rank == 0:
                print(
                    f"{run}: validation loss {result.validation_loss:.4f} nats per pixel after {result.steps} steps, "
                    f"{result.images_per_second:.0f} images/s",
                    flush=True,
                )
    except IgptError as error:
        print(f"igpt: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
