"""HTTP bodies of every kind: right ones are answered, others refused with the reason in one line, however large."""

import base64
import io
import json
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server
from PIL import Image

from igpt_model import registered
from igpt_model.registry import short_answers
from igpt_model.registry.serving import default_params, signature, write_files
from tests.igpt_model.registry.test_serving import make, make_bundle, make_head

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 3), dtype=np.uint8)
JSON = "application/json"


def file_of(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


FILES = [file_of(image) for image in PIXELS]
TEXTS = [base64.b64encode(data).decode() for data in FILES]
LARGE = "!" * 1_000_000
NOISE = base64.b64encode(np.random.default_rng(0).bytes(700_000)).decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """MLflow's scoring server with a small model."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "image_gpt").mkdir()
    write_files(folder / "image_gpt", make_bundle(), 1, make_head())
    mlflow.pyfunc.save_model(
        str(folder / "model"),
        loader_module=registered.__name__,
        data_path=str(folder / "image_gpt"),
        signature=signature(),
        pip_requirements=[],
    )
    return TestClient(
        scoring_server.init(mlflow.pyfunc.load_model(str(folder / "model"))), raise_server_exceptions=False
    )


def ask(server: TestClient, body: Any, kind: str = JSON) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.post("/invocations", content=content, headers={"Content-Type": kind})


def parquet_of(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame(columns).to_parquet(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": TEXTS},
        {"instances": TEXTS},
        {"inputs": PIXELS.tolist()},
        {"inputs": {"image": TEXTS}},
        {"inputs": [{"image": text} for text in TEXTS]},
        {"instances": [{"image": text} for text in TEXTS]},
        {"inputs": [{"bytes": text, "path": None} for text in TEXTS]},
        {"instances": [{"bytes": text, "path": None} for text in TEXTS]},
        {"inputs": [base64.encodebytes(data).decode() for data in FILES]},
        {"inputs": [f"data:image/png;base64,{text}" for text in TEXTS]},
        {"dataframe_split": {"columns": ["image"], "data": [[text] for text in TEXTS], "index": [5, 3]}},
        {"dataframe_records": [{"image": text} for text in TEXTS]},
        {"dataframe_records": [{"image": {"bytes": text, "path": None}} for text in TEXTS]},
        {"inputs": TEXTS, "params": dict.fromkeys(default_params())},
        {"inputs": TEXTS, "params": None},
        {"inputs": TEXTS, "params": {}},
    ],
)
def test_two_images_in_every_form_have_the_same_features(body: Any, server: TestClient) -> None:
    answer = ask(server, body)
    assert answer.status_code == 200, answer.text[:500]
    assert np.array(answer.json()["predictions"]) == pytest.approx(make().predict(PIXELS), abs=1e-5)


def test_a_file_of_csv_or_parquet_is_a_table(server: TestClient) -> None:
    expected = pytest.approx(make().predict(PIXELS), abs=1e-5)
    for body, kind in (
        (("image\n" + "\n".join(TEXTS)).encode(), "text/csv"),
        (parquet_of(image=FILES), "application/vnd.apache.parquet"),
    ):
        answer = ask(server, body, kind)
        assert answer.status_code == 200 and np.array(answer.json()["predictions"]) == expected, answer.text[:500]


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": TEXTS[0]},
        {"instances": TEXTS[0]},
        {"inputs": base64.encodebytes(FILES[0]).decode()},
        {"inputs": f"data:image/png;base64,{TEXTS[0]}"},
        {"inputs": PIXELS[0].tolist()},
        {"inputs": {"image": TEXTS[0]}},
        {"inputs": {"bytes": TEXTS[0], "path": None}},
    ],
)
def test_one_image_needs_no_list(body: Any, server: TestClient) -> None:
    answer = ask(server, body)
    assert answer.status_code == 200, answer.text[:500]
    assert np.array(answer.json()["predictions"]) == pytest.approx(make().predict(PIXELS)[:1], abs=1e-5)


@pytest.mark.parametrize("name", [name for name in default_params() if name != "task"])
def test_a_parameter_that_is_null_is_as_if_absent(name: str, server: TestClient) -> None:
    for task in ("features", "sample", "complete"):
        given = {"task": task, "seed": 3, "temperature": 0.7}
        given.pop(name, None)
        plain = ask(server, {"inputs": TEXTS, "params": given})
        null = ask(server, {"inputs": TEXTS, "params": {**given, name: None}})
        assert plain.status_code == null.status_code == 200
        assert plain.json() == null.json()
        loaded = make()
        assert np.array_equal(loaded.predict(PIXELS, {**given, name: None}), loaded.predict(PIXELS, given))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"inputs": [LARGE]}, "image 0 is a text that is not base64"),
        ({"inputs": LARGE}, "image 0 is a text that is not base64"),
        ({"inputs": [NOISE]}, "image 0: not_an_image"),
        ({"inputs": NOISE}, "image 0: not_an_image"),
        ({"inputs": {"image": [NOISE]}}, "image 0: not_an_image"),
        ({"inputs": {"picture": [LARGE]}}, "the table has the columns ['picture']"),
        ({"inputs": {LARGE: [NOISE]}}, "the table has the columns ['!!!"),
        ({"inputs": [{LARGE: NOISE}]}, "image 0 has the columns ['!!!"),
        ({"dataframe_split": {"columns": ["picture"], "data": [[LARGE]]}}, "the table has the columns ['picture']"),
        ({"dataframe_records": [{"image": LARGE}]}, "image 0 is a text that is not base64"),
        ({"dataframe_records": [{"image": TEXTS[0]}, {"image": None}]}, "image 1 is missing"),
        ({"inputs": [NOISE], "params": {"task": "dream"}}, "task is 'dream': it must be one of"),
        ({"inputs": [NOISE], "params": {"task": LARGE}}, "task is '!!!"),
        ({"inputs": [NOISE], "params": {"layer": "first"}}, "Can not safely convert"),
        ({"inputs": [NOISE], "params": {"seed": 0.5}}, "Can not safely convert"),
        ({"inputs": [NOISE], "params": {"seed": [1]}}, "Value must be a scalar"),
        ({"inputs": [NOISE], "params": "task"}, "Parameters must be a dictionary"),
        ({"inputs": TEXTS, "params": {"layer": 99}}, "layer is 99"),
        ({"inputs": TEXTS, "params": {"task": "sample", "samples": 0}}, "samples is 0"),
        ({"inputs": TEXTS, "params": {"task": "sample", "temperature": -1}}, "temperature is -1"),
        ({"inputs": (np.zeros((400, 400, 3)) + 0.5).tolist()}, "image 0 has shape (400, 400, 3), float64: give uint8"),
        ({"inputs": [[[1, 2], [3]]]}, "inhomogeneous"),
        ({"inputs": None}, "images are NoneType"),
        ({"inputs": []}, "there are no images"),
        ({"inputs": {}}, "the table has the columns []"),
        ({"inputs": [None]}, "image 0 is missing"),
        ({"inputs": True}, "images have shape (), bool"),
        ({"inputs": 5}, "images have shape (), int64"),
        ({"inputs": [{"bytes": None, "path": "a.png"}]}, "image 0 has a path and no bytes"),
        ({"dataframe_split": {"data": []}}, "the table has the columns []"),
        ({"picture": LARGE}, "exactly one of the input fields"),
        ([NOISE], "Received a list"),
        (b'{"inputs": "' + NOISE.encode(), "Ensure that input is a valid JSON"),
        (b"\xff" * 1_000_000, "Ensure that input is a valid JSON"),
    ],
)
def test_a_refusal_is_the_reason_in_one_line(body: Any, expected: str, server: TestClient) -> None:
    answer = ask(server, body)
    assert answer.status_code == 400, answer.text[:500]
    told = answer.json()
    assert expected in told["message"]
    assert len(answer.content) < 10_000 and len(told["message"]) <= 1000
    assert "\n" not in told["message"] and "Traceback" not in answer.text and "unexpected error" not in answer.text


@pytest.mark.parametrize(
    ("body", "kind"), [(b"image\n\xff\xff", "text/csv"), (b"PAR1" * 100_000, "application/vnd.apache.parquet")]
)
def test_a_damaged_file_is_refused_without_a_traceback(body: bytes, kind: str, server: TestClient) -> None:
    answer = ask(server, body, kind)
    assert answer.status_code == 400
    assert len(answer.content) < 10_000 and "Traceback" not in answer.text and "\n" not in answer.json()["message"]


def test_a_bug_is_one_line_with_another_status(server: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igpt_model.registry.serving.image_features", lambda *_, **__: 1 / 0)
    answer = ask(server, {"inputs": TEXTS})
    assert answer.status_code == 500
    assert "ZeroDivisionError: division by zero" in answer.json()["message"]
    assert "Traceback" not in answer.text and "\n" not in answer.json()["message"]


def test_the_server_is_changed_once_and_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    short_answers.shorten()
    changed = scoring_server.invocations
    short_answers.shorten()
    assert scoring_server.invocations is changed
    monkeypatch.delitem(short_answers.sys.modules, "mlflow.pyfunc.scoring_server")
    short_answers.shorten()
    assert "mlflow.pyfunc.scoring_server" not in short_answers.sys.modules


def test_the_reason_is_what_stands_behind_the_request() -> None:
    reason = short_answers.reason
    assert reason("Failed to predict data 'a\nError: b\nc'. \nError: image 0: zero_bytes") == "image 0: zero_bytes"
    assert reason("one line\nTraceback") == "one line"
    assert reason("x" * 5000) == "x" * 1000
    assert reason("") == "the request is refused"
