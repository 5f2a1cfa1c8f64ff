"""The objects of infra/kubernetes, as written and as kustomize renders them, and their schemas."""

import functools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"
FOLDER = KUBERNETES / "base"
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "schemas").glob("*.json")}
OVERLAYS = ("production", "trial")
VERSIONS = ("1.31", "1.34")
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())


def written(folder: Path) -> list[dict[str, Any]]:
    """The objects in the files that a kustomization names."""
    return [
        item
        for name in yaml.safe_load((folder / "kustomization.yaml").read_text()).get("resources", [])
        for document in yaml.safe_load_all((folder / name).read_text())
        for item in (document["items"] if document["kind"] == "List" else [document])
    ]


BASE = written(FOLDER)
COMPONENTS = {folder.name: written(folder) for folder in sorted((KUBERNETES / "components").iterdir())}
OBJECTS = [*BASE, *(item for objects in COMPONENTS.values() for item in objects)]
WORKERS = ("worker-builds", "worker-trainings", "worker-probes")
RAY: dict[str, Any] = next(item for item in OBJECTS if item["kind"] == "RayCluster")
WORKER_GROUPS = RAY["spec"]["workerGroupSpecs"]
GROUPS = {"head": RAY["spec"]["headGroupSpec"]} | {group["groupName"]: group for group in WORKER_GROUPS}


def pods() -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """The name, specification and labels of every pod that the objects describe."""
    for item in OBJECTS:
        spec = item.get("spec", {})
        template = spec.get("template") or spec.get("jobTemplate", {}).get("spec", {}).get("template")
        if template:
            yield item["metadata"]["name"], template["spec"], template["metadata"]["labels"]
    for name, group in GROUPS.items():
        yield f"ray {name}", group["template"]["spec"], group["template"]["metadata"]["labels"]


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, pod, _ in pods():
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield name, container


def named(kind: str) -> set[str]:
    return {item["metadata"]["name"] for item in OBJECTS if item["kind"] == kind}


def validate(item: dict[str, Any], version: str) -> None:
    """Check an object against the schema of Kubernetes or of the operator that defines its kind."""
    schema = SCHEMAS.get(item["kind"].lower())
    if schema is None:
        kubernetes_validate.validate(item, version, strict=True)
        return
    jsonschema.validate(item, schema)
    if item["kind"] == "RayCluster":
        for group in (item["spec"]["headGroupSpec"], *item["spec"]["workerGroupSpecs"]):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": group["template"]["spec"]}
            kubernetes_validate.validate(pod, version, strict=True)


@functools.cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    """The objects that `kubectl apply --kustomize` would send for an overlay."""
    return render(KUBERNETES / "overlays" / overlay)


def render(folder: Path) -> list[dict[str, Any]]:
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def rendered_object(overlay: str, kind: str, name: str) -> dict[str, Any]:
    (item,) = [item for item in rendered(overlay) if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    return item


def gibibytes(text: str) -> float:
    """A size as Kubernetes writes it."""
    return float(text[:-2]) * {"Gi": 1.0, "Mi": 1 / 1024}[text[-2:]]
