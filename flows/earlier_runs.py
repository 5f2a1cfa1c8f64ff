"""What a refresh does about unfinished runs of its recipe on earlier snapshots: it finishes one, and says so."""

from collections.abc import Iterator
from contextlib import contextmanager

from flows.config.refresh import UnfinishedConfig
from flows.prefect_ops.lease import exclusively
from flows.pretrain import give_up
from flows.terminal.console import Reporter
from igpt_model.config import PretrainConfig
from igpt_model.runs import unfinished
from igpt_model.runs.attempts import AbandonedError
from igpt_model.runs.unfinished import Unfinished
from pipeline.dataset.snapshot import Snapshot
from pipeline.store.lease import LeaseHeldError


def decide(
    wanted: PretrainConfig, newest: Snapshot, settings: UnfinishedConfig, tracking_uri: str
) -> Unfinished | None:
    """The run to finish before the one on the newest snapshot; None: there is none.

    Those that nobody finishes are given up, unless another process works on them.
    """
    reporter = Reporter("unfinished")
    choice = unfinished.choose(
        unfinished.find(wanted, newest.dataset),
        newest,
        max_failures=wanted.execution.max_failures,
        abandon=settings.reason,
    )
    for run, reason in choice.abandon:
        try:
            with exclusively(run.run, reporter.say):
                give_up(run.run, reason, tracking_uri, reporter)
        except LeaseHeldError as error:
            reporter.say(f"{error}; it is not given up")
    if (chosen := choice.finish) is not None:
        reporter.say(
            f"{chosen.run} was begun on snapshot {chosen.number} and is at step {chosen.step:,} of "
            f"{wanted.optimizer.steps:,}; it is finished before a training on snapshot {newest.number}"
        )
    return choice.finish


@contextmanager
def unless_given_up() -> Iterator[None]:
    """End the block, and go on after it, when the run that it finishes is given up, which has been told."""
    try:
        yield
    except AbandonedError:
        return
