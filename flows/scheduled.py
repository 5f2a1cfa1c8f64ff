"""The flows that deployments run: each waits for nobody, leaves no dead run open, and calls the flow that works.

Prefect's own concurrency limits are not used: their slots live in the server's memory, so that a restarted server ends
the runs that hold one, and a slot whose run died stays taken for minutes. The lease in the object store decides.
"""

import io
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from prefect import flow
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.build_dataset import build_dataset
from flows.config.refresh import RefreshConfig
from flows.prefect_ops import flow_runs
from flows.prefect_ops.lease import exclusively
from flows.terminal.console import console
from igpt_model.config import ProbeConfig
from pipeline.config import DatasetConfig
from pipeline.store import bulk, objects
from pipeline.store.lease import LeaseHeldError


@flow(name="scheduled-build")
def scheduled_build(config: DatasetConfig, quiet_seconds: float = 0) -> None:
    """Bring a dataset up to its source; with `quiet_seconds`, only once no image has come for so long."""

    def work() -> None:
        if quiet_seconds and (seconds := _seconds_since_last(config.raw)) < quiet_seconds:
            get_run_logger().info("images came %.0f s ago, more may follow; the next run looks again", seconds)
        else:
            build_dataset(config)

    _in_turn(config.dataset, work)


@flow(name="scheduled-refresh")
def scheduled_refresh(config: RefreshConfig) -> None:
    """Raw images to a registered model: what `igpt refresh` does, on a schedule."""

    def work() -> None:
        from flows.refresh import refresh  # noqa: PLC0415 (loads PyTorch, Ray Train and MLflow: not before its turn)

        refresh(config)

    _in_turn(config.pretrain.keeping.runs, work)


@flow(name="scheduled-probe")
def scheduled_probe(config: ProbeConfig, model: str) -> None:
    """Judge a newly registered model; the event of its registration says which."""
    from flows.probe import probe  # noqa: PLC0415 (not for the other flows)

    probe(replace(config, model=model))


def _in_turn(folder: str, work: Callable[[], object]) -> None:
    """Do the work, unless a newer run that waits or another that is alive does the same."""
    mine = flow_run.id
    assert mine is not None
    if (newer := flow_runs.step_aside(mine)) is not None:
        flow_runs.cancel(mine, newer)
    logger = get_run_logger()
    try:
        with _progress_in_logs(), exclusively(objects.join(objects.absolute(folder), "turn"), logger.info):
            for name in flow_runs.close_siblings(mine):
                logger.warning("the run %s died without a word; closed it", name)
            work()
    except LeaseHeldError as error:
        flow_runs.cancel(mine, str(error))


@contextmanager
def _progress_in_logs() -> Iterator[None]:
    """What the flows tell a person at a terminal goes into the log of their run: nobody is at this one."""
    before = console.file
    console.file = _LoggedLines(get_run_logger())
    try:
        yield
    finally:
        console.file = before


class _LoggedLines(io.StringIO):
    def __init__(self, logger: logging.Logger | logging.LoggerAdapter) -> None:
        super().__init__()
        self._logger = logger

    def write(self, text: str) -> int:
        try:
            logger = get_run_logger()  # of the innermost run
        except MissingContextError:  # progress comes from threads, too
            logger = self._logger
        for line in text.splitlines():
            if line.strip():
                logger.info("%s", line.strip())
        return len(text)


def _seconds_since_last(raw: str) -> float:
    """Seconds since the newest object of a source was written."""
    newest = max((file.modified for file in bulk.list_files(objects.absolute(raw))), default=0.0)
    return time.time() - newest
