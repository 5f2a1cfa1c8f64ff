"""A shard is a plain tar for any reader and an array for ours, and its bytes depend only on its samples."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset import shards
from pipeline.dataset.shards import ShardView
from pipeline.errors import IgptError

LABELS = (-1, 0, 10, 999)


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[: shards.KEY_LENGTH]


def samples(count: int, side: int, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    tokens_NHW = np.random.default_rng(seed).integers(0, 65536, (count, side, side)).astype(np.uint16)
    return [key(number) for number in range(count)], tokens_NHW, np.resize(np.array(LABELS, np.int64), count)


def view(data: bytes, count: int, side: int) -> ShardView:
    return ShardView(np.frombuffer(data, np.uint8), samples=count, side=side, name="a shard")


@given(
    count=st.integers(0, 40),
    side=st.sampled_from([4, 8, 10, 32, 64]),
    labels=st.lists(st.integers(-1, 10**12), min_size=40, max_size=40),
)
def test_a_view_has_the_encoded_samples(count: int, side: int, labels: list[int]) -> None:
    keys, tokens_NHW, _ = samples(count, side)
    shard = view(shards.encode(keys, tokens_NHW, np.array(labels[:count], np.int64)), count, side)
    assert np.array_equal(shard.tokens_NHW, tokens_NHW)
    assert shard.labels_N.tolist() == labels[:count]
    assert [name.decode() for name in shard.keys_N] == [shard.key(row) for row in range(len(keys))] == keys


def test_keys_of_random_crops_have_their_number_behind_them() -> None:
    keys, tokens_NHW, labels = samples(4, 8)
    numbered = [f"{key}-{crop:03d}" for crop, key in enumerate(keys)]
    shard = view(shards.encode(numbered, tokens_NHW, labels), 4, 8)
    assert [name.decode() for name in shard.keys_N] == [shard.key(row) for row in range(len(keys))] == numbered
    assert np.array_equal(shard.tokens_NHW, tokens_NHW)


@pytest.mark.parametrize("side", [8, 32, 64])
def test_tarfile_reads_the_same_members(side: int) -> None:
    keys, tokens_NHW, labels = samples(7, side)
    data = shards.encode(keys, tokens_NHW, labels)
    assert len(data) % 10240 == 0
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [f"{k}.{kind}" for k in keys for kind in ("npy", "cls")]
        for member in members:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert (member.mode, member.isreg(), member.pax_headers) == (0o644, True, {})
        contents = [archive.extractfile(member).read() for member in members]
    for number, (npy, cls) in enumerate(zip(contents[::2], contents[1::2], strict=True)):
        array = np.load(io.BytesIO(npy), allow_pickle=False)
        assert array.dtype == np.dtype("<u2")
        assert np.array_equal(array, tokens_NHW[number])
        assert cls == str(labels[number]).encode()


@pytest.mark.parametrize("side", [8, 32, 64])
def test_the_webdataset_package_reads_the_same_samples(
    side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import webdataset
    from webdataset import utils

    monkeypatch.setattr(utils, "enforce_security", True)  # what WDS_SECURE=1 sets: no pickles, no pipes
    keys, tokens_NHW, labels = samples(9, side)
    path = tmp_path / "shard.tar"
    path.write_bytes(shards.encode(keys, tokens_NHW, labels))
    dataset = webdataset.WebDataset(str(path), shardshuffle=False).decode(
        webdataset.handle_extension("npy", lambda data: np.load(io.BytesIO(data), allow_pickle=False))
    )
    read = list(dataset)
    assert [sample["__key__"] for sample in read] == keys
    assert [sample["cls"] for sample in read] == labels.tolist()
    assert np.array_equal(np.stack([sample["npy"] for sample in read]), tokens_NHW)


def test_the_same_samples_give_the_same_bytes() -> None:
    keys, tokens_NHW, labels = samples(5, 16)
    data = shards.encode(keys, tokens_NHW, labels)
    assert shards.encode(list(keys), np.asfortranarray(tokens_NHW.astype(np.int64)), labels.astype(np.int32)) == data
    assert shards.encode(keys, tokens_NHW[::-1], labels) != data
    assert shards.encode(keys, tokens_NHW, labels[::-1]) != data
    assert shards.encode(keys[::-1], tokens_NHW, labels) != data


def test_a_shard_is_read_in_place(tmp_path: Path) -> None:
    keys, tokens_NHW, labels = samples(6, 32)
    path = tmp_path / "shard.tar"
    path.write_bytes(shards.encode(keys, tokens_NHW, labels))
    shard = ShardView.open(path, samples=6, side=32)
    assert np.array_equal(shard.tokens_NHW[[4, 1]], tokens_NHW[[4, 1]])
    assert not shard.tokens_NHW.flags.owndata
    assert not shard.tokens_NHW.flags.writeable
    assert shard.labels_N.tolist() == labels.tolist()


@pytest.mark.parametrize("side", [8, 32])
@pytest.mark.parametrize("count", range(1, 8))
def test_a_shard_of_another_count_or_resolution_is_refused(side: int, count: int) -> None:
    data = shards.encode(*samples(4, side))
    if count != 4:
        with pytest.raises(IgptError, match="a shard"):
            view(data, count, side)
    with pytest.raises(IgptError, match="another resolution"):
        view(data, count, 2 * side)


@pytest.mark.parametrize("kept", [0, 1, 511, 512, 5000, -10240, -1])
def test_a_truncated_shard_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.tar"
    path.write_bytes(shards.encode(*samples(40, 8))[:kept])
    with pytest.raises(IgptError, match=r"cut\.tar"):
        ShardView.open(path, samples=40, side=8)


@pytest.mark.parametrize(
    ("keys", "tokens_shape", "labels"),
    [
        ([key(0)], (2, 8, 8), 2),
        ([key(0), key(1)], (2, 8, 8), 1),
        ([key(0), key(1)], (2, 8, 4), 2),
        ([key(0), "short"], (2, 8, 8), 2),
    ],
)
def test_samples_that_do_not_match_are_refused(keys: list[str], tokens_shape: tuple[int, ...], labels: int) -> None:
    with pytest.raises(ValueError, match="do not match"):
        shards.encode(keys, np.zeros(tokens_shape, np.uint16), np.zeros(labels, np.int64))
