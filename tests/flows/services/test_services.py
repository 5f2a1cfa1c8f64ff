"""The commands and variables of the services: addresses fit together, and no command line shows a secret."""

from pathlib import Path

import pytest

from flows.services import services
from flows.services.ports import HOST, free_port
from flows.services.process import Service
from flows.services.services import Stack, short_folder

SECRET = "the-secret-key"


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    ports = [free_port() for _ in range(4)]
    s3, prefect, mlflow, ray = (f"{HOST}:{port}" for port in ports)
    return Stack(
        s3_url=f"http://{s3}",
        s3_access_key="key",
        s3_secret_key=SECRET,
        keys_folder=tmp_path / "keys",
        signing_key=tmp_path / "signing-key",
        trusted_keys=tmp_path / "trusted-keys",
        prefect_url=f"http://{prefect}",
        mlflow_url=f"http://{mlflow}",
        ray_address=ray,
        ray_token_path=tmp_path / "ray-token",
    )


@pytest.fixture
def by_name(stack: Stack, tmp_path: Path) -> dict[str, Service]:
    return {service.name: service for service in services.services(tmp_path, stack, tmp_path / "ray-files")}


def test_every_service_listens_on_its_own_loopback_port(by_name: dict[str, Service]) -> None:
    assert set(by_name) == {"s3", "prefect", "mlflow", "ray"}
    assert len({service.port for service in by_name.values()}) == 4
    for service in by_name.values():
        words = " ".join(service.command)
        assert str(service.port) in words and HOST in words
        assert "0.0.0.0" not in words and "localhost:0" not in words


def test_no_command_line_shows_a_secret(by_name: dict[str, Service], stack: Stack) -> None:
    for service in by_name.values():
        assert SECRET not in " ".join(service.command) and SECRET not in repr(service), service.name
    assert SECRET not in repr(stack)


def test_the_token_of_ray_is_a_file_for_nodes_and_drivers(by_name: dict[str, Service], stack: Stack) -> None:
    for environment in (by_name["ray"].environment, stack.environment()):
        assert environment["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in environment
        assert environment["RAY_AUTH_TOKEN_PATH"] == str(stack.ray_token_path)


def test_a_service_gets_the_addresses_of_those_it_depends_on(by_name: dict[str, Service], stack: Stack) -> None:
    assert by_name["mlflow"].environment["AWS_ENDPOINT_URL"] == stack.s3_url
    assert by_name["ray"].environment["MLFLOW_TRACKING_URI"] == stack.mlflow_url
    assert "RAY_ADDRESS" not in by_name["ray"].environment, "a head that would connect to itself"
    for service in by_name.values():
        assert service.depends_on < set(by_name), service.name


def test_a_service_that_is_not_there_is_told_in_one_line(by_name: dict[str, Service]) -> None:
    for service in by_name.values():
        problem = service.check()
        assert problem is not None and "\n" not in problem
        assert problem.startswith(("it does not answer", "nothing listens on its port")), service.name


@pytest.mark.parametrize("temporary", ["/tmp", "/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T"])
def test_the_folder_of_sockets_is_short_and_each_home_has_its_own(
    temporary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.tempfile, "gettempdir", lambda: temporary)
    one, two = (short_folder(Path(home)) for home in ("/home/a/.igpt", "/home/b/.igpt"))
    assert one != two and one == short_folder(Path("/home/a/.igpt"))
    assert len(bytes(one)) <= 33
