"""A rollback publishes an older snapshot anew: nothing is copied, and trainings on it go on."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.dataset import record, snapshot
from pipeline.dataset.lifecycle.rollback import rollback
from pipeline.dataset.record import Publisher
from pipeline.errors import IgptError
from pipeline.inspect.verify import verify
from tests.compatibility.earlier import copy
from tests.pipeline.build.test_build import contents

pytestmark = pytest.mark.usefixtures("without_cluster")
PUBLISHER = Publisher(program="igpt 9.9")


def test_the_content_of_an_older_snapshot_is_the_newest_again(config: DatasetConfig) -> None:
    first = build(config).snapshot
    Image.new("RGB", (64, 64)).save(Path(config.raw) / "temple" / "01.png")
    second = build(config).snapshot
    before = contents(config.dataset)
    third = rollback(config.dataset, 1, PUBLISHER)
    assert (third.number, third.parent, third.content_digest) == (3, 2, first.content_digest)
    assert snapshot.read(config.dataset) == third and verify(third) == []
    after = contents(config.dataset)
    added = {path for path in after if path not in before and not path.startswith("lease/")}
    assert added == {"snapshots/000003.json"}
    beside = record.read(third)
    assert beside is not None and (beside.published_by, beside.raw_root) == ("igpt 9.9", config.raw)
    assert beside.restores == 1
    with pytest.raises(IgptError, match="the newest snapshot, 3, has the content of snapshot 1 already"):
        rollback(config.dataset, 1, PUBLISHER)
    # The raw images are what they are: the next build follows them.
    followed = build(config).snapshot
    assert followed.content_digest == second.content_digest
    beside = record.read(followed)
    assert beside is not None and beside.restores is None


def test_a_rollback_whose_files_are_gone_publishes_nothing(config: DatasetConfig) -> None:
    build(config)
    Image.new("RGB", (64, 64)).save(Path(config.raw) / "temple" / "01.png")
    second = build(config).snapshot
    gone = next(shard for shard in snapshot.read(config.dataset, 1).shards if shard not in second.shards)
    (Path(config.dataset) / gone.path).unlink()
    with pytest.raises(IgptError, match=f"{gone.path} is missing"):
        rollback(config.dataset, 1, PUBLISHER)
    assert snapshot.read(config.dataset) == second
    with pytest.raises(IgptError, match="there is no snapshot 9"):
        rollback(config.dataset, 9, PUBLISHER)


def test_a_snapshot_of_schema_2_is_known_by_its_manifest_after_a_rollback(tmp_path: Path) -> None:
    kept = copy(tmp_path, "raw", "dataset")
    old = snapshot.read(str(kept / "dataset"))
    fields = {name: value for name, value in old.config.items() if name not in ("keep_columns", "resolution")}
    config = DatasetConfig(raw=str(kept / "raw"), dataset=old.dataset, resolution=4, **fields)  # type: ignore[arg-type]
    build(replace(config, max_reject_fraction=0.5))
    again = rollback(old.dataset, 1, PUBLISHER)
    assert again.number == 3 and again.schema == 3
    assert again.is_known_as(old.manifest_digest) and again.is_known_as(old.content_digest)
