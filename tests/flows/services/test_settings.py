"""Addresses and credentials come from the environment, and from the local services where it has none."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from flows.services import password_files, settings
from flows.services.services import Stack
from flows.services.store_rights import STEPS
from pipeline.errors import IgptError
from pipeline.store import objects

STACK = Stack(
    s3_url="http://127.0.0.1:1",
    s3_access_key="key",
    s3_secret_key="secret",
    keys_folder=Path("/no/such/folder"),
    signing_key=Path("/no/such/signing-key"),
    trusted_keys=Path("/no/such/trusted-keys"),
    prefect_url="http://127.0.0.1:2",
    mlflow_url="http://127.0.0.1:3",
    ray_address="127.0.0.1:4",
    ray_token_path=Path("/no/such/file"),
)
NAMES = {"PREFECT_API_URL": "http://p/api", "MLFLOW_TRACKING_URI": "http://m", "RAY_ADDRESS": "r:6379"}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without any address or credential."""
    for name in (*NAMES, *STACK.environment(), "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "IGPT_GIT_COMMIT", "IGPT_HOME"):
        monkeypatch.delenv(name, raising=False)
    of_clients = ("PREFECT_API_AUTH_STRING", "PREFECT_PROFILES_PATH", "PREFECT_HOME", "PREFECT_PROFILE")
    for name in (*of_clients, "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def use(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {}),
        ({"AWS_ENDPOINT_URL": "http://s"}, {"S3": "http://s"}),
        ({"AWS_ENDPOINT_URL": "http://s", "AWS_ENDPOINT_URL_S3": "http://t"}, {"S3": "http://t"}),
        ({"AWS_ACCESS_KEY_ID": "key"}, {"S3": settings.AMAZON}),
        ({"AWS_PROFILE": "work"}, {"S3": settings.AMAZON}),
        (NAMES, {"Prefect": "http://p/api", "MLflow": "http://m", "Ray": "r:6379"}),
    ],
)
def test_the_configured_addresses(
    variables: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, **variables)
    assert settings.addresses() == expected


def test_credentials_are_whole_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.credentials("Prefect") is None and settings.credentials("MLflow") is None
    use(monkeypatch, PREFECT_API_AUTH_STRING="igpt:p", MLFLOW_TRACKING_USERNAME="igpt")
    assert settings.credentials("Prefect") == "igpt:p" and settings.credentials("MLflow") is None
    use(monkeypatch, MLFLOW_TRACKING_PASSWORD="m")
    assert settings.credentials("MLflow") == "igpt:m"


def test_a_user_without_a_home_has_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)  # who is in no list of users
    assert settings.credentials("Prefect") is None and settings.credentials("MLflow") is None


def test_credentials_come_from_the_files_of_the_clients(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text(password_files.for_mlflow("igpt", "of-file"))
    assert settings.credentials("MLflow") == "igpt:of-file"
    (tmp_path / ".prefect").mkdir()
    (tmp_path / ".prefect" / "profiles.toml").write_text(password_files.for_prefect("igpt:of-home"))
    assert settings.credentials("Prefect") == "igpt:of-home"
    (tmp_path / "other.toml").write_text(password_files.for_prefect("igpt:of-path"))
    use(monkeypatch, PREFECT_PROFILES_PATH=str(tmp_path / "other.toml"))
    assert settings.credentials("Prefect") == "igpt:of-path"
    use(monkeypatch, MLFLOW_TRACKING_PASSWORD="of-variable", PREFECT_API_AUTH_STRING="igpt:of-variable")
    assert settings.credentials("MLflow") == settings.credentials("Prefect") == "igpt:of-variable"


@pytest.mark.parametrize(("value", "commit"), [(None, None), ("", None), ("unknown", None), ("c0ffee", "c0ffee")])
def test_the_commit_of_a_deployment(value: str | None, commit: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is not None:
        use(monkeypatch, IGPT_GIT_COMMIT=value)
    assert settings.git_commit() == commit


@pytest.mark.parametrize("name", NAMES)
def test_an_address_that_is_not_set_is_named_with_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, **{**NAMES, name: ""})
    with pytest.raises(IgptError, match=f"is known: start the services with `igpt up`, or set {name}$"):
        settings.load()


def test_the_page_of_prefect_is_its_address_without_api(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("http://p/api", "http://p/api/"):
        use(monkeypatch, **{**NAMES, "PREFECT_API_URL": address})
        assert settings.load().prefect_url == "http://p"


def test_local_services_fill_in_what_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.local_stack, "load", lambda home: STACK if home == tmp_path else None)
    use(monkeypatch, MLFLOW_TRACKING_URI="http://m", MLFLOW_HTTP_REQUEST_TIMEOUT="7")
    settings.activate(tmp_path / "other")
    with pytest.raises(IgptError, match="no Prefect server is known"):
        settings.load()
    settings.activate(tmp_path)
    loaded = settings.load()
    assert (loaded.mlflow_tracking_uri, loaded.ray_address) == ("http://m", "127.0.0.1:4")
    assert loaded.prefect_api_url == "http://127.0.0.1:2/api"
    assert settings.os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
    settings.use(STACK)
    assert settings.load().mlflow_tracking_uri == "http://127.0.0.1:3"


def test_the_store_is_asked_at_the_address_that_was_set_last(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, **STACK.environment())  # to be undone afterwards
    for port in (1, 5):
        settings.use(replace(STACK, s3_url=f"http://127.0.0.1:{port}"))
        filesystem = objects.filesystem("s3://raw")
        filesystem.connect()
        assert filesystem.s3.meta.endpoint_url == f"http://127.0.0.1:{port}"


def test_the_home_is_in_the_working_folder_unless_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.default_home() == Path(".igpt")
    use(monkeypatch, IGPT_HOME="/srv/igpt")
    assert settings.default_home() == Path("/srv/igpt")


@pytest.mark.parametrize(
    ("variables", "of_the_local_store"),
    [
        ({}, True),
        ({"AWS_SECRET_ACCESS_KEY": "another"}, True),
        ({"AWS_ENDPOINT_URL": "http://s"}, False),
        ({"AWS_ENDPOINT_URL_S3": "http://s"}, False),
        ({"AWS_ACCESS_KEY_ID": "another"}, False),
        ({"AWS_PROFILE": "work"}, False),
    ],
)
def test_the_keys_of_the_local_steps_are_for_the_local_store(
    variables: dict[str, str], of_the_local_store: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings.local_stack, "load", lambda home: STACK)
    use(monkeypatch, **variables)
    settings.activate(tmp_path)
    assert ("IGPT_KEYS" in settings.os.environ) == of_the_local_store


@pytest.mark.parametrize(
    ("variables", "of_the_local_server"),
    [({}, True), ({"MLFLOW_TRACKING_URI": STACK.mlflow_url}, True), ({"MLFLOW_TRACKING_URI": "http://m"}, False)],
)
def test_the_keys_of_local_models_are_for_the_local_server(
    variables: dict[str, str], of_the_local_server: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings.local_stack, "load", lambda home: STACK)
    use(monkeypatch, **variables)
    settings.activate(tmp_path)
    expected = (STACK.signing_key, STACK.trusted_keys) if of_the_local_server else (None, None)
    assert (settings.signing_key(), settings.trusted_keys()) == expected


@pytest.mark.parametrize(("value", "expected"), [(None, False), ("", False), ("false", False), ("true", True)])
def test_whether_models_must_be_signed(value: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IGPT_REQUIRE_SIGNED", raising=False)
    if value is not None:
        use(monkeypatch, IGPT_REQUIRE_SIGNED=value)
    assert settings.require_signed() is expected


def test_another_value_of_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, IGPT_REQUIRE_SIGNED="yes")
    with pytest.raises(IgptError, match="IGPT_REQUIRE_SIGNED is 'yes'; set it to true or false"):
        settings.require_signed()


def test_one_pair_serves_every_step_unless_each_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.store_key("build") is None and not settings.keys_by_step()
    use(monkeypatch, IGPT_KEYS=str(tmp_path))
    for step in STEPS:
        (tmp_path / step).write_text("the-same:secret:with:colons\n")
    key = settings.store_key("train")
    assert key is not None
    assert (key.role, key.access_key, key.secret_key) == ("train", "the-same", "secret:with:colons")
    assert not settings.keys_by_step()
    for step in STEPS:
        (tmp_path / step).write_text(f"{step}:secret")
    assert settings.keys_by_step()


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "build cannot be read: No such file or directory"), ("", "does not hold"), ("name:", "does not hold")],
)
def test_a_key_that_cannot_be_read_is_told_in_one_line(
    content: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, IGPT_KEYS=str(tmp_path))
    if content is not None:
        (tmp_path / "build").write_text(content)
    with pytest.raises(IgptError, match=said):
        settings.store_key("build")
