"""Each reader of a deployment finds its files, and only those."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import botocore.session
import pytest

from flows.services import deployed_keys
from flows.services.store_keys import Pair, derive, for_seaweedfs

ADMINISTRATOR = Pair(access_key="igpt", secret_key="a-secret")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    command = [sys.executable, "-m", "flows.services.deployed_keys", str(tmp_path / "keys")]
    for _ in range(2):
        subprocess.run(command, env={**os.environ, **ADMINISTRATOR.environment()}, check=True)
    return tmp_path / "keys"


def test_each_reader_has_its_files_which_no_other_user_can_read(folder: Path) -> None:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    steps = {f"driver/steps/{step}" for step in ("build", "train", "probe", "register")}
    credentials = {f"{reader}/credentials" for reader in deployed_keys.READERS}
    assert set(files) == {*steps, *credentials, "s3/identities.json"}
    for name, path in files.items():
        assert stat.S_IMODE(path.stat().st_mode) == (0o440 if name.startswith("s3/") else 0o400), name
        assert ADMINISTRATOR.secret_key not in path.read_text() or name.startswith("s3/")
    assert json.loads(files["s3/identities.json"].read_text()) == for_seaweedfs(ADMINISTRATOR)


def test_the_clients_of_the_store_read_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    pairs = derive(ADMINISTRATOR)
    for reader, role in deployed_keys.READERS.items():
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / reader / "credentials"))
        read = botocore.session.Session().get_credentials()
        assert (read.access_key, read.secret_key) == (pairs[role].access_key, pairs[role].secret_key)


def test_without_a_pair_it_says_so(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    command = [sys.executable, "-m", "flows.services.deployed_keys", str(tmp_path / "keys")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set\n")
    assert not (tmp_path / "keys").exists()
