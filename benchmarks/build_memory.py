"""Memory of a build: the driver's and a worker's peak for 3,000 and for 30,000 full-size photographs.

    python -m benchmarks.build_memory IMAGES.tar

The images are the members of IMAGES.tar under many names (links on local disk), in shards of 125.
"""

import argparse
import shutil
import tarfile
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray

from benchmarks.measure import machine, save
from pipeline.build import build
from pipeline.config import DatasetConfig


@dataclass(kw_only=True)
class Peaks:
    """Largest resident memory, in MiB."""

    driver: float = 0.0
    worker: float = 0.0


def watch(peaks: Peaks, ended: threading.Event) -> None:
    """Look at this process and at the workers of its cluster, ten times a second."""
    me = psutil.Process()
    while not ended.wait(0.1):
        peaks.driver = max(peaks.driver, me.memory_info().rss / 2**20)
        for process in psutil.process_iter(["name"]):
            if process.info["name"].startswith("ray::"):
                try:
                    peaks.worker = max(peaks.worker, process.memory_info().rss / 2**20)
                except psutil.Error:
                    continue


def link(photographs: Path, target: Path, count: int) -> None:
    """The files of a folder under `count` names."""
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
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="igpt-memory-"))
    found = {}
    try:
        with tarfile.open(arguments.images) as archive:
            archive.extractall(root / "photographs", filter="data")
        for count in (3_000, 30_000):
            link(root / "photographs", root / f"raw-{count}", count)
            peaks = measure(root / f"raw-{count}", root / f"dataset-{count}")
            found[count] = {"driver_mib": round(peaks.driver), "worker_mib": round(peaks.worker)}
            print(count, found[count], flush=True)
        growth = {name: round(found[30_000][name] / found[3_000][name], 3) for name in ("driver_mib", "worker_mib")}
        save("build_memory", {"machine": machine("ray", "pyarrow", "pillow"), "peaks": found, "ratio": growth})
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
