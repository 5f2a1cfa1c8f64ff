"""A registered version and deployments of earlier code on real services, with their dataset and run.

The runs are those that a Prefect server would start from what it has stored since then; tests/compatibility looks at
the same things without services.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image

from flows.services.local_stack import Stack
from igpt_model.registry.client import CHAMPION, Registry, Version
from pipeline.dataset import snapshot
from tests.compatibility.earlier import FLAT, copy, read_json
from tests.conftest import Command

pytestmark = pytest.mark.services

KEPT = read_json("registry.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the stored files, and in more/ the dataset with a source that has one more image."""
    folder = copy(tmp_path_factory.mktemp("earlier"), "raw", "dataset", "runs", "model")
    (folder / "more").mkdir()
    copy(folder / "more", "raw", "dataset")
    Image.fromarray(np.full((8, 8), 128, np.uint8)).save(folder / "more" / "raw" / "0" / "new.png")
    return folder


@pytest.fixture(scope="module")
def version(stack: Stack, folder: Path) -> Version:
    """The registered version as MLflow had it: files, run, tags and aliases."""
    client, name, run = MlflowClient(stack.mlflow_url), KEPT["name"], KEPT["run"]
    experiment = client.create_experiment("earlier")
    run_id = client.create_run(experiment, run_name=run["name"], tags=run["tags"]).info.run_id
    for key, value in run["params"].items():
        client.log_param(run_id, key, value)
    model = client.create_logged_model(experiment, name="model", source_run_id=run_id)
    client.log_model_artifacts(model.model_id, str(folder / "model"))
    client.finalize_logged_model(model.model_id, "READY")
    client.create_registered_model(name)
    created = client.create_model_version(
        name, f"models:/{model.model_id}", run_id=run_id, tags=KEPT["version"]["tags"], model_id=model.model_id
    )
    for alias, number in KEPT["version"]["aliases"].items():
        assert number == created.version
        client.set_registered_model_alias(name, alias, number)
    return Registry(stack.mlflow_url).find(f"{name}/{created.version}")


def test_the_commands_find_it(version: Version, folder: Path, igpt: Callable[..., Command]) -> None:
    shown = json.loads(igpt("models", "show", f"{KEPT['name']}@{CHAMPION}", "--json").out)
    assert (shown["uri"], shown["tags"]) == (version.uri, KEPT["version"]["tags"])
    assert igpt("models", "palette", version.uri, folder / "palette.npy").code == 0
    assert np.array_equal(np.load(folder / "palette.npy"), snapshot.read(str(folder / "dataset")).palette())
    sampled = igpt("sample", "--model", version.uri, "--count", "1", "--output", folder / "samples.png")
    assert sampled.code == 0, sampled.err


def test_one_line_loads_it(version: Version) -> None:
    expected = read_json("answers.json")
    features = mlflow.pyfunc.load_model(version.uri).predict(np.array(expected["images"], np.uint8))
    assert features == pytest.approx(np.array(expected["features"]), abs=1e-5)


# Like the process of a worker, but for all runs in one process: the imports take longer than the work.
PROGRAM = """
import sys
from uuid import UUID
from prefect.flow_engine import load_flow_and_flow_run, run_flow
for run in sys.argv[1:]:
    flow_run, flow = load_flow_and_flow_run(UUID(run))
    run_flow(flow, flow_run=flow_run, return_type="state")
"""


def stored(name: str, **parameters: Any) -> dict[str, Any]:
    """A stored deployment with parameters of the same form, but small."""
    return {**read_json(f"deployments/{name}.json"), "parameters": parameters}


@pytest.fixture(scope="module")
def states(stack: Stack, version: Version, folder: Path) -> dict[str, str]:
    """The final states of a run of each of the three flows, by deployment."""
    config = yaml.safe_load((FLAT / "configs" / "refresh.yaml").read_text())
    dataset = {**config["dataset"], "raw": str(folder / "raw"), "dataset": str(folder / "dataset")}
    more = {name: str(folder / "more" / name) for name in ("raw", "dataset")}
    probe = {**config["probe"], "features": str(folder / "features")}
    refresh = {
        **config,
        "dataset": dataset,
        "pretrain": {**config["pretrain"], "runs": str(folder / "runs")},
        "probe": probe,
    }
    judged = {**probe, "dataset": str(folder / "dataset"), "max_train_images": 50000}
    deployments = (
        (stored("nightly", config={**dataset, **more}), {}),
        (stored("weekly", config=refresh), {}),
        (stored("candidate", config=judged), {"model": version.uri}),
    )
    ids = {deployment["name"]: order(stack, deployment, given) for deployment, given in deployments}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *ids.values()],
        env={**os.environ, **stack.environment(), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: state_of(stack, run) for name, run in ids.items()}


def client_of(stack: Stack) -> Any:
    """A client of the server. Not get_client(): Prefect may have read its settings before the server was started."""
    from prefect.client.orchestration import SyncPrefectClient

    return SyncPrefectClient(f"{stack.prefect_url}/api")


def order(stack: Stack, deployment: dict[str, Any], given: dict[str, Any]) -> str:
    """Create a stored deployment on the server, and a run of it; returns the id of the run."""
    kept = ("name", "entrypoint", "path", "parameters", "parameter_openapi_schema", "enforce_parameter_schema")
    with client_of(stack) as client:
        flow = client.create_flow_from_name(deployment["flow"])
        fields = {name: deployment[name] for name in (*kept, "pull_steps", "job_variables", "tags")}
        made = client.create_deployment(flow, **fields)
        return str(client.create_flow_run_from_deployment(made, parameters=given).id)


def state_of(stack: Stack, run: str) -> str:
    with client_of(stack) as client:
        state = client.read_flow_run(run).state
        return f"{state.type.value} {state.message or ''}".strip()


def test_a_scheduled_build_does_what_changed_since(states: dict[str, str], folder: Path) -> None:
    assert states["nightly"] == "COMPLETED"
    old, new = snapshot.read(str(folder / "dataset")), snapshot.read(str(folder / "more" / "dataset"))
    assert (new.parent, new.images()) == (old.number, old.images() + 1)
    assert set(old.shards) < set(new.shards)


def test_a_scheduled_refresh_builds_and_trains_nothing_anew(states: dict[str, str], folder: Path, stack: Stack) -> None:
    assert states["weekly"] == "COMPLETED"
    assert snapshot.read(str(folder / "dataset")).number == 1
    run = KEPT["run"]["name"]
    assert sorted(path.name for path in (folder / "runs").iterdir() if path.name != "turn") == sorted(
        path.name for path in (FLAT / "runs").iterdir()
    )
    name = f"runs/{run}/result.json"
    assert (folder / name).read_bytes() == (FLAT / name).read_bytes()
    registry = Registry(stack.mlflow_url)
    candidate = registry.find(f"{KEPT['name']}@candidate")
    tags = {**candidate.tags, "igpt.run": Path(candidate.tags["igpt.run"]).name}
    same = ("igpt.manifest_digest", "igpt.splits_digest", "igpt.validation_bits_per_pixel", "igpt.probe_best_layer")
    assert {key: tags[key] for key in same} == {key: KEPT["version"]["tags"][key] for key in same}
    assert tags["igpt.run"] == run
    # The gate compared it with the earlier version; equal metrics pass.
    assert (tags["igpt.promotion"], tags["igpt.promotion_against"]) == ("promoted", "1")
    numbers = json.loads(tags["igpt.promotion_numbers"])
    assert numbers["champion.igpt.validation_bits_per_pixel"] == numbers["igpt.validation_bits_per_pixel"]


def test_a_newly_registered_version_is_probed(
    states: dict[str, str], version: Version, folder: Path, stack: Stack
) -> None:
    assert states["candidate"] == "COMPLETED"
    tags, before = Registry(stack.mlflow_url).find(version.uri).tags, KEPT["version"]["tags"]
    for split in ("validation", "test"):
        name = f"igpt.probe_{split}_accuracy"
        assert tags[f"igpt.probe.dataset.best_{split}_accuracy"] == tags[name] == before[name]
    assert tags["igpt.probe.dataset.snapshot"] == f"1 {snapshot.read(str(folder / 'dataset')).content_digest}"
