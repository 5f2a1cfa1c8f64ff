"""One replica of `igpt serve`, with and without batches, compared with `mlflow models serve`: requests and latencies.

    python -m benchmarks.serving [--layers 4 --width 128 --resolution 16 --rounds 3 --seconds 4]

Each contestant has one process with the model and one thread in it, and answers requests of one image, from 1, 8 and 32
clients at a time. The clients, and the proxy of Ray Serve, are other processes on the same machine.
"""

import argparse
import base64
import http.client
import io
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import ray
from PIL import Image
from ray import serve

from benchmarks.measure import interleave, machine, ratio, save
from benchmarks.registered import make_model, server
from flows.services.ports import HOST, free_port
from flows.serving import service
from flows.serving.config import ServeConfig
from flows.serving.replica import read_files
from igpt_model import registered
from igpt_model.registry.serving import signature, write_files

_CLIENTS = (1, 8, 32)
_TASKS = ("features", "complete")
_PEER = "mlflow models serve"
_JSON = {"Content-Type": "application/json"}


def make_version(folder: Path, options: argparse.Namespace) -> Path:
    """A model as MLflow stores it."""
    files = folder / "image_gpt"
    files.mkdir()
    write_files(files, make_model(options.layers, options.width, options.resolution), options.layers, None)
    mlflow.pyfunc.save_model(
        str(folder / "model"),
        loader_module=registered.__name__,
        data_path=str(files),
        signature=signature(),
        pip_requirements=[],
    )
    return folder / "model"


def make_bodies(task: str, resolution: int) -> list[bytes]:
    """Requests of one PNG each."""
    random, bodies = np.random.default_rng(0), []
    for _ in range(16):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (resolution, resolution, 3), np.uint8)).save(buffer, "PNG")
        text = base64.b64encode(buffer.getvalue()).decode()
        bodies.append(json.dumps({"inputs": [text], "params": {"task": task}}).encode())
    return bodies


def requests_per_second(
    port: int, path: str, bodies: list[bytes], clients: int, seconds: float, latencies: list[float]
) -> float:
    """Answered requests a second of so many clients that each ask again and again; adds milliseconds to `latencies`."""
    until, took, failed = time.monotonic() + seconds, list[float](), list[str]()

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(HOST, port, timeout=300)
        while time.monotonic() < until and not failed:
            number += 1
            began = time.perf_counter()
            connection.request("POST", path, bodies[number % len(bodies)], _JSON)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                failed.append(f"{path}: {answer.status} {content[:300]!r}")
            took.append(1000 * (time.perf_counter() - began))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise RuntimeError(failed[0])
    latencies += took
    return len(took) / (time.perf_counter() - began)


def measure(
    ports_and_paths: dict[str, tuple[int, str]], task: str, clients: int, options: argparse.Namespace
) -> dict[str, object]:
    """Rates, latencies, and ratios to MLflow's server of the same round."""
    bodies = make_bodies(task, options.resolution)
    latencies: dict[str, list[float]] = {name: [] for name in ports_and_paths}
    contestants: dict[str, Callable[[], float]] = {
        name: partial(requests_per_second, port, path, bodies, clients, options.seconds, latencies[name])
        for name, (port, path) in ports_and_paths.items()
    }
    rates = interleave(contestants, options.rounds)
    return {
        name: {
            "requests_per_second": series.summary(),
            "latency_median_ms": round(float(np.median(latencies[name])), 1),
            "latency_95_percent_ms": round(float(np.percentile(latencies[name], 95)), 1),
            **({} if name == _PEER else {"times_mlflow": ratio(series, rates[_PEER])}),
        }
        for name, series in rates.items()
    }


def main() -> None:
    """Start all contestants, measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name, default in (("layers", 4), ("width", 128), ("resolution", 16), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    about = machine("ray", "mlflow", "torch", "numpy")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="igpt-benchmark-") as temporary:
        folder = make_version(Path(temporary), options)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        ours, theirs = free_port(), free_port()
        serve.start(http_options={"host": HOST, "port": ours})
        files, targets = ray.put(read_files(folder)), []
        ports_and_paths = {_PEER: (theirs, "/invocations")}
        for name, batch in (("batches", 32), ("no batches", 1)):
            route = f"/{batch}"
            targets.append(serve.RunTarget(service.application(files, ServeConfig(batch=batch)), name, route))
            ports_and_paths[name] = (ours, f"{route}/invocations")
        serve.run_many(targets)
        command = [
            sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(folder),
            "--env-manager", "local", "--host", HOST, "--port", str(theirs), "--workers", "1",
        ]  # fmt: skip
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
        with server(command, f"http://{HOST}:{theirs}/ping", environment, Path(temporary, "serve.log")):
            for _, (port, route) in ports_and_paths.items():  # the first request of a process takes longer
                for task in _TASKS:
                    requests_per_second(port, route, make_bodies(task, options.resolution), 2, 0.1, [])
            results = {
                task: {f"{clients} clients": measure(ports_and_paths, task, clients, options) for clients in _CLIENTS}
                for task in _TASKS
            }
        serve.shutdown()
        ray.shutdown()
    save("serving", {"machine": about, "options": vars(options), **results})


if __name__ == "__main__":
    main()
