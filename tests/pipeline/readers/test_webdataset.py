"""A snapshot as a pipeline of webdataset: the samples of its shards, divided, and from the middle on."""

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import webdataset
from torch.utils.data import DataLoader

from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.readers.webdataset import open_pipeline


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_it_has_what_webdataset_itself_reads_of_the_shards(built: Snapshot) -> None:
    urls = [f"{built.dataset}/{shard.path}" for shard in built.of_split("train")]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    ours = list(open_pipeline(built.dataset, split="train"))
    assert len(ours) == len(theirs) == built.samples("train")
    for sample, expected in zip(ours, theirs, strict=True):
        assert (sample["__key__"], sample["__url__"]) == (expected["__key__"], expected["__url__"])
        assert np.array_equal(sample["npy"], expected["npy"]) and sample["npy"].dtype == np.uint16
        assert sample["cls"] == expected["cls"]
        assert sample["class_name"] == ("" if sample["cls"] < 0 else built.classes[sample["cls"]])


def test_rgb_in_batches_of_the_fluid_interface(built: Snapshot) -> None:
    samples = open_pipeline(built.dataset, split="train", pixels="rgb", shuffle=True, batch_size=16)
    batches = list(samples.to_tuple("npy", "cls").batched(16))
    assert {pixels.shape for pixels, _ in batches[:-1]} == {(16, 8, 8, 3)}
    assert sum(len(labels) for _, labels in batches) == built.samples("train")
    assert {str(pixels.dtype) for pixels, _ in batches} == {"uint8"}


@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_in_the_middle_on_two_ranks(built: Snapshot, workers: int) -> None:
    keys: list[str] = []
    for rank in range(2):

        def batches(rank: int = rank) -> tuple[object, DataLoader]:
            opened = open_pipeline(built.dataset, split="train", shuffle=True, batch_size=8, rank=rank, world_size=2)
            return opened, webdataset.WebLoader(
                opened.to_tuple("__key__").batched(8), batch_size=None, num_workers=workers
            )

        opened, loader = batches()
        opened.set_epoch(1)
        taken = [key for batch in islice(loader, 2) for key in batch[0]]
        state = opened.state_dict(samples=16)
        resumed, loader = batches()
        resumed.load_state_dict(state)
        keys += [*taken, *(key for batch in loader for key in batch[0])]
    assert Counter(keys) == Counter(sample["__key__"] for sample in open_pipeline(built.dataset, split="train"))
    assert set(Counter(keys).values()) == {1}


def test_a_damaged_shard_is_refused_in_a_line(damaged: str) -> None:
    with pytest.raises(IgptError, match="tar: the shard's checksum differs from the snapshot's; rebuild the dataset"):
        list(open_pipeline(damaged, split="train"))
