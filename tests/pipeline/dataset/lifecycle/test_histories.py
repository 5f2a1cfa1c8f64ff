"""Random histories of a dataset beside plain dictionaries: each kept snapshot has what it had, less what went."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import hypothesis
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.dataset import index, snapshot
from pipeline.dataset.keys import key_of
from pipeline.dataset.lifecycle.compact import compact
from pipeline.dataset.lifecycle.erase import Selection, erase, find
from pipeline.dataset.lifecycle.expire import expire
from pipeline.dataset.lifecycle.rollback import rollback
from pipeline.dataset.record import Publisher
from pipeline.images import palette
from pipeline.inspect.gc import collect
from pipeline.inspect.verify import verify
from tests.conftest import run_here
from tests.pipeline.dataset.lifecycle.test_compact import everything

NAMES = [f"{folder}/{number}.png" for folder in ("a", "b") for number in range(5)]
CONTENTS = 6  # so few that names share them
PUBLISHER = Publisher()
Contents = dict[str, int]  # the number of the content by name


class Reference:
    """What a dataset must hold, as dictionaries."""

    def __init__(self) -> None:
        self.raw: Contents = {}
        self.snapshots: dict[int, Contents] = {}
        self.dead_names: set[str] = set()
        self.dead_contents: set[int] = set()
        self.last = 0

    def publish(self, contents: Contents) -> None:
        self.last += 1
        self.snapshots[self.last] = dict(contents)

    def wanted(self) -> Contents:
        """What a build takes of the raw images."""
        dead = self.dead_contents
        return {name: of for name, of in self.raw.items() if name not in self.dead_names and of not in dead}

    def erase(self, names: set[str]) -> bool:
        """Names, all that they ever stood for, all other names of that, and so on."""
        pairs = {pair for contents in self.snapshots.values() for pair in contents.items()}
        names, found = {name for name, _ in pairs if name in names}, set[int]()
        while (more := {name for name, content in pairs if content in found or name in names}) != names or not found:
            names, found = more, {content for name, content in pairs if name in more}
            if not names:
                return False
        self.dead_names |= names
        self.dead_contents |= found
        for contents in self.snapshots.values():
            for name in names & contents.keys():
                del contents[name]
        return True


class History:
    """A dataset and its reference."""

    def __init__(self, root: Path) -> None:
        self.reference = Reference()
        random = np.random.default_rng(7)
        self._pictures = [random.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(CONTENTS + 1)]
        (root / "palette.npy").write_bytes(palette.to_bytes(random.uniform(-1, 1, (8, 3)).astype(np.float32)))
        self.config = DatasetConfig(
            raw=str(root / "raw"),
            dataset=str(root / "dataset"),
            palette=str(root / "palette.npy"),
            **{"resolution": 4, "colours": 8, "samples_per_shard": 6, "max_deleted_fraction": 1.0},  # type: ignore[arg-type]
            **{"validation_fraction": 0.2, "test_fraction": 0.0},  # type: ignore[arg-type]
        )
        for number in range(6):  # which are never touched, so that there is always something to train on
            self._store(f"base/{number}.png", CONTENTS)
        self.tokens: dict[tuple[str, int], object] = {}
        self.build()

    def _store(self, name: str, content: int) -> None:
        path = Path(self.config.raw) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self._pictures[content]).save(path)
        self.reference.raw[name] = content

    def arrive(self, name: str, content: int) -> None:
        self._store(name, content)

    def delete(self, name: str) -> None:
        (Path(self.config.raw) / name).unlink(missing_ok=True)
        self.reference.raw.pop(name, None)

    def build(self) -> None:
        wanted = self.reference.wanted()
        result = build(self.config)
        same = self.reference.snapshots.get(self.reference.last) == wanted
        assert result.unchanged == same
        if not same:
            self.reference.publish(wanted)

    def compact(self) -> None:
        before = snapshot.read(self.config.dataset)
        result = compact(self.config.dataset, PUBLISHER)
        if not result.nothing_to_do:
            assert len(result.snapshot.shards) < len(before.shards)
            self.reference.publish(self.reference.snapshots[self.reference.last])

    def expire(self, keep: int) -> None:
        expire(self.config.dataset, keep=keep)
        numbers = sorted(self.reference.snapshots)
        self.reference.snapshots = {number: self.reference.snapshots[number] for number in numbers[-keep:]}

    def erase(self, names: set[str]) -> None:
        selection = Selection(keys=frozenset(map(key_of, names)))
        found = find(self.config.dataset, selection)
        before = len(self.reference.dead_names)
        if not self.reference.erase(names):
            assert not found.images
            return
        assert found.images >= len(self.reference.dead_names) - before
        erase(self.config.dataset, selection, PUBLISHER)

    def rollback(self, back: int) -> None:
        numbers = sorted(self.reference.snapshots)
        number = numbers[-min(back, len(numbers))]
        if self.reference.snapshots[number] != self.reference.snapshots[self.reference.last]:
            rollback(self.config.dataset, number, PUBLISHER)
            self.reference.publish(self.reference.snapshots[number])

    def collect(self) -> None:
        collect(self.config.dataset, min_age_seconds=0)

    def check(self) -> None:
        dataset, expected = self.config.dataset, self.reference.snapshots
        assert snapshot.numbers(dataset) == sorted(expected) and snapshot.latest_number(dataset) == self.reference.last
        for number, contents in expected.items():
            of = snapshot.read(dataset, number)
            assert verify(of) == []
            held = everything(of)
            assert held.keys() == {key_of(name) for name in contents} and all(len(rows) == 1 for rows in held.values())
            for name, content in contents.items():
                samples = held[key_of(name)][0][1]
                assert self.tokens.setdefault((name, content), samples) == samples
        gone = {key_of(name) for name in self.reference.dead_names}
        for folder in ("index", "quarantine"):
            for path in (Path(dataset) / folder).glob("*.parquet"):
                assert gone.isdisjoint(index.read(dataset, f"{folder}/{path.name}", ("key",))["key"].to_pylist())


STEPS: dict[str, tuple[Callable[..., None], tuple[st.SearchStrategy, ...]]] = {
    "arrive": (History.arrive, (st.sampled_from(NAMES), st.integers(0, CONTENTS - 1))),
    "delete": (History.delete, (st.sampled_from(NAMES),)),
    "build": (History.build, ()),
    "compact": (History.compact, ()),
    "expire": (History.expire, (st.integers(1, 3),)),
    "erase": (History.erase, (st.sets(st.sampled_from(NAMES), min_size=1, max_size=2),)),
    "rollback": (History.rollback, (st.integers(2, 3),)),
    "collect": (History.collect, ()),
}
# A night: images come and go, then a build, then perhaps one of the rest.
ARRIVAL = st.one_of(*(st.tuples(st.just(name), *STEPS[name][1]) for name in ("arrive", "arrive", "arrive", "delete")))
OTHER = st.one_of(
    *(
        st.tuples(st.just(name), *STEPS[name][1])
        for name in ("build", "compact", "expire", "erase", "rollback", "collect")
    )
)
NIGHTS = st.lists(st.tuples(st.lists(ARRIVAL, max_size=4), st.lists(OTHER, max_size=2)), min_size=1, max_size=5)


@hypothesis.settings(max_examples=max(15, hypothesis.settings.default.max_examples // 20))  # type: ignore[union-attr]
@given(nights=NIGHTS)
def test_every_kept_snapshot_is_what_the_reference_says(nights: list) -> None:
    with tempfile.TemporaryDirectory() as folder, mock.patch("pipeline.cluster.tasks.map_tasks", run_here):
        history = History(Path(folder))
        for arrivals, others in nights:
            for name, *arguments in (*arrivals, ("build",), *others):
                STEPS[name][0](history, *arguments)
            history.check()
        history.build()
        history.check()
