"""The overlays of infra/kubernetes as kustomize renders them, and what an upgrade changes."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.prefect_ops import event_order
from tests.infra.kubernetes_objects import (
    BASE,
    FOLDER,
    KUBERNETES,
    KUSTOMIZATION,
    OBJECTS,
    OVERLAYS,
    RAY,
    ROOT,
    VERSIONS,
    WORKERS,
    gibibytes,
    render,
    rendered,
    rendered_object,
    validate,
)


@pytest.mark.needs("kustomize")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_overlay_renders_to_valid_objects_with_unique_names(overlay: str) -> None:
    objects = rendered(overlay)
    for item in objects:
        validate(item, VERSIONS[-1])
    names = [(item["kind"], item["metadata"]["name"]) for item in objects]
    expected = {(item["kind"], item["metadata"]["name"]) for item in (OBJECTS if overlay == "production" else BASE)}
    assert len(set(names)) == len(names) > len(expected)  # with the generated config maps
    assert expected < set(names)
    # Without one, an object would be put where `kubectl` happens to be.
    namespaces = {item["metadata"].get("namespace") for item in objects if item["kind"] != "Namespace"}
    assert namespaces == {"igpt"} == {item["metadata"]["name"] for item in objects if item["kind"] == "Namespace"}
    assert not re.search(r"(?<![A-Z_])HOST(?![A-Z_])", yaml.safe_dump(objects)), "the ingress's placeholder"


@pytest.mark.needs("kustomize")
def test_the_registry_is_in_every_image_of_ours() -> None:
    images = set(re.findall(r"image: (\S+)", yaml.safe_dump_all(rendered("production"))))
    ours = {image for image in images if "igpt-pipeline" in image}
    assert len(ours) == 2 and all(image.startswith("registry.example.com/igpt/igpt-pipeline:") for image in ours)


@pytest.mark.needs("kustomize")
def test_trainings_run_on_the_gpu_pool_and_other_pods_do_not() -> None:
    ray = rendered_object("production", "RayCluster", "ray")["spec"]
    builds, training = (group["template"]["spec"] for group in ray["workerGroupSpecs"])
    assert training["nodeSelector"] == {"igpt.io/pool": "gpu"}
    assert {toleration["key"] for toleration in training["tolerations"]} == {"nvidia.com/gpu", "igpt.io/pool"}
    assert training["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"] == {"app": "ray-training"}
    (container,) = training["containers"]
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert variables["NCCL_SOCKET_IFNAME"] == variables["GLOO_SOCKET_IFNAME"] == "eth0"
    memory = {volume["name"]: volume.get("emptyDir") for volume in training["volumes"]}["shared-memory"]
    assert memory == {"medium": "Memory", "sizeLimit": "16Gi"}
    locked = re.findall(r"^cuda-toolkit==(\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    (rule,) = training["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ][0]["matchExpressions"]
    # NVIDIA's compatibility table: CUDA 13 needs driver 580.
    assert (locked, rule["operator"], rule["values"]) == (["13"], "Gt", ["579"])
    assert not {"nodeSelector", "affinity"} & set(builds)


@pytest.mark.needs("kustomize")
def test_consumers_reach_mlflow_under_the_host_name_of_its_certificate() -> None:
    ingress = rendered_object("production", "Ingress", "mlflow")["spec"]
    (rule,) = ingress["rules"]
    host = rule["host"]
    assert ingress["tls"] == [{"hosts": [host], "secretName": "mlflow-tls"}]
    assert rule["http"]["paths"][0]["backend"] == {"service": {"name": "mlflow", "port": {"name": "http"}}}
    deployment = rendered_object("production", "Deployment", "mlflow")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert variables["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")[-1] == host
    assert variables["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == f"https://{host}"


@pytest.mark.needs("kustomize")
def test_a_trial_needs_no_gpu_and_its_pods_fit_the_stated_machine() -> None:
    objects = rendered("trial")
    assert "nvidia.com" not in yaml.safe_dump_all(objects) and "-cuda" not in yaml.safe_dump_all(objects)
    ray = rendered_object("trial", "RayCluster", "ray")["spec"]
    groups = [(group["maxReplicas"], group["template"]["spec"]) for group in ray["workerGroupSpecs"]]
    groups.append((1, ray["headGroupSpec"]["template"]["spec"]))
    services = [item for item in objects if item["kind"] in ("Deployment", "StatefulSet")]
    groups += [(1, item["spec"]["template"]["spec"]) for item in services]
    requests = [(count, pod["containers"][0]["resources"]["requests"]) for count, pod in groups]

    def cpus(text: str) -> float:
        return float(text.removesuffix("m")) / (1000 if text.endswith("m") else 1)

    said = re.search(r"with (\d+) CPUs and (\d+) GiB", (KUBERNETES / "overlays/trial/kustomization.yaml").read_text())
    assert said is not None
    assert int(said[1]) - 2 < sum(count * cpus(request["cpu"]) for count, request in requests) <= int(said[1])
    assert int(said[2]) - 4 < sum(count * gibibytes(request["memory"]) for count, request in requests) <= int(said[2])
    execution = yaml.safe_load((ROOT / "infra" / "refresh.yaml").read_text())["pretrain"]["execution"]
    (training,) = [group for group in ray["workerGroupSpecs"] if group["groupName"] == "training"]
    (container,) = training["template"]["spec"]["containers"]
    assert training["minReplicas"] == execution["workers"]
    assert int(container["resources"]["limits"]["cpu"]) == execution["cpus_per_worker"]
    job = rendered_object("trial", "Job", "deploy")["spec"]["template"]["spec"]["containers"][0]
    assert job["command"] == ["igpt", "deploy", "--file=/etc/igpt/prefect.yaml"]


# Upgrades


def config_maps_read(value: Any) -> set[str]:
    """The names of the config maps to which an object refers, wherever in it."""
    if isinstance(value, list):
        return set().union(*(config_maps_read(item) for item in value))
    if not isinstance(value, dict):
        return set()
    own = {value[key]["name"] for key in ("configMapRef", "configMap", "configMapKeyRef") if key in value}
    return own.union(*(config_maps_read(item) for item in value.values()))


@pytest.mark.needs("kustomize")
def test_a_changed_config_map_rolls_what_reads_it(tmp_path: Path) -> None:
    """The names change with the content, and so do the pods that name them."""
    folder = shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    (folder / "base" / "kustomization.yaml").write_text(
        (FOLDER / "kustomization.yaml").read_text().replace("AWS_DEFAULT_REGION=us-east-1", "AWS_DEFAULT_REGION=eu")
    )
    with (folder / "base" / "deployments.yaml").open("a") as file:
        file.write("# changed\n")
    readers: dict[str, set[str]] = {"storage": set(), "deployments": set()}
    both = zip(rendered("production"), render(folder / "overlays" / "production"), strict=True)
    for before, after in both:
        if before["kind"] == "ConfigMap":
            continue
        old, new = config_maps_read(before), config_maps_read(after)
        for name in old - {"postgres-databases"}:  # read once, when the volume is empty
            assert name not in new
            readers[name.rpartition("-")[0]].add(before["metadata"]["name"])
        existing = {item["metadata"]["name"] for item in rendered("production") if item["kind"] == "ConfigMap"}
        assert old <= existing, f"{before['metadata']['name']} names a config map that is not there"
    assert readers["storage"] == {"mlflow", *WORKERS, "exporter", "ray", "backup", "clean", "serve"}
    assert readers["deployments"] == {"deploy", "exporter"}
    ray = rendered_object("production", "RayCluster", "ray")
    groups = [ray["spec"]["headGroupSpec"], *ray["spec"]["workerGroupSpecs"]]
    assert all(len(config_maps_read(group)) == 1 for group in groups)


def test_a_changed_image_replaces_every_ray_node_and_no_old_server_meets_a_new_schema() -> None:
    assert RAY["spec"]["upgradeStrategy"] == {"type": "Recreate"}
    deployments = {item["metadata"]["name"]: item["spec"] for item in OBJECTS if item["kind"] == "Deployment"}
    for name, migrating in (("mlflow", ("mlflow db upgrade", "mlflow.server.auth db upgrade")),
                            ("prefect-server", ("prefect server database upgrade --yes",))):  # fmt: skip
        # The old pod has ended before the first container of the new one starts, and there is one pod.
        assert deployments[name]["strategy"] == {"type": "Recreate"} and deployments[name]["replicas"] == 1
        pod = deployments[name]["template"]["spec"]
        (job,), (server,) = pod["initContainers"], pod["containers"]
        assert job["image"] == server["image"]
        assert all(command in " ".join(job["command"]) for command in migrating)
        variables = {variable["name"]: variable for variable in server["env"]}
        assert all(variables[variable["name"]] == variable for variable in job["env"]), "another database"
    assert variables["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"]["value"] == "false"
    assert variables["PREFECT_SERVER_EVENTS_CAUSAL_ORDERING"]["value"] == event_order.__name__


def test_jobs_can_be_applied_again() -> None:
    """A Job cannot be changed, so it must be gone soon; what it does again must change nothing."""
    jobs = [item for item in OBJECTS if item["kind"] == "Job"]
    assert [job["metadata"]["name"] for job in jobs] == ["deploy"]
    for job in jobs:
        assert 0 < job["spec"]["ttlSecondsAfterFinished"] <= 60
        assert job["spec"]["template"]["spec"]["containers"][0]["command"][:2] == ["igpt", "deploy"]


def test_kustomize_finds_every_file() -> None:
    files = {path.name for path in FOLDER.iterdir()}
    configurations = KUSTOMIZATION["configurations"]
    assert files == {"kustomization.yaml", "deployments.yaml", *configurations, *KUSTOMIZATION["resources"]}
    generators = KUSTOMIZATION["configMapGenerator"]
    generated = [name.partition("=")[2] for generator in generators for name in generator.get("files", [])]
    assert generated == ["deployments.yaml"]
    for path in KUBERNETES.glob("*/*/kustomization.yaml"):
        content = yaml.safe_load(path.read_text())
        for name in [*content.get("resources", []), *content.get("components", [])]:
            assert (path.parent / name).exists(), f"{path}: {name}"
