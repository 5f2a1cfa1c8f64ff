"""infra/kubernetes and infra/ray-cluster.yaml: what can be known about them without a cluster.

The objects of Kubernetes are checked with its own schemas; the RayCluster, whose schema no package carries, by the
start parameters that Ray's parser takes and by the pods in it, which are Kubernetes's.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from flows.services import settings
from tests.infra.command_lines import PROGRAMS, calls_in_script, parse

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "kubernetes"
VERSIONS = ("1.31", "1.34")
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
OBJECTS: list[dict[str, Any]] = [
    each for name in KUSTOMIZATION["resources"] for each in yaml.safe_load_all((FOLDER / name).read_text())
]
RAY: dict[str, Any] = next(each for each in OBJECTS if each["kind"] == "RayCluster")
GROUPS = {"head": RAY["spec"]["headGroupSpec"]} | {each["groupName"]: each for each in RAY["spec"]["workerGroupSpecs"]}
MACHINES: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "ray-cluster.yaml").read_text())


def pods() -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """Every pod that the objects describe: its name, specification and labels."""
    for each in OBJECTS:
        template = each.get("spec", {}).get("template")
        if template:
            yield each["metadata"]["name"], template["spec"], template["metadata"]["labels"]
    for name, group in GROUPS.items():
        yield f"ray {name}", group["template"]["spec"], group["template"]["metadata"]["labels"]


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, pod, _ in pods():
        for container in pod["containers"]:
            yield name, container


def named(kind: str) -> set[str]:
    return {each["metadata"]["name"] for each in OBJECTS if each["kind"] == kind}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("each", OBJECTS, ids=lambda each: f"{each['kind']} {each['metadata']['name']}")
def test_kubernetes_takes_each_object(each: dict[str, Any], version: str) -> None:
    if each["kind"] != "RayCluster":
        kubernetes_validate.validate(each, version, strict=True)
        return
    for name, group in GROUPS.items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, version, strict=True)


def test_the_schemas_refuse_what_is_wrong() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"port": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, VERSIONS[0], strict=True)


def test_kustomize_finds_every_file() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {
        *("kustomization.yaml", "deployments.yaml"),
        *KUSTOMIZATION["resources"],
    }
    files = [name.partition("=")[2] for each in KUSTOMIZATION["configMapGenerator"] for name in each.get("files", [])]
    assert files == ["deployments.yaml"]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (name, call)
        for name, container in containers()
        for command in [container.get("command", [])]
        for call in (calls_in_script(command[-1]) if command[:1] == ["bash"] else [command])
        if call[:1] and call[0] in PROGRAMS
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else value,
)
def test_each_command_line_is_one_that_its_program_takes(where: str, words: list[str]) -> None:
    parse(words)


@pytest.mark.parametrize("group", GROUPS)
def test_ray_takes_the_start_parameters_of_each_group(group: str) -> None:
    flags = {"include-dashboard", "disable-usage-stats"}
    words = ["ray", "start", *(["--head"] if group == "head" else ["--address=ray-head-svc:6379"])]
    for name, value in GROUPS[group]["rayStartParams"].items():
        assert isinstance(value, str), f"{name}: KubeRay wants text"
        words.append(f"--{name}" if name in flags and value == "true" else f"--{name}={value}")
    parse(words)
    for probe in ("readinessProbe", "livenessProbe"):
        (container,) = GROUPS[group]["template"]["spec"]["containers"]
        command = container[probe].get("exec", {}).get("command")
        if command:
            parse(command)
        else:
            assert str(container[probe]["tcpSocket"]["port"]) == GROUPS[group]["rayStartParams"]["node-manager-port"]


def test_the_version_of_ray_and_of_the_image_are_those_of_the_project() -> None:
    locked = (ROOT / "constraints.txt").read_text()
    assert f"\nray=={RAY['spec']['rayVersion']}\n" in locked
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {container["image"] for _, container in containers()}
    assert images == {f"igpt-pipeline:{version}", f"igpt-pipeline:{version}-cuda", "postgres:17.11"}
    assert MACHINES["docker"]["image"] == f"igpt-pipeline:{version}"


def test_every_container_is_limited_and_runs_as_an_ordinary_user_without_rights() -> None:
    for name, container in containers():
        assert set(container["resources"]["limits"]) >= {"cpu", "memory"}, name
        assert set(container["resources"]["requests"]) >= {"cpu", "memory"}, name
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for name, pod, _ in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0, name


def test_secrets_stand_in_no_file_and_each_is_explained() -> None:
    readme = (ROOT / "infra" / "README.md").read_text()
    assert not named("Secret")
    for name, container in containers():
        for variable in container.get("env", []):
            secret = re.search("PASSWORD|TOKEN|SECRET|KEY|AUTH_STRING|DB_|CONNECTION|STORE_URI", variable["name"])
            if secret and variable["name"] not in ("MLFLOW_AUTH_CONFIG_PATH",):
                reference = variable["valueFrom"]["secretKeyRef"]
                assert reference["name"] == "igpt", f"{name}: {variable['name']}"
                assert f"`{reference['key']}`" in readme, f"{reference['key']} is not explained in infra/README.md"


def test_every_node_and_driver_of_ray_carries_the_token() -> None:
    for name, container in containers():
        variables = {each["name"] for each in container.get("env", [])}
        if "ray" in name or "RAY_ADDRESS" in variables:
            assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} <= variables, name
    assert {each["name"] for each in RAY["spec"]["autoscalerOptions"]["env"]} == {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}


def test_drivers_are_as_patient_with_mlflow_as_the_command_line() -> None:
    (worker,) = [container for name, container in containers() if name == "prefect-worker"]
    told = {each["name"]: each.get("value") for each in worker["env"]}
    assert settings.PATIENCE.items() <= told.items()


def test_what_is_called_is_a_service_whose_port_leads_to_a_container() -> None:
    services = {each["metadata"]["name"]: each["spec"] for each in OBJECTS if each["kind"] == "Service"}
    for name, service in services.items():
        (found,) = [pod for _, pod, labels in pods() if labels.items() >= service["selector"].items()]
        open_ports = [port["containerPort"] for container in found["containers"] for port in container["ports"]]
        assert [port["targetPort"] for port in service["ports"]] == open_ports, name
    known = {(name, port["port"]) for name, service in services.items() for port in service["ports"]}
    known.add((f"{RAY['metadata']['name']}-head-svc", 6379))  # KubeRay makes it
    for name, container in containers():
        for variable in container.get("env", []):
            for host, port in re.findall(r"(?://|^)([a-z][a-z-]+):(\d+)", variable.get("value", "")):
                assert (host, int(port)) in known, f"{name} calls {host}:{port}"


def test_the_network_lets_through_what_is_called_and_no_task_to_a_database() -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in OBJECTS if each["kind"] == "NetworkPolicy"}
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress"]}

    def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
        expressions = selector.get("matchExpressions", [])
        return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items()) and all(
            labels.get(each["key"]) in each["values"] for each in expressions
        )

    def may(caller: str, called: str, port: int) -> bool:
        """Whether a pod may open a connection to a port of another."""
        known = {name: labels for name, _, labels in pods()}
        directions = {"Ingress": (called, caller, "from"), "Egress": (caller, called, "to")}
        for kind, (own, other, key) in directions.items():
            mine = [p for p in policies.values() if kind in p["policyTypes"] and matches(p["podSelector"], known[own])]
            rules = [rule for policy in mine for rule in policy.get(kind.lower(), [])]
            passing = [
                rule
                for rule in rules
                if any(matches(peer["podSelector"], known[other]) for peer in rule[key] if "podSelector" in peer)
                and port in [each["port"] for each in rule.get("ports", [{"port": port}])]
            ]
            if mine and not passing:
                return False
        return True

    assert may("mlflow", "postgres", 5432) and may("prefect-server", "postgres", 5432)
    assert may("prefect-worker", "mlflow", 5000) and may("prefect-worker", "prefect-server", 4200)
    assert may("deploy", "prefect-server", 4200) and may("prefect-worker", "ray head", 6379)
    assert may("ray builds", "ray head", 6379) and may("ray training", "ray builds", 10_002)
    for task in ("ray builds", "ray training"):
        for called, port in (("postgres", 5432), ("mlflow", 5000), ("prefect-server", 4200)):
            assert not may(task, called, port)
    assert not may("prefect-worker", "postgres", 5432)


def test_the_deployments_are_those_of_compose_on_gpus() -> None:
    from flows.prefect_ops.deployments import read

    ours, theirs = (
        yaml.safe_load(path.read_text()) for path in (FOLDER / "deployments.yaml", FOLDER / "../prefect.yaml")
    )
    weekly = next(each for each in ours["deployments"] if each["name"] == "weekly")
    training = weekly["parameters"]["config"]["pretrain"]
    execution = training["execution"]
    assert execution.pop("use_gpu") is True and training["model"].pop("precision") == "bfloat16"
    execution["cpus_per_worker"] = 2
    assert ours == theirs
    assert len(read(FOLDER / "deployments.yaml")) == len(ours["deployments"])
    group = GROUPS["training"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert group["minReplicas"] == execution["workers"] and limits["nvidia.com/gpu"] == "1" and limits["cpu"] == "8"


def test_ray_up_takes_the_file_for_machines() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load((ROOT / "infra" / "ray-cluster.yaml").read_text())))
    with pytest.raises(Exception, match="no_such_field"):
        validate_config(prepare_config({**MACHINES, "no_such_field": 1}))
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        for command in MACHINES[key]:
            (call,) = calls_in_script(command)
            parse(call)
    assert not re.search(r"(TOKEN|SECRET\w*|KEY\w*)=", (ROOT / "infra" / "ray-cluster.yaml").read_text())
