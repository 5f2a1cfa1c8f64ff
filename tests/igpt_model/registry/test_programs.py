"""A registered model in other people's programs: threads, processes of each kind, versions side by side."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException

from igpt_model import registered
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from igpt_model.registry.code_bundle import copy_code
from igpt_model.registry.serving import RegisteredImageGPT, signature, write_files
from tests.compatibility.earlier import copy, read_json
from tests.igpt_model.registry.test_code_bundle import change_code
from tests.igpt_model.registry.test_serving import make_bundle
from tests.rigs.environments import variables, without_us

pytestmark = pytest.mark.programs

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 12, 16, 3), dtype=np.uint8)
SECONDS = 500  # far more than a program takes; a hang is longer


def wide() -> ModelBundle:
    """A model for which 120 images are work for several threads."""
    torch.manual_seed(0)
    model = ImageGPT(ModelConfig(layers=1, width=64, heads=4, resolution=16, colours=16)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.3)
    return replace(make_bundle(), model=model)


def make() -> RegisteredImageGPT:
    return RegisteredImageGPT(wide(), best_layer=1)


def save(folder: Path) -> Path:
    """A model as `register` stores it, with its code; returns MLflow's folder."""
    (folder / "image_gpt").mkdir(parents=True)
    write_files(folder / "image_gpt", wide(), 1, None)
    code = copy_code(registered.__name__, folder)
    mlflow.pyfunc.save_model(
        str(folder / "model"),
        loader_module=f"{code.name}.{registered.__name__}",
        data_path=str(folder / "image_gpt"),
        code_paths=[str(code)],
        signature=signature(),
        pip_requirements=[],
    )
    return folder / "model"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow puts the code of each version on sys.path; not beyond this test."""
    monkeypatch.setattr(sys, "path", list(sys.path))


PROGRAM = """
import json, multiprocessing, os, sys
from concurrent.futures import ThreadPoolExecutor

import joblib, mlflow, numpy as np, torch
from torch.utils.data import DataLoader

torch.set_num_threads(2)
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 12, 16, 3), dtype=np.uint8)


def answers(model):
    completions = model.predict(PIXELS, params={"task": "complete", "rows": 15, "seed": 3})
    return [model.predict(PIXELS).tolist(), completions.tolist()]


def refusal(model):
    try:
        model.predict([b"no image"])
    except Exception as error:
        return [type(error).__name__, str(error)]


def many(model):
    # Work for several threads, which a forked process has not.
    return model.predict(np.repeat(PIXELS, 40, 0))[::40].tolist()


def of_inherited(_):
    return [answers(MODEL), many(MODEL), refusal(MODEL)]


class Features:
    def __init__(self, model):
        self.model = model
    def __len__(self):
        return 3
    def __getitem__(self, number):
        return torch.from_numpy(self.model.predict(PIXELS[number:number + 1])[0].copy())


def loaded(model, kind):
    loader = DataLoader(Features(model), batch_size=3, num_workers=1, multiprocessing_context=kind)
    return next(iter(loader)).tolist()


if __name__ == "__main__":
    MODEL = mlflow.pyfunc.load_model(sys.argv[1])
    expected = answers(MODEL)
    expected_of_many = many(MODEL)
    with ThreadPoolExecutor(8) as pool:
        threads = list(pool.map(answers, [MODEL] * 16))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        forked = pool.map_async(of_inherited, range(3)).get(timeout=180)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        spawned = pool.map_async(answers, [MODEL]).get(timeout=180)
        told = pool.map_async(refusal, [MODEL]).get(timeout=180)
    with joblib.parallel_config("loky", n_jobs=2):
        parallel = joblib.Parallel(timeout=180)(joblib.delayed(MODEL.predict)(PIXELS) for _ in range(3))
    print(json.dumps({
        "expected": expected,
        "threads": threads,
        "forked": [answer for answer, _, _ in forked],
        "many": [expected_of_many, *[features for _, features, _ in forked]],
        "refusals": [told[0], *[refused for _, _, refused in forked]],
        "spawned": spawned,
        "joblib": [answer.tolist() for answer in parallel],
        "DataLoader": [loaded(MODEL, kind) for kind in ("fork", "spawn")],
        "number of threads": torch.get_num_threads(),
    }))
"""


def run(python: Path | str, program: str, *arguments: object, cwd: Path, env: dict[str, str]) -> Any:
    (cwd / "program.py").write_text(program)
    done = subprocess.run(
        [str(python), "program.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_threads_and_processes_of_every_kind_give_the_same_answers(saved: Path, tmp_path: Path) -> None:
    programs = without_us(tmp_path / "environment")
    env = {**variables(programs, tmp_path), "OMP_NUM_THREADS": "2"}
    told = run(programs / "python", PROGRAM, saved, cwd=tmp_path, env=env)
    features, completions = told["expected"]
    assert np.array(features) == pytest.approx(make().predict(PIXELS), abs=1e-5)
    for name in ("threads", "forked", "spawned"):
        for answer in told[name]:
            assert np.array(answer[0]) == pytest.approx(np.array(features), abs=1e-5), name
            assert np.mean(np.array(answer[1]) == np.array(completions)) > 0.99, name
    for name in ("joblib", "DataLoader", "many"):
        for answer in told[name]:
            assert np.array(answer) == pytest.approx(np.array(features), abs=1e-5), name
    for refusal in told["refusals"]:
        assert refusal[0] == "MlflowException" and "image 0: not_an_image" in refusal[1]
    assert told["number of threads"] == 2


GUNICORN = """
import json, os, sys
import mlflow, numpy as np, torch

torch.set_num_threads(2)
MODEL = mlflow.pyfunc.load_model(os.environ["MODEL"])
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 12, 16, 3), dtype=np.uint8)
MODEL.predict(np.repeat(PIXELS, 40, 0))  # with several threads


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    features = MODEL.predict(np.repeat(PIXELS, 40, 0))[::40]
    return [json.dumps(features.tolist()).encode()]
"""
CLIENT = """
import http.client, json, socket, subprocess, sys, time

server = subprocess.Popen(
    [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--threads", "2", "--bind", "unix:" + sys.argv[1],
     "application:application"])
try:
    answers, end = [], time.monotonic() + 180
    while len(answers) < 6:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(180)
        try:
            connection.sock.connect(sys.argv[1])
        except OSError:
            assert time.monotonic() < end and server.poll() is None
            time.sleep(0.2)
            continue
        connection.request("GET", "/")
        answers.append(json.loads(connection.getresponse().read()))
        connection.close()  # for an open one a worker stays
finally:
    server.terminate()
    server.wait(90)
print(json.dumps(answers))
"""


def test_workers_of_gunicorn_answer_with_a_model_that_was_loaded_before_the_fork(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "application.py").write_text(GUNICORN)
    env = {**os.environ, "MODEL": str(saved), "OMP_NUM_THREADS": "2"}
    answers = run(sys.executable, CLIENT, tmp_path / "s", cwd=tmp_path, env=env)
    for answer in answers:
        assert np.array(answer) == pytest.approx(make().predict(PIXELS), abs=1e-5)


def test_two_versions_in_one_process_have_code_of_their_own(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_path: None
) -> None:
    with monkeypatch.context() as changed:
        change_code(
            changed, tmp_path, "igpt_model.registry.serving", '("seed", DataType.long, 0)', '("seed", DataType.long, 7)'
        )
        changed.setattr(
            "igpt_model.registry.serving._PARAMETERS", (("task", mlflow.types.DataType.string, "features"),)
        )
        other = save(tmp_path / "other")  # its signature leaves the seed to its code
    first, second = (mlflow.pyfunc.load_model(str(folder)) for folder in (saved, other))
    sample = {"task": "complete"}
    assert np.array_equal(first.predict(PIXELS, params=sample), make().predict(PIXELS, {**sample, "seed": 0}))
    assert np.array_equal(second.predict(PIXELS, params=sample), make().predict(PIXELS, {**sample, "seed": 7}))
    assert np.array_equal(first.predict(PIXELS), second.predict(PIXELS))
    modules = {type(model._model_impl).__module__.split(".")[0] for model in (first, second)}
    assert len(modules) == 2 and not modules & {"igpt_model", "pipeline"}
    again = mlflow.pyfunc.load_model(str(saved))
    assert type(again._model_impl) is type(first._model_impl), "the same code is loaded once"


BESIDE = """
import json, sys
import mlflow, numpy as np

earlier, now = (mlflow.pyfunc.load_model(folder) for folder in sys.argv[1:3])
images = np.array(json.load(open(sys.argv[3]))["images"], np.uint8)
pixels = np.random.default_rng(0).integers(0, 256, (3, 12, 16, 3), dtype=np.uint8)
print(json.dumps({
    "earlier": [earlier.predict(images).tolist(), type(earlier._model_impl).__module__],
    "now": [now.predict(pixels).tolist(), type(now._model_impl).__module__],
    "files": sorted(m.__file__ for n, m in sys.modules.items() if n.split(".")[0] in ("igpt_model", "pipeline")),
}))
"""


@pytest.mark.parametrize("earlier_first", [True, False])
def test_a_version_of_earlier_code_and_one_of_now_answer_side_by_side(
    earlier_first: bool, saved: Path, tmp_path: Path
) -> None:
    programs = without_us(tmp_path / "environment")
    folder = copy(tmp_path, "model", "answers.json")
    program = (
        BESIDE
        if earlier_first
        else BESIDE.replace("earlier, now = (", "now, earlier = (").replace("sys.argv[1:3]", "sys.argv[2:0:-1]")
    )
    env = variables(programs, tmp_path)
    told = run(programs / "python", program, folder / "model", saved, folder / "answers.json", cwd=tmp_path, env=env)
    assert np.array(told["earlier"][0]) == pytest.approx(np.array(read_json("answers.json")["features"]), abs=1e-5)
    assert np.array(told["now"][0]) == pytest.approx(make().predict(PIXELS), abs=1e-5)
    assert told["earlier"][1].startswith("igpt_model.") and not told["now"][1].startswith("igpt_model.")
    assert all(Path(file).is_relative_to(folder / "model" / "code") for file in told["files"])


def test_threads_of_one_process_share_a_model_and_refusals_do_not_disturb_others(saved: Path, own_path: None) -> None:
    model = mlflow.pyfunc.load_model(str(saved))

    def ask(number: int) -> bool:
        if number % 3 == 0:
            with pytest.raises(MlflowException, match="image 0: not_an_image"):
                model.predict([b"no image"])
        return np.allclose(model.predict(PIXELS), expected, atol=1e-5)

    expected = make().predict(PIXELS)
    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, range(30)))
