"""Features are stored by network, shard and layer, and never mixed up."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from igpt_model.inference.features import untrained
from igpt_model.probing.feature_cache import FeatureCache, find_old, network_digest, remove_old
from pipeline.dataset.snapshot import ShardEntry
from pipeline.errors import IgptError
from pipeline.store import presence
from tests.igpt_model.probing.test_fine_tune import make_bundle


def test_networks_are_identified_by_their_contents() -> None:
    model = make_bundle()
    fresh = replace(model, model=untrained(model.model, 1))
    same = replace(model, model=untrained(model.model, 1), classes=())
    other_palette = replace(model, palette_K3=model.palette_K3[::-1].copy())
    assert len({network_digest(network) for network in (model, fresh, other_palette)}) == 3
    assert network_digest(fresh) == network_digest(same)


def shard(name: str, sha256: str) -> ShardEntry:
    return ShardEntry(
        name=name,
        split="train",
        samples=5,
        images=5,
        bytes=0,
        sha256=sha256 * 64,
        rejected={},
        quarantine=None,
        index_sha256="",
        quarantine_sha256=None,
    )


def test_features_that_were_written_are_read_and_not_computed_again(tmp_path: Path) -> None:
    cache = FeatureCache(url=str(tmp_path), network="n" * 64, layers=3)
    one, two = shard("train-000000-one", "1"), shard("train-000001-two", "2")
    features_LNC = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    assert cache.missing([(one, 5), (two, 5)]) == [(one, 5), (two, 5)]
    cache.write(one, 5, [features_LNC[:, :2], features_LNC[:, 2:]], count=5)
    assert cache.missing([(one, 5), (two, 5)]) == [(two, 5)]
    for layer in range(3):
        assert np.array_equal(cache.read(one, 5, layer), features_LNC[layer])
    # The same bytes under another name are the same images; another number of rows is other features.
    assert cache.missing([(replace(one, name="train-000009-one"), 5), (one, 4)]) == [(one, 4)]
    Path(cache.file(one, 5, 2)).unlink()
    assert cache.missing([(one, 5)]) == [(one, 5)], "a layer is missing"


@pytest.mark.parametrize("change", [{"network": "m" * 64}, {"on_gpu": True}, {"pooling": "rows"}])
def test_other_networks_and_formats_have_features_of_their_own(change: dict, tmp_path: Path) -> None:
    cache, one = FeatureCache(url=str(tmp_path), network="n" * 64, layers=3), shard("train-000000-one", "1")
    cache.write(one, 5, [np.zeros((3, 5, 4), np.float32)], count=5)
    assert replace(cache, **change).missing([(one, 5)]) == [(one, 5)]


def test_networks_without_new_features_for_long_are_removed_and_no_others(tmp_path: Path) -> None:
    one, two = shard("train-000000-one", "1"), shard("train-000001-two", "2")
    caches = {name: FeatureCache(url=str(tmp_path), network=name * 64, layers=2) for name in "abc"}
    features_LNC = np.zeros((2, 5, 4), np.float32)
    for cache in caches.values():
        cache.write(one, 5, [features_LNC[:, :2], features_LNC[:, 2:]], count=5)
    for path in tmp_path.rglob("*.npy"):
        os.utime(path, (1e9, 1e9))
    # A new snapshot was probed with it: its old shards are in use too.
    caches["b"].write(two, 5, [features_LNC], count=5)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    os.utime(tmp_path / "notes" / "mine.txt", (1e9, 1e9))
    assert {old.network[0]: old.files for old in find_old(str(tmp_path), 3600)} == {"a": 2, "c": 2}
    assert len(remove_old(str(tmp_path), 3600)) == 2
    assert [caches[name].missing([(one, 5)]) for name in "abc"] == [[(one, 5)], [], [(one, 5)]]
    assert (tmp_path / "notes" / "mine.txt").exists() and find_old(str(tmp_path), 3600) == []


def test_a_probe_and_a_removal_keep_out_of_each_others_way(tmp_path: Path) -> None:
    cache, one = FeatureCache(url=str(tmp_path), network="a" * 64, layers=2), shard("train-000000-one", "1")
    cache.write(one, 5, [np.zeros((2, 5, 4), np.float32)], count=5)
    for path in tmp_path.rglob("*.npy"):
        os.utime(path, (1e9, 1e9))
    with presence.probing(str(tmp_path)), pytest.raises(IgptError, match=r"a probe is running .*; nothing was removed"):
        remove_old(str(tmp_path), 3600)
    assert cache.missing([(one, 5)]) == []
    missing: list[object] = []

    def probe() -> None:
        with presence.probing(str(tmp_path)):
            missing.extend(cache.missing([(one, 5)]))

    with presence.collecting(str(tmp_path)):
        thread = threading.Thread(target=probe)
        thread.start()
        time.sleep(0.3)
        assert missing == [], "it waits, and looks only afterwards what is there"
        for path in list(tmp_path.rglob("*.npy")):
            path.unlink()
    thread.join(10)
    assert missing == [(one, 5)]
