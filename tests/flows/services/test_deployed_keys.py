"""Each reader of a deployment has its files, and only those."""

import json
import stat
from pathlib import Path

import botocore.session
import pytest

from flows.services import deployed_keys, secrets_file
from flows.services.store_keys import derive, for_seaweedfs
from igpt_model.registry.signatures import line_of, public_key_of, read_keys

SECRETS = {name: f"{name.replace('_', '').lower()}0123456789" for name in secrets_file.NAMES}
FORMER = line_of(public_key_of(bytes(32)), "of last year")
ADMINISTRATOR = deployed_keys.administrator(SECRETS)
FILES = {
    "driver": {"credentials", *(f"steps/{step}" for step in ("build", "train", "probe", "register"))},
    "nodes": {"credentials"},
    "mlflow": {"credentials", "mlflow-auth.ini", "forms-key", "pg_service.conf"},
    "exporter": {"credentials", "prefect.toml"},
    "backup": {"credentials", "pg_service.conf"},
    "restore": {"credentials", "pg_service.conf"},
    "clean": {"credentials", "prefect.toml", "pg_service.conf"},
    "buckets": {"credentials"},
    "s3": {"identities.json"},
    "postgres": {"postgres", "mlflow", "prefect"},
    "prefect-server": {"prefect.toml"},
    "deploy": {"prefect.toml"},
    "mlflow-login": {"credentials"},
    "serve": {"credentials"},
    "serve-login": {"credentials"},
}
FILES["driver"] |= {"ray-token", "prefect.toml", "signing-key", "trusted-keys"}
FILES["serve"] |= {"trusted-keys"}
FILES["nodes"] |= {"ray-token"}
# The secrets of the file, besides keys of the store, that stand in the files of a reader.
SHOWN = {
    "driver": {"RAY_AUTH_TOKEN", "PREFECT_PASSWORD"},
    "nodes": {"RAY_AUTH_TOKEN"},
    "mlflow": {"MLFLOW_PASSWORD", "MLFLOW_DB_PASSWORD", "MLFLOW_SECRET_KEY"},
    "exporter": {"PREFECT_PASSWORD"},
    "backup": {"POSTGRES_PASSWORD"},
    "restore": {"POSTGRES_PASSWORD", "AWS_SECRET_ACCESS_KEY"},
    "clean": {"PREFECT_PASSWORD", "MLFLOW_DB_PASSWORD"},
    "buckets": {"AWS_SECRET_ACCESS_KEY"},
    "s3": {"AWS_SECRET_ACCESS_KEY"},
    "postgres": {"POSTGRES_PASSWORD", "MLFLOW_DB_PASSWORD", "PREFECT_DB_PASSWORD"},
    "prefect-server": {"PREFECT_PASSWORD", "PREFECT_DB_PASSWORD"},
    "deploy": {"PREFECT_PASSWORD"},
    "mlflow-login": {"MLFLOW_PASSWORD"},
    "serve": set(),
    "serve-login": {"MLFLOW_SERVE_PASSWORD"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for _ in range(2):
        deployed_keys.write_all(tmp_path / "keys", SECRETS, "[mlflow]\n", f"{FORMER}\n")
    return tmp_path / "keys"


def test_each_reader_has_its_files_which_no_other_user_can_read(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {
        reader: {str(path.relative_to(folder / reader)) for path in files if folder / reader in path.parents}
        for reader in FILES
    }
    assert names == FILES and {path.name for path in folder.iterdir()} == set(FILES)
    for path in files:
        of_another_user = path.parent.name in ("s3", "postgres")
        assert stat.S_IMODE(path.stat().st_mode) == (0o440 if of_another_user else 0o400), path
        assert stat.S_IMODE(path.parent.stat().st_mode) == (0o750 if of_another_user else 0o700), path
    assert json.loads((folder / "s3" / "identities.json").read_text()) == for_seaweedfs(ADMINISTRATOR)


def test_each_reader_sees_no_other_secret(folder: Path) -> None:
    text = {
        reader: "".join(path.read_text() for path in (folder / reader).rglob("*") if path.is_file()) for reader in FILES
    }
    hidden = {name: value for name, value in SECRETS.items() if name != "AWS_ACCESS_KEY_ID"}
    assert {reader: {name for name, value in hidden.items() if value in text[reader]} for reader in FILES} == SHOWN


def test_the_driver_signs_models_and_whoever_opens_them_has_the_public_keys(folder: Path) -> None:
    private = deployed_keys.private_key(SECRETS)
    holders = [path for path in folder.rglob("*") if path.is_file() and private.hex() in path.read_text()]
    assert holders == [folder / "driver" / "signing-key"]
    assert private != deployed_keys.private_key({**SECRETS, "MODEL_SIGNING_SECRET": "another"})
    for reader in ("driver", "serve"):
        trusted = read_keys((folder / reader / "trusted-keys").read_text())
        assert set(trusted.keys.values()) == {public_key_of(private), public_key_of(bytes(32))}


def test_the_clients_of_the_store_read_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    pairs = derive(ADMINISTRATOR)
    readers = {reader: pairs[role] for reader, role in deployed_keys.READERS.items()}
    for reader, pair in {**readers, "buckets": ADMINISTRATOR}.items():
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / reader / "credentials"))
        read = botocore.session.Session().get_credentials()
        assert (read.access_key, read.secret_key) == (pair.access_key, pair.secret_key)
