"""Consumers of a registered model: an environment with only its requirements, HTTP, and the example of docs/models.md.

The environment is created once, from the requirements of the version; it has nothing of this repository.
"""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from flows.services.local_stack import Stack
from flows.services.ports import HOST, free_port
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from igpt_model.probing.head import ProbeHead
from igpt_model.registry.client import Version
from igpt_model.registry.register import register
from pipeline.store import objects
from tests.integration.conftest import ROOT
from tests.rigs.environments import with_requirements

pytestmark = pytest.mark.services

URI = "models:/consumed@candidate"
# The only variables of the program: the addresses and keys of the services.
KNOWN = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_S3_ENDPOINT_URL"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"),
)


def environment(home: Path) -> dict[str, str]:
    return {
        **{name: os.environ[name] for name in KNOWN},
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "2",
    }


@pytest.fixture(scope="module")
def registered(stack: Stack) -> Version:
    """A small model of digits with a probe, registered like that of a refresh."""
    torch.manual_seed(0)
    model = ImageGPT(ModelConfig(layers=2, width=64, heads=4, resolution=8, colours=16)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.3)
    colours = np.linspace(-1, 1, 16, dtype=np.float32)[:, None].repeat(3, 1)
    random = np.random.default_rng(0)
    head = ProbeHead(
        mean_C=np.zeros(64, np.float32),
        scale_C=np.ones(64, np.float32),
        weight_KC=random.normal(size=(10, 64)).astype(np.float32),
        bias_K=np.zeros(10, np.float32),
        labels_K=np.arange(10),
    )
    client = MlflowClient(stack.mlflow_url)
    run = client.create_run(client.create_experiment("consumed"))
    return register(
        ModelBundle(model=model, palette_K3=colours, classes=tuple(str(digit) for digit in range(10))),
        name="consumed",
        tracking_uri=stack.mlflow_url,
        run_id=run.info.run_id,
        tags={},
        best_layer=1,
        head=head,
    )


@pytest.fixture(scope="module")
def requirements(registered: Version, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The requirements file of the registered version."""
    folder = tmp_path_factory.mktemp("consumer")
    path = Path(mlflow.artifacts.download_artifacts(f"{URI}/requirements.txt", dst_path=str(folder)))
    lines = path.read_text().split()
    assert all("==" in line for line in lines)
    assert sorted(line.split("==")[0] for line in lines) == sorted(
        ["mlflow-skinny", "torch", "numpy", "pandas", "pillow", "safetensors", "boto3"]
    )
    return path


@pytest.fixture(scope="module")
def empty_environment(requirements: Path) -> Path:
    """The programs of a virtual environment with only the requirements of the registered version."""
    return with_requirements(requirements.read_text().split(), requirements.parent / "venv")


PROGRAM = """
import json, sys
import mlflow, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
images = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
def ask(**params):
    return model.predict(images, params=params)
print(json.dumps({
    "features": model.predict(images).shape,
    "all": ask(all_layers=True).shape,
    "classes": list(ask(task="classify").columns),
    "complete": ask(task="complete", samples=2, rows=3).shape,
    "sample": ask(task="sample", samples=4).shape,
    "score": ask(task="score").tolist(),
    "files": sorted({m.__file__ for n, m in sys.modules.items() if n.startswith("igpt_")}),
    "loaded": sorted({name.split(".")[0] for name in sys.modules}),
}))
"""


def test_the_model_loads_where_nothing_of_ours_is_installed(empty_environment: Path, tmp_path: Path) -> None:
    assert_loads(empty_environment, tmp_path)


@pytest.mark.long
def test_the_model_loads_where_pip_has_installed_what_it_names(requirements: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    programs = tmp_path / "venv" / "bin"
    command = [str(programs / "pip"), "install", "--quiet", "--quiet", "--disable-pip-version-check", "-r"]
    subprocess.run([*command, str(requirements)], check=True, timeout=400)
    assert_loads(programs, tmp_path)


def assert_loads(programs: Path, tmp_path: Path) -> None:
    """In the environment of these programs the model loads and answers, and imports nothing from elsewhere."""
    done = subprocess.run(
        [str(programs / "python"), "-W", "error::UserWarning:mlflow", "-c", PROGRAM, URI],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(tmp_path),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout.splitlines()[-1])
    assert (out["features"], out["all"]) == ([3, 64], [3, 3, 64])
    assert out["classes"] == [str(digit) for digit in range(10)]
    assert (out["complete"], out["sample"]) == ([3, 2, 8, 8, 3], [4, 8, 8, 3])
    assert min(out["score"]) > 0
    assert out["files"] and not [file for file in out["files"] if file.startswith(str(ROOT))]
    assert not {"igpt_model", "pipeline"} & set(out["loaded"]), "the names of the project"
    assert not {"flows", "ray", "prefect", "fsspec", "pyarrow", "sklearn"} & set(out["loaded"])


def test_only_the_code_that_answers_travels(registered: Version) -> None:
    urls = [file.url for file in objects.list_files("s3://mlflow") if registered.model_id in file.url]
    names = {url.rsplit("/code/", 1)[-1].partition("/")[2] for url in urls if "/code/" in url}
    assert {"igpt_model/registered.py", "igpt_model/model/network.py", "pipeline/images/decode.py"} <= names
    assert not {"igpt_model/train.py", "igpt_model/registry/client.py", "pipeline/store/objects.py"} & names


@pytest.fixture(scope="module")
def served(empty_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of `mlflow models serve` for the candidate."""
    home = tmp_path_factory.mktemp("served")
    port, log = free_port(), home / "serve.log"
    command = [
        *(str(empty_environment / "mlflow"), "models", "serve", "--model-uri", URI, "--env-manager", "local"),
        *("--host", HOST, "--port", str(port), "--workers", "1"),
    ]
    variables = environment(home)
    variables["PATH"] = f"{empty_environment}:{variables['PATH']}"
    with log.open("wb") as file:
        server = subprocess.Popen(command, env=variables, cwd=home, stdout=file, stderr=file, start_new_session=True)
    url = f"http://{HOST}:{port}"
    deadline = time.monotonic() + 120
    try:
        while True:
            try:
                with urllib.request.urlopen(f"{url}/ping", timeout=5):
                    break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.3)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the server and the processes that it started are in their own session
        server.wait()


def ask(url: str, body: dict[str, Any]) -> tuple[int, Any]:
    """The status and the JSON of a server's answer to an invocation."""
    request = urllib.request.Request(
        f"{url}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)["predictions"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_every_task_is_answered_over_http(served: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 12, 3), dtype=np.uint8)
    buffers = [io.BytesIO() for _ in pixels]
    for image, buffer in zip(pixels, buffers, strict=True):
        Image.fromarray(image).save(buffer, "PNG")
    files = [base64.b64encode(buffer.getvalue()).decode() for buffer in buffers]
    model = mlflow.pyfunc.load_model(URI)
    expected = model.predict(pixels)
    for body in (
        {"inputs": pixels.tolist()},
        {"inputs": files},
        {"instances": files},
        {"inputs": {"image": files}},
        {"dataframe_split": {"columns": ["image"], "data": [[file] for file in files]}},
        {"dataframe_records": [{"image": file} for file in files]},
    ):
        status, answer = ask(served, body)
        assert status == 200, answer
        assert np.array(answer) == pytest.approx(expected, abs=1e-4)
    shapes = {}
    for task, params in {
        "features": {"layer": 0},
        "classify": {},
        "complete": {"samples": 2, "rows": 3, "temperature": 0.5, "top_k": 4, "seed": 1},
        "sample": {"samples": 3, "top_p": 0.9},
        "score": {},
    }.items():
        status, answer = ask(served, {"inputs": files, "params": {"task": task, **params}})
        assert status == 200, answer
        shapes[task] = np.shape(answer)
        if task == "complete":
            same = model.predict(pixels, params={"task": task, **params})
            assert np.mean(np.array(answer) == same) > 0.99
        if task == "classify":
            assert [sum(row.values()) for row in answer] == pytest.approx([1, 1], abs=1e-5)
            assert set(answer[0]) == {str(digit) for digit in range(10)}
    assert shapes == {
        "features": (2, 64),
        "classify": (2,),
        "complete": (2, 2, 8, 8, 3),
        "sample": (3, 8, 8, 3),
        "score": (2,),
    }


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"inputs": ["no image!"]}, "image 0 is a text that is not base64"),
        ({"inputs": [[[[0.5, 0.5, 0.5]]]]}, "image 0 has shape (1, 1, 3), float64: give uint8"),
        ({"inputs": [[[[0, 0, 0]]]], "params": {"task": "dream"}}, "task is 'dream': it must be one of"),
        ({"inputs": [[[[0, 0, 0]]]], "params": {"layer": "first"}}, "Can not safely convert"),
        ({"dataframe_split": {"columns": ["picture"], "data": [["x"]]}}, "the table has the columns ['picture']"),
    ],
)
def test_wrong_requests_are_told_what_is_wrong(body: dict[str, Any], expected: str, served: str) -> None:
    status, answer = ask(served, body)
    assert status == 400
    assert expected in answer["message"]


def page_example() -> str:
    """The first Python block of docs/models.md."""
    return (ROOT / "docs" / "models.md").read_text().split("```python\n")[1].split("```")[0]


def test_the_page_example_runs_as_it_stands(registered: Version, empty_environment: Path, tmp_path: Path) -> None:
    example = page_example()
    name = "models:/igpt-digits@candidate"
    assert name in example
    example = example.replace(name, URI)  # only the name of the model differs
    done = subprocess.run(
        [str(empty_environment / "python"), "-c", example],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(tmp_path),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert Image.open(tmp_path / "completions.png").size[1] >= 8
