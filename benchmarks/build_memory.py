"""Peak memory of the driver and of a worker in a build of 3,000, 10,000 and 30,000 full-size photographs.

    python -m benchmarks.build_memory IMAGES.tar [--rounds 3]

The images are the files of IMAGES.tar under many names (links on local disk), in shards of 125. Only a process's unique
memory counts, not the pages of the lookup table that the workers share through Ray's object store.
"""

import argparse
import shutil
import tarfile
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
import ray

from benchmarks.measure import Series, machine, ratio, save
from pipeline.build.build import build
from pipeline.config import DatasetConfig

PARTS = ("driver", "worker")
COUNTS = (3_000, 10_000, 30_000)


@dataclass(kw_only=True)
class Peaks:
    """Largest unshared memory, in MiB."""

    driver: float = 0.0
    worker: float = 0.0


def watch(peaks: Peaks, ended: threading.Event) -> None:
    """Sample the memory of this process and of its cluster's workers, ten times a second."""
    driver = psutil.Process()
    while not ended.wait(0.1):
        peaks.driver = max(peaks.driver, driver.memory_full_info().uss / 2**20)
        for process in psutil.process_iter(["name"]):
            if process.info["name"].startswith("ray::"):
                with suppress(psutil.Error):
                    peaks.worker = max(peaks.worker, process.memory_full_info().uss / 2**20)


def link(photographs: Path, target: Path, count: int) -> None:
    """Link the files of a folder under `count` names."""
    files = sorted(path for path in photographs.rglob("*") if path.is_file())
    for number in range(count):
        path = target / f"class-{number % 100:02d}" / f"{number:06d}.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(files[number % len(files)])


def measure(raw: Path, dataset: Path) -> Peaks:
    """Build on a fresh cluster of two workers."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    peaks, ended = Peaks(), threading.Event()
    thread = threading.Thread(target=watch, args=(peaks, ended), daemon=True)
    thread.start()
    try:
        build(DatasetConfig(raw=str(raw), dataset=str(dataset), samples_per_shard=125, palette_images=1000))
    finally:
        ended.set()
        thread.join()
        ray.shutdown()
    return peaks


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="igpt-memory-"))
    try:
        with tarfile.open(arguments.images) as archive:
            archive.extractall(root / "photographs", filter="data")
        for count in COUNTS:
            link(root / "photographs", root / f"raw-{count}", count)
        peaks: dict[int, list[Peaks]] = {count: [] for count in COUNTS}
        for number in range(arguments.rounds):
            for count in COUNTS:
                peaks[count].append(measure(root / f"raw-{count}", root / f"dataset-{count}-{number}"))
                print(count, peaks[count][-1], flush=True)
        series = {
            count: {part: Series(values=tuple(getattr(peak, part) for peak in peaks[count])) for part in PARTS}
            for count in COUNTS
        }
        save(
            "build_memory",
            {
                "machine": machine("ray", "pyarrow", "pillow"),
                "peak_mib": {
                    str(count): {part: values.summary() for part, values in parts.items()}
                    for count, parts in series.items()
                },
                "ratio": {
                    f"{more} / {fewer}": {part: ratio(series[more][part], series[fewer][part]) for part in PARTS}
                    for fewer, more in pairwise(COUNTS)
                },
            },
        )
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
