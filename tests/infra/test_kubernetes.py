"""Checks of infra/kubernetes and infra/ray-cluster.yaml that need no cluster.

Kubernetes objects are checked against its schemas. No package has the schema of the RayCluster: its start parameters
are checked with Ray's parser, its pods as Kubernetes pods.
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
    item for name in KUSTOMIZATION["resources"] for item in yaml.safe_load_all((FOLDER / name).read_text())
]
RAY: dict[str, Any] = next(item for item in OBJECTS if item["kind"] == "RayCluster")
WORKER_GROUPS = RAY["spec"]["workerGroupSpecs"]
GROUPS = {"head": RAY["spec"]["headGroupSpec"]} | {group["groupName"]: group for group in WORKER_GROUPS}
MACHINES: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "ray-cluster.yaml").read_text())


def pods() -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """The name, specification and labels of every pod that the objects describe."""
    for item in OBJECTS:
        template = item.get("spec", {}).get("template")
        if template:
            yield item["metadata"]["name"], template["spec"], template["metadata"]["labels"]
    for name, group in GROUPS.items():
        yield f"ray {name}", group["template"]["spec"], group["template"]["metadata"]["labels"]


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, pod, _ in pods():
        for container in pod["containers"]:
            yield name, container


def named(kind: str) -> set[str]:
    return {item["metadata"]["name"] for item in OBJECTS if item["kind"] == kind}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("item", OBJECTS, ids=lambda item: f"{item['kind']} {item['metadata']['name']}")
def test_each_object_matches_the_schema_of_kubernetes(item: dict[str, Any], version: str) -> None:
    if item["kind"] != "RayCluster":
        kubernetes_validate.validate(item, version, strict=True)
        return
    for name, group in GROUPS.items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, version, strict=True)


def test_the_schemas_refuse_an_invalid_object() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"port": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, VERSIONS[0], strict=True)


def test_kustomize_finds_every_file() -> None:
    files = {path.name for path in FOLDER.iterdir()}
    assert files == {"kustomization.yaml", "deployments.yaml", *KUSTOMIZATION["resources"]}
    generators = KUSTOMIZATION["configMapGenerator"]
    generated = [name.partition("=")[2] for generator in generators for name in generator.get("files", [])]
    assert generated == ["deployments.yaml"]


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
def test_each_command_line_is_accepted_by_its_program(where: str, words: list[str]) -> None:
    parse(words)


@pytest.mark.parametrize("group", GROUPS)
def test_ray_accepts_the_start_parameters_of_each_group(group: str) -> None:
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


def test_ray_and_the_image_have_the_versions_of_the_project() -> None:
    locked = (ROOT / "constraints.txt").read_text()
    assert f"\nray=={RAY['spec']['rayVersion']}\n" in locked
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {container["image"] for _, container in containers()}
    assert images == {f"igpt-pipeline:{version}", f"igpt-pipeline:{version}-cuda", "postgres:17.11"}
    assert MACHINES["docker"]["image"] == f"igpt-pipeline:{version}"


def test_every_container_has_limits_and_runs_as_an_unprivileged_user() -> None:
    for name, container in containers():
        assert set(container["resources"]["limits"]) >= {"cpu", "memory"}, name
        assert set(container["resources"]["requests"]) >= {"cpu", "memory"}, name
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for name, pod, _ in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0, name


def test_no_file_contains_a_secret_and_each_is_explained() -> None:
    readme = (ROOT / "infra" / "README.md").read_text()
    assert not named("Secret")
    for name, container in containers():
        for variable in container.get("env", []):
            secret = re.search("PASSWORD|TOKEN|SECRET|KEY|AUTH_STRING|DB_|CONNECTION|STORE_URI", variable["name"])
            if secret and variable["name"] not in ("MLFLOW_AUTH_CONFIG_PATH",):
                reference = variable["valueFrom"]["secretKeyRef"]
                assert reference["name"] == "igpt", f"{name}: {variable['name']}"
                assert f"`{reference['key']}`" in readme, f"{reference['key']} is not explained in infra/README.md"


def test_every_ray_node_and_driver_has_the_token() -> None:
    for name, container in containers():
        variables = {variable["name"] for variable in container.get("env", [])}
        if "ray" in name or "RAY_ADDRESS" in variables:
            assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} <= variables, name
    autoscaler = RAY["spec"]["autoscalerOptions"]["env"]
    assert {variable["name"] for variable in autoscaler} == {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}


def test_drivers_retry_mlflow_requests_like_the_command_line() -> None:
    (worker,) = [container for name, container in containers() if name == "prefect-worker"]
    variables = {variable["name"]: variable.get("value") for variable in worker["env"]}
    assert settings.MLFLOW_RETRIES.items() <= variables.items()


def test_every_called_address_is_a_service_whose_port_leads_to_a_container() -> None:
    services = {item["metadata"]["name"]: item["spec"] for item in OBJECTS if item["kind"] == "Service"}
    for name, service in services.items():
        (selected,) = [pod for _, pod, labels in pods() if labels.items() >= service["selector"].items()]
        open_ports = [port["containerPort"] for container in selected["containers"] for port in container["ports"]]
        assert [port["targetPort"] for port in service["ports"]] == open_ports, name
    addresses = {(name, port["port"]) for name, service in services.items() for port in service["ports"]}
    addresses.add((f"{RAY['metadata']['name']}-head-svc", 6379))  # created by KubeRay
    for name, container in containers():
        for variable in container.get("env", []):
            for host, port in re.findall(r"(?://|^)([a-z][a-z-]+):(\d+)", variable.get("value", "")):
                assert (host, int(port)) in addresses, f"{name} calls {host}:{port}"


def test_the_network_policies_allow_every_call_and_no_task_to_reach_a_database() -> None:
    policies = {item["metadata"]["name"]: item["spec"] for item in OBJECTS if item["kind"] == "NetworkPolicy"}
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress"]}

    def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
        expressions = selector.get("matchExpressions", [])
        return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items()) and all(
            labels.get(expression["key"]) in expression["values"] for expression in expressions
        )

    def may(caller: str, called: str, port: int) -> bool:
        """Whether a pod may open a connection to a port of another."""
        labels_of = {name: labels for name, _, labels in pods()}
        directions = {"Ingress": (called, caller, "from"), "Egress": (caller, called, "to")}
        for kind, (own, other, key) in directions.items():
            of_kind = [policy for policy in policies.values() if kind in policy["policyTypes"]]
            applying = [policy for policy in of_kind if matches(policy["podSelector"], labels_of[own])]
            rules = [rule for policy in applying for rule in policy.get(kind.lower(), [])]
            passing = [
                rule
                for rule in rules
                if any(matches(peer["podSelector"], labels_of[other]) for peer in rule[key] if "podSelector" in peer)
                and port in [allowed["port"] for allowed in rule.get("ports", [{"port": port}])]
            ]
            if applying and not passing:
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


def test_the_deployments_are_those_of_compose_with_gpus() -> None:
    from flows.prefect_ops.deployments import read

    ours, theirs = (
        yaml.safe_load(path.read_text()) for path in (FOLDER / "deployments.yaml", FOLDER / "../prefect.yaml")
    )
    weekly = next(deployment for deployment in ours["deployments"] if deployment["name"] == "weekly")
    training = weekly["parameters"]["config"]["pretrain"]
    execution = training["execution"]
    assert execution.pop("use_gpu") is True  # which stands for bfloat16, compiled
    execution["cpus_per_worker"] = 2
    assert ours == theirs
    assert len(read(FOLDER / "deployments.yaml")) == len(ours["deployments"])
    group = GROUPS["training"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert group["minReplicas"] == execution["workers"] and limits["nvidia.com/gpu"] == "1" and limits["cpu"] == "8"


def test_ray_up_accepts_the_file_for_machines() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load((ROOT / "infra" / "ray-cluster.yaml").read_text())))
    with pytest.raises(Exception, match="no_such_field"):
        validate_config(prepare_config({**MACHINES, "no_such_field": 1}))
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        for command in MACHINES[key]:
            (call,) = calls_in_script(command)
            parse(call)
    assert not re.search(r"(TOKEN|SECRET\w*|KEY\w*)=", (ROOT / "infra" / "ray-cluster.yaml").read_text())
