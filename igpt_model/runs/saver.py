"""Writes a run's checkpoints while training goes on: the steps wait only for the copy to CPU memory."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch.distributed as dist
from torch import Tensor

from igpt_model.config import PretrainConfig
from igpt_model.runs import checkpoint, metric_log, sharded
from igpt_model.runs.checkpoint import TrainingState
from igpt_model.runs.events import Listener
from igpt_model.runs.metric_log import Report
from igpt_model.runs.sharded import Staged
from igpt_model.runs.tensor_files import Index
from igpt_model.worker import Worker
from pipeline.errors import IgptError
from pipeline.store.lease import Fence, LeaseLostError


class Saver:
    """One checkpoint at a time, in a thread of its own; all ranks call the same methods at the same steps.

    A store that takes no checkpoint for `upload_seconds` costs that checkpoint and a warning, as long as there is an
    older one to go back to. Nothing is marked any more once the `fence` lets nothing pass: then the run is another's.
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
        # A group of its own: collectives of two threads on one group would meet each other's.
        self._group = dist.new_group(backend="gloo") if worker.world_size > 1 else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: tuple[int, Future[None]] | None = None
        self._told: int | None = None
        """Step of the failed checkpoint that was warned of last."""
        self._losses: dict[int, float | None] = worker.from_first(lambda: checkpoint.losses(run))
        self._reports: list[Report] = []

    def report(self, report: Report) -> None:
        """Keep a report for the next checkpoint."""
        self._reports.append(report)

    def save(self, state: TrainingState, tensors: Mapping[str, Tensor], files: Mapping[str, bytes]) -> None:
        """Take a copy of the tensors and begin to write it, after the checkpoint before is written or given up.

        Raises IgptError when that could not be written and there is none to go back to.
        """
        self.wait()
        staged = Staged(tensors, self._worker.rank, self._worker.world_size)
        self._writing = state.step, self._thread.submit(self._write, state, staged, files, list(self._reports))

    def check(self) -> None:
        """Warn of a checkpoint that could not be written, as soon as that is known.

        Raises LeaseLostError when the run is another's by now.
        """
        if self._writing is not None and self._writing[1].done():
            step, writing = self._writing
            error = writing.exception()
            if isinstance(error, LeaseLostError):
                raise error
            if error is not None and self._told != step and self._worker.rank == 0:
                self._told = step
                self._listener.warn(
                    f"checkpoint of step {step} could not be written ({error}); training goes on, and the next one is "
                    f"due within {self._config.keeping.checkpoint_every} steps"
                )

    def wait(self, *, needed: bool = False) -> None:
        """Wait until nothing is being written.

        Raises IgptError when it could not be and is needed, or nothing older is there, or the run is another's by now.
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
        """End the thread, after what is being written; what became of that is not asked."""
        self._thread.shutdown(wait=True)

    def _write(self, state: TrainingState, staged: Staged, files: Mapping[str, bytes], reported: list[Report]) -> None:
        url = checkpoint.folder_of(self._run, state.step)

        def commit(index: Index) -> None:
            if self._fence is not None:
                self._fence.check()
            if reported:
                metric_log.write(self._run, state.step, reported)
            checkpoint.mark(url, state, index, files)

        sharded.write(
            url, staged, self._worker.rank, self._group, seconds=self._config.keeping.upload_seconds, commit=commit
        )
        if self._worker.rank == 0:
            self._listener.saved(state.step)
        del self._reports[: len(reported)]
        self._losses[state.step] = state.validation_loss
        for step in checkpoint.to_prune(
            self._losses, keep_last=self._config.keeping.keep_last, keep_best=self._config.keeping.keep_best
        ):
            del self._losses[step]
            if self._worker.rank == 0:
                self._prune(step)

    def _prune(self, step: int) -> None:
        try:
            checkpoint.remove(self._run, step)
        except (IgptError, OSError) as error:
            self._listener.warn(f"the old checkpoint of step {step} could not be removed ({error})")
