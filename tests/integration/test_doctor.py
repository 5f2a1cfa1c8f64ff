"""`igpt doctor` with real services: whether they answer, their versions, wrong keys and addresses."""

import json
from importlib import metadata

import pytest

from flows.services.local_stack import Stack
from tests.integration.conftest import igpt

pytestmark = pytest.mark.services


def test_services_that_answer_are_told_with_the_versions_that_the_clients_here_have(stack: Stack) -> None:
    told = igpt("doctor", "--json")
    verdicts = {verdict["check"]: verdict for verdict in json.loads(told.out)["verdicts"]}
    services = ("local s3", "local prefect", "local mlflow", "local ray", "S3", "Prefect", "MLflow", "Ray")
    assert {service: verdicts[service]["state"] for service in services} == dict.fromkeys(services, "ok")
    assert verdicts["S3"]["detail"] == f"{stack.s3_url}, answers as AmazonS3"  # rclone's name for itself
    for service in ("Prefect", "MLflow", "Ray"):
        assert verdicts[service]["detail"].endswith(metadata.version(service.lower()))
    assert "clock" not in verdicts
    assert told.code == any(verdict["state"] == "fails" for verdict in verdicts.values())


def test_what_does_not_work_fails_with_what_to_do_and_without_a_secret(stack: Stack) -> None:
    wrong = {
        "AWS_SECRET_ACCESS_KEY": "no-such-secret",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "RAY_ADDRESS": stack.ray_address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "f" * 64,
    }
    told = igpt("doctor", environment=wrong)
    assert told.code == 1
    table, _, advice = told.out.partition("What to do:")
    rows = [
        line.split(maxsplit=2) for line in table.splitlines() if line.startswith(("S3 ", "Prefect ", "MLflow ", "Ray "))
    ]
    rows_by_check = {check: (state, detail) for check, state, detail in rows}
    assert rows_by_check["S3"] == ("fails", f"{stack.s3_url}: it refuses the request (SignatureDoesNotMatch)")
    assert rows_by_check["MLflow"] == ("fails", "http://127.0.0.1:9: it does not answer (Connection refused)")
    assert rows_by_check["Ray"][0] == "fails"
    assert "RAY_AUTH_TOKEN" in rows_by_check["Ray"][1]
    assert rows_by_check["Prefect"][0] == "ok"
    assert "check MLFLOW_TRACKING_URI" in advice
    for secret in (stack.s3_secret_key, stack.ray_token_path.read_text(), *wrong.values()):
        assert secret in ("token", wrong["MLFLOW_TRACKING_URI"], stack.ray_address) or secret not in told.out + told.err
