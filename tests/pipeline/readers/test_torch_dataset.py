"""A snapshot as a dataset of PyTorch: what is in a sample, and each once whatever reads and wherever it stops."""

import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from pipeline.dataset import index, snapshot
from pipeline.dataset.shards import ShardView
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.readers.torch_dataset import TorchDataset

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def opened(built: Snapshot, **options: Any) -> TorchDataset:
    return TorchDataset(built.dataset, **{"split": "train", **options})


def names(samples: Any) -> list[tuple[str, int]]:
    """The samples of a dataset, or of the batches of a loader."""
    rows: list[tuple[str, int]] = []
    for sample in samples:
        if isinstance(sample["key"], str):
            rows.append((sample["key"], sample["crop"]))
        else:
            rows += zip(sample["key"], sample["crop"].tolist(), strict=True)
    return rows


def in_shards(built: Snapshot, split: str = "train") -> dict[tuple[str, int], tuple[np.ndarray, int]]:
    """Tokens and label of every sample, from the shards themselves."""
    samples = {}
    for shard in built.of_split(split):
        view = ShardView.open(Path(built.dataset) / shard.path, samples=shard.samples, side=built.resolution)
        for key, tokens_HW, label in zip(view.keys_N.tolist(), view.tokens_NHW, view.labels_N.tolist(), strict=True):
            image, _, crop = key.decode().partition("-")
            samples[image, int(crop or 0)] = np.array(tokens_HW), label
    return samples


@pytest.mark.parametrize("pixels", ["tokens", "rgb"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_sample_is_what_the_shard_and_the_index_say(built: Snapshot, split: str, pixels: str) -> None:
    expected = in_shards(built, split)
    labels = {
        row["key"]: row["label"]
        for shard in built.of_split(split)
        for row in index.read(built.dataset, shard.index_path).to_pylist()
    }
    palette_K3 = np.clip(np.rint((built.palette().astype(np.float64) + 1) * 127.5), 0, 255).astype(np.uint8)
    dataset = opened(built, split=split, pixels=pixels)
    samples = list(dataset)
    assert names(samples) == list(expected), "in the order of the shards"
    assert len(samples) == len(dataset) == built.samples(split)
    for sample in samples:
        tokens_HW, label = expected[sample["key"], sample["crop"]]
        assert np.array_equal(sample[pixels].numpy(), tokens_HW if pixels == "tokens" else palette_K3[tokens_HW])
        assert sample[pixels].dtype == (torch.uint16 if pixels == "tokens" else torch.uint8)
        assert sample["label"] == label == labels[sample["key"]]
        assert sample["class_name"] == ("" if label < 0 else built.classes[label]) == ("", *built.classes)[label + 1]
    assert dataset.classes == built.classes and {-1} < {sample["label"] for sample in samples}
    (batch,) = DataLoader(dataset, batch_size=len(samples))
    assert batch[pixels].shape == (len(samples), 8, 8, 3)[: 4 if pixels == "rgb" else 3]
    assert batch["label"].dtype == torch.int64 and set(batch["class_name"]) == {"", *built.classes}


def test_without_a_split_all_are_read_and_a_transform_is_applied(built: Snapshot) -> None:
    everything = TorchDataset(built.dataset, transform=lambda sample: sample["key"])
    assert Counter(everything) == Counter(
        key for split in ("train", "validation", "test") for key, _ in in_shards(built, split)
    )


def test_epochs_have_orders_of_their_own(built: Snapshot) -> None:
    dataset, same = (opened(built, shuffle=True, seed=3, window_shards=2) for _ in range(2))
    orders = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        orders.append(names(dataset))
    assert orders[0] == orders[2] == names(same) != orders[1]
    assert set(orders[0]) == set(orders[1]) == set(in_shards(built))
    assert orders[0] not in (sorted(orders[0]), names(opened(built)), names(opened(built, shuffle=True, seed=4)))


@pytest.mark.parametrize(
    ("ranks", "workers", "persistent"),
    [(1, 0, False), (2, 0, False), (1, 1, False), (2, 1, False), (1, 3, False), (2, 3, False), (1, 3, True)],
)
def test_it_goes_on_in_the_middle(built: Snapshot, ranks: int, workers: int, persistent: bool) -> None:
    """A pass stops after some batches, another dataset goes on, and then the next epoch is whole again."""
    every, batch = set(in_shards(built)), 8

    def loader(rank: int) -> tuple[TorchDataset, DataLoader[Any]]:
        dataset = opened(built, shuffle=True, window_shards=2, batch_size=batch, rank=rank, world_size=ranks)
        kept = DataLoader(dataset, batch_size=batch, num_workers=workers, persistent_workers=persistent)
        return dataset, kept

    before, after, next_epoch = [], [], []
    for rank in range(ranks):
        dataset, batches = loader(rank)
        dataset.set_epoch(2)
        taken = names(islice(batches, 3))
        assert len(taken) == 3 * batch
        before += taken
        state = pickle.loads(pickle.dumps(dataset.state_dict(samples=len(taken) if workers else None)))  # noqa: S301
        resumed, batches = loader(rank)
        resumed.load_state_dict(state)
        resumed.set_epoch(2)
        rest = names(batches)
        assert len(taken) + len(rest) == len(dataset)
        after += rest
        resumed.set_epoch(3)
        next_epoch += names(batches)
    assert Counter(before + after) == Counter(next_epoch) == Counter(dict.fromkeys(every, 1))


def test_without_an_epoch_set_the_next_pass_is_whole(built: Snapshot) -> None:
    for workers in (0, 2):
        dataset = pickle.loads(pickle.dumps(opened(built, batch_size=8)))  # noqa: S301 (as one that is sent elsewhere)
        dataset.load_state_dict({**dataset.state_dict(), "taken": 16})
        batches = DataLoader(dataset, batch_size=8, num_workers=workers)
        assert [len(names(batches)) for _ in range(3)] == [len(dataset) - 16, len(dataset), len(dataset)]


@pytest.mark.parametrize(
    ("before", "after"), [((1, 8), (2, 8)), ((2, 8), (1, 8)), ((3, 4), (2, 5)), ((2, 8), (2, 4)), ((4, 2), (1, 1))]
)
def test_another_number_of_ranks_goes_on(built: Snapshot, before: tuple[int, int], after: tuple[int, int]) -> None:
    """Of (ranks, batch size)."""
    seen, states = [], []
    ranks, batch = before
    for rank in range(ranks):
        dataset = opened(built, shuffle=True, batch_size=batch, rank=rank, world_size=ranks)
        seen += names(islice(dataset, 2 * batch))
        states.append(dataset.state_dict())
    ranks, batch = after
    for rank in range(ranks):
        dataset = opened(built, shuffle=True, batch_size=batch, rank=rank, world_size=ranks)
        dataset.load_state_dict(states[0])
        seen += names(dataset)
    assert Counter(seen) == Counter(dict.fromkeys(in_shards(built), 1))


def test_another_number_of_workers_goes_on_in_the_same_order(built: Snapshot) -> None:
    dataset = opened(built, shuffle=True, batch_size=8)
    whole = names(dataset)
    for workers in (1, 3):
        assert names(DataLoader(dataset, batch_size=8, num_workers=workers)) == whole
    next(iter(DataLoader(dataset, batch_size=8, num_workers=3)))
    resumed = opened(built, shuffle=True, batch_size=8)
    resumed.load_state_dict(dataset.state_dict(samples=8))
    assert names(DataLoader(resumed, batch_size=8, num_workers=2)) == whole[8:]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_stateful_loader_of_torchdata_goes_on(built: Snapshot, workers: int) -> None:
    def loader() -> StatefulDataLoader:
        return StatefulDataLoader(opened(built, shuffle=True), batch_size=7, num_workers=workers)

    whole, stopped = names(loader()), loader()
    seen = names(islice(stopped, 5))
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    assert seen + names(resumed) == whole and set(whole) == set(in_shards(built))


def test_ranks_have_equally_many_samples_when_asked(built: Snapshot) -> None:
    for equal in (False, True):
        parts = [
            names(opened(built, shuffle=True, batch_size=4, rank=rank, world_size=7, equal_ranks=equal))
            for rank in range(7)
        ]
        lengths = set(map(len, parts))
        assert len(lengths) == (1 if equal else 2) and max(lengths) - min(lengths) <= 1
        seen = Counter(name for part in parts for name in part)
        assert set(seen.values()) == {1} and built.samples("train") - len(seen) in (range(1, 7) if equal else [0])


def test_the_rank_is_that_of_the_process_group(built: Snapshot, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        dataset = opened(built)
        assert (dataset.state_dict()["rank"], dataset.state_dict()["world_size"]) == (0, 1)
    finally:
        torch.distributed.destroy_process_group()
    given = pickle.loads(pickle.dumps(opened(built, rank=1, world_size=2)))  # noqa: S301
    assert names(given) == names(opened(built, rank=1, world_size=2))


def states(built: Snapshot) -> Iterator[dict[str, Any]]:
    dataset = opened(built, shuffle=True, batch_size=8, rank=0, world_size=2)
    next(iter(dataset))
    yield dataset.state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "holdout"}, "split is 'holdout': it must be one of train, validation, test, or None"),
        ({"pixels": "float"}, "pixels is 'float': it must be 'tokens' or 'rgb'"),
        ({"snapshot": 9}, "there is no snapshot 9"),
        ({"batch_size": 0}, "batch_size is 0: it must be at least 1"),
        ({"rank": 2, "world_size": 2}, "rank is 2 of 2: it must be from 0 to 1"),
        ({"rank": 2}, "rank and world_size belong together"),
        ({"window_shards": 0}, "window_shards is 0"),
        ({"cache_bytes": 1000}, "cache_bytes is 1,000"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line(built: Snapshot, options: dict[str, Any], message: str) -> None:
    with pytest.raises(IgptError, match=message) as refused:
        opened(built, **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "split was 'train', and is 'test'"),
        ({"seed": 1}, "seed was 0, and is 1"),
        ({"shuffle": False}, "shuffle was True, and is False"),
        ({"rank": 0, "world_size": 3}, "within a batch of 8 on 2 ranks: load it with the same"),
        ({"batch_size": 4}, "within a batch of 8 on 2 ranks: load it with the same"),
    ],
)
def test_a_state_of_another_reading_is_refused(built: Snapshot, options: dict[str, Any], message: str) -> None:
    (state,) = states(built)
    same = {"shuffle": True, "batch_size": 8, "rank": 1, "world_size": 2}
    opened(built, **same).load_state_dict(state)
    with pytest.raises(IgptError, match=message):
        opened(built, **{**same, **options}).load_state_dict(state)


def test_a_state_needs_the_number_of_samples_that_workers_have_read(built: Snapshot) -> None:
    dataset = opened(built, batch_size=8)
    next(iter(DataLoader(dataset, batch_size=8, num_workers=1)))
    with pytest.raises(IgptError, match="give state_dict"):
        dataset.state_dict()
    assert dataset.state_dict(samples=8)["taken"] == 8
    assert next(iter(dataset)) and dataset.state_dict(samples=8)["taken"] == 8


def test_a_damaged_shard_is_refused_in_a_line(damaged: str) -> None:
    with pytest.raises(IgptError, match="tar: the shard's checksum differs from the snapshot's; rebuild the dataset"):
        list(TorchDataset(damaged, split="train"))
    assert list(TorchDataset(damaged, split="test"))


def test_an_empty_split_is_refused_in_a_line(built: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    without = replace(built, shards=built.of_split("train"))
    monkeypatch.setattr(snapshot, "read", lambda dataset, number: without)
    with pytest.raises(IgptError, match="has no images in split 'test'; rebuild it with a larger test_fraction"):
        opened(built, split="test")


def test_datasets_of_schema_2_are_read() -> None:
    old = snapshot.read(str(ROOT / "tests" / "fixtures" / "b9a78dc" / "dataset"))
    assert old.schema == 2
    assert set(names(opened(old, shuffle=True))) == set(in_shards(old))
