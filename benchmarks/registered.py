"""A registered model compared with direct calls of the network: loading, features through pyfunc, MLflow's server.

    python -m benchmarks.registered [--layers 6 --width 256 --resolution 32 --images 64 --rounds 7]

The model is registered with an MLflow server that the benchmark starts, whose files are on disk. All contestants do the
same work on the same uint8 images of the model's size: shrinking, quantizing, and the features of a layer.
"""

import argparse
import base64
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from PIL import Image

from benchmarks.measure import Series, interleave, machine, ratio, save
from flows.services.ports import HOST, free_port
from igpt_model.inference.features import image_features
from igpt_model.inference.images import to_pictures
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from igpt_model.registry.register import register

_COLOURS = 512
_REQUESTS = 40
_START_SECONDS = 120


def make_model(layers: int, width: int, resolution: int) -> ModelBundle:
    """A model with random weights and a palette of random colours; training does not matter here."""
    torch.manual_seed(0)
    config = ModelConfig(layers=layers, width=width, heads=8, resolution=resolution, colours=_COLOURS)
    palette_K3 = np.random.default_rng(0).uniform(-1, 1, (_COLOURS, 3)).astype(np.float32)
    return ModelBundle(model=ImageGPT(config).eval(), palette_K3=palette_K3, classes=("a", "b"))


@contextmanager
def server(command: list[str], url: str, environment: dict[str, str], log: Path) -> Iterator[None]:
    """Run a server in its own process session until the context ends."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(log.read_text()) from None
                time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def rate(work: Callable[[], object], count: int) -> float:
    """Items per second."""
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def serve_rates(url: str, images: np.ndarray, clients: int) -> dict[str, float]:
    """Rate and latency in milliseconds of requests of one PNG each, by several clients at once."""
    bodies = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        bodies.append(json.dumps({"inputs": [base64.b64encode(buffer.getvalue()).decode()]}).encode())

    def ask(number: int) -> float:
        began = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/invocations", bodies[number % len(bodies)], headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            answer.read()
        return 1000 * (time.perf_counter() - began)

    ask(0)
    with ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        latencies = sorted(pool.map(ask, range(_REQUESTS)))
        seconds = time.perf_counter() - began
    return {
        "requests_per_second": round(_REQUESTS / seconds, 2),
        "latency_median_ms": round(latencies[len(latencies) // 2], 1),
        "latency_95_percent_ms": round(latencies[int(0.95 * len(latencies))], 1),
    }


def main() -> None:
    """Register, load, predict, serve, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name, default in (("layers", 6), ("width", 256), ("resolution", 32), ("images", 64), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    about = machine("mlflow", "torch", "numpy")
    torch.set_num_threads(os.cpu_count() or 1)
    side = options.resolution
    images = np.random.default_rng(1).integers(0, 256, (options.images, side, side, 3), dtype=np.uint8)
    folder = make_model(options.layers, options.width, side)
    with tempfile.TemporaryDirectory(prefix="igpt-benchmark-") as temporary:
        url, home = f"http://{HOST}:{free_port()}", Path(temporary)
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", url.rsplit(":", 1)[1],
            "--workers", "1", "--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--no-serve-artifacts",
            "--default-artifact-root", str(home / "artifacts"),
        ]  # fmt: skip
        # Without job execution, which would start eight processes.
        settings = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with server(command, f"{url}/health", settings, home / "mlflow.log"):
            client = MlflowClient(url)
            run = client.create_run(client.create_experiment("benchmark"))
            registered = register(
                folder, name="benchmark", tracking_uri=url, run_id=run.info.run_id, tags={}, best_layer=options.layers
            )
            mlflow.set_tracking_uri(url)
            loaded: list[mlflow.pyfunc.PyFuncModel] = []
            load = Series(
                values=tuple(
                    1 / rate(lambda: loaded.append(mlflow.pyfunc.load_model(registered.uri)), 1) for _ in range(3)
                )
            )

            def direct() -> np.ndarray:
                tokens = torch.from_numpy(folder.quantize(to_pictures(images, side)))
                return image_features(folder, tokens)[options.layers].numpy()

            assert np.allclose(direct(), loaded[-1].predict(images), atol=1e-4)
            rates = interleave(
                {
                    "pyfunc": lambda: rate(lambda: loaded[-1].predict(images), len(images)),
                    "direct": lambda: rate(direct, len(images)),
                },
                options.rounds,
            )
            port = free_port()
            command = [
                sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", registered.uri,
                "--env-manager", "local", "--host", HOST, "--port", str(port), "--workers", "1",
            ]  # fmt: skip
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            environment = {**os.environ, "MLFLOW_TRACKING_URI": url, "PATH": path}
            with server(command, f"http://{HOST}:{port}/ping", environment, home / "serve.log"):
                served = {
                    f"{clients} at a time": serve_rates(f"http://{HOST}:{port}", images, clients) for clients in (1, 4)
                }
    save(
        "registered",
        {
            "machine": about,
            "model": {"parameters": folder.model.config.parameters, **vars(options)},
            "load_seconds": load.summary(),
            "features_per_second": {name: series.summary() for name, series in rates.items()},
            "pyfunc_over_direct": ratio(rates["pyfunc"], rates["direct"]),
            "serve_one_image_a_request": served,
        },
    )


if __name__ == "__main__":
    main()
