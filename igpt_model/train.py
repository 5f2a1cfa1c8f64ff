"""The training loop: plain functions over a model, an order of samples and a run's folder. No framework.

Runs the same under Ray Train, torchrun and plain Python: whoever starts it sets up the process group, if there are
several workers, and says which of them this is.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from igpt_model import checkpoint
from igpt_model.checkpoint import TrainingState
from igpt_model.config import PretrainConfig
from igpt_model.data import ShardCache, batches, gather
from igpt_model.model import ImageGPT
from igpt_model.model_folder import ModelFolder
from igpt_model.objective import autoregressive_loss, image_losses
from igpt_model.order import SampleOrder, rank_range
from pipeline import storage
from pipeline.errors import IgptError
from pipeline.snapshot import Snapshot

_BETAS = (0.9, 0.95)  # section 3.2 of the paper
_EVALUATION_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Which of the workers this process is, and where it computes."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")


class Listener(Protocol):
    """Hears on rank 0 how training goes. Metrics are named as in MLflow."""

    def metrics(self, step: int, values: dict[str, float]) -> None: ...

    def warn(self, line: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished run came to; kept as {run}/result.json."""

    steps: int
    images: int
    """Images trained on, repetitions counted."""
    validation_loss: float
    """Nats per pixel on the whole validation split."""
    validation_images: int
    train_loss: float
    """Nats per pixel, the mean over the last steps that were logged."""
    seconds: float
    images_per_second: float
    restarts: int
    parameters: int
    manifest_digest: str
    """Digest of the dataset snapshot it was trained on."""
    palette_sha256: str


def learning_rate(step: int, config: PretrainConfig) -> float:
    """The learning rate of a step: a linear rise, then a cosine to 0 at the last."""
    if step < config.warmup_steps:
        return config.peak_learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.peak_learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def make_optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.AdamW:
    """Adam as in the paper; weight decay, where asked for, on the matrices only."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name not in {"positions", "tokens.weight"}]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.peak_learning_rate, betas=_BETAS, eps=1e-8)


def read_result(run: str) -> TrainResult | None:
    """The result of a finished run, or None."""
    try:
        return TrainResult(**json.loads(storage.read_bytes(storage.join(run, "result.json"))))
    except FileNotFoundError:
        return None


def finished(config: PretrainConfig, snapshot: Snapshot, run: str) -> TrainResult | None:
    """The result of a run that needs no more training for this config, or None.

    Raises IgptError when the run was trained on another dataset or palette.
    """
    result = read_result(run)
    if result is None:
        return None
    _check_same_data(result, snapshot, run)
    return result if result.steps >= config.steps else None


def train(
    config: PretrainConfig,
    snapshot: Snapshot,
    run: str,
    worker: Worker,
    listener: Listener,
    *,
    mlflow_run: str | None = None,
    heartbeat: Callable[[int], None] = lambda step: None,
) -> TrainResult:
    """Train, or continue, the run in the folder `run` until its last step; every rank returns the same result.

    `heartbeat` is called on every rank at every step. Raises IgptError when a checkpoint belongs to another dataset,
    palette or shape, or when the loss stops being finite.
    """
    return _Training(config, snapshot, run, worker, listener, mlflow_run).run_to_end(heartbeat)


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
        cache = ShardCache(snapshot, config.cache)
        self.train_views = [cache.open(shard) for shard in snapshot.of_split("train")]
        self.validation_views = [cache.open(shard) for shard in snapshot.of_split("validation")]
        samples = [shard.samples for shard in snapshot.of_split("train")]
        self.order = SampleOrder(samples, seed=config.seed, window_shards=config.window_shards)
        torch.manual_seed(config.seed)
        model_config = config.model_config(resolution=snapshot.resolution, colours=snapshot.colours)
        self.model = ImageGPT(model_config).to(worker.device)
        self.folder = ModelFolder(model=self.model, palette_K3=snapshot.palette(), classes=snapshot.classes)
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
        self.parallel: nn.Module = self.model
        if worker.world_size > 1:
            devices = [worker.device] if worker.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.model, device_ids=devices)
        self._began = time.monotonic() - self.state.seconds

    def _continue(self) -> None:
        """Load the newest good checkpoint of the run, if there is one."""
        with tempfile.TemporaryDirectory(prefix="igpt-checkpoint-") as temporary:
            found = checkpoint.load_newest(self.run, Path(temporary), warn=self.listener.warn)
            if found is None:
                return
            _check_same_data(found.state, self.snapshot, self.run)
            try:
                found.restore(self.model, self.optimizer)
            except RuntimeError as error:
                raise IgptError(
                    f"{self.run}: the checkpoint has another model shape ({str(error).splitlines()[0]}); "
                    "use the preset, resolution and colours it was trained with, or another runs folder"
                ) from None
            self.state = replace(found.state, restarts=found.state.restarts + 1)

    def run_to_end(self, heartbeat: Callable[[int], None]) -> TrainResult:
        config = self.config
        evaluated: dict[str, float] = {}
        losses: list[float] = []
        while self.state.step < config.steps:
            losses.append(self._step(heartbeat))
            step = self.state.step
            last = step == config.steps
            if last or step % config.evaluate_every == 0:
                evaluated = self._evaluate()
                self._report({"train_loss": sum(losses) / len(losses), **evaluated})
                losses = losses[-1:] if last else []
            elif step % 10 == 0:
                self._report({"train_loss": sum(losses[-10:]) / len(losses[-10:])})
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
        )
        if self.worker.rank == 0:
            storage.write_bytes(storage.join(self.run, "result.json"), json.dumps(asdict(result)).encode())
        return result

    def _step(self, heartbeat: Callable[[int], None]) -> float:
        """One optimizer step on the next global batch; returns its loss, the mean over the whole batch."""
        config, worker, state = self.config, self.worker, self.state
        rate = learning_rate(state.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        start, stop = rank_range(state.cursor, config.global_batch, worker.rank, worker.world_size)
        tokens_BT = torch.from_numpy(gather(self.train_views, self.order.at(start, stop))).to(worker.device)
        # Workers may hold parts that differ by one image: weighted, so that the mean over workers is the batch's mean.
        weight = (stop - start) * worker.world_size / config.global_batch
        with self._autocast():
            loss = autoregressive_loss(self.parallel(tokens_BT), tokens_BT) * weight
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradient_norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
        mean_loss = float(self._mean(loss.detach()))
        if not (math.isfinite(mean_loss) and math.isfinite(float(gradient_norm))):
            raise IgptError(
                f"{self.run}: the loss is {mean_loss} at step {state.step}; lower learning_rate and run again, "
                "it continues from the last checkpoint"
            )
        self.optimizer.step()
        self.state = replace(
            state,
            step=state.step + 1,
            cursor=state.cursor + config.global_batch,
            seconds=time.monotonic() - self._began,
        )
        self._last = {"learning_rate": rate, "gradient_norm": float(gradient_norm)}
        heartbeat(self.state.step)
        return mean_loss

    def _autocast(self) -> Any:
        if self.config.precision == "bfloat16":
            return torch.autocast(self.worker.device.type, torch.bfloat16)
        return nullcontext()

    def _mean(self, value: Tensor) -> Tensor:
        """The mean over the workers."""
        if self.worker.world_size > 1:
            dist.all_reduce(value)
            value = value / self.worker.world_size
        return value

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        """The loss on the whole validation split, each worker on its part."""
        total = torch.zeros(2, dtype=torch.float64)
        self.model.eval()
        parts = batches(self.validation_views, _EVALUATION_BATCH, part=self.worker.rank, parts=self.worker.world_size)
        for tokens in parts:
            tokens_BT = torch.from_numpy(tokens).to(self.worker.device)
            with self._autocast():
                logits_BTK = self.model(tokens_BT)
            total += torch.tensor([float(image_losses(logits_BTK, tokens_BT).sum()), len(tokens)])
        self.model.train()
        total = self._mean(total.to(self.worker.device))
        loss = float(total[0] / total[1])
        return {"validation_loss": loss, "validation_bits_per_pixel": loss / math.log(2)}

    def _report(self, values: dict[str, float]) -> None:
        if self.worker.rank == 0:
            speed = {"images_per_second": self.state.cursor / max(self.state.seconds, 1e-9)}
            self.listener.metrics(self.state.step, {**values, **self._last, **speed})

    def _save(self) -> None:
        if self.worker.rank == 0:
            checkpoint.save(self.run, self.state, self.folder, self.optimizer, keep=self.config.keep_checkpoints)


def _check_same_data(trained: TrainingState | TrainResult, snapshot: Snapshot, run: str) -> None:
    """Raise IgptError when a run was trained on another palette or snapshot than it would go on with."""
    if trained.palette_sha256 != snapshot.palette_sha256:
        raise IgptError(
            f"{run}: it was trained with palette {trained.palette_sha256[:12]}, the dataset has "
            f"{snapshot.palette_sha256[:12]}; use the dataset it was trained on, or another name or runs folder"
        )
    if trained.manifest_digest != snapshot.digest:
        raise IgptError(
            f"{run}: it was trained on the snapshot with digest {trained.manifest_digest[:12]}, this one has "
            f"{snapshot.digest[:12]}; give that snapshot's number, or another name or runs folder"
        )
