"""The flows that deployments run. Each ends at once if another run is working, closes dead runs, then calls its flow.

A lease in the object store decides which run works. Prefect's own concurrency limits do not: their slots live in the
server's memory, so a restarted server ends the runs that hold one, and the slot of a dead run stays taken for minutes.
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

from flows import allowed_urls
from flows.build_dataset import build_dataset
from flows.config.refresh import RefreshConfig
from flows.prefect_ops import flow_runs
from flows.prefect_ops.failures import in_one_line
from flows.prefect_ops.lease import await_free, exclusively
from flows.prefect_ops.names import making
from flows.services import settings
from flows.terminal.console import console
from igpt_model.probing.config import ProbeConfig
from pipeline.config import DatasetConfig
from pipeline.errors import IgptError, NoAnswerError, first_line
from pipeline.store import bulk, objects
from pipeline.store.lease import LeaseHeldError, LeaseLostError

# How long a refresh waits for a build of its dataset by another run.
_BUILD_SECONDS = 24 * 3600.0
# How long a run waits for MLflow and the object store before it fails, and how often it asks for them meanwhile.
_AWAY_SECONDS = 24 * 3600.0
_ASK_SECONDS = 15.0


@flow(name="scheduled-build", flow_run_name=making("scheduled build of {}", "config.dataset"))
@in_one_line
def scheduled_build(config: DatasetConfig, quiet_seconds: float = 0) -> None:
    """Update a dataset from its source; with `quiet_seconds`, only if no image arrived within that time."""

    allowed_urls.check(config, settings.allowed_urls())

    def work() -> None:
        if quiet_seconds and (seconds := _seconds_since_last(config.raw)) < quiet_seconds:
            get_run_logger().info("images arrived %.0f s ago, more may follow; the next run checks again", seconds)
        else:
            build_dataset(config)

    _run_exclusively(config.dataset, work, lambda: _check_stores(config.raw, config.dataset))


@flow(
    name="scheduled-refresh",
    flow_run_name=making("scheduled refresh of {}", "config.pretrain.tracking.model_name"),
)
@in_one_line
def scheduled_refresh(config: RefreshConfig) -> None:
    """Raw images to a registered model: what `igpt refresh` does, on a schedule."""
    allowed_urls.check(config, settings.allowed_urls())

    def work() -> None:
        from flows.refresh import refresh  # noqa: PLC0415 (loads PyTorch, Ray Train and MLflow: only when it works)

        # Builds have a worker of their own. Their work is not to be lost for this run, nor this run for it.
        await_free(config.dataset.dataset, get_run_logger().info, _BUILD_SECONDS)
        refresh(config)

    def check() -> None:
        _check_mlflow()
        _check_stores(config.dataset.raw, config.dataset.dataset, config.pretrain.keeping.runs)

    _run_exclusively(config.pretrain.keeping.runs, work, check)


@flow(name="scheduled-probe", flow_run_name=making("probe {}", "model"))
@in_one_line
def scheduled_probe(config: ProbeConfig, model: str) -> None:
    """Probe a newly registered model; the event of its registration gives `model`."""
    allowed_urls.check(replace(config, model=model), settings.allowed_urls())
    from flows.probe import probe  # noqa: PLC0415 (not for the other flows)

    def check() -> None:
        _check_mlflow()
        _check_stores(config.dataset)

    outlast(lambda: probe(replace(config, model=model)), check, get_run_logger().warning)


def _check_stores(*urls: str) -> None:
    for url in urls:
        objects.check_reachable(objects.absolute(url))


def _check_mlflow() -> None:
    from igpt_model.tracking import runs  # noqa: PLC0415 (not for builds)

    runs.check_reachable(settings.load().mlflow_tracking_uri)


def outlast(work: Callable[[], object], check: Callable[[], None], warn: Callable[[str], None]) -> None:
    """Do the work. When it fails while a service is away, do it again once all are back, for up to a day.

    `check` raises NoAnswerError for a service that is away. The work goes on from what is finished.
    """
    deadline = time.monotonic() + _AWAY_SECONDS
    while True:
        try:
            work()
        except (LeaseHeldError, LeaseLostError):
            raise
        except Exception as error:
            missing = str(error) if isinstance(error, NoAnswerError) else _missing(check)
            if missing is None or time.monotonic() > deadline:
                raise
            warn(f"failed ({first_line(error)}) while a service is away ({missing}); done again when that answers")
            time.sleep(_ASK_SECONDS)
            while _missing(check) is not None and time.monotonic() < deadline:
                time.sleep(_ASK_SECONDS)
        else:
            return


def _missing(check: Callable[[], None]) -> str | None:
    """What a service says that is away; None: all answer."""
    try:
        check()
    except NoAnswerError as error:
        return str(error)
    except IgptError:  # another mistake, which the work names
        return None
    return None


def _run_exclusively(folder: str, work: Callable[[], object], check: Callable[[], None]) -> None:
    """Do the work, or cancel this run if a newer waiting run or a live one does the same work.

    `check` raises NoAnswerError when a service that the work needs is away.
    """
    run_id = flow_run.id
    assert run_id is not None
    if (reason := flow_runs.cancel_superseded(run_id)) is not None:
        flow_runs.cancel(run_id, reason)
    logger = get_run_logger()

    def in_turn() -> None:
        with exclusively(objects.join(objects.absolute(folder), "turn"), logger.info):
            for name in flow_runs.close_dead(run_id):
                logger.warning("the process of run %s died; closed the run", name)
            work()

    try:
        with _progress_in_logs():
            outlast(in_turn, check, logger.warning)
    except LeaseHeldError as error:
        flow_runs.cancel(run_id, str(error))


@contextmanager
def _progress_in_logs() -> Iterator[None]:
    """Redirect the flows' console output to the log of their run."""
    previous = console.redirected
    console.redirected = _LoggedLines(get_run_logger())
    try:
        yield
    finally:
        console.redirected = previous


class _LoggedLines(io.StringIO):
    def __init__(self, logger: logging.Logger | logging.LoggerAdapter) -> None:
        super().__init__()
        self._logger = logger

    def write(self, text: str) -> int:
        try:
            logger = get_run_logger()  # that of the innermost run
        except MissingContextError:  # in a thread that reports progress
            logger = self._logger
        for line in text.splitlines():
            if line.strip():
                logger.info("%s", line.strip())
        return len(text)


def _seconds_since_last(raw: str) -> float:
    """Seconds since the newest object of a source was written."""
    newest = max((file.modified for file in bulk.list_files(objects.absolute(raw))), default=0.0)
    return time.time() - newest
