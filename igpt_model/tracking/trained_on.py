"""Which registered versions and training runs were trained on which content of a dataset."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from igpt_model.registry.client import Registry
from igpt_model.runs import checkpoint, record
from igpt_model.runs.result import read_result
from igpt_model.tracking.runs import CONTENT_TAG, MANIFEST_TAG
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.store import objects


@dataclass(frozen=True, kw_only=True)
class Training:
    """What was trained on a dataset: a registered version, or a run."""

    name: str
    """models:/NAME/NUMBER, or the run's folder."""
    snapshot: int | None
    """Number of the snapshot; None: it is not known."""
    digest: str | None
    """Digest of the snapshot's content or manifest; None: a run has no checkpoint yet."""

    def saw(self, data: Snapshot) -> bool:
        """Whether it was trained on a snapshot's content; by the number where no digest is known."""
        return data.is_known_as(self.digest) if self.digest is not None else data.number == self.snapshot


def find(dataset: str, runs: Iterable[str], registry: Registry | None) -> list[Training]:
    """All versions and runs that were trained on any snapshot of a dataset; without a registry, no versions.

    Raises IgptError as the registry does.
    """
    dataset = objects.absolute(dataset)
    versions = () if registry is None else _versions(dataset, registry)
    return [*versions, *(one for root in runs for one in _runs(dataset, objects.absolute(root)))]


def _versions(dataset: str, registry: Registry) -> Iterator[Training]:
    for name in registry.names():
        for version in registry.versions(name):
            if version.tags.get("igpt.dataset") == dataset:
                number = version.tags.get("igpt.snapshot", "")
                yield Training(
                    name=version.uri,
                    snapshot=int(number) if number.isdecimal() else None,
                    digest=version.tags.get(CONTENT_TAG, version.tags.get(MANIFEST_TAG)),
                )


def _runs(dataset: str, root: str) -> Iterator[Training]:
    objects.check_reachable(root)
    for run in record.find(root):
        try:
            data = record.read(run).config.data
        except IgptError:  # of another version
            continue
        if data.dataset == dataset:
            yield Training(name=run, snapshot=data.snapshot, digest=_digest_of(run))


def _digest_of(run: str) -> str | None:
    """The digest that a run's result or newest checkpoint holds; None without either, or when they are damaged."""
    try:
        result = read_result(run)
        if result is not None:
            return result.snapshot_digest
        steps = checkpoint.marked_steps(run)
        return checkpoint.read(checkpoint.folder_of(run, steps[-1])).state.snapshot_digest if steps else None
    except (IgptError, *checkpoint.DAMAGE):
        return None


def by_snapshot(trainings: Sequence[Training], snapshots: Iterable[Snapshot]) -> Mapping[int, str]:
    """For each snapshot that something was trained on its number, with what that is, in words."""
    used = {}
    for data in snapshots:
        names = [training.name for training in trainings if training.saw(data)]
        if names:
            others = f" and {len(names) - 1} more were" if len(names) > 1 else " was"
            used[data.number] = f"{names[0]}{others} trained on it"
    return used
