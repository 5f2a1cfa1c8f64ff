"""The registry: the contents of a version, promotion, and what is refused; on SQLite and on PostgreSQL."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from flows.services import settings
from flows.services.local_stack import Stack
from flows.services.ports import HOST, free_port
from flows.services.store_keys import derive
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from igpt_model.registry import checksums
from igpt_model.registry.client import CANDIDATE, CHAMPION, Registry, Version
from igpt_model.registry.gate import ACCURACY, BITS, PALETTE, ROLLED_BACK, SPLITS, GateConfig
from igpt_model.registry.register import HUGGING_FACE, register
from igpt_model.tracking.runs import RunLogger
from pipeline.errors import IgptError
from pipeline.store import objects
from pipeline.store.credentials import StoreKey
from tests.integration.conftest import forget_store_clients, igpt
from tests.rigs.http_recorder import HttpRecorder
from tests.rigs.postgres import PostgresServer

pytestmark = pytest.mark.services

SAME = {PALETTE: "p", SPLITS: "s"}


@pytest.fixture(scope="module")
def on_postgres(stack: Stack, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A second MLflow server whose runs and versions are in PostgreSQL and whose files are in the same S3."""
    postgres.create_database("mlflow")
    port = free_port()
    log = tmp_path_factory.mktemp("mlflow-postgres") / "mlflow.log"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", postgres.url("mlflow"), "--default-artifact-root", "s3://mlflow/postgres"),
        *("--no-serve-artifacts", "--allowed-hosts", f"{HOST}:{port}"),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    del environment["MLFLOW_TRACKING_URI"]
    with log.open("wb") as file:
        server = subprocess.Popen(
            command, env=environment, cwd=log.parent, stdout=file, stderr=file, start_new_session=True
        )
    try:
        _wait_for(f"http://{HOST}:{port}/health", server, log)
        yield f"http://{HOST}:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


@pytest.fixture(autouse=True)
def own_server(stack: Stack) -> Iterator[None]:
    """Restore the tracking server after a test: MLflow keeps the last one in this process's environment."""
    yield
    mlflow.set_tracking_uri(stack.mlflow_url)


@pytest.fixture(params=["sqlite", "postgres"])
def tracking_uri(request: pytest.FixtureRequest, stack: Stack) -> str:
    return stack.mlflow_url if request.param == "sqlite" else request.getfixturevalue("on_postgres")


def make_folder(seed: int = 0) -> ModelBundle:
    torch.manual_seed(seed)
    model = ImageGPT(ModelConfig(layers=2, width=64, heads=2, resolution=8, colours=16)).eval()
    colours = np.linspace(-1, 1, 16, dtype=np.float32)[:, None].repeat(3, 1)
    return ModelBundle(model=model, palette_K3=colours, classes=("a", "b"))


def put(uri: str, name: str, bits: float, accuracy: float = 0.5, **tags: str) -> Version:
    """Register a small model of a new run with these metrics."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(name)
    run = client.create_run(experiment.experiment_id if experiment else client.create_experiment(name))
    client.log_param(run.info.run_id, "steps", 7)
    client.set_tag(run.info.run_id, "igpt.git_commit", "c0ffee")
    client.set_tag(run.info.run_id, "igpt.parent_model", "models:/before/1")
    numbers = {BITS: str(bits), ACCURACY: str(accuracy)}
    return register(
        make_folder(),
        name=name,
        tracking_uri=uri,
        run_id=run.info.run_id,
        tags={**SAME, **numbers, **tags},
        best_layer=1,
    )


def test_a_run_is_registered_once_however_often_it_is_tried(tracking_uri: str) -> None:
    first = put(tracking_uri, "once", 3.0)
    assert first.aliases == (CANDIDATE,)
    assert first.tags["igpt.git_commit"] == "c0ffee"
    assert first.tags["igpt.parent_model"] == "models:/before/1"
    assert len(first.tags["igpt.config_digest"]) == len(first.tags["igpt.files_sha256"]) == 64

    def again(_: int) -> Version:
        return register(
            make_folder(), name="once", tracking_uri=tracking_uri, run_id=first.run_id, tags={}, best_layer=1
        )

    with ThreadPoolExecutor(2) as pool:
        assert {version.number for version in pool.map(again, range(2))} == {first.number}
    assert [version.number for version in Registry(tracking_uri).versions("once")] == [first.number]


@pytest.fixture
def as_driver(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let MLflow's client in this process have the rights of the driver of a deployment, not of this machine's user."""

    with monkeypatch.context() as changed:
        for name, value in derive(stack.administrator)["driver"].environment().items():
            changed.setenv(name, value)
        forget_store_clients()
        yield
    forget_store_clients()


def test_a_driver_logs_pictures_and_only_its_registration_writes_a_model(stack: Stack, as_driver: None) -> None:
    client = MlflowClient(stack.mlflow_url)
    run = client.create_run(client.create_experiment("of-a-driver")).info.run_id
    logger, picture = RunLogger(stack.mlflow_url, run), np.zeros((8, 8, 3), np.uint8)

    def log_pictures() -> None:
        logger.picture(picture, "samples.png")
        logger.file(b"a curve", "loss.png")

    def try_to_register(key: StoreKey | None) -> Version:
        fields = {"name": "of-a-driver", "tracking_uri": stack.mlflow_url, "run_id": run, "tags": SAME}
        return register(make_folder(), **fields, best_layer=1, key=key)

    log_pictures()
    logger.picture_at(1, picture, "samples")
    with pytest.raises(Exception, match="AccessDenied"):
        try_to_register(None)
    version = try_to_register(settings.store_key("register"))
    assert Registry(stack.mlflow_url).open(version.uri).classes == ("a", "b")
    log_pictures()
    with pytest.raises(Exception, match="AccessDenied"):
        client.log_text(run, "of another model", "hugging_face/config.json")


def test_promotion_rollback_and_what_the_tags_tell(tracking_uri: str) -> None:
    registry = Registry(tracking_uri)
    first, better, worse = (put(tracking_uri, "gated", bits) for bits in (3.0, 2.5, 2.9))
    assert registry.champion("gated") is None
    assert registry.promote(first.uri, GateConfig(max_bits_per_pixel=3.5)).decision.passed
    refused = registry.promote(better.uri, GateConfig(min_bits_gain=1.0))
    assert not refused.decision.passed
    assert registry.find("gated@champion").number == first.number
    judged = registry.find(better.uri)
    assert judged.tags["igpt.promotion"].startswith("not promoted: its bits per pixel 2.50000 is not better")
    assert json.loads(judged.tags["igpt.promotion_numbers"])[f"champion.{BITS}"] == 3.0
    passed = registry.promote(better.uri, GateConfig(min_bits_gain=0.2))
    assert (passed.previous, passed.version.aliases) == (first.number, (CHAMPION,))
    assert passed.version.tags["igpt.promotion"] == "promoted"
    assert passed.version.tags["igpt.promotion_against"] == str(first.number)
    assert not registry.promote(worse.uri, GateConfig()).decision.passed
    with pytest.raises(IgptError, match="is the champion already"):
        registry.promote(better.uri, GateConfig())
    back = registry.rollback("gated")
    assert (back.version.number, back.previous) == (first.number, better.number)
    assert registry.find("gated@champion").number == first.number
    assert registry.find(better.uri).tags[ROLLED_BACK].startswith(f"to version {first.number}")
    assert "it was rolled back" in registry.promote(better.uri, GateConfig()).decision.text
    with pytest.raises(IgptError, match="is the first champion"):
        registry.rollback("gated")


def test_two_promotions_at_once_never_leave_the_registry_without_a_champion(tracking_uri: str) -> None:
    registry = Registry(tracking_uri)
    versions = [put(tracking_uri, "rivals", bits) for bits in (3.0, 2.6, 2.5)]
    registry.promote(versions[0].uri, GateConfig())
    seen: list[int | None] = []
    ended = threading.Event()

    def watch() -> None:
        watcher = Registry(tracking_uri)
        while not ended.is_set():
            champion = watcher.champion("rivals")
            seen.append(None if champion is None else champion.number)

    def promote(version: Version) -> bool:
        return Registry(tracking_uri).promote(version.uri, GateConfig()).decision.passed

    with ThreadPoolExecutor(3) as pool:
        watching = pool.submit(watch)
        passed = list(pool.map(promote, versions[1:]))
        ended.set()
        watching.result()
    numbers = {version.number for version in versions}
    assert len(seen) > 3
    assert set(seen) <= numbers  # there is always a champion
    assert passed[1]  # the best version passes against any other champion
    champion = registry.champion("rivals")
    assert champion is not None and champion.number == versions[2].number
    assert champion.tags["igpt.promotion"] == "promoted"
    assert registry.rollback("rivals").version.number in numbers - {champion.number}


def test_of_two_that_register_at_the_same_moment_the_newer_is_the_candidate(
    tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tracking_uri, "at-once", 3.0)
    move = MlflowClient.set_registered_model_alias
    newer: list[Version] = []

    def set_alias(client: MlflowClient, model: str, alias: str, number: str) -> None:
        if number == "2" and not newer:  # has read that the candidate is version 1
            newer.append(put(tracking_uri, "at-once", 2.5))
        move(client, model, alias, number)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", set_alias)
    put(tracking_uri, "at-once", 2.6)
    assert newer[0].number == 3
    assert Registry(tracking_uri).aliases_of("at-once")[CANDIDATE] == 3


@pytest.mark.parametrize("better_is_last", [True, False])
def test_of_two_that_moved_the_alias_at_the_same_moment_the_better_stays(
    better_is_last: bool, tracking_uri: str
) -> None:
    """Both have compared with the same champion, and written their tags, before either moves the alias."""
    name = f"together-{better_is_last}"
    registry = Registry(tracking_uri)
    first, better, worse = (put(tracking_uri, name, bits) for bits in (3.0, 2.5, 2.6))
    registry.promote(first.uri, GateConfig())
    early, late = (worse, better) if better_is_last else (better, worse)
    written = threading.Barrier(2)
    moved = threading.Event()

    def promote(version: Version) -> bool:
        mine = Registry(tracking_uri)
        move = MlflowClient.set_registered_model_alias

        def set_alias(client: MlflowClient, model: str, alias: str, number: str) -> None:
            if number == str(version.number) and not moved.is_set():
                written.wait(30)
                if version is late:
                    assert moved.wait(30)
            move(client, model, alias, number)
            moved.set()

        mine._client.set_registered_model_alias = partial(set_alias, mine._client)  # type: ignore[method-assign]
        return mine.promote(version.uri, GateConfig()).decision.passed

    with ThreadPoolExecutor(2) as pool:
        passed = list(pool.map(promote, (early, late)))
    champion = registry.champion(name)
    assert champion is not None and champion.number == better.number
    assert registry.rollback(name).version.number == first.number
    if not better_is_last:
        assert passed == [True, False]
        assert registry.find(worse.uri).tags["igpt.promotion_against"] == str(better.number)


def test_wrong_names_get_one_line(stack: Stack) -> None:
    registry = Registry(stack.mlflow_url)
    put(stack.mlflow_url, "named", 3.0)
    for reference, expected in (
        ("named@best", r"no such alias, the model has candidate \(version 1\)"),
        ("named/99", "no such version"),
        ("nothing@candidate", "nothing: no such model"),
        ("named", "name a version"),
        ("models:/named/one", "name a version"),
        ("na'med@x", "is not a model name"),
    ):
        with pytest.raises(IgptError, match=expected):
            registry.find(reference)


def test_weights_go_to_the_store_and_not_through_the_server(stack: Stack) -> None:
    with HttpRecorder(stack.mlflow_url) as recorder:
        version = put(recorder.url, "direct", 3.0)
        asked = list(recorder.exchanges)
    stored = {file.url: file.size for file in objects.list_files("s3://mlflow") if version.model_id in file.url}
    (weights,) = [size for url, size in stored.items() if url.endswith("weights.safetensors")]
    assert weights > 400_000
    assert max(exchange.sent for exchange in asked) < 20_000
    assert sum(exchange.sent for exchange in asked) < weights / 5
    assert not [exchange.path for exchange in asked if "mlflow-artifacts" in exchange.path]
    theirs = [file.url for file in objects.list_files("s3://mlflow") if f"/{HUGGING_FACE}/" in file.url]
    assert any(version.run_id in url and url.endswith("model.safetensors") for url in theirs)


def damage(version: Version, name: str, change: bytes) -> None:
    (url,) = [
        file.url
        for file in objects.list_files("s3://mlflow")
        if version.model_id in file.url and file.url.endswith(f"/{name}")
    ]
    objects.write_bytes(url, change)


def test_a_damaged_or_forged_version_is_refused(stack: Stack, tmp_path: Path) -> None:
    registry = Registry(stack.mlflow_url)
    version = put(stack.mlflow_url, "damaged", 3.0)
    assert registry.fetch(version, tmp_path / "good").model.config.layers == 2
    damage(version, "weights.safetensors", b"x" * 1000)
    with pytest.raises(IgptError, match=r"models:/damaged/\d+: weights.safetensors is damaged"):
        registry.fetch(version, tmp_path / "damaged")
    # Replace the registered model by another one with its own checksums.
    forged = tmp_path / "forged"
    forged.mkdir()
    make_folder(1).save(forged)
    (forged / "probed.json").write_text('{"best_layer": 1}')
    checksums.seal(forged)
    for name in ("weights.safetensors", "model.json", "palette.npy", "probed.json", checksums.FILE):
        damage(version, name, (forged / name).read_bytes())
    with pytest.raises(IgptError, match="is not the one that was registered"):
        registry.fetch(version, tmp_path / "forged-fetched")


def test_the_commands_list_compare_promote_and_roll_back(stack: Stack, tmp_path: Path) -> None:
    first, second = put(stack.mlflow_url, "commanded", 3.0), put(stack.mlflow_url, "commanded", 2.0)
    listed = igpt("models", "ls", "commanded", "--json")
    assert [row["number"] for row in json.loads(listed.out)] == [second.number, first.number]
    assert "candidate" in igpt("models", "ls").out
    shown = igpt("models", "show", "commanded@candidate")
    assert BITS in shown.out and "2.0" in shown.out
    compared = igpt("models", "compare", "commanded/1", "commanded/2", "--json")
    assert {BITS: ["3.0", "2.0"]}.items() <= {
        row["tag"]: [row[first.uri], row[second.uri]] for row in json.loads(compared.out)
    }.items()
    refused = igpt("models", "promote", "commanded@candidate", "max_bits_per_pixel=1.5")
    assert refused.code == 1
    assert "is above 1.50000" in refused.out
    for reference in ("commanded/1", "commanded@candidate"):
        promoted = igpt("models", "promote", reference)
        assert promoted.code == 0, promoted.err
    assert "models:/commanded/2: is the champion now, replacing version 1" in promoted.out
    assert "models:/commanded/1 is the champion again" in igpt("models", "rollback", "commanded").out
    palette = tmp_path / "palette.npy"
    assert igpt("models", "palette", "commanded@champion", str(palette)).code == 0
    assert np.array_equal(np.load(palette), make_folder().palette_K3)
    for arguments, expected in (
        (("show", "commanded@nobody"), "no such alias"),
        (("rollback", "nothing"), "no such model"),
        (("promote", "commanded/2", "min_probe_accuracy=90"), "it must be from 0 to 1"),
    ):
        command = igpt("models", *arguments)
        assert command.code == 2
        assert expected in command.err and len(command.err.splitlines()) == 1
