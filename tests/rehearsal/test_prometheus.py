"""The Prometheus of the rehearsal has the conditions of infra/monitoring, and scrapes what production scrapes."""

import re

import yaml

from tests.infra.test_alerts import RULES
from tests.infra.test_monitoring import PROMETHEUS
from tests.rehearsal.prometheus import configuration, rules
from tests.rehearsal.site import LABELS


def test_only_how_long_a_condition_lasts_differs() -> None:
    (group,) = yaml.safe_load(rules())["groups"]
    for rule in group["rules"]:
        assert rule == {**RULES[rule["alert"]], **({"for": rule["for"]} if "for" in rule else {})}
        assert rule.get("for", "").replace("s", "m") == RULES[rule["alert"]].get("for", "")
    assert len(re.findall("for: [0-9]+s", rules())) > 8


def test_every_node_the_exporter_and_the_backups_are_scraped() -> None:
    jobs = {job["job_name"]: job for job in configuration(list(LABELS))["scrape_configs"]}
    assert set(jobs) == {job["job_name"] for job in PROMETHEUS["scrape_configs"]} - {"igpt-store"}
    targets = {target for job in jobs.values() for config in job["static_configs"] for target in config["targets"]}
    ray = {f"{host}:8090" for host in ("ray-head", "ray-worker-1", "ray-worker-2", "prefect-worker")}
    assert targets == {*ray, "exporter:8091", "backup:8092"}
