"""infra/monitoring/rules.yaml: every alert fires on its fault, reads metrics that are served, and is in the runbook."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.monitor.sample import GAUGES
from pipeline.cluster.metrics import STAGE_GAUGES
from tests.infra.command_lines import parse
from tests.infra.kubernetes_objects import VERSIONS, validate
from tests.infra.monitoring_names import queries

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "infra" / "monitoring"
GROUPS: list[dict[str, Any]] = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
RULES = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
CASES: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "rules_test.yaml").read_text())
# Metrics of others; README.md says what was read in their sources and never scraped.
OTHERS = {
    *("up", "SeaweedFS_volumeServer_resource"),
    *("kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes"),
    "kube_cronjob_status_last_successful_time",
}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.needs("promtool")
def test_every_alert_fires_on_its_fault_and_not_without() -> None:
    done = promtool("test", "rules", "tests/infra/rules_test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("promtool")
def test_a_changed_limit_fails_the_test_of_its_alert(tmp_path: Path) -> None:
    rules = (MONITORING / "rules.yaml").read_text().replace("> 85", "> 95")
    (tmp_path / "rules.yaml").write_text(rules)
    disk = [case for case in CASES["tests"] if case["name"] == "a disk"]
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({**CASES, "rule_files": ["rules.yaml"], "tests": disk}))
    assert promtool("test", "rules", str(tmp_path / "test.yaml")).returncode != 0


@pytest.mark.needs("promtool")
def test_prometheus_accepts_the_configuration_and_its_rules() -> None:
    done = promtool("check", "config", "infra/monitoring/prometheus.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(RULES)} rules found" in done.stdout


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    cases = [check for case in CASES["tests"] for check in case["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(RULES)
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}
    assert set(RULES) - silent == {"IgptSourceDown"}  # fires wherever MLflow is down for long


def test_kubernetes_has_the_same_rules() -> None:
    rule = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    validate(rule, VERSIONS[-1])
    assert rule["spec"]["groups"] == GROUPS
    for monitor in yaml.safe_load_all((MONITORING / "podmonitor.yaml").read_text()):
        validate(monitor, VERSIONS[-1])


@pytest.mark.parametrize("alert", RULES)
def test_an_alert_reads_metrics_that_are_served(alert: str) -> None:
    expression = re.sub(r"\{[^}]*\}|\b(on|by|ignoring) \([^)]*\)", "", RULES[alert]["expr"])
    names = {name for name in re.findall(r"[a-zA-Z_]\w{1,}", expression) if "_" in name or name == "up"}
    drawn = {
        name for query in queries() for name in query.metrics
    }  # tests/integration/test_metrics.py sees them served
    served = {*GAUGES, *(f"ray_igpt_{name}" for name in STAGE_GAUGES), *drawn, *OTHERS}
    functions = {"max_over_time", "count_over_time"}
    assert names - functions and names - functions <= served


def test_the_runbook_has_a_section_for_each_alert_and_the_readme_each_metric() -> None:
    runbook = (ROOT / "infra" / "RUNBOOK.md").read_text()
    sections = re.findall(r"^### (Igpt\w+)$", runbook, re.MULTILINE)
    assert sections == list(RULES)
    for section in runbook.split("\n### ")[1:]:
        assert "Type first: `" in section, section.splitlines()[0]
    readme = (ROOT / "infra" / "README.md").read_text()
    assert [name for name in GAUGES if f"`{name}`" not in readme] == []


def test_the_programs_accept_the_commands_of_the_runbook() -> None:
    text = " ".join((ROOT / "infra" / "RUNBOOK.md").read_text().split())
    commands = re.findall(r"`(prefect [^`]+)`", text) + re.findall(r"Type first: `(igpt [^`]+)`", text)
    assert len(commands) > 10
    for command in commands:
        if command != "prefect deployment run":  # with a name from the page
            parse(command.split())
