"""An erasure reaches what was made of the images elsewhere, features, caches, reports; and says who saw them."""

import json
from pathlib import Path

import numpy as np
import pytest

from flows.erase import Places, erase_everywhere, shows
from flows.report import page
from flows.report.content import Gallery, Group, Picture, Report, Section
from igpt_model.config import PretrainConfig
from igpt_model.probing.feature_cache import FeatureCache
from igpt_model.runs import record
from igpt_model.runs.record import RunRecord
from igpt_model.runs.result import check_same_data, read_result
from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.dataset import erasures, snapshot
from pipeline.dataset.erasures import Tombstones
from pipeline.dataset.keys import key_of
from pipeline.dataset.lifecycle.erase import Selection
from pipeline.dataset.record import Publisher
from pipeline.errors import IgptError
from pipeline.samples.shard_cache import ShardCache
from pipeline.store import objects, presence
from tests.igpt_model.runs.test_old_checkpoints import RESULT

pytestmark = pytest.mark.usefixtures("without_cluster")
ERASED, OTHER = key_of("temple/00.png"), key_of("temple/02.png")


@pytest.fixture
def config(image_folder: Path, tmp_path: Path) -> DatasetConfig:
    return DatasetConfig(
        raw=str(image_folder), dataset=str(tmp_path / "faces"), resolution=8, colours=16, samples_per_shard=20
    )


def report(dataset: str, *keys: str) -> bytes:
    picture = Picture(data=b"\x89PNG", alt="a picture", keys=keys)
    section = Section(name="rejected", title="Rejected", blocks=(Gallery(groups=(Group(pictures=(picture,)),)),))
    return page.render(Report(title="t", subtitle="s", headline=(), dataset=dataset, sections=(section,)))


def test_features_caches_and_reports_go_and_who_saw_them_is_told(config: DatasetConfig, tmp_path: Path) -> None:
    data = build(config).snapshot
    runs, nodes = str(tmp_path / "runs"), tmp_path / "node"
    gone = next(shard for shard in data.shards if ERASED in _keys(data, shard.index_path))
    kept = next(shard for shard in data.shards if shard != gone and shard.samples)
    for name, digest in (("saw", data.content_digest), ("other", "elsewhere")):
        run_config = PretrainConfig.from_fields(
            dataset=config.dataset, runs=runs, preset="tiny", snapshot=1, cache=str(nodes)
        )
        record.write(f"{runs}/{name}", RunRecord(config=run_config, mlflow_run=None))
        result = {**RESULT, "snapshot_digest": digest, "palette_sha256": data.palette_sha256}
        objects.write_bytes(f"{runs}/{name}/result.json", json.dumps(result).encode())
    cache = FeatureCache(url=f"{config.dataset}-features", network="n" * 64, layers=2)
    for shard in (gone, kept):
        cache.write(shard, 3, [np.zeros((2, 3, 4), np.float32)], count=3)
        ShardCache(data, str(nodes)).open(shard)
    reports = tmp_path / "reports"
    for name, keys in (("erased", [OTHER, ERASED]), ("kept", [OTHER])):
        objects.write_bytes(str(reports / name / "report.html"), report(data.dataset, *keys))
        objects.write_bytes(str(reports / name / "completions.png"), b"of the images in the report")
    objects.write_bytes(str(reports / "no-report.html"), b"<p>somebody's")
    places = Places(runs=[runs], reports=[reports], tracking_uri=None)
    selection, asked = Selection(keys=frozenset([ERASED])), []

    def on_nodes(question: object) -> dict[str, int]:
        asked.append(question)
        return {"10.0.0.1": 2}

    with presence.probing(f"{config.dataset}-features"), pytest.raises(IgptError, match="a probe is running"):
        erase_everywhere(config.dataset, selection, places, Publisher(), nodes=on_nodes)
    (receipt,) = erase_everywhere(config.dataset, Selection(), places, Publisher(), nodes=on_nodes)
    outside = receipt["outside"]
    assert cache.missing([(gone, 3), (kept, 3)]) == [(gone, 3)]
    assert outside["features"] == 2 and outside["mlflow"] == "not searched"
    assert [path.stem for path in nodes.rglob("*.tar")] == [kept.name]
    assert outside["node_caches"] == {"this process": 1, "10.0.0.1": 2} and asked
    assert outside["reports"] == [str(reports / "erased" / name) for name in ("completions.png", "report.html")]
    assert [path.parent.name for path in reports.rglob("completions.png")] == ["kept"]
    assert {path.parent.name for path in reports.rglob("*.html")} == {"kept", "reports"}
    assert outside["trained_on"] == [{"name": f"{runs}/saw", "snapshot": 1}]
    text = json.dumps(receipt)
    assert ERASED not in text and "temple/00" not in text, "a receipt names nobody"
    # A run on the content of before ends in one line; one on another content is as it was.
    result = read_result(f"{runs}/saw")
    assert result is not None
    with pytest.raises(IgptError, match="which is no more: images were erased from it") as raised:
        check_same_data(result, snapshot.read(config.dataset), f"{runs}/saw")
    assert "\n" not in str(raised.value) and erasures.unfinished(config.dataset) == []


def _keys(data: snapshot.Snapshot, path: str) -> set[str]:
    from pipeline.dataset import index

    return set(index.read(data.dataset, path)["key"].to_pylist())


@pytest.mark.parametrize(
    ("html", "otherwise", "expected"),
    [
        (report("s3://d", ERASED), False, True),
        (report("s3://d", OTHER), True, False),
        (report("s3://other", ERASED), True, False),
        (b"<p>not a report", False, False),
        (b"\xff\xfe not text", True, True),
    ],
)
def test_which_report_shows_an_erased_image(html: bytes, otherwise: bool, expected: bool) -> None:
    tombstones = Tombstones(keys=frozenset([erasures.hash_of_key(ERASED)]))
    assert shows(html, "s3://d", tombstones, otherwise=otherwise) is expected
