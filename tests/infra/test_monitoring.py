"""infra/monitoring: Prometheus scrapes the ports that are served, and the dashboard draws existing metrics."""

import re
from pathlib import Path
from typing import Any

import yaml

from flows.monitor.sample import GAUGES
from igpt_model.training.metric_names import TRAINING_METRICS
from pipeline.cluster.metrics import STAGE_GAUGES
from tests.infra.kubernetes_objects import FOLDER, OBJECTS, pods
from tests.infra.monitoring_names import DASHBOARD, queries

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "infra" / "monitoring"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())
PROMETHEUS: dict[str, Any] = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
MONITORS: dict[str, dict[str, Any]] = {
    item["metadata"]["name"]: item for item in yaml.safe_load_all((MONITORING / "podmonitor.yaml").read_text())
}
PORT = 8090


def test_prometheus_scrapes_every_ray_node_of_compose() -> None:
    jobs = {job["job_name"]: job for job in PROMETHEUS["scrape_configs"]}
    (scraped,), (of_models,) = (jobs[name]["dns_sd_configs"] for name in ("igpt-ray", "igpt-serve"))
    serving = {
        name
        for name, service in COMPOSE["services"].items()
        if f"--metrics-export-port={PORT}" in " ".join(service.get("command", []))
    }
    with_ray = {
        name for name, service in COMPOSE["services"].items() if "ray start" in " ".join(service.get("command", []))
    }
    assert serving == with_ray == {"ray-head", "ray-worker", "prefect-worker", "serve"}
    assert (set(scraped["names"]), of_models["names"]) == (serving - {"serve"}, ["serve"])
    assert scraped["port"] == of_models["port"] == PORT
    assert not any(str(PORT) in str(service.get("ports", "")) for service in COMPOSE["services"].values())


def test_the_pod_monitor_selects_the_port_of_every_ray_pod_and_only_prometheus_reaches_it() -> None:
    monitor = MONITORS["igpt-ray"]
    labels = monitor["spec"]["selector"]["matchLabels"].items()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for name, pod, own in pods():
        exposed = [port for container in pod["containers"] for port in container.get("ports", [])]
        ports = {port["name"]: port["containerPort"] for port in exposed}
        if name not in ("exporter", "serve"):
            assert (labels <= own.items()) == (endpoint["port"] in ports), name
            assert ports.get(endpoint["port"], PORT) == PORT
    assert f"metrics-export-port={PORT}" in (FOLDER / "workers.yaml").read_text()
    (policy,) = [item for item in OBJECTS if (item["kind"], item["metadata"]["name"]) == ("NetworkPolicy", "metrics")]
    (rule,) = policy["spec"]["ingress"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() == labels
    assert rule["ports"] == [{"port": PORT}]
    assert [list(peer) for peer in rule["from"]] == [["namespaceSelector"]]


def test_prometheus_scrapes_the_exporter_the_backups_and_the_store() -> None:
    jobs = {job["job_name"]: job for job in PROMETHEUS["scrape_configs"]}
    options = {"exporter": "--port=", "backup": "--port=", "s3": "-metricsPort="}
    for job, service in (("igpt-exporter", "exporter"), ("igpt-backup", "backup"), ("igpt-store", "s3")):
        ((target,),) = (config["targets"] for config in jobs[job]["static_configs"])
        words = " ".join(COMPOSE["services"][service]["command"]).split()
        (port,) = [word for word in words if word.startswith(options[service])]
        assert target == f"{service}:{port.partition('=')[2]}"
    assert MONITORS["igpt-exporter"]["spec"]["selector"]["matchLabels"] == {"app": "exporter"}
    (pod,) = [pod for _, pod, labels in pods() if labels["app"] == "exporter"]
    (container,) = pod["containers"]
    assert container["ports"] == [{"name": "metrics", "containerPort": 8091}] and "--port=8091" in container["command"]
    (policy,) = [item for item in OBJECTS if item["kind"] == "NetworkPolicy" and item["metadata"]["name"] == "exporter"]
    (rule,) = policy["spec"]["ingress"]
    assert rule["ports"] == [{"port": 8091}] and [list(peer) for peer in rule["from"]] == [["namespaceSelector"]]


def test_the_dashboard_draws_the_metrics_of_the_pipeline() -> None:
    exported = {f"ray_igpt_{name}" for name in [*STAGE_GAUGES, *TRAINING_METRICS]}
    drawn = set().union(*(query.metrics for query in queries()))
    assert {name for name in drawn if name.startswith("ray_igpt_")} == exported - {"ray_igpt_learning_rate"}
    readme = (ROOT / "infra" / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in exported)


def test_the_dashboard_draws_what_the_exporter_serves_and_nothing_else() -> None:
    drawn = set().union(*(query.exported for query in queries()))
    assert sorted(drawn - set(GAUGES)) == [] and sorted(set(GAUGES) - drawn) == []
    # The README says which labels a metric has.
    labels: dict[str, set[str]] = {}
    for line in (ROOT / "infra" / "README.md").read_text().splitlines():
        if line.startswith("| `igpt_"):
            names, of_names, *_ = (re.findall(r"`(\w+)`", cell) for cell in line.strip("|").split("|"))
            labels |= {name: set(of_names) for name in names}
    for query in queries():
        for name in query.exported:
            assert query.labels <= labels[name], query


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
