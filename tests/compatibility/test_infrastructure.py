"""What cannot be changed of a running installation: volumes, the major version of PostgreSQL, fields of objects."""

from pathlib import Path
from typing import Any

import yaml

from tests.compatibility.earlier import ROOT, read_json

EARLIER = read_json("infrastructure.json")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())
BASE = ROOT / "infra" / "kubernetes" / "base"


def objects() -> dict[str, dict[str, Any]]:
    """The specifications of today's objects, by kind and name."""
    files: list[Path] = [path for path in BASE.glob("*.yaml") if path.name not in ("deployments.yaml",)]
    items = [item for path in files for item in yaml.safe_load_all(path.read_text())]
    return {f"{item['kind']} {item['metadata']['name']}": item["spec"] for item in items if "spec" in item}


def test_the_data_of_compose_stay_where_they_are() -> None:
    earlier = EARLIER["compose"]
    assert COMPOSE["name"] == earlier["name"]  # a part of the names of volumes
    for name, mounted in earlier["volumes"].items():
        service, _, target = mounted.partition(":")
        assert f"{name}:{target}" in COMPOSE["services"][service]["volumes"] and name in COMPOSE["volumes"]


def test_postgresql_opens_the_files_of_its_earlier_version() -> None:
    def major(image: str) -> str:
        return image.partition(":")[2].partition(".")[0]

    images = {COMPOSE["services"]["postgres"]["image"]}
    images |= {box["image"] for box in objects()["StatefulSet postgres"]["template"]["spec"]["containers"]}
    assert {major(image) for image in images} == {major(EARLIER["compose"]["postgres"])}


def test_kubernetes_can_apply_todays_objects_over_the_earlier_ones() -> None:
    """Selectors and volume claims cannot be changed; `kubectl apply` would refuse."""
    today = objects()
    # Three deployments do its work now; the page on upgrades says how to delete it.
    gone = EARLIER["kubernetes"].keys() - today.keys()
    assert gone == {"Deployment prefect-worker"}
    assert "delete deployment/prefect-worker" in (ROOT / "infra" / "UPGRADE.md").read_text()
    for name, fixed in EARLIER["kubernetes"].items():
        if name in gone:
            continue
        assert {field: today[name].get(field) for field in fixed} == fixed, name
