"""Batches on the services: a registered model, S3, Ray; drivers and workers that are killed."""

import io
import json
import signal
import subprocess
from contextlib import suppress

import mlflow
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.services.local_stack import Stack
from pipeline.readers import arrow
from pipeline.store import objects
from tests.integration.conftest import IGPT, ROOT, Refreshed, igpt
from tests.rigs.waiting import wait_until

pytestmark = pytest.mark.services


def parts_of(out: str) -> dict[str, str]:
    """The etags of the parts that are there, by URL; not the claims of those that create parts now."""
    return {file.url: file.etag for file in objects.list_files(f"{out}/parts") if file.url.endswith(".parquet")}


def rows(out: str) -> pa.Table:
    """The rows of a batch, by the parts of its manifest; they are all that is there."""
    parts = json.loads(objects.read_bytes(f"{out}/manifest.json"))["parts"]
    urls = [f"{out}/parts/{part['name']}.parquet" for part in parts]
    assert [file.url for file in objects.list_files(f"{out}/parts")] == urls
    return pa.concat_tables(pq.read_table(io.BytesIO(objects.read_bytes(url))) for url in urls)


def test_a_registered_model_on_its_dataset_and_its_raw_images(refreshed: Refreshed, stack: Stack) -> None:
    model = mlflow.pyfunc.load_model("models:/refreshed@candidate")
    for source, column in (("s3://datasets/refreshed", "layer_1"), (refreshed.config["dataset"]["raw"], "layer_1")):
        out = f"s3://datasets/{objects.name_of(source)}-rows"
        done = igpt("features", "models:/refreshed@candidate", source, out, "layers=[1]", "pooling=rows")
        assert done.code == 0, done.out + done.err
        table = rows(out)
        assert len(set(table["key"].to_pylist())) == len(table) == 400
        images = [objects.read_bytes(uri) for uri in table["uri"].to_pylist()]
        expected = model.predict(images, params={"layer": 1, "pooling": "rows"})
        assert arrow.pixels_of(table[column]) == pytest.approx(expected, abs=1e-4)
    assert "1 rejected: damaged" in done.out or "1 rejected: truncated" in done.out, done.out
    done = igpt("score", "models:/refreshed@candidate", "s3://datasets/refreshed", "s3://datasets/scores", "split=test")
    assert done.code == 0, done.out + done.err
    table = rows("s3://datasets/scores")
    images = [objects.read_bytes(uri) for uri in table["uri"].to_pylist()]
    assert table["bits_per_pixel"].to_numpy() == pytest.approx(
        model.predict(images, params={"task": "score"}), abs=1e-4
    )


def killed_worker(stack: Stack) -> bool:
    """Kill a process that is making a part now; whether there was one."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            is_making = process.cmdline()[:1] and process.cmdline()[0].startswith("ray::_make_part")
            if is_making and process.environ().get("RAY_AUTH_TOKEN_PATH") == str(stack.ray_token_path):
                process.kill()
                return True
    return False


@pytest.mark.faults
@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_a_killed_driver_or_worker_costs_nothing_but_its_parts(victim: str, refreshed: Refreshed, stack: Stack) -> None:
    out = f"s3://datasets/killed-{victim}"
    command = (
        "features",
        "models:/refreshed/1",
        refreshed.config["dataset"]["raw"],
        out,
        "layers=[1]",
        "part_images=4",
    )
    driver = subprocess.Popen([*IGPT, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    wait_until(lambda: len(parts_of(out)) >= 5)
    if victim == "driver":
        driver.send_signal(signal.SIGKILL)
        driver.communicate(timeout=60)
        finished = parts_of(out)
        assert 5 <= len(finished) < 100 and not objects.exists(f"{out}/manifest.json")
        done = igpt(*command)
        code, said = done.code, done.out + done.err
        assert finished.items() <= parts_of(out).items()
        assert "died while working on" in said and "of them from before" in said
    else:
        wait_until(lambda: killed_worker(stack))
        said, _ = driver.communicate(timeout=300)
        code = driver.returncode
    assert code == 0, said
    table = rows(out)
    assert len(set(table["key"].to_pylist())) == len(table) == 400
    assert np.isfinite(arrow.pixels_of(table["layer_1"])).all()
