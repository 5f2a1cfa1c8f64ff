"""What the object store tells of datasets and leases: a listing and at most one manifest for each."""

from collections.abc import Iterator

from flows.monitor.sample import Sample
from pipeline.dataset import snapshot
from pipeline.dataset.snapshot import Snapshot
from pipeline.store import lease, objects


class StoreReader:
    """Reads the samples; remembers each dataset's newest manifest, which never changes."""

    def __init__(self, datasets: tuple[str, ...], leases: tuple[str, ...]) -> None:
        self._datasets, self._leases = datasets, leases
        self._newest: dict[str, Snapshot] = {}

    def __call__(self) -> list[Sample]:
        """Raises IgptError or OSError when the store does not answer."""
        samples = [sample for dataset in self._datasets for sample in self._of_dataset(dataset)]
        for folder in self._leases:
            names = (objects.name_of(file.url) for file in objects.list_files(objects.join(folder, "lease")))
            labels = {"folder": folder}
            samples.append(Sample(name="igpt_lease_term", value=lease.newest_term(names), labels=labels))
        return samples

    def _of_dataset(self, dataset: str) -> Iterator[Sample]:
        labels = {"dataset": dataset}
        # Before the first snapshot all are 0, so that alerts about a snapshot that never came can fire.
        number = snapshot.latest_number(dataset) or 0
        published = 0.0
        if number:
            (manifest,) = objects.list_files(objects.join(dataset, snapshot.snapshot_path(number)))
            published = manifest.modified
            if dataset not in self._newest or self._newest[dataset].number != number:
                self._newest[dataset] = snapshot.read(dataset, number)
        newest = self._newest.get(dataset)
        yield Sample(name="igpt_snapshot_number", value=number, labels=labels)
        yield Sample(name="igpt_snapshot_published_timestamp_seconds", value=published, labels=labels)
        images = 0 if newest is None else newest.images()
        yield Sample(name="igpt_snapshot_images", value=images, labels=labels)
        for reason, count in ({} if newest is None else newest.rejected).items():
            yield Sample(name="igpt_snapshot_rejected", value=count, labels={**labels, "reason": reason})
