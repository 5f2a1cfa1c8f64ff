"""Checks of the files in infra/ that need no container engine.

Every command line is parsed by the program it calls, so that a test notices options that a new version drops.
"""

import asyncio
import io
import re
import shlex
import tomllib
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from flows.services import settings
from tests.infra.command_lines import PROGRAMS, calls_in_script, parse
from tests.rigs.compose import VARIABLE

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PREFECT: dict[str, Any] = yaml.safe_load((INFRA / "prefect.yaml").read_text())
DEPLOYMENTS: dict[str, dict[str, Any]] = {deployment["name"]: deployment for deployment in PREFECT["deployments"]}
NIGHTLY: dict[str, Any] = DEPLOYMENTS["nightly"]
REFRESH: dict[str, Any] = yaml.safe_load((INFRA / "refresh.yaml").read_text())


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction of the Dockerfile, with its continuation lines joined."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The arguments, from the JSON form or the shell form."""
        return list(yaml.safe_load(self.text)) if self.text.startswith("[") else shlex.split(self.text)


def dockerfile() -> list[Instruction]:
    lines = [line for line in (INFRA / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    pairs = [line.split(maxsplit=1) for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines() if line.strip()]
    return [Instruction(name=name.upper(), text=text) for name, text in pairs]


def interpolated(text: str) -> str:
    """Substitute variables as Compose does: the default of an optional one, `word` for a required one, $ for $$."""
    return VARIABLE.sub(lambda match: match["text"] if match["kind"] == "-" else "word", text).replace("$$", "$")


def command_lines() -> list[tuple[str, list[str]]]:
    """Every call of one of PROGRAMS, with the place where it is written."""
    lists = [(f"command of {name}", service.get("command", [])) for name, service in SERVICES.items()]
    lists += [
        (f"health check of {name}", service["healthcheck"]["test"][1:])
        for name, service in SERVICES.items()
        if "healthcheck" in service
    ]
    lists += [("Dockerfile", step.words) for step in dockerfile() if step.name in ("CMD", "ENTRYPOINT")]
    calls = []
    for where, raw in lists:
        words = [interpolated(word) for word in raw]
        candidates = calls_in_script(words[-1]) if words[:1] == ["bash"] else [words]
        calls += [(where, call) for call in candidates if call[:1] and call[0] in PROGRAMS]
    return calls


def is_ignored(path: str) -> bool:
    """Whether .dockerignore excludes a path of the repository from the build; the last matching pattern decides."""
    ignored = False
    parents = ["/".join(path.split("/")[: count + 1]) for count in range(path.count("/") + 1)]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        expression = re.escape(pattern.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(expression, parent) for parent in parents):
            ignored = not pattern.startswith("!")
    return ignored


# Command lines


@pytest.mark.parametrize(("where", "words"), command_lines(), ids=[" ".join(words[:3]) for _, words in command_lines()])
def test_each_command_line_is_accepted_by_its_program(where: str, words: list[str]) -> None:
    if words == ["igpt", "--help"]:
        with pytest.raises(SystemExit) as exited:
            from typer.exceptions import Exit

            try:
                parse(words)
            except Exit as ended:
                raise SystemExit(ended.exit_code) from None
        assert exited.value.code == 0
        return
    parse(words)


@pytest.mark.parametrize(
    "words",
    [
        ["mlflow", "server", "--no-such-option"],
        ["mlflow", "serve"],
        ["ray", "start", "--num-cpus=many"],
        ["prefect", "worker", "start", "--no-such-option"],
        ["prefect", "--no-such-option", "deploy"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_refused(words: list[str]) -> None:
    from click import ClickException
    from cyclopts import CycloptsError

    with pytest.raises((ClickException, CycloptsError)):
        parse(words)


def test_every_program_is_called_somewhere() -> None:
    starts = {tuple(word for word in words if not word.startswith("-"))[:3] for _, words in command_lines()}
    assert {
        ("mlflow", "server"),
        ("prefect", "server", "start"),
        ("prefect", "worker", "start"),
        ("ray", "start"),
        ("ray", "health-check"),
        ("igpt",),
        ("igpt", "deploy"),
    } <= starts


# compose.yaml


def test_services_depend_on_services_that_can_meet_the_condition() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES, f"{name} depends on {other}"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], f"{name} waits for {other}, which has no health check"
            elif how["condition"] == "service_completed_successfully":
                assert SERVICES[other]["restart"].startswith("on-failure"), f"{name} waits for the end of {other}"
            else:
                pytest.fail(f"{name} does not wait until {other} works")


def test_services_that_reach_each_other_share_a_network() -> None:
    def networks(name: str) -> set[str]:
        return set(SERVICES[name].get("networks", ["default"]))

    for name, service in SERVICES.items():
        text = yaml.safe_dump([service.get("environment"), service.get("command")])
        for host in re.findall(r"(?://|@|address=|: )([a-z][a-z0-9-]*):\d+", interpolated(text)):
            assert host in SERVICES, f"{name} calls {host}, which is not a service"
            assert networks(name) & networks(host), f"{name} cannot reach {host}"
        assert networks(name) <= set(COMPOSE["networks"])
    assert networks("ray-worker").isdisjoint(networks("postgres"))


def test_images_are_pinned() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for service in SERVICES.values():
        name, _, tag = service["image"].partition("@")[0].rpartition(":")
        assert name and re.fullmatch(r"\d+(\.\d+)+", tag), service["image"]
        assert ("build" in service) == (service["image"] == f"igpt-pipeline:{version}")
    bases = [step.words[0] for step in dockerfile() if step.name == "FROM"]
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base) for base in bases) and len(set(bases)) == 1


def test_ports_are_published_on_loopback_only() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"mlflow", "prefect-server"}
    for ports in published.values():
        assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)
    assert not any(service.get("network_mode") == "host" for service in SERVICES.values())


def test_volumes_configs_and_build_files_exist() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (INFRA / source).exists(), volume
        for config in service.get("configs", []):
            assert config["source"] in COMPOSE["configs"]
        if build := service.get("build"):
            assert (INFRA / build["context"] / build["dockerfile"]).is_file()
            assert set(build["args"]) <= {step.words[0].split("=")[0] for step in dockerfile() if step.name == "ARG"}


def test_every_variable_is_explained_and_every_secret_is_required() -> None:
    readme = (INFRA / "README.md").read_text()
    required = {}
    for match in VARIABLE.finditer((INFRA / "compose.yaml").read_text()):
        assert f"`{match['name']}`" in readme, f"{match['name']} is not explained in infra/README.md"
        assert match["kind"], f"{match['name']} has neither a default nor a message"
        required.setdefault(match["name"], match["kind"] == "?")
        assert required[match["name"]] == (match["kind"] == "?"), f"{match['name']} is both required and optional"
        if match["kind"] == "-":
            assert not re.search("PASSWORD|TOKEN|SECRET|KEY", match["name"]), f"{match['name']} has a public default"
    assert {"AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "MLFLOW_DB_PASSWORD", "PREFECT_DB_PASSWORD"} <= set(required)


def test_every_service_has_limits_and_a_restart_policy() -> None:
    for name, service in SERVICES.items():
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}, name
        assert service["restart"] in ("unless-stopped", "on-failure:5"), name


def test_every_ray_node_and_driver_has_the_token() -> None:
    for where, words in command_lines():
        if words[0] == "ray":
            environment = SERVICES[where.split()[-1]]["environment"]
            assert environment["RAY_AUTH_MODE"] == "token" and environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH")


def test_the_object_store_fits_into_shared_memory() -> None:
    units = {"m": 2**20, "g": 2**30}
    for where, words in command_lines():
        for word in words:
            if word.startswith("--object-store-memory="):
                size = SERVICES[where.split()[-1]]["shm_size"]
                assert int(word.partition("=")[2]) < 0.9 * int(size[:-1]) * units[size[-1]], where


def test_mlflow_accepts_its_published_and_its_internal_host_name() -> None:
    (allowed,) = [word for word in SERVICES["mlflow"]["command"] if word.startswith("--allowed-hosts=")]
    hosts = allowed.partition("=")[2].split(",")
    assert SERVICES["prefect-worker"]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://") in hosts
    assert SERVICES["mlflow"]["ports"][0].rpartition(":")[0] in hosts
    assert "*" not in hosts


def test_the_buckets_are_those_in_the_configs() -> None:
    script = SERVICES["buckets"]["command"][-1]
    compile(script, "buckets", "exec")
    (names,) = re.findall(r"for name in (\(.*\)):", script)
    used = set(re.findall(r"s3://([a-z0-9-]+)", (INFRA / "refresh.yaml").read_text() + str(SERVICES)))
    assert set(yaml.safe_load(names.replace("(", "[").replace(")", "]"))) == used


def test_the_databases_are_those_the_servers_open() -> None:
    script = COMPOSE["configs"]["postgres-databases"]["content"]
    for service, variable in (
        ("mlflow", "MLFLOW_BACKEND_STORE_URI"),
        ("prefect-server", "PREFECT_SERVER_DATABASE_CONNECTION_URL"),
    ):
        address = interpolated(SERVICES[service]["environment"][variable])
        match = re.fullmatch(r"postgresql\+(psycopg2|asyncpg)://(\w+):word@postgres:5432/(\w+)", address)
        assert match, address
        assert f"CREATE DATABASE {match[3]} OWNER {match[2]};" in script
        assert f"CREATE ROLE {match[2]} LOGIN PASSWORD :'{match[2]}';" in script
    for name in re.findall(r"\$\$(\w+)", script):
        assert name in SERVICES["postgres"]["environment"]


# Dockerfile and .dockerignore


def test_files_copied_into_the_image_exist_and_are_not_ignored() -> None:
    copied = set()
    for step in dockerfile():
        if step.name == "COPY" and "--from" not in step.text:
            for source in step.words[:-1]:
                assert (ROOT / source).exists() and not is_ignored(source), source
                copied.add(source)
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {pattern.removesuffix("*") for pattern in setuptools["packages"]["find"]["include"]}
    assert packages | {"pyproject.toml", "constraints.txt", "requirements/image.txt", "README.md"} <= copied


@pytest.mark.parametrize("path", [".git/config", "infra/.env", ".venv/bin/python", "flows/__pycache__/x.pyc", "tests"])
def test_files_that_must_not_be_in_the_image_are_ignored(path: str) -> None:
    assert is_ignored(path)


def test_the_image_runs_as_an_ordinary_user_with_the_locked_packages() -> None:
    steps = dockerfile()
    last_stage = steps[max(index for index, step in enumerate(steps) if step.name == "FROM") :]
    assert [step.text for step in last_stage if step.name == "USER"] == ["igpt"]
    installs = [step.text for step in steps if step.name == "RUN" and "pip install" in step.text]
    with_hashes, torch, project = (text.split("pip install ")[1] for text in installs)
    assert with_hashes == "--require-hashes --no-deps --requirement requirements/image.txt"
    assert torch.startswith("--constraint constraints.txt ") and torch.endswith(" torch")
    assert project == "--no-deps --no-build-isolation . && pip check"


def test_the_image_has_the_compiler_that_torch_compile_calls() -> None:
    steps = dockerfile()
    last_stage = steps[max(index for index, step in enumerate(steps) if step.name == "FROM") :]
    (apt,) = (step.text for step in last_stage if "apt-get install" in step.text)
    assert "g++" in apt.split()


# prefect.yaml and refresh.yaml


def test_prefect_reads_the_file_without_warnings_and_knows_every_field() -> None:
    from prefect.cli.deploy._config import _load_deploy_configs_and_actions
    from prefect.cli.deploy._models import DeploymentConfig, PrefectYamlModel, WorkPoolConfig
    from rich.console import Console

    warnings = io.StringIO()
    deployments, actions = _load_deploy_configs_and_actions(INFRA / "prefect.yaml", console=Console(file=warnings))
    assert not warnings.getvalue()
    assert actions == {"build": [], "push": [], "pull": []}
    names = {deployment["name"] for deployment in deployments}
    assert names == set(DEPLOYMENTS) == {"nightly", "watch", "weekly", "candidate"}
    # Prefect ignores unknown names, so a misspelt one would go unnoticed.
    assert set(PREFECT) <= {field.alias or name for name, field in PrefectYamlModel.model_fields.items()}
    for deployment in DEPLOYMENTS.values():
        assert set(deployment) <= set(DeploymentConfig.model_fields)
        assert set(deployment["work_pool"]) <= set(WorkPoolConfig.model_fields)
        # The slots of Prefect's limits live in the server's memory; a restart ends the runs (flows/scheduled.py).
        assert "concurrency_limit" not in deployment


def test_igpt_deploy_accepts_the_file() -> None:
    """Every flow can be imported and accepts its parameters."""
    from flows.prefect_ops.deployments import read

    assert {deployable.full_name for deployable in read(INFRA / "prefect.yaml")} == {
        "scheduled-build/nightly",
        "scheduled-build/watch",
        "scheduled-refresh/weekly",
        "scheduled-probe/candidate",
    }


def test_prefect_runs_the_nightly_build_once_a_night() -> None:
    from prefect.cli.deploy._schedules import _construct_schedules
    from rich.console import Console

    (schedule,) = _construct_schedules(NIGHTLY, {}, console=Console(), is_interactive=lambda: False)
    assert schedule["active"]
    zone = ZoneInfo(schedule["schedule"].timezone)
    from prefect.server.schemas.schedules import CronSchedule

    cron = CronSchedule.model_validate(schedule["schedule"].model_dump())
    dates = asyncio.run(cron.get_dates(n=30, start=datetime(2026, 3, 20, tzinfo=zone)))
    assert all(later - earlier == timedelta(days=1) for earlier, later in pairwise(dates))
    assert all(date.astimezone(zone).hour < 6 for date in dates)


def test_a_worker_serves_the_pool_of_every_deployment() -> None:
    (pool,) = {deployment["work_pool"]["name"] for deployment in DEPLOYMENTS.values()}
    (worker,) = [words for _, words in command_lines() if words[:3] == ["prefect", "worker", "start"]]
    assert f"--pool={pool}" in worker and "--type=process" in worker and "--limit=1" in worker


def test_the_deployments_have_the_values_of_the_example_config() -> None:
    assert DEPLOYMENTS["weekly"]["parameters"] == {"config": REFRESH}
    for name in ("nightly", "watch"):
        assert DEPLOYMENTS[name]["parameters"]["config"] == REFRESH["dataset"]


def test_the_example_config_loads() -> None:
    from flows.config.refresh import RefreshConfig
    from pipeline.typed_config.config_file import load

    config = load(RefreshConfig, INFRA / "refresh.yaml")
    assert config.dataset.raw == REFRESH["dataset"]["raw"]


def test_drivers_retry_mlflow_requests_like_the_command_line() -> None:
    assert settings.MLFLOW_RETRIES.items() <= COMPOSE["x-mlflow"].items()
    assert settings.MLFLOW_RETRIES.items() <= SERVICES["prefect-worker"]["environment"].items()


def test_passwords_protect_mlflow_and_prefect_and_only_drivers_have_them() -> None:
    assert "--app-name=basic-auth" in SERVICES["mlflow"]["command"]
    assert "PREFECT_SERVER_API_AUTH_STRING" in SERVICES["prefect-server"]["environment"]
    for name, service in SERVICES.items():
        environment = service.get("environment", {})
        if "PREFECT_API_URL" in environment:
            assert "PREFECT_API_AUTH_STRING" in environment
        if "MLFLOW_TRACKING_URI" in environment:
            assert {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"} <= set(environment)
        if name.startswith("ray-"):
            assert not [variable for variable in environment if variable.startswith(("MLFLOW_TRACKING", "PREFECT"))]
