"""Checks of the files in infra/ that need no container engine.

Every command line is parsed by the program it calls, so that a test notices options that a new version drops.
"""

import asyncio
import configparser
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from flows.prefect_ops import event_order
from flows.services import deployed_keys, secrets_file, settings
from flows.services.password_files import POSTGRES_SERVICE, for_postgres
from flows.services.ports import HOST, free_port
from tests.infra.command_lines import PROGRAMS, calls_in_script, parse
from tests.rigs import postgres
from tests.rigs.compose import KEYS, VARIABLE, Compose, interpolate
from tests.rigs.s3_server import launch_here

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
BASE = INFRA / "kubernetes" / "base"
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
        # `bash -c SCRIPT bash WORDS` calls the words from the script.
        candidates = [*calls_in_script(words[2]), words[4:]] if words[:2] == ["bash", "-c"] else [words]
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
        ("mlflow", "db", "upgrade"),
        ("prefect", "server", "start"),
        ("prefect", "server", "database"),
        ("ray", "start"),
        ("ray", "health-check"),
        ("igpt",),
        ("igpt", "deploy"),
        ("igpt", "worker", "trainings"),
    } <= starts


# compose.yaml


def test_services_depend_on_services_that_can_meet_the_condition() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES, f"{name} depends on {other}"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], f"{name} waits for {other}, which has no health check"
            elif how["condition"] == "service_completed_successfully":
                assert SERVICES[other]["restart"] in ("no", "on-failure:5"), f"{name} waits for the end of {other}"
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


def test_images_have_an_exact_version_and_one_service_builds_ours() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name, service in SERVICES.items():
        image, _, tag = service["image"].partition("@")[0].rpartition(":")
        assert image and re.fullmatch(r"\d+(\.\d+)+", tag), service["image"]
        ours = service["image"] == f"igpt-pipeline:{version}"
        # Compose asks a registry for an image unless its policy says otherwise.
        assert service.get("pull_policy") == (("build" if name == "keys" else "never") if ours else None), name
    assert [name for name, service in SERVICES.items() if "build" in service] == ["keys"]
    bases = [step.words[0] for step in dockerfile() if step.name == "FROM"]
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-\w+(@sha256:\w{64})?", base) for base in bases)
    assert len(set(bases)) == 1


def copy_of_infra(folder: Path) -> Path:
    for name in ("Dockerfile", "compose.yaml", "pin-images", *(path.relative_to(INFRA) for path in BASE.iterdir())):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(INFRA / name, folder / name)
    return folder


def pin_images(folder: Path, *arguments: str, registry: str) -> subprocess.CompletedProcess[str]:
    """Run the script with a `docker` whose answers about images are given by the lines of a shell `case`."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "docker").write_text(f'#!/bin/sh\nfor image; do :; done\ncase "$image" in\n{registry}\nesac\n')
    (programs / "docker").chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    command = [str(folder / "pin-images"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_pin_images_writes_the_digests_that_registries_give_and_a_release_needs_them(tmp_path: Path) -> None:
    """No registry can be reached from tests: a script stands in for `docker buildx imagetools inspect`."""
    folder = copy_of_infra(tmp_path)
    files = [path for path in folder.rglob("*") if path.is_file()]
    before = {path: path.read_text() for path in files}
    unpinned = re.sub("@sha256:[0-9a-f]{64}", "", "".join(before.values()))
    answers = "\n".join(f"{name}*) echo sha256:{digit * 64};;" for name, digit in (("python", "1"), ("postgres", "2")))
    failed = pin_images(folder, registry=f"{answers}\n*) echo unreachable >&2; exit 1;;")
    assert failed.returncode != 0
    assert {path: path.read_text() for path in before} == before, "written although an image could not be resolved"
    written = pin_images(folder, registry=f"{answers}\n*) echo sha256:{'3' * 64};;")
    assert written.returncode == 0, written.stderr
    assert pin_images(folder, "--check", registry="").returncode == 0
    after = "".join(path.read_text() for path in files)
    assert f"FROM python:3.11.15-slim-bookworm@sha256:{'1' * 64} AS build" in after
    assert after.count(f"postgres:17.11@sha256:{'2' * 64}") == 2  # compose and Kubernetes
    assert f"image: chrislusf/seaweedfs:4.48@sha256:{'3' * 64}\n" in after
    assert re.sub("@sha256:[0-9a-f]{64}", "", after) == unpinned
    assert pin_images(folder, registry=f"*) echo sha256:{'4' * 64};;").returncode == 0, "a newer digest replaces it"
    compose = folder / "compose.yaml"
    compose.write_text(compose.read_text().replace(f"17.11@sha256:{'4' * 64}", "17.12"))
    refused = pin_images(folder, "--check", registry="")
    assert refused.returncode == 1
    assert refused.stderr.startswith("postgres:17.12 in infra/compose.yaml has no digest")


def test_ports_are_published_on_loopback_only() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"mlflow", "prefect-server", "serve"}
    for ports in published.values():
        assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)
    assert not any(service.get("network_mode") == "host" for service in SERVICES.values())


def test_volumes_configs_and_build_files_exist() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            if isinstance(volume, dict):
                assert volume["source"] in COMPOSE["volumes"], volume
                continue
            source, _, target = volume.partition(":")
            if target:
                assert source in COMPOSE["volumes"] or (INFRA / source).exists(), volume
            else:
                assert volume in ("/tmp", "/home/igpt")
        for config in service.get("configs", []):
            # Compose refuses inline content for read-only services.
            assert (INFRA / COMPOSE["configs"][config["source"]]["file"]).is_file()
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
        if build := service.get("build"):
            assert (INFRA / build["context"] / build["dockerfile"]).is_file()
            assert set(build["args"]) <= {step.words[0].split("=")[0] for step in dockerfile() if step.name == "ARG"}


def test_every_variable_and_every_secret_is_explained() -> None:
    readme = (INFRA / "README.md").read_text()
    for match in VARIABLE.finditer((INFRA / "compose.yaml").read_text()):
        assert f"`{match['name']}`" in readme, f"{match['name']} is not explained in infra/README.md"
        assert match["kind"] == "-", f"{match['name']} has no default"
    for name in secrets_file.NAMES:
        assert f"`{name}`" in readme, f"{name} is not explained in infra/README.md"


def test_no_secret_is_in_a_variable_or_on_a_command_line(tmp_path: Path) -> None:
    """The variables of .env could hold one; each is replaced here by a mark that a password could be."""
    marked = Compose({name: f"marked-{name}" for name in (*secrets_file.NAMES, "RAY_WORKERS")})
    for name, service in SERVICES.items():
        shown = marked.service(name)
        assert "marked-" not in str([shown.command, shown.environment]), name
        for variable, value in shown.environment.items():
            where = f"{name}: {variable}"
            assert not re.search(r"://[^/]*@", value), f"{where} is an address with a password"
            if re.search(r"PASS|TOKEN|SECRET|KEY|AUTH|CREDENTIAL|PROFILE|SERVICEFILE", variable):
                assert value == "token" or value.startswith(f"{KEYS}/"), f"{where} is no path of a file"
        assert "env_file" not in service, name
    readers = [name for name, service in SERVICES.items() if "secrets" in service]
    assert readers == ["keys"], "the file of secrets is read there only"
    assert COMPOSE["secrets"] == {"igpt": {"file": "secrets/igpt.env"}}, (
        "Compose mounts a file only in read-only services"
    )
    assert "environment" not in SERVICES["keys"]


def test_every_service_has_limits_and_a_restart_policy() -> None:
    for name, service in SERVICES.items():
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}, name
        expected = ("no",) if name in ("keys", "restore") else ("unless-stopped", "on-failure:5")
        assert service["restart"] in expected, name


def test_the_log_of_every_container_has_limits_that_can_be_set_and_the_docs_say_them() -> None:
    for name, service in SERVICES.items():
        options = service["logging"]["options"]
        assert service["logging"]["driver"] == "local" and set(options) == {"max-size", "max-file"}, name
        assert (interpolate(options["max-file"], {}), interpolate(options["max-size"], {})) == ("5", "20m"), name
        chosen = {"LOG_FILES": "2", "LOG_FILE_SIZE": "1m"}
        assert (interpolate(options["max-file"], chosen), interpolate(options["max-size"], chosen)) == ("2", "1m"), name
    (row,) = re.findall(r"^\| logs of containers .*$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    assert "newest five files of 20 MB" in row and "`LOG_FILES`, `LOG_FILE_SIZE`" in row


def test_no_service_has_capabilities_or_can_write_to_its_image() -> None:
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True and "cap_add" not in service and "privileged" not in service, name
        writable = {mount.split(":")[0] for mount in service["tmpfs"]}
        volumes = service.get("volumes", [])
        writable |= {volume.split(":")[-1] for volume in volumes if isinstance(volume, str)}
        assert all(volume["read_only"] for volume in volumes if isinstance(volume, dict)), name
        if service["image"].startswith("igpt-pipeline:"):
            assert writable >= {"/tmp", "/home/igpt"}, name  # as the user of the image, who is in the Dockerfile
        else:
            assert service["user"] in ("999:999", "1000:1000") and "/tmp" in writable, name
    assert "/var/run/postgresql:uid=999,gid=999,mode=3777,size=1m" in SERVICES["postgres"]["tmpfs"]
    assert SERVICES["prefect-server"]["environment"]["PREFECT_UI_STATIC_DIRECTORY"].startswith("/tmp/")


SECRETS = {name: f"{name.replace('_', '')}{'0123456789' * 3}" for name in secrets_file.NAMES}


def write_secrets(path: Path, **changes: str) -> Path:
    """A file of secrets, as the operator writes it."""
    lines = [f"{name}={value}" for name, value in {**SECRETS, **changes}.items()]
    path.write_text("\n".join(["# of this test", *lines, ""]))
    return path


def run_keys(folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """The command of the service `keys` on a file of secrets; it writes into the folder `keys`."""
    replaced = {
        "python": sys.executable,
        "/run/secrets/igpt": str(write_secrets(folder / "igpt.env", **changes)),
        "/etc/igpt/mlflow-auth.ini": str(INFRA / "mlflow-auth.ini"),
        "/etc/igpt/trusted-keys": str(INFRA / "trusted-keys"),
        KEYS: str(folder / "keys"),
    }
    command = [replaced.get(word, word) for word in SERVICES["keys"]["command"]]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_nothing_starts_before_the_secrets_are_checked(tmp_path: Path) -> None:
    def first(name: str) -> set[str]:
        before = SERVICES[name].get("depends_on", {})
        return set().union(*(first(other) for other in before)) if before else {name}

    assert {root for name in SERVICES for root in first(name)} == {"keys"}
    for name in SERVICES:
        waits = SERVICES[name].get("depends_on", {}).get("keys")
        assert waits in (None, {"condition": "service_completed_successfully"}), name
    for changes, said in (
        ({"MLFLOW_DB_PASSWORD": "p@ssword-0123"}, "MLFLOW_DB_PASSWORD must consist of letters and digits"),
        ({"RAY_AUTH_TOKEN": "0123456789"}, "RAY_AUTH_TOKEN has 10 characters and needs 32 or more"),
    ):
        refused = run_keys(tmp_path, **changes)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith(said) and next(iter(changes.values())) not in refused.stderr
    assert not (tmp_path / "keys").exists()
    accepted = run_keys(tmp_path)
    assert (accepted.returncode, accepted.stdout, accepted.stderr) == (0, "", "")


def test_every_ray_node_and_driver_has_the_token() -> None:
    for where, words in command_lines():
        if words[0] == "ray":
            environment = SERVICES[where.split()[-1]]["environment"]
            if where == "command of serve":  # which makes one for itself: tests/infra/test_kubernetes_serve.py
                assert environment["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in environment
                continue
            assert environment["RAY_AUTH_MODE"] == "token"
            assert environment["RAY_AUTH_TOKEN_PATH"] == f"{KEYS}/ray-token"


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


def test_each_container_sees_the_keys_and_passwords_of_its_own(tmp_path: Path) -> None:
    """A folder of the volume each, with the files that its command and its variables name."""
    assert run_keys(tmp_path).returncode == 0
    compose = Compose()
    seen = {name: compose.service(name).keys for name in SERVICES}
    readers = (
        "s3",
        "postgres",
        "buckets",
        "mlflow",
        "prefect-server",
        "deploy",
        "exporter",
        "backup",
        "restore",
        "clean",
        "serve",
    )
    folders = {name: keys[KEYS] for name, keys in seen.items() if KEYS in keys}
    assert folders == {
        **{name: name for name in readers},
        **{"migrate-mlflow": "mlflow", "migrate-prefect": "prefect-server", "prefect-worker": "driver"},
        **{"ray-head": "nodes", "ray-worker": "nodes"},
    }
    logins = {name for name, keys in seen.items() if keys.get("/home/igpt/.mlflow") == deployed_keys.MLFLOW_LOGIN}
    clients = {name for name in SERVICES if "MLFLOW_TRACKING_URI" in SERVICES[name].get("environment", {})}
    assert logins == clients - {"serve"}
    assert seen["serve"]["/home/igpt/.mlflow"] == deployed_keys.SERVING_LOGIN
    assert (tmp_path / "keys" / deployed_keys.MLFLOW_LOGIN / "credentials").exists()
    owners = {
        path.parent.name
        for path in (tmp_path / "keys").rglob("credentials")
        if SECRETS["AWS_SECRET_ACCESS_KEY"] in path.read_text()
    }
    assert owners == set(deployed_keys.ADMINISTRATORS)
    scripts = (INFRA / "databases.sh").read_text()
    for name, folder in folders.items():
        service = SERVICES[name]
        text = str([service.get("command"), service.get("environment"), scripts if name == "postgres" else ""])
        files = set(re.findall(rf"{KEYS}/([\w./-]+)", text))
        there = {str(path.relative_to(tmp_path / "keys" / folder)) for path in (tmp_path / "keys" / folder).rglob("*")}
        assert files and files <= there, name
        assert service.get("group_add", []) == (["10001"] if name in ("s3", "postgres") else [])
    assert "IGPT_KEYS" in SERVICES["prefect-worker"]["environment"]
    assert [name for name, service in SERVICES.items() if f"keys:{KEYS}" in service.get("volumes", [])] == ["keys"]
    (user,) = [step for step in dockerfile() if "useradd" in step.words]
    assert {"--uid", "10001", KEYS} <= set(user.words)


def test_the_buckets_are_those_in_the_configs() -> None:
    script = SERVICES["buckets"]["command"][-1]
    compile(script, "buckets", "exec")
    (names,) = re.findall(r"for name in (\(.*\)):", script)
    used = set(re.findall(r"s3://([a-z0-9-]+)", (INFRA / "refresh.yaml").read_text() + str(SERVICES)))
    assert set(yaml.safe_load(names.replace("(", "[").replace(")", "]"))) == used


def test_the_databases_are_those_the_servers_open() -> None:
    script = (INFRA / "databases.sh").read_text()
    mlflow = SERVICES["mlflow"]["environment"]
    assert (mlflow["PGHOST"], mlflow["PGUSER"]) == ("postgres", "mlflow")
    users = configparser.ConfigParser()
    users.read(INFRA / "mlflow-auth.ini")
    opened = {("mlflow", url) for url in (mlflow["MLFLOW_BACKEND_STORE_URI"], users["mlflow"]["database_uri"])}
    prefect = SERVICES["prefect-server"]["environment"]
    driver, host, role, database = (
        prefect[f"PREFECT_SERVER_DATABASE_{part}"] for part in ("DRIVER", "HOST", "USER", "NAME")
    )
    assert (driver, host, role) == ("postgresql+asyncpg", "postgres", "prefect")
    opened.add((role, f"{driver}://{role}@{host}:5432/{database}"))
    # The migrations reach the same databases.
    migration = SERVICES["migrate-mlflow"]
    assert set(re.findall(r"postgresql\S+", migration["command"][-1])) == {
        url for role, url in opened if role == "mlflow"
    }
    assert migration["environment"].items() <= mlflow.items()
    variables = SERVICES["prefect-server"]["environment"]
    assert SERVICES["migrate-prefect"]["environment"].items() <= variables.items()
    assert variables["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"] == "false"
    assert variables["PREFECT_SERVER_EVENTS_CAUSAL_ORDERING"] == event_order.__name__
    for server in ("mlflow", "prefect-server"):
        waits = SERVICES[server]["depends_on"][f"migrate-{server.removesuffix('-server')}"]
        assert waits == {"condition": "service_completed_successfully"}
    assert all(re.match(r"postgresql\+(psycopg2:///|asyncpg://)", url) for _, url in opened)
    for role, url in opened:
        assert f"CREATE DATABASE {url.rpartition('/')[2]} OWNER {role};" in script
        assert f"CREATE ROLE {role} LOGIN PASSWORD :'{role}';" in script
    assert script.count("CREATE DATABASE") == len(opened) == 3
    assert not re.findall(r"\$\w+", script)
    # kustomize reads nothing outside of its folder, so that it has a copy.
    (copy,) = [
        item["data"]["databases.sh"]
        for item in yaml.safe_load_all((BASE / "postgres.yaml").read_text())
        if item["kind"] == "ConfigMap"
    ]
    assert script.endswith(copy) and script.removesuffix(copy).startswith("#")


@pytest.mark.services
@pytest.mark.needs("postgres")
def test_the_script_gives_the_owners_the_passwords_of_their_files_which_mlflows_library_reads(tmp_path: Path) -> None:
    """The script of PostgreSQL's image on a real server, then a connection to each of MLflow's databases."""
    assert run_keys(tmp_path).returncode == 0
    script = (INFRA / "databases.sh").read_text().replace(KEYS, str(tmp_path / "keys" / "postgres"))
    installed = postgres.installation()
    assert installed is not None
    with postgres.PostgresData() as data, data.serve(HOST, free_port(), launch_here) as server:
        path = {**os.environ, "PATH": f"{installed / 'bin'}:{os.environ['PATH']}"}
        made = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            env={**path, **server.client_environment()},
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        users = configparser.ConfigParser()
        users.read(INFRA / "mlflow-auth.ini")
        service = SERVICES["mlflow"]["environment"]
        assert service["PGSERVICE"] == POSTGRES_SERVICE
        of_mlflow = {"PGHOST": server.address, "PGPORT": str(server.port), "PGUSER": service["PGUSER"]}
        wrong = tmp_path / "wrong.conf"
        wrong.write_text(for_postgres("wrong"))
        right = tmp_path / "keys" / "mlflow" / "pg_service.conf"
        right.chmod(0o440)  # as the files of a secret on Kubernetes
        for url in (users["mlflow"]["database_uri"], service["MLFLOW_BACKEND_STORE_URI"]):
            code = f"from sqlalchemy import create_engine; create_engine({url!r}).connect().close(); print('opened')"
            for file, expected in ((right, "opened"), (wrong, "")):
                variables = {**os.environ, **of_mlflow, "PGSERVICE": POSTGRES_SERVICE, "PGSERVICEFILE": str(file)}
                command = [sys.executable, "-c", code]
                done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
                assert done.stdout.strip() == expected, done.stderr
                assert expected or "password authentication failed" in done.stderr


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


@pytest.mark.parametrize("path", [".git/config", "infra/.env", "infra/secrets/igpt.env", ".venv/bin/python", "tests"])
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
    pools = {deployment["work_pool"]["name"] for deployment in DEPLOYMENTS.values()}
    calls = [words for _, words in command_lines() if words[:2] == ["igpt", "worker"]]
    assert sorted(words[2] for words in calls) == sorted(pools) == ["builds", "probes", "trainings"]
    assert all("--limit=1" in words for words in calls)
    # The container's health is that of `igpt worker`, which works while Prefect's server is away.
    ports = [word.partition("=")[2] for words in calls for word in words if word.startswith("--port=")]
    assert len(set(ports)) == 3
    assert f"for port in ({', '.join(ports)})" in SERVICES["prefect-worker"]["healthcheck"]["test"][-1]


def test_builds_trainings_and_probes_do_not_wait_for_each_other() -> None:
    pool_of = {name: deployment["work_pool"]["name"] for name, deployment in DEPLOYMENTS.items()}
    assert pool_of["nightly"] == pool_of["watch"] != pool_of["weekly"] != pool_of["candidate"] != pool_of["nightly"]


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


def test_passwords_protect_mlflow_and_prefect_and_only_drivers_have_them(tmp_path: Path) -> None:
    assert run_keys(tmp_path).returncode == 0
    assert "--app-name=basic-auth" in SERVICES["mlflow"]["command"]
    profile = tomllib.loads((tmp_path / "keys" / "prefect-server" / "prefect.toml").read_text())["profiles"]["igpt"]
    assert profile["PREFECT_SERVER_API_AUTH_STRING"] == f"igpt:{SECRETS['PREFECT_PASSWORD']}"
    users = configparser.ConfigParser()
    users.read(tmp_path / "keys" / "mlflow" / "mlflow-auth.ini")
    assert users["mlflow"]["admin_password"] == SECRETS["MLFLOW_PASSWORD"]
    for name, service in SERVICES.items():
        environment = service.get("environment", {})
        if "PREFECT_API_URL" in environment or name == "prefect-server":
            assert environment["PREFECT_PROFILES_PATH"] == f"{KEYS}/prefect.toml"
        if name.startswith("ray-"):
            assert not [variable for variable in environment if variable.startswith(("MLFLOW_TRACKING", "PREFECT"))]
    nodes = "".join(path.read_text() for path in (tmp_path / "keys" / "nodes").rglob("*") if path.is_file())
    assert SECRETS["PREFECT_PASSWORD"] not in nodes and SECRETS["MLFLOW_PASSWORD"] not in nodes
