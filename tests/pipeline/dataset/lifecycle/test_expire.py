"""Old snapshots expire, gc then frees what only they name, and what somebody needs stays."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.dataset import record, snapshot
from pipeline.dataset.lifecycle import expire as expiring
from pipeline.dataset.lifecycle.expire import KnownSnapshot, choose, expire
from pipeline.dataset.lifecycle.rollback import rollback
from pipeline.dataset.lifecycle.tag import tag
from pipeline.dataset.record import Publisher
from pipeline.errors import IgptError
from pipeline.inspect.gc import collect
from pipeline.inspect.verify import verify
from pipeline.store import lease, objects
from tests.pipeline.dataset.lifecycle.test_compact import arrive

pytestmark = pytest.mark.usefixtures("without_cluster")
DAY = 86_400.0
NOW = 100 * DAY


@pytest.mark.parametrize(
    ("rule", "tags", "used", "expired", "kept"),
    [
        ({"keep": 1}, {}, {}, [1, 2, 3, 4], []),
        ({"keep": 3}, {}, {}, [1, 2], []),
        ({"keep": 9}, {}, {}, [], []),
        ({"days": 15.0}, {}, {}, [1, 2, 3], []),  # published 10 days apart, the newest today
        ({"days": 0.0}, {}, {}, [1, 2, 3, 4], []),
        ({"keep": 4, "days": 15.0}, {}, {}, [1], []),  # both must allow it
        ({"keep": 2, "days": 35.0}, {}, {}, [1], []),
        ({"keep": 1}, {2: ("paper",)}, {}, [1, 3, 4], ["2: it has the tag paper"]),
        ({"keep": 1}, {}, {3: "m/1 was trained on it"}, [1, 2, 4], ["3: m/1 was trained on it"]),
    ],
)
def test_what_expires(
    rule: dict[str, float], tags: dict[int, tuple[str, ...]], used: dict[int, str], expired: list[int], kept: list[str]
) -> None:
    known = [
        KnownSnapshot(number=number, published=NOW - 10 * DAY * (5 - number) - 1, tags=tags.get(number, ()))
        for number in (1, 2, 3, 4, 5)
    ]
    gone, stay = choose(known, latest=5, used=used, now=NOW, **{"keep": None, "days": None, **rule})  # type: ignore[arg-type]
    assert [one.number for one in gone] == expired
    assert [f"{one.number}: {one.because}" for one in stay if "newest" not in one.because] == kept
    assert 5 not in expired


@pytest.fixture
def nights(config: DatasetConfig, photos: np.ndarray) -> DatasetConfig:
    """Four snapshots; images come and go."""
    build(config)
    for night in range(3):
        arrive(config, photos, night)
        (Path(config.raw) / "temple" / f"{night:02d}.png").unlink()
        build(config)
    return config


def test_gc_frees_what_only_expired_snapshots_name(nights: DatasetConfig) -> None:
    tag(nights.dataset, 2, add=["paper"])
    told = expire(nights.dataset, keep=1, dry_run=True)
    assert snapshot.numbers(nights.dataset) == [1, 2, 3, 4]
    done = expire(nights.dataset, keep=1)
    assert done == told and [one.number for one in done.expired] == [1, 3]
    assert snapshot.numbers(nights.dataset) == [2, 4] and done.bytes > 0
    collected = collect(nights.dataset, min_age_seconds=0)
    shards = sum(path.startswith("shards/") for path in collected.files)
    assert shards and collected.bytes > done.bytes
    for number in (2, 4):
        assert verify(snapshot.read(nights.dataset, number)) == []
    assert build(nights).unchanged
    (Path(nights.raw) / "temple" / "09.png").unlink()
    assert build(nights).snapshot.number == 5, "numbers are never used again"
    with pytest.raises(IgptError, match="there is no snapshot 1"):
        rollback(nights.dataset, 1, Publisher())
    assert expire(nights.dataset, keep=2).expired == ()


def test_the_age_is_that_of_the_record_not_of_the_file(nights: DatasetConfig) -> None:
    for number, time in ((1, "2020-01-01T00:00:00Z"), (2, "2099-01-01T00:00:00Z")):
        manifest = snapshot.read(nights.dataset, number)
        beside = record.read(manifest)
        assert beside is not None
        record.write(manifest, replace(beside, published_at=time))
    assert [one.number for one in expire(nights.dataset, days=365).expired] == [1]


@pytest.mark.parametrize("call", range(4))
def test_after_a_crash_the_same_command_ends_it(
    call: int, nights: DatasetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0

    def dies(url: str) -> None:
        nonlocal count
        count += 1
        if "/lease/" not in url and count > call:
            raise KeyboardInterrupt
        objects.delete(url)

    class Objects:
        delete = staticmethod(dies)

        def __getattr__(self, name: str) -> object:
            return getattr(objects, name)

    with monkeypatch.context() as patched:
        patched.setattr(expiring, "objects", Objects())
        with pytest.raises(KeyboardInterrupt):
            expire(nights.dataset, keep=2)
    for number in snapshot.numbers(nights.dataset):
        assert verify(snapshot.read(nights.dataset, number)) == [], "what is there is whole"
    assert build(nights).unchanged
    expire(nights.dataset, keep=2)
    collect(nights.dataset, min_age_seconds=0)
    assert snapshot.numbers(nights.dataset) == [3, 4]
    assert sorted(path.name for path in (Path(nights.dataset) / "records").iterdir()) == ["000003.json", "000004.json"]


def test_it_is_refused_without_a_rule_without_a_dataset_and_beside_a_build(
    nights: DatasetConfig, tmp_path: Path
) -> None:
    with pytest.raises(IgptError, match="give --keep, --days or both"):
        expire(nights.dataset)
    with pytest.raises(IgptError, match="no dataset snapshot there"):
        expire(str(tmp_path / "none"), keep=1)
    with lease.hold(nights.dataset), pytest.raises(IgptError, match="is working on it"):
        expire(nights.dataset, keep=1)
    assert len(snapshot.numbers(nights.dataset)) == 4
