"""Tags of a snapshot: in its record, so that they change nothing that a training knows it by."""

from pathlib import Path

import pytest

from pipeline.dataset import record, snapshot
from pipeline.dataset.lifecycle.tag import tag
from pipeline.dataset.publish import commit
from pipeline.errors import IgptError
from tests.pipeline.dataset.test_record import RECORD
from tests.pipeline.dataset.test_snapshot import make


def test_tags_are_added_and_removed(tmp_path: Path) -> None:
    made = make(tmp_path)
    commit(made, record=RECORD)
    assert tag(made.dataset, 1, add=["paper", "paper"]) == ("nightly", "paper")
    assert tag(made.dataset, 1, remove=["nightly", "unknown"]) == ("paper",)
    beside = record.read(made)
    assert beside is not None and (beside.tags, beside.raw_root) == (("paper",), RECORD.raw_root)
    assert snapshot.read(made.dataset).digests == made.digests


def test_a_snapshot_without_a_record_has_no_tags(tmp_path: Path) -> None:
    commit(make(tmp_path))
    with pytest.raises(IgptError, match="snapshot 1 has no record to keep tags in"):
        tag(str(tmp_path), 1, add=["paper"])
    with pytest.raises(IgptError, match="there is no snapshot 2"):
        tag(str(tmp_path), 2, add=["paper"])
