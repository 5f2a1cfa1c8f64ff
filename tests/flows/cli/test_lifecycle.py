"""`igpt dataset expire` and `compact`: what they print, for people and programs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.dataset import snapshot
from tests.conftest import Command
from tests.pipeline.dataset.lifecycle.test_compact import arrive

Igpt = Callable[..., Command]

pytestmark = pytest.mark.usefixtures("without_cluster")


@pytest.fixture
def dataset(image_folder: Path, photos: np.ndarray, tmp_path: Path) -> str:
    """Three snapshots of few images."""
    config = DatasetConfig(
        raw=str(tmp_path / "raw"), dataset=str(tmp_path / "dataset"), resolution=8, colours=8, samples_per_shard=20
    )
    for night in range(3):
        Path(config.raw).mkdir(exist_ok=True)
        arrive(config, photos, night)
        build(replace(config, max_reject_fraction=0.5))
    return config.dataset


def test_expire_says_what_goes_and_what_stays(igpt: Igpt, dataset: str) -> None:
    igpt("dataset", "tag", dataset, 1, "paper")
    dry = igpt("dataset", "expire", dataset, "--keep", 1, "--even-used", "--dry-run")
    assert (dry.code, len(snapshot.numbers(dataset))) == (0, 3), dry.err
    assert "snapshot 2 would be removed\nsnapshot 1 stays: it has the tag paper\n1 snapshots would be" in dry.out
    told = json.loads(igpt("dataset", "expire", dataset, "--keep", 1, "--even-used", "--json").out)
    assert [one["number"] for one in told["expired"]] == [2] and snapshot.numbers(dataset) == [1, 3]
    again = igpt("dataset", "expire", dataset, "--keep", 1, "--even-used")
    assert again.out.splitlines()[-1].startswith("0 snapshots are removed, 2 stay; `igpt dataset gc` then frees 0 B")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--even-used", "give --keep, --days or both"),
        ("--days nan --even-used", "nan is not a number to compare with"),
        ("--keep 1", "MLflow at http://127.0.0.1:9 does not answer"),  # which knows what was trained
    ],
)
def test_bad_input_is_one_line(
    arguments: str, expected: str, igpt: Igpt, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    ended = igpt("dataset", "expire", dataset, *arguments.split())
    assert ended.code == 2 and expected in " ".join(ended.err.split()), ended.err
    assert len(snapshot.numbers(dataset)) == 3


def test_compact_joins_shards_on_the_cluster_and_says_so(igpt: Igpt, dataset: str) -> None:
    before = snapshot.read(dataset)
    dry = igpt("dataset", "compact", dataset, "--dry-run")
    assert dry.code == 0 and "small shards with" in dry.out and "would be joined into" in dry.out
    with mock.patch("flows.services.cluster.connect") as connect:
        done = json.loads(igpt("dataset", "compact", dataset, "--json").out)
        assert connect.call_count == 1
        assert done["snapshot"] == before.number + 1 and done["joined"] > done["made"]
        assert igpt("dataset", "compact", dataset).out.startswith("nothing to do: no small shards of snapshot 4")
    assert snapshot.read(dataset).images() == before.images()
