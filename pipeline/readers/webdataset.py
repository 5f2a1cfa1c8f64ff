"""A snapshot as a pipeline of webdataset.

    samples = open_pipeline("s3://datasets/photos", split="train", shuffle=True, batch_size=64)
    for tokens, labels in samples.to_tuple("npy", "cls").batched(64): ...

Reads what TorchDataset reads, with its options: the shards that the snapshot names, verified, from any store, divided
among ranks and workers, and from the middle on.
"""

from collections.abc import Mapping
from typing import Any

from webdataset import DataPipeline
from webdataset.compat import FluidInterface

from pipeline.readers.torch_dataset import Sample, TorchDataset


class _Source(TorchDataset):
    """Samples as webdataset decodes them from a shard, and the names of their classes."""

    def _present(self, sample: Sample) -> dict[str, Any]:
        return {
            "__key__": sample.key,
            "__url__": self.selection.url(sample.shard),
            "npy": sample.pixels,
            "cls": sample.label,
            "class_name": self.selection.class_name(sample.label) or "",
        }


class SnapshotPipeline(DataPipeline, FluidInterface):
    """A pipeline that goes on in the middle. Its first stage counts the samples that have left it.

    Some stages keep samples back: `batched` one, `shuffle` many. So give state_dict(samples=...) how many were taken,
    and shuffle with `shuffle=True` of the source rather than with the stage.
    """

    def __init__(self, source: TorchDataset) -> None:
        super().__init__(source)

    @property
    def source(self) -> TorchDataset:
        """The first stage."""
        return self.pipeline[0]

    def set_epoch(self, epoch: int) -> None:
        """See TorchDataset.set_epoch."""
        self.source.set_epoch(epoch)

    def state_dict(self, *, samples: int | None = None) -> dict[str, Any]:
        """See TorchDataset.state_dict."""
        return self.source.state_dict(samples=samples)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See TorchDataset.load_state_dict."""
        self.source.load_state_dict(state)


def open_pipeline(dataset: str, **options: Any) -> SnapshotPipeline:
    """Open a snapshot as a pipeline, with the options of TorchDataset but for `transform`. Raises IgptError.

    A sample is a dict: `__key__`, its key in the shard; `__url__`, the shard; `npy`, uint16 [H, W], or uint8 [H, W, 3]
    with pixels="rgb"; `cls`, the number of its class or -1; `class_name`, "" without a class.
    """
    return SnapshotPipeline(_Source(dataset, **options))
