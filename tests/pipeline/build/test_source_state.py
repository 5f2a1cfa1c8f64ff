"""The state before a build: class numbers that stay, and images with their splits and duplicates."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.build.source_state import _classes, read_source_state
from pipeline.config import DatasetConfig
from pipeline.dataset.snapshot import SPLITS, Snapshot
from pipeline.errors import IgptError
from pipeline.progress import silent
from tests.pipeline.dataset.test_snapshot import make


@pytest.fixture
def parent(tmp_path: Path) -> Snapshot:
    return make(tmp_path, classes=("temple", "cat"))


@pytest.mark.parametrize(
    ("names", "with_parent", "expected"),
    [
        (("flower", "digit"), False, ("digit", "flower")),
        (("10", "9", "08"), False, ("08", "9", "10")),
        (("10", "9", "a"), False, ("10", "9", "a")),
        (("flower", "cat", "digit"), True, ("temple", "cat", "digit", "flower")),
        ((), True, ("temple", "cat")),
    ],
)
def test_classes_are_sorted_and_those_of_the_parent_keep_their_numbers(
    names: tuple[str, ...], with_parent: bool, expected: tuple[str, ...], parent: Snapshot
) -> None:
    assert _classes(names, parent if with_parent else None) == expected


def test_a_source_is_listed_with_class_numbers_and_splits(config: DatasetConfig) -> None:
    with read_source_state(config, keep_scans=False, progress=silent) as state:
        names = state.listing.take(range(len(state.rows)))["name"].to_pylist()
        assert [state.classes[label] for label in state.rows.labels] == [name.split("/")[0] for name in names]
        assert (state.parent, state.classes, state.unlabelled) == (None, ("digit", "flower", "temple"), 0)
        assert sum(state.images(split) for split in SPLITS) == len(state.rows) == 100
        assert (state.duplicate_of == -1).all()
    assert not Path(config.dataset).exists(), "only looking writes nothing"


@pytest.mark.usefixtures("without_cluster")
def test_of_images_with_the_same_bytes_one_is_kept_and_the_others_are_other_versions(config: DatasetConfig) -> None:
    first, copy = (Path(config.raw) / "temple" / name for name in ("00.png", "copy.png"))
    copy.write_bytes(first.read_bytes())
    with read_source_state(config, keep_scans=False, progress=silent) as state:
        plain = state.source_digest
    dropping = replace(config, drop_duplicates=True)
    with read_source_state(dropping, keep_scans=False, progress=silent) as state:
        (dropped,) = [row for row in range(101) if state.duplicate_of[row] >= 0]
        names = state.listing.take(range(101))["name"].to_pylist()
        assert {names[dropped], names[state.duplicate_of[dropped]]} == {"temple/00.png", "temple/copy.png"}
        assert state.source_digest != plain


def test_a_source_that_is_not_there_is_refused(config: DatasetConfig) -> None:
    missing = replace(config, raw=f"{config.raw}-gone")
    with (
        pytest.raises(IgptError, match="nothing is there"),
        read_source_state(missing, keep_scans=False, progress=silent),
    ):
        pass
