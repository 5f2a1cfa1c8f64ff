"""Checks of infra/kubernetes and infra/ray-cluster.yaml that need no cluster.

Objects are checked against the schemas of Kubernetes and of the operators (schemas/); start parameters of Ray with its
parser, its pods as Kubernetes pods.
"""

import configparser
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from flows.services import deployed_keys, secrets_file, settings
from flows.services.store_rights import ROLES, STEPS
from tests.infra.command_lines import PROGRAMS, calls_in_script, parse
from tests.infra.kubernetes_objects import (
    BASE,
    FOLDER,
    GROUPS,
    KUBERNETES,
    KUSTOMIZATION,
    OBJECTS,
    OVERLAYS,
    RAY,
    ROOT,
    VERSIONS,
    WORKERS,
    containers,
    pods,
    rendered,
    validate,
)
from tests.rigs.compose import KEYS, Compose

MACHINES: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "ray-cluster.yaml").read_text())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("item", OBJECTS, ids=lambda item: f"{item['kind']} {item['metadata']['name']}")
def test_each_object_matches_its_schema(item: dict[str, Any], version: str) -> None:
    validate(item, version)


def test_the_schemas_refuse_an_invalid_object() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"port": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(service, VERSIONS[0])
    for change in ({"rayversion": "2.60.0"}, {"workerGroupSpecs": [{"groupName": "x"}]}):
        with pytest.raises(jsonschema.ValidationError):
            validate({**RAY, "spec": {**RAY["spec"], **change}}, VERSIONS[0])


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
    locked = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for name, container in containers():
        assert set(container["resources"]["limits"]) >= {"cpu", "memory"}, name
        assert set(container["resources"]["requests"]) >= {"cpu", "memory"}, name
        assert container["securityContext"] == locked, name
    assert RAY["spec"]["autoscalerOptions"]["securityContext"] == locked
    for name, pod, _ in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
    (namespace,) = [item for item in OBJECTS if item["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_a_container_can_write_where_its_program_does() -> None:
    """The root file systems are read-only."""
    for name, pod, _ in pods():
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            writable = {
                mount["mountPath"]
                for mount in container["volumeMounts"]
                if "emptyDir" in volumes.get(mount["name"], {}) and not mount.get("readOnly")
            }
            ours = container["image"].startswith("igpt-pipeline:")
            assert writable >= ({"/tmp", "/home/igpt"} if ours else {"/tmp", "/var/run/postgresql"}), name
            if "ray" in name or name in (*WORKERS, "serve"):
                assert "/dev/shm" in writable, name
    mounts = {mount["mountPath"] for mount in RAY["spec"]["autoscalerOptions"]["volumeMounts"]}
    assert mounts == {"/tmp", "/home/igpt", f"{KEYS}/ray-token"}
    (server,) = [container for _, container in containers() if container["name"] == "prefect-server"]
    assert {"name": "PREFECT_UI_STATIC_DIRECTORY", "value": "/tmp/prefect-ui"} in server["env"]


def test_no_eviction_takes_a_driver_or_what_it_cannot_do_without() -> None:
    labels_of = {name: labels for name, _, labels in pods()}
    kept = {
        name
        for item in BASE
        if item["kind"] == "PodDisruptionBudget" and item["spec"]["minAvailable"] == 1
        for name, labels in labels_of.items()
        if item["spec"]["selector"]["matchLabels"].items() <= labels.items()
    }
    assert kept == {*WORKERS, "ray head", "ray training", "postgres"}
    templates = {item["metadata"]["name"]: item["spec"]["template"] for item in OBJECTS if item["kind"] == "Deployment"}
    kept_templates = [
        *(templates[name] for name in WORKERS),
        GROUPS["head"]["template"],
        GROUPS["training"]["template"],
    ]
    for template in kept_templates:
        annotations = template["metadata"]["annotations"]
        assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
        assert annotations["karpenter.sh/do-not-disrupt"] == "true"


VARIABLES = {name: f"{name.replace('_', '').lower()}{'0123456789' * 3}" for name in secrets_file.NAMES}


def make_secret(folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    file = folder / "igpt.env"
    file.write_text("# secrets\n" + "\n".join(f"{name}={value}" for name, value in variables.items()) + "\n")
    command = [str(KUBERNETES / "secret"), str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_secret_made_from_the_file_of_compose_has_the_files_that_pods_take(tmp_path: Path) -> None:
    done = make_secret(tmp_path, {**VARIABLES, "AWS_SECRET_ACCESS_KEY": "it's/a+key="})
    assert (done.returncode, done.stderr) == (0, "")
    secret, _ = yaml.safe_load_all(done.stdout)
    validate(secret, VERSIONS[-1])
    assert (secret["metadata"]["name"], secret["metadata"]["namespace"]) == ("igpt", KUSTOMIZATION["namespace"])
    taken = {key for _, pod, _ in pods() for files in mounts_of(pod, "igpt").values() for key in files.values()}
    assert set(secret["stringData"]) == taken


COMPOSE_NAMES = {
    **dict.fromkeys(WORKERS, "prefect-worker"),
    **{"ray head": "ray-head", "ray builds": "ray-worker", "ray training": "ray-worker"},
}
"""The service of compose.yaml that is a pod of another name."""


def test_a_pod_sees_the_same_passwords_in_the_same_files_as_a_container_of_compose(tmp_path: Path) -> None:
    secret, _ = yaml.safe_load_all(make_secret(tmp_path, VARIABLES).stdout)
    config = (ROOT / "infra" / "mlflow-auth.ini").read_text()
    deployed_keys.write_all(tmp_path / "keys", VARIABLES, config, (ROOT / "infra" / "trusted-keys").read_text())
    compose = Compose()
    compared = set()
    for name, pod, _ in pods():
        folders = compose.service(COMPOSE_NAMES.get(name, name)).keys
        shown = mounts_of(pod, "igpt")
        for target, folder in folders.items():
            here = tmp_path / "keys" / folder
            of_store = {"credentials", *(f"steps/{step}" for step in STEPS)} if target == KEYS else set()
            expected = {
                str(path.relative_to(here)): path.read_text()
                for path in here.rglob("*")
                if path.is_file() and str(path.relative_to(here)) not in of_store
            }
            seen = {path: secret["stringData"][key] for path, key in shown.pop(target, {}).items()}
            assert seen == expected, f"{name}: {target}"
            compared.add(name)
        assert not shown, f"{name} sees what no container of compose.yaml does"
    assert compared == {name for name, _, _ in pods()}


def mounts_of(pod: dict[str, Any], secret: str) -> dict[str, dict[str, str]]:
    """The keys of a secret that a pod's containers see: by where, each by its path there."""
    user = pod["securityContext"]
    seen: dict[str, dict[str, str]] = {}
    for volume in pod.get("volumes", []):
        if "projected" in volume:
            mode = volume["projected"]["defaultMode"]
            sources = [source["secret"] for source in volume["projected"]["sources"]]
        elif "secret" in volume:
            mode = volume["secret"]["defaultMode"]
            sources = [{"name": volume["secret"]["secretName"], "items": volume["secret"]["items"]}]
        else:
            continue
        assert mode == 0o440 and user["fsGroup"] == user["runAsGroup"], "only its own group can read it"
        files = {
            item["path"]: item["key"] for source in sources if source["name"] == secret for item in source["items"]
        }
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            targets = [mount for mount in container["volumeMounts"] if mount["name"] == volume["name"]]
            assert all(mount["readOnly"] for mount in targets)
            seen |= {mount["mountPath"]: files for mount in targets if files}
    return seen


def mounted_keys() -> dict[str, dict[str, str]]:
    """By pod, the file of each key of the bucket store that it sees."""
    seen = {name: mounts_of(pod, "store-keys") for name, pod, _ in pods()}
    assert all(set(targets) <= {KEYS} for targets in seen.values())
    return {name: targets[KEYS] for name, targets in seen.items() if targets}


def test_each_pod_sees_the_keys_of_its_own_role() -> None:
    of_driver, of_nodes = (
        {"credentials": "driver"} | {f"steps/{step}": step for step in STEPS},
        {"credentials": "reader"},
    )
    assert mounted_keys() == {
        **dict.fromkeys(WORKERS, of_driver),
        **{name: {"credentials": "mlflow"} for name in ("mlflow", "serve")},
        **{role: {"credentials": role} for role in ("exporter", "backup", "clean")},
        **dict.fromkeys(("ray head", "ray builds", "ray training"), of_nodes),
    }
    literals = KUSTOMIZATION["configMapGenerator"][0]["literals"]
    assert "AWS_SHARED_CREDENTIALS_FILE=/run/igpt/keys/credentials" in literals
    steps = {
        name: variable["value"]
        for name, container in containers()
        for variable in container.get("env", [])
        if variable["name"] == "IGPT_KEYS"
    }
    assert steps == dict.fromkeys(WORKERS, "/run/igpt/keys/steps")


def read_keys(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The pair of each role in the second secret, as its reader reads it."""
    _, secret = yaml.safe_load_all(text)
    validate(secret, VERSIONS[-1])
    assert (secret["metadata"]["name"], secret["metadata"]["namespace"]) == ("store-keys", KUSTOMIZATION["namespace"])
    values = secret["stringData"]
    assert set(values) == {key for files in mounted_keys().values() for key in files.values()} == set(ROLES)
    monkeypatch.setenv("IGPT_KEYS", str(folder))
    read = {}
    for role, content in values.items():
        (folder / role).write_text(content)
        if role in STEPS:
            key = settings.store_key(role)
            assert key is not None
            read[role] = f"{key.access_key}:{key.secret_key}"
        else:
            profile = configparser.ConfigParser(interpolation=None)
            profile.read_string(content)
            read[role] = ":".join(profile["default"].values())
    return read


def test_each_role_has_its_own_pair_or_all_have_the_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {**VARIABLES, "AWS_SECRET_ACCESS_KEY": "it's/a+key="}
    single = f"{variables['AWS_ACCESS_KEY_ID']}:it's/a+key="
    read = read_keys(tmp_path, make_secret(tmp_path, variables).stdout, monkeypatch)
    assert read == dict.fromkeys(ROLES, single)
    assert not settings.keys_by_step()
    own = {f"STORE_KEY_{role.upper()}": f"{role}:s/{role}+'=" for role in ROLES}
    read = read_keys(tmp_path, make_secret(tmp_path, {**variables, **own}).stdout, monkeypatch)
    assert read == {role: own[f"STORE_KEY_{role.upper()}"] for role in ROLES}
    assert settings.keys_by_step()
    refused = make_secret(tmp_path, {**variables, "STORE_KEY_BUILD": "no-pair"})
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "STORE_KEY_BUILD is not ACCESS_KEY:SECRET_KEY" in refused.stderr and "no-pair" not in refused.stderr


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("value", [None, "", "short", "with/slash/0123456789012345678901234567890"])
def test_a_missing_or_unsuitable_secret_is_told_before_anything_starts(
    name: str, value: str | None, tmp_path: Path
) -> None:
    variables = {key: text for key, text in VARIABLES.items() if key != name}
    done = make_secret(tmp_path, variables if value is None else {**variables, name: value})
    if value and name.startswith("AWS_"):  # keys of a bucket store are as they are
        assert done.returncode == 0
        return
    assert (done.returncode, done.stdout) == (1, "")
    assert f"igpt.env: {name} " in done.stderr.splitlines()[0]
    assert not any(secret in done.stderr for secret in VARIABLES.values())


def variables_of(where: str, container: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for variable in container.get("env", []):
        yield f"{where}: {variable['name']}", variable
    for source in container.get("envFrom", []):
        assert set(source) == {"configMapRef"}, f"{where} takes all variables from a secret"


def all_containers(item: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """All that has an image or variables anywhere in an object, such as Ray's autoscaler."""
    parts: list[Any] = [item]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            if "env" in part or "envFrom" in part or "image" in part:
                yield f"{item['kind']} {item['metadata']['name']}", part
            parts += part.values()
        elif isinstance(part, list):
            parts += part


OF_SECRETS = re.compile("PASS|TOKEN|SECRET|KEY|AUTH|CREDENTIAL|PROFILE|SERVICEFILE")


@pytest.mark.parametrize("overlay", [None, *OVERLAYS])
def test_no_secret_is_in_a_variable(overlay: str | None) -> None:
    """Of any container: neither as a value nor as a reference, which would be in the process's environment."""
    objects = OBJECTS if overlay is None else rendered(overlay)
    assert not [item for item in objects if item["kind"] == "Secret"]
    count = 0
    for item in objects:
        for name, container in all_containers(item):
            for where, variable in variables_of(name, container):
                count += 1
                assert set(variable.get("valueFrom", {})) <= {"fieldRef"}, f"{where} is taken from a secret"
                value = variable.get("value", "")
                assert not re.search(r"://[^/]*@", value), f"{where} is an address with a password"
                if OF_SECRETS.search(variable["name"]):
                    assert value == "token" or value.startswith(f"{KEYS}/"), f"{where} is no path of a file"
    assert count > 50
    shared = [item["data"] for item in objects if item["kind"] == "ConfigMap"]
    for name, value in (pair for data in shared for pair in data.items()):
        assert value.startswith(f"{KEYS}/") or not OF_SECRETS.search(name), f"{name} is no path of a file"


def test_every_secret_is_explained(tmp_path: Path) -> None:
    readme = (ROOT / "infra" / "README.md").read_text()
    secret, _ = yaml.safe_load_all(make_secret(tmp_path, VARIABLES).stdout)
    for key in secret["stringData"]:
        assert f"`{key}`" in readme, f"{key} is not explained in infra/README.md"


def test_every_ray_node_and_driver_has_the_token() -> None:
    token = {"name": "RAY_AUTH_TOKEN_PATH", "value": f"{KEYS}/ray-token"}
    mode = {"name": "RAY_AUTH_MODE", "value": "token"}
    for name, pod, _ in pods():
        for container in pod["containers"]:
            variables = container.get("env", [])
            if name != "serve" and ("ray" in name or "RAY_ADDRESS" in {variable["name"] for variable in variables}):
                assert token in variables and mode in variables, name
                assert mounts_of(pod, "igpt")[KEYS]["ray-token"] == "ray-token"
    options = RAY["spec"]["autoscalerOptions"]
    assert options["env"] == [mode, token]
    assert {"name": "keys", "mountPath": token["value"], "subPath": "ray-token", "readOnly": True} in options[
        "volumeMounts"
    ]


def test_drivers_retry_mlflow_requests_like_the_command_line() -> None:
    workers = [container for name, container in containers() if name in WORKERS]
    assert len(workers) == 3
    for worker in workers:
        variables = {variable["name"]: variable.get("value") for variable in worker["env"]}
        assert settings.MLFLOW_RETRIES.items() <= variables.items()


def test_a_worker_serves_the_pool_of_every_deployment_and_is_healthy_without_prefects_server() -> None:
    templates = {name: labels for name, _, labels in pods() if name in WORKERS}
    deployments = yaml.safe_load((FOLDER / "deployments.yaml").read_text())["deployments"]
    pools = {deployment["work_pool"]["name"] for deployment in deployments}
    assert {labels["igpt.io/work"] for labels in templates.values()} == pools == {"builds", "trainings", "probes"}
    for name, container in containers():
        if name in WORKERS:
            label = {"fieldRef": {"fieldPath": "metadata.labels['igpt.io/work']"}}
            assert {"name": "POOL", "valueFrom": label} in container["env"]
            (call,) = [call for call in calls_in_script(container["command"][-1]) if call[0] == "igpt"]
            assert call[:3] == ["igpt", "worker", "$POOL"] and {"--limit=1", "--address=0.0.0.0"} <= set(call)
            page = container["livenessProbe"]["httpGet"]  # of `igpt worker`, not of Prefect's worker
            assert f"--port={page['port']}" in call and page["path"] == "/health"


def test_the_deployments_are_those_of_compose_with_gpus() -> None:
    from flows.prefect_ops.deployments import read

    ours, theirs = (
        yaml.safe_load(path.read_text()) for path in (FOLDER / "deployments.yaml", ROOT / "infra" / "prefect.yaml")
    )
    weekly = next(deployment for deployment in ours["deployments"] if deployment["name"] == "weekly")
    training = weekly["parameters"]["config"]["pretrain"]
    execution = training["execution"]
    assert execution.pop("use_gpu") is True  # which stands for bfloat16, compiled
    waits = execution.pop("nodes_seconds")
    execution["cpus_per_worker"] = 2
    assert ours == theirs
    assert len(read(FOLDER / "deployments.yaml")) == len(ours["deployments"])
    group = GROUPS["training"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    # Empty until a training waits for it; machines with GPUs take minutes to start.
    assert (group["replicas"], group["minReplicas"]) == (0, 0) and group["maxReplicas"] >= execution["workers"]
    assert waits >= 1800
    assert limits["nvidia.com/gpu"] == "1" and limits["cpu"] == "8"


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
