"""The runs of a recipe that were begun and not finished, and which of them is finished first. `choose` is pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from igpt_model.config import PretrainConfig
from igpt_model.runs import attempts, checkpoint, initial_model, record
from igpt_model.runs.attempts import Failures
from igpt_model.runs.result import read_result
from pipeline.dataset import record as records
from pipeline.dataset import snapshot as snapshots
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.store import objects


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A run with steps left, or one whose model a refresh was about to register."""

    run: str
    """Its folder."""
    number: int
    """Number of its snapshot."""
    snapshot: Snapshot | None
    """None: it is gone, or has other content now."""
    rolled_back_by: int | None
    """Number of the snapshot that put an older one in its snapshot's place; None: it stands."""
    step: int
    """Its newest checkpoint; 0: none."""
    failures: Failures
    parent: str
    """The version that it was begun from."""
    precision: str | None

    def config(self, wanted: PretrainConfig) -> PretrainConfig:
        """The wanted config for this run: on its snapshot, from its parent, in its folder."""
        runs, _, name = self.run.rpartition("/")
        return wanted.with_fields(
            runs=runs, name=name, snapshot=self.number, parent=self.parent, precision=self.precision
        )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to do with the unfinished runs on earlier snapshots."""

    finish: Unfinished | None
    abandon: tuple[tuple[Unfinished, str], ...]
    """With the reason."""


def choose(begun: Sequence[Unfinished], newest: Snapshot, *, max_failures: int, abandon: str = "") -> Choice:
    """Which unfinished run to finish before one on the newest snapshot is begun or continued.

    It is the one with the most steps, since it has the most to lose and the least to do; of several, the one on the
    newest snapshot. The others are given up: finishing all would delay the newest data by a training each. `abandon`
    is a reason to give up all; the run on the newest snapshot is never given up here.
    """
    current = [run for run in begun if _is_on(run, newest)]
    given_up: list[tuple[Unfinished, str]] = []
    able: list[Unfinished] = []
    for run in begun:
        if run in current:
            continue
        if abandon:
            given_up.append((run, abandon))
        elif run.snapshot is None:
            given_up.append((run, f"its snapshot {run.number} is gone or has other content now"))
        elif run.rolled_back_by is not None:
            given_up.append((run, f"its snapshot {run.number} was rolled back by snapshot {run.rolled_back_by}"))
        elif not run.step:
            given_up.append((run, "it had no checkpoint yet, so nothing is lost"))
        elif run.failures.count >= max_failures:
            given_up.append((run, f"it {run.failures.text}"))
        else:
            able.append(run)
    ranked = sorted(able, key=lambda run: (run.step, run.number), reverse=True)
    furthest = max(current, key=lambda run: run.step, default=None)
    if furthest is not None and ranked and furthest.step > ranked[0].step:
        return Choice(finish=None, abandon=(*given_up, *((run, _is_behind(furthest)) for run in ranked)))
    rest = tuple((run, _is_behind(ranked[0])) for run in ranked[1:])
    return Choice(finish=ranked[0] if ranked else None, abandon=(*given_up, *rest))


def _is_on(run: Unfinished, newest: Snapshot) -> bool:
    return run.number == newest.number or (
        run.snapshot is not None and run.snapshot.content_digest == newest.content_digest
    )


def _is_behind(other: Unfinished) -> str:
    return f"{objects.name_of(other.run)} of the same recipe is further, at step {other.step:,}, and is finished first"


def find(config: PretrainConfig, dataset: str) -> list[Unfinished]:
    """The unfinished runs of a config's recipe on any snapshot of a dataset; without those that were given up.

    The recipe is what the name of a run hashes besides the snapshot. An alias as the parent is the same recipe whatever
    version it means today, and a precision that is left to the device is the run's.
    """
    dataset = objects.absolute(dataset)
    runs = objects.absolute(config.keeping.runs)
    if config.keeping.name is not None:
        runs = objects.join(runs, config.keeping.name)
    begun = []
    numbers: list[int] | None = None
    files = {file.url for file in objects.list_files(runs)}
    for run in sorted(url.removesuffix("/run.json") for url in files if url.endswith("/run.json")):
        if objects.join(run, attempts.ABANDONED) in files:
            continue
        if objects.join(run, "result.json") in files and not _has_work_left(run, config):
            continue
        try:
            theirs = record.read(run).config
        except IgptError:  # of another version, which alone can continue it
            continue
        number = theirs.data.snapshot
        if number is None or theirs.data.dataset != dataset or not _is_same_recipe(config, theirs, run):
            continue
        numbers = snapshots.numbers(dataset) if numbers is None else numbers
        begun.append(
            Unfinished(
                run=run,
                number=number,
                snapshot=_snapshot_of(run, theirs, dataset) if number in numbers else None,
                rolled_back_by=_rolled_back_by(number, dataset, numbers),
                step=max(checkpoint.marked_steps(run), default=0),
                failures=attempts.failures(run),
                parent=theirs.model.parent,
                precision=theirs.model.precision,
            )
        )
    return begun


def _has_work_left(run: str, config: PretrainConfig) -> bool:
    result = read_result(run)
    return result is None or result.steps < config.optimizer.steps or attempts.awaits_registration(run)


def _is_same_recipe(config: PretrainConfig, theirs: PretrainConfig, run: str) -> bool:
    if config.model.parent_is_alias and initial_model.alias_of(run) == config.model.parent:
        config = config.with_fields(parent=theirs.model.parent)
    if config.model.precision is None:
        config = config.with_fields(precision=theirs.model.precision)
    return config.recipe == theirs.recipe


def _rolled_back_by(number: int, dataset: str, numbers: Sequence[int]) -> int | None:
    """The first later snapshot that has the content of one before `number`; None: nobody went back behind it."""
    for later in sorted(one for one in numbers if one > number):
        beside = records.read(snapshots.read(dataset, later))
        if beside is not None and beside.restores is not None and beside.restores < number:
            return later
    return None


def _snapshot_of(run: str, theirs: PretrainConfig, dataset: str) -> Snapshot | None:
    """The snapshot that a run was begun on; None when its number has other content now, in a dataset built anew."""
    stored = snapshots.read(dataset, theirs.data.snapshot)
    try:
        steps = checkpoint.marked_steps(run)
        known = checkpoint.read(checkpoint.folder_of(run, steps[-1])).state.snapshot_digest if steps else None
    except checkpoint.DAMAGE:  # the training tells, and takes the one before
        known = None
    return stored if known is None or stored.is_known_as(known) else None
