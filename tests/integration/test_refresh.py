"""The main job end to end, against real S3, Prefect, MLflow and Ray servers."""

import asyncio
import io
import json
import math
import urllib.request
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from mlflow import MlflowClient

from flows.report import shown_images
from flows.services import services
from flows.services.local_stack import Stack
from igpt_model.registry.client import Registry
from igpt_model.registry.gate import ACCURACY, BITS, SPLITS
from pipeline.dataset import snapshot
from pipeline.inspect import tables
from pipeline.store import objects
from tests.flows.report.test_assemble import SECTIONS
from tests.flows.report.test_page import Parsed, check_nothing_is_outside
from tests.flows.report.test_shown_images import keys_shown
from tests.integration.conftest import Refreshed, igpt

pytestmark = pytest.mark.services


def test_nothing_but_progress_is_printed(refreshed: Refreshed) -> None:
    assert refreshed.command.err == ""
    for word in ("Warning", "WARNING", "Traceback", "INFO", "ERROR"):
        assert word not in refreshed.command.out
    assert "registered models:/refreshed/1" in refreshed.command.out
    for stage in ("dataset:", "pretrain:", "probe:", "register:"):
        assert stage in refreshed.command.out
    assert ": 400 of 401 images in " in refreshed.command.out
    assert "1 rejected (1 truncated)\n" in refreshed.command.out


def test_every_image_is_in_one_shard_or_in_quarantine(refreshed: Refreshed, digits: str) -> None:
    import pyarrow.parquet as pq

    data = snapshot.read("s3://datasets/refreshed")
    assert data.samples() == 400
    assert data.rejected == {"truncated": 1}
    uris = []
    for file in objects.list_files("s3://datasets/refreshed"):
        if file.url.endswith(".parquet"):
            uris += pq.read_table(io.BytesIO(objects.read_bytes(file.url)))["uri"].to_pylist()
    listed = [file.url.removeprefix(f"{digits}/") for file in objects.list_files(digits) if file.url.endswith(".png")]
    assert sorted(uris) == sorted(listed)


def test_the_webdataset_package_reads_the_same_pixels(refreshed: Refreshed, digits: str, tmp_path: Path) -> None:
    import webdataset
    from PIL import Image

    from pipeline.dataset.keys import key_of
    from pipeline.images import palette

    data = snapshot.read("s3://datasets/refreshed")
    paths = []
    for shard in data.shards:
        path = tmp_path / Path(shard.path).name
        objects.download(objects.join(data.dataset, shard.path), path)
        paths.append(str(path))
    dataset = webdataset.WebDataset(paths, shardshuffle=False)
    samples = {s["__key__"]: (np.load(io.BytesIO(s["npy"]), allow_pickle=False), int(s["cls"])) for s in dataset}
    assert len(samples) == 400
    table = palette.compute_lookup_table(data.palette())
    for file in list(objects.list_files(digits))[:50]:
        if file.url.endswith(("cut.png", ".txt")):
            continue
        name = file.url.removeprefix(f"{digits}/")
        pixels = np.asarray(Image.open(io.BytesIO(objects.read_bytes(file.url))).convert("RGB"))
        tokens, label = samples[key_of(name)]
        assert np.array_equal(tokens, palette.quantize(pixels, table))
        assert data.classes[label] == name.split("/")[0]


def test_the_mlflow_run_has_config_lineage_curves_and_pictures(refreshed: Refreshed, stack: Stack) -> None:

    client = MlflowClient(stack.mlflow_url)
    experiment = client.get_experiment_by_name("refreshed")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    data = snapshot.read("s3://datasets/refreshed")
    assert run.info.status == "FINISHED"
    assert run.data.params["steps"] == "160"
    assert run.data.params["model.resolution"] == "8"
    assert run.data.params["learning_rate"] == "0.005", "the preset's, as a number"
    assert run.data.tags["igpt.content_digest"] == data.content_digest
    assert run.data.tags["igpt.palette_sha256"] == data.palette_sha256
    assert run.data.tags["igpt.prefect_url"].startswith(stack.prefect_url)
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == data.content_digest[:12]
    losses = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "train_loss")}
    assert losses[160] < losses[10] < math.log(16)
    validation = client.get_metric_history(run.info.run_id, "validation_loss")
    assert [metric.step for metric in validation] == [80, 160]
    assert validation[-1].value == refreshed.result["validation_loss"]
    curve = client.get_metric_history(run.info.run_id, "probe_test_accuracy")
    assert {metric.step for metric in curve} == {0, 1, 2}
    assert run.data.tags["igpt.progress"] == "trained 160 of 160 steps, finished"
    assert "on snapshot 1 of `s3://datasets/refreshed`" in run.data.tags["mlflow.note.content"]
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"samples.png", "completions.png", "loss.png", "probe.png", "report.html"} <= names


def test_the_report_is_where_the_command_says_and_in_mlflow_and_shows_everything(
    refreshed: Refreshed, stack: Stack, home: Path
) -> None:
    path = home / "reports" / "refreshed" / "report.html"
    assert refreshed.command.out.splitlines()[-1] == f"report {path}"
    assert "no report" not in refreshed.command.out and "the report is not" not in refreshed.command.out
    html = path.read_bytes()
    check_nothing_is_outside(html)
    sections = {a["id"] for tag, a in Parsed(html).elements if tag == "section"}
    assert sections == {*SECTIONS, "shown"}
    data, text = snapshot.read("s3://datasets/refreshed"), html.decode()
    listed = shown_images.read(text)
    assert listed.dataset == data.dataset and set(listed.sections_by_key) == keys_shown(html)
    known = {key for listing in (tables.images, tables.rejected) for t in listing(data) for key in t["key"].to_pylist()}
    assert set(listed.sections_by_key) <= known
    for word in ("models:/refreshed/1", refreshed.run, data.content_digest, "truncated", f"{stack.mlflow_url}/#/"):
        assert word in text
    assert "over the training" in text, "a checkpoint and the last step have samples"
    version = Registry(stack.mlflow_url).find("models:/refreshed/1")
    stored = Path(MlflowClient(stack.mlflow_url).download_artifacts(version.run_id, "report.html"))
    assert stored.read_bytes().count(b"<section") == html.count(b"<section")


def test_the_prefect_page_shows_the_stages_and_what_they_left(refreshed: Refreshed, stack: Stack) -> None:
    from prefect.client.orchestration import PrefectClient

    async def read() -> tuple[dict[str, list[str]], set[str], set[UUID], list]:
        # Not get_client(): Prefect may have been imported, and have read its settings, before the server was started.
        async with PrefectClient(f"{stack.prefect_url}/api") as client:
            flows = {flow.id: flow.name for flow in await client.read_flows()}
            states: dict[str, list[str]] = {}
            names: set[str] = set()
            completed: set[UUID] = set()
            for run in await client.read_flow_runs():
                states.setdefault(flows[run.flow_id], []).append(run.state_type.value)
                names.add(run.name)
                if run.state.is_completed():
                    completed.add(run.id)
            return states, names, completed, await client.read_artifacts()

    states, names, completed, artifacts = asyncio.run(read())
    data = "s3://datasets/refreshed"
    assert {"refresh refreshed", f"build {data}", f"train refreshed on {data}, snapshot 1"} <= names
    for name in ("refresh", "build-dataset", "pretrain", "probe"):
        assert "COMPLETED" in states[name]
    by_key = {artifact.key: artifact for artifact in artifacts}
    assert {"dataset", "samples", "completions", "mlflow-run", "probe", "registered-model", "report"} <= set(by_key)
    assert f"({stack.mlflow_url}/#/" in by_key["report"].data and by_key["report"].data.endswith("report.html)")
    progress = [artifact for artifact in artifacts if artifact.key == "progress" and artifact.flow_run_id in completed]
    assert len(progress) >= 4 and {artifact.data for artifact in progress} == {100.0}
    assert all(artifact.description.startswith("finished") for artifact in progress)
    with urllib.request.urlopen(by_key["samples"].data) as answer:
        assert answer.read(8) == b"\x89PNG\r\n\x1a\n"
    link = by_key["mlflow-run"].data
    assert stack.mlflow_url in link


def test_workers_log_json_with_the_id_of_their_flow_run(refreshed: Refreshed, home: Path, stack: Stack) -> None:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    # Ray moves the logs of ended processes to logs/old when there are many.
    names = (services.short_folder(home) / "r" / "session_latest" / "logs").rglob("worker-*.err")
    texts = [text for name in names for text in name.read_text().splitlines() if text.startswith("{")]
    ours = [line for line in map(json.loads, texts) if line["logger"].startswith(("pipeline.", "igpt_model."))]
    (flow_run_id,) = {line.get("flow_run_id") for line in ours if f"goes on with {refreshed.run}" in line["message"]}
    with SyncPrefectClient(f"{stack.prefect_url}/api") as client:
        assert client.read_flow(client.read_flow_run(UUID(flow_run_id)).flow_id).name == "refresh"
        # Prefect's page has them too, with the address of the node.
        trainings = [run.id for run in client.read_flow_runs() if run.name.startswith("train refreshed on")]
        of_each = (LogFilter(flow_run_id=LogFilterFlowRunId(any_=[training])) for training in trainings)
        shown = [entry for lines in of_each for entry in client.read_logs(lines, limit=200)]
        assert any(entry.message.endswith("after step 0") and refreshed.run in entry.message for entry in shown)
    # Builds of other tests without a flow have no such id.
    of_run = [line for line in ours if line.get("flow_run_id") == flow_run_id]
    for what in ("shard ", "goes on with", "features of"):
        assert any(what in line["message"] for line in of_run), what
    for line in of_run:
        assert line["level"] == "INFO" and line["time"]
        assert line["ray_job_id"] and line["ray_node_id"] and line["ray_task_id"]
    steps = [line["message"] for line in of_run if "train_loss" in line["message"]]
    assert len(steps) == 16 and steps[-1].startswith("step 160: ")


def test_a_registered_version_tells_where_it_comes_from_and_is_the_champion(refreshed: Refreshed, stack: Stack) -> None:
    version = Registry(stack.mlflow_url).find("refreshed@champion")
    assert (version.number, version.aliases) == (1, ("candidate", "champion"))
    data = snapshot.read("s3://datasets/refreshed")
    tags = version.tags
    assert tags["igpt.content_digest"] == data.content_digest
    assert (tags["igpt.snapshot"], tags["igpt.palette_sha256"]) == (str(data.number), data.palette_sha256)
    assert (tags["igpt.mlflow_run"], tags["igpt.run"]) == (version.run_id, refreshed.run)
    assert tags["igpt.promotion"] == "promoted"
    assert json.loads(tags["igpt.promotion_numbers"]) == {BITS: float(tags[BITS])}
    assert float(tags[BITS]) == pytest.approx(refreshed.result["validation_loss"] / math.log(2), abs=1e-4)
    assert 0.5 < float(tags[ACCURACY]) <= 1
    for name in (SPLITS, "igpt.config_digest", "igpt.files_sha256"):
        assert len(tags[name]) == 64
    assert tags["igpt.prefect_run"]


def test_a_registered_version_holds_no_pickle(refreshed: Refreshed) -> None:
    names = [file.url.rsplit("/", 1)[-1] for file in objects.list_files("s3://mlflow")]
    assert "weights.safetensors" in names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin"))]


def test_running_it_again_makes_nothing_new(refreshed: Refreshed, stack: Stack) -> None:

    def state() -> list[tuple[str, str]]:
        return [
            (f.url, f.etag)
            for bucket in ("datasets/refreshed", "runs/refreshed")
            for f in objects.list_files(f"s3://{bucket}")
        ]

    before = state()
    again = igpt("refresh", "--config", str(refreshed.path))
    assert again.code == 0, again.err
    assert "unchanged" in again.out
    assert "finished already" in again.out
    assert "models:/refreshed/1" in again.out
    assert state() == before
    assert len(MlflowClient(stack.mlflow_url).search_model_versions("name = 'refreshed'")) == 1


def test_no_secret_is_in_what_the_refresh_left(refreshed: Refreshed, stack: Stack, home: Path) -> None:
    secrets = (stack.s3_secret_key, stack.ray_token_path.read_text())
    ray_folder = Path(json.loads((home / "services.json").read_text())["ray_folder"])
    logs = [
        path
        for folder in (home / "logs", ray_folder)
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in {".log", ".out", ".err"}
    ]
    assert len(logs) > 10
    client = MlflowClient(stack.mlflow_url)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert runs
    places = {str(path): path.read_text(errors="replace") for path in logs}
    places |= {f"run {run.info.run_id}": str(run.to_dictionary()) for run in runs}
    assert not [place for place, text in places.items() if any(secret in text for secret in secrets)]
