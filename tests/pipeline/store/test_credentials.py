"""A process uses the key that it was handed last, with every client, and hands it to the processes that it starts."""

import subprocess
import sys

import pytest

from pipeline.store import credentials, objects, s3_reads
from pipeline.store.credentials import StoreKey

KEYS = [StoreKey(role=role, access_key=f"{role}-1", secret_key=f"secret of {role}") for role in ("build", "train")]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "of-the-node",
        "AWS_SECRET_ACCESS_KEY": "secret of the node",
        "AWS_SESSION_TOKEN": "of-the-node",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)


def names_used() -> set[str | None]:
    """The access keys of s3fs, boto3 and obstore, and of a child."""
    fs = objects.filesystem("s3://datasets/x")
    fs.connect()
    obstore = s3_reads._client("datasets").credential_provider
    assert obstore is not None
    code = "import os; print(os.environ['AWS_ACCESS_KEY_ID'], 'AWS_SESSION_TOKEN' in os.environ)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return {
        fs.s3._request_signer._credentials.access_key,
        s3_reads._boto_client()._request_signer._credentials.access_key,
        obstore()["access_key_id"],
        child[0] if child[1] == "False" else "with the node's token",
    }


def test_every_client_uses_the_key_that_was_handed_last() -> None:
    for key in (*KEYS, KEYS[0]):
        credentials.use(key)
        assert names_used() == {key.access_key}


def test_a_filesystem_for_another_process_has_the_key_with_it() -> None:
    fs, path = objects.arrow_filesystem("s3://runs/x", KEYS[1])
    inner = fs.handler.fs
    assert (path, inner.key, inner.secret) == ("runs/x", KEYS[1].access_key, KEYS[1].secret_key)
    assert objects.filesystem("s3://runs/x").key is None
    assert objects.arrow_filesystem("/tmp/x", KEYS[1])[1] == "/tmp/x"


def test_its_text_has_no_secret() -> None:
    assert KEYS[0].secret_key not in repr(KEYS[0])
