"""Debian's Prometheus on a host of the rehearsal, with infra/monitoring, where a minute of waiting is a second."""

import json
import re
import urllib.request
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import yaml

from tests.rehearsal.site import ROOT, Production, of_compose

_MONITORING = ROOT / "infra" / "monitoring"
_PORT = 9090
_TIMES = {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"}


@dataclass(frozen=True, kw_only=True)
class Alert:
    """An alert that fires."""

    name: str
    labels: dict[str, str]
    summary: str
    since: datetime
    """When its condition became true."""


def configuration(hosts: list[str]) -> dict[str, Any]:
    """prometheus.yaml for hosts whose names are in /etc/hosts, which Prometheus's own DNS client does not read.

    The store's job is left out: the store here is not SeaweedFS.
    """
    content: dict[str, Any] = yaml.safe_load((_MONITORING / "prometheus.yaml").read_text())
    jobs = [job for job in content["scrape_configs"] if job["job_name"] != "igpt-store"]
    for job in jobs:
        for discovery in job.pop("dns_sd_configs", []):
            names = [host for host in hosts if of_compose(host) in discovery["names"]]
            job["static_configs"] = [{"targets": [f"{name}:{discovery['port']}" for name in names]}]
    return {**content, "global": _TIMES, "scrape_configs": jobs}


def rules() -> str:
    """rules.yaml, where a condition has to last for seconds instead of minutes; the conditions are as they are."""
    return re.sub(r"(?<=for: )(\d+)m", r"\1s", (_MONITORING / "rules.yaml").read_text())


def start(site: Production) -> None:
    """Start Prometheus and wait until it answers."""
    host = site.hosts["prometheus"]
    (host.folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration(list(site.hosts))))
    (host.folder / "rules.yaml").write_text(rules())
    command = ["prometheus", "--config.file=prometheus.yaml", "--storage.tsdb.path=data"]
    host.start([*command, f"--web.listen-address=0.0.0.0:{_PORT}"], {}, site.log("prometheus"))
    site.wait("Prometheus", lambda: site.answers("prometheus", f":{_PORT}/-/ready"), "prometheus", seconds=60)


def firing(site: Production) -> list[Alert]:
    """The alerts that fire now."""
    url = f"http://{site.hosts['prometheus'].address}:{_PORT}/api/v1/alerts"
    with urllib.request.urlopen(url, timeout=10) as answer:
        alerts = json.loads(answer.read())["data"]["alerts"]
    return [
        Alert(
            name=alert["labels"]["alertname"],
            labels=alert["labels"],
            summary=alert["annotations"]["summary"],
            since=datetime.fromisoformat(re.sub(r"\.\d+", "", alert["activeAt"])),
        )
        for alert in alerts
        if alert["state"] == "firing"
    ]


def wait_for(site: Production, name: str, since: datetime, **labels: str) -> Alert:
    """Wait for an alert with these labels whose condition has become true after a time, and tell its summary."""

    def fired() -> Alert | None:
        wanted = [alert for alert in firing(site) if alert.name == name and alert.since >= since]
        return next((alert for alert in wanted if labels.items() <= alert.labels.items()), None)

    alert: Alert = site.wait(f"the alert {name} {labels}", fired, "prometheus", "exporter", seconds=120)
    site.tell(f"ALERT {name}: {alert.summary}")
    return alert
