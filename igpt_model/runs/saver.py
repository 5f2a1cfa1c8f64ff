"""Writes a run's checkpoints in the background: training waits only for the copy to CPU memory."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch.distributed as dist
from torch import Tensor

from igpt_model.config import PretrainConfig
from igpt_model.runs import checkpoint, metric_log, sharded
from igpt_model.runs.checkpoint import TrainingState
from igpt_model.runs.events import Listener
from igpt_model.runs.metric_log import LoggedMetrics
from igpt_model.runs.sharded import Staged
from igpt_model.runs.tensor_files import Index
from igpt_model.worker import Worker, collective_timeout
from pipeline.errors import IgptError
from pipeline.store.lease import Fence, LeaseLostError


class Saver:
    """Writes one checkpoint at a time, in a background thread; all ranks call the same methods at the same steps.

    If the store fails for `upload_seconds`, that checkpoint is given up with a warning, as long as an older one exists.
    Once another process has taken over the lease of the `fence`, no further checkpoint is marked complete.
    """

    def __init__(
        self,
        run: str,
        config: PretrainConfig,
        worker: Worker,
        listener: Listener,
        fence: Fence | None = None,
    ) -> None:
        self._run, self._config, self._worker, self._fence = run, config, worker, fence
        self._listener = listener
        # A separate process group: collectives of two threads on the same group could be mixed up.
        timeout = collective_timeout(config.execution.hang_seconds)
        self._group = dist.new_group(backend="gloo", timeout=timeout) if worker.world_size > 1 else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: tuple[int, Future[None]] | None = None
        self._warned_step: int | None = None
        """Step of the last failed checkpoint that was warned about."""
        self._losses: dict[int, float | None] = worker.from_first(lambda: checkpoint.losses(run))
        self._logged: list[LoggedMetrics] = []

    def log(self, metrics: LoggedMetrics) -> None:
        """Store metrics with the next checkpoint."""
        self._logged.append(metrics)

    def save(self, state: TrainingState, tensors: Mapping[str, Tensor], files: Mapping[str, bytes]) -> None:
        """Copy the tensors and start writing them, once the previous checkpoint is written or given up.

        Raises IgptError when the previous one could not be written and there is no older one.
        """
        self.wait()
        staged = Staged(tensors, self._worker.rank, self._worker.world_size)
        self._writing = state.step, self._thread.submit(self._write, state, staged, files, list(self._logged))

    def check(self) -> None:
        """Warn once about a checkpoint that could not be written.

        Raises LeaseLostError when another process owns the run now.
        """
        if self._writing is not None and self._writing[1].done():
            step, writing = self._writing
            error = writing.exception()
            if isinstance(error, LeaseLostError):
                raise error
            if error is not None and self._warned_step != step and self._worker.rank == 0:
                self._warned_step = step
                self._listener.warn(
                    f"checkpoint of step {step} could not be written ({error}); training goes on, and the next one is "
                    f"due within {self._config.keeping.checkpoint_every} steps"
                )

    def wait(self, *, needed: bool = False) -> None:
        """Wait until the checkpoint being written is done.

        Raises IgptError when it could not be written and is `needed` or there is no older one, and LeaseLostError when
        another process owns the run now.
        """
        if self._writing is None:
            return
        step, writing = self._writing
        error = writing.exception()  # waits
        self.check()
        self._writing = None
        if error is None:
            return
        if not isinstance(error, IgptError | OSError):
            raise error
        if needed or not self._losses:
            raise IgptError(
                f"{self._run}: the checkpoint of step {step} could not be written, "
                f"{'and it is the last' if needed else 'and there is none before it'} ({error}); "
                "when the store takes it, run the same command again"
            ) from None

    def close(self) -> None:
        """Stop the thread after the checkpoint being written; its outcome is ignored."""
        self._thread.shutdown(wait=True)

    def _write(
        self, state: TrainingState, staged: Staged, files: Mapping[str, bytes], logged: list[LoggedMetrics]
    ) -> None:
        url = checkpoint.folder_of(self._run, state.step)

        def commit(index: Index) -> None:
            if self._fence is not None:
                self._fence.check()
            if logged:
                metric_log.write(self._run, state.step, logged)
            checkpoint.complete(url, state, index, files)

        sharded.write(
            url, staged, self._worker.rank, self._group, seconds=self._config.keeping.upload_seconds, commit=commit
        )
        if self._worker.rank == 0:
            self._listener.saved(state.step)
        del self._logged[: len(logged)]
        self._losses[state.step] = state.validation_loss
        keeping = self._config.keeping
        for step in checkpoint.to_prune(
            self._losses, keep_last=keeping.keep_last, keep_best=keeping.keep_best, keep_every=keeping.keep_every
        ):
            del self._losses[step]
            if self._worker.rank == 0:
                self._prune(step)

    def _prune(self, step: int) -> None:
        try:
            checkpoint.remove(self._run, step)
        except (IgptError, OSError) as error:
            self._listener.warn(f"the old checkpoint of step {step} could not be removed ({error})")
