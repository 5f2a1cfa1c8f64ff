"""`igpt dataset expire`, `compact` and `erase`: what they print, for people and programs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.dataset import snapshot
from pipeline.store import objects
from tests.conftest import Command, run_here
from tests.flows.test_erase import report
from tests.pipeline.dataset.lifecycle.test_compact import arrive

Igpt = Callable[..., Command]

pytestmark = pytest.mark.usefixtures("without_cluster")


@pytest.fixture(scope="module")
def built(photos: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three snapshots of few images."""
    root = tmp_path_factory.mktemp("nights")
    config = DatasetConfig(
        raw=str(root / "raw"), dataset=str(root / "dataset"), resolution=8, colours=8, samples_per_shard=20
    )
    Path(config.raw).mkdir()
    with mock.patch("pipeline.cluster.tasks.map_tasks", run_here):
        for night in range(3):
            arrive(config, photos, night)
            build(config)
    return config.dataset


@pytest.fixture
def dataset(built: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy that the test may change; services are known, and none is there."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    return str(shutil.copytree(built, tmp_path / "dataset"))


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
        ("--days inf --even-used", "inf is not a number to compare with"),
        ("--keep 1", "MLflow at http://127.0.0.1:9 does not answer"),  # which knows what was trained
    ],
)
def test_bad_input_is_one_line(arguments: str, expected: str, igpt: Igpt, dataset: str) -> None:
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


def test_erase_says_what_goes_and_leaves_a_receipt(igpt: Igpt, dataset: str, tmp_path: Path) -> None:
    rows = json.loads(igpt("dataset", "images", dataset, "--json").out)
    one, other, third = (row for row in rows[:3])
    (tmp_path / "list.txt").write_text(f"{one['key']}\n\n{other['uri']}\n{'0' * 20}\n")
    chosen = ("--list", tmp_path / "list.txt", "--key", third["key"])
    dry = igpt("dataset", "erase", dataset, *chosen, "--dry-run")
    assert dry.code == 0 and "3 images would be erased, 0 of them copies under other names; 1 of the given" in dry.out
    counted = json.loads(igpt("dataset", "erase", dataset, *chosen, "--dry-run", "--json").out)
    assert counted["images"] == 3 and counted["by_snapshot"]["3"] == 3
    home = tmp_path / "home"
    made = [home / "reports" / "m" / "report.html", home / "demo" / "digits" / "report.html"]
    for path in made:
        objects.write_bytes(str(path), report(dataset, one["key"]))
    places = ("--without-mlflow", "--runs", tmp_path / "runs", "--home", home)
    with mock.patch("flows.services.cluster.connect"), mock.patch("flows.erase.tasks.ask_nodes", return_value={}):
        done = igpt("dataset", "erase", dataset, *chosen, *places)
        assert done.code == 0, done.err
        assert "3 images are erased from" in done.out and "pictures in MLflow: not searched" in done.out
        assert "pictures: 2;" in done.out and not any(path.exists() for path in made)
        assert "out of reach: backups of the dataset" in done.out and "erasures/000001.json" in done.out
        again = igpt("dataset", "erase", dataset, "--key", one["key"], *places)
        assert again.code == 2 and "no snapshot has an image that is named so" in again.err
    receipt = json.loads((Path(dataset) / "erasures" / "000001.json").read_bytes())
    assert receipt["images"] == 3 and one["key"] not in json.dumps(receipt)
    left = {row["key"] for row in json.loads(igpt("dataset", "images", dataset, "--json").out)}
    assert left == {row["key"] for row in rows} - {one["key"], other["key"], third["key"]}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--key nothex", "'nothex' is no key: it has 20 hex digits"),
        ("--where owner", "--where is 'owner': give COLUMN=VALUE"),
        ("--where owner=ann --dry-run", "owner: no index has this column"),
        ("--list nowhere.txt", "give a text file with a key or an address a line"),
        ("--url u", "MLflow at http://127.0.0.1:9 does not answer"),
    ],
)
def test_a_wrong_selection_is_one_line(arguments: str, expected: str, igpt: Igpt, dataset: str) -> None:
    ended = igpt("dataset", "erase", dataset, *arguments.split())
    assert ended.code == 2 and expected in " ".join(ended.err.split()), ended.err
    assert not (Path(dataset) / "erasures").exists()
