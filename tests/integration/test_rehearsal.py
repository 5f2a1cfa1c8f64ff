"""The rehearsal of two nights in production, as `make rehearsal` runs it, and a shorter one of a nightly build."""

import subprocess
import sys

import pytest

from tests.integration.conftest import ROOT

pytestmark = [pytest.mark.services, pytest.mark.faults, pytest.mark.needs("postgres", "promtool")]


def rehearse(*arguments: str) -> str:
    """Run the rehearsal; returns its output."""
    command = [sys.executable, "-m", "tests.rehearsal", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1700)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("the rehearsal is over") and "NOT " not in done.stdout
    return done.stdout


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_nights_with_lost_nodes_an_upgrade_alarms_and_a_server_away(needs_hosts: None) -> None:
    output = rehearse()
    for event in (
        *("Ray node lost in the build", "Ray node lost in the training", "the driver's machine is lost"),
        *("the databases are migrated", "images have arrived", "Prefect's server is away"),
        *("ALERT IgptNoBackup", "is whole: 3 databases", "refused, ", "old checkpoints and features are removed"),
        *("ALERT IgptNodeLost", "ALERT IgptRunFailed", "ALERT IgptSourceDown", "notified: scheduled-refresh Crashed"),
    ):
        assert event in output, output


@pytest.mark.timeout(1800)
def test_a_scheduled_build_with_a_lost_node_whose_alert_fires_and_whose_log_stays(needs_hosts: None) -> None:
    output = rehearse("--build")
    assert "Ray node lost in the build" in output and "ALERT IgptNodeLost" in output
    assert "lines of the lost node" in output
