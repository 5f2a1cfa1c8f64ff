"""One replica of a service: MLflow's own scoring server in front of a registered model that answers in batches.

Parsing of requests, answers and errors are MLflow's, so they are those of `mlflow models serve`.
"""

import asyncio
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import ray
from mlflow.pyfunc import PyFuncModel, scoring_server
from ray.serve.metrics import Histogram

from flows.serving.config import ServeConfig
from flows.serving.together import Together

# The folder of a version: its files by their paths, each as uint8 [bytes], which Ray shares on a node without a copy.
Files = Mapping[str, np.ndarray]


def read_files(folder: Path) -> Files:
    """The files of a folder."""
    return {
        path.relative_to(folder).as_posix(): np.frombuffer(path.read_bytes(), np.uint8)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Replica:
    """A class for `serve.ingress()`, which calls `__serve_build_asgi_app__` after the constructor."""

    def __init__(self, files: list[Any], config: ServeConfig) -> None:
        """`files`: a reference to the Files of a version, in a list, so that Ray hands it over as it is."""
        self._config = config
        self._folder = tempfile.TemporaryDirectory(prefix="igpt-serve-")
        for name, content in ray.get(files[0]).items():
            path = Path(self._folder.name, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        loaded = mlflow.pyfunc.load_model(self._folder.name)
        images = Histogram(
            "igpt_serve_batch_images",
            description="Images that a replica computed at a time.",
            boundaries=[1, 2, 4, 8, 16, 32, 64, 128, 256],
            tag_keys=("task",),
        )
        together = Together(
            loaded._model_impl, config.batch, lambda number, task: images.observe(number, {"task": task})
        )
        self._model = PyFuncModel(model_meta=loaded.metadata, model_impl=together, model_id=loaded.model_id)

    async def __serve_build_asgi_app__(self) -> Any:
        """The scoring server, in the event loop that will run it."""
        # Requests wait in threads; asyncio's own pool has only a few.
        threads = ThreadPoolExecutor(self._config.requests_at_once + 1, "requests")
        asyncio.get_running_loop().set_default_executor(threads)
        return scoring_server.init(self._model)
