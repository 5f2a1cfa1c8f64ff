"""Which versions and runs were trained on which snapshot: by the digest that they hold, else by its number."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from igpt_model.config import PretrainConfig
from igpt_model.registry.client import Registry, Version
from igpt_model.runs import record
from igpt_model.runs.record import RunRecord
from igpt_model.tracking.runs import MANIFEST_TAG, lineage_tags
from igpt_model.tracking.trained_on import Training, by_snapshot, find
from pipeline.dataset.snapshot import Snapshot
from pipeline.store import objects
from tests.igpt_model.runs.test_attempts import add_checkpoint
from tests.igpt_model.runs.test_old_checkpoints import RESULT
from tests.pipeline.dataset.test_snapshot import make


@pytest.fixture
def data(tmp_path: Path) -> list[Snapshot]:
    """Three snapshots, the last with the content of the second."""
    first = make(tmp_path / "d")
    second = make(tmp_path / "d", 2, shards=first.shards[1:])
    return [first, second, make(tmp_path / "d", 3, shards=second.shards)]


class Versions(Registry):
    """A registry with one model."""

    def __init__(self, *tags: dict[str, str]) -> None:
        self._tags = tags

    def names(self) -> list[str]:
        return ["digits"]

    def versions(self, name: str) -> list[Version]:
        now = datetime.now(UTC)
        return [
            Version(name=name, number=number, run_id="", model_id="", tags=tags, aliases=(), created=now)
            for number, tags in enumerate(self._tags, 1)
        ]


def begin(runs: Path, name: str, dataset: str, number: int) -> str:
    run = str(runs / name)
    config = PretrainConfig.from_fields(dataset=dataset, runs=str(runs), preset="tiny", snapshot=number)
    record.write(run, RunRecord(config=config, mlflow_run=None))
    return run


def test_versions_and_runs_are_found_by_digest_then_by_number(tmp_path: Path, data: list[Snapshot]) -> None:
    first, second, _ = data
    runs, dataset = tmp_path / "runs", first.dataset
    only_manifest = {"igpt.dataset": dataset, "igpt.snapshot": "1", MANIFEST_TAG: first.manifest_digest}
    rebuilt = {**lineage_tags(first), "igpt.content_digest": "of a dataset that was there before"}
    elsewhere = {**lineage_tags(first), "igpt.dataset": "s3://datasets/other"}
    registry = Versions(lineage_tags(second), only_manifest, rebuilt, elsewhere, {})
    begun = begin(runs, "begun", dataset, 1)
    saved = begin(runs, "deeper/saved", dataset, 1)
    add_checkpoint(saved, 10, second.content_digest)
    ended = begin(runs, "ended", dataset, 3)
    objects.write_bytes(f"{ended}/result.json", json.dumps({**RESULT, "snapshot_digest": "gone"}).encode())
    begin(runs, "other", "s3://datasets/other", 1)
    objects.write_bytes(str(runs / "strange" / "run.json"), b"{}")
    found = find(dataset, [str(runs)], registry)
    assert {training.name: training.digest for training in found} == {
        "models:/digits/1": second.content_digest,
        "models:/digits/2": first.manifest_digest,
        "models:/digits/3": "of a dataset that was there before",
        begun: None,
        saved: second.content_digest,
        ended: "gone",
    }
    assert by_snapshot(found, data) == {
        1: "models:/digits/2 and 1 more were trained on it",
        2: "models:/digits/1 and 1 more were trained on it",
        3: "models:/digits/1 and 1 more were trained on it",
    }
    assert by_snapshot([Training(name=begun, snapshot=1, digest=None)], data) == {1: f"{begun} was trained on it"}
