"""The rehearsal of a nightly run in production, as `make rehearsal` runs it, and a shorter one of its build."""

import subprocess
import sys

import pytest

from tests.integration.conftest import ROOT

pytestmark = [pytest.mark.services, pytest.mark.faults, pytest.mark.needs("postgres")]


def rehearse(*arguments: str) -> str:
    """Run the rehearsal; returns its output."""
    command = [sys.executable, "-m", "tests.rehearsal", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("the rehearsal is over") and "NOT " not in done.stdout
    return done.stdout


@pytest.mark.long
@pytest.mark.timeout(1600)
def test_a_night_in_production_with_two_lost_nodes(needs_hosts: None) -> None:
    output = rehearse()
    assert "Ray node lost in the build" in output and "Ray node lost in the training" in output


@pytest.mark.timeout(1600)
def test_a_scheduled_build_in_production_with_a_lost_node(needs_hosts: None) -> None:
    assert "Ray node lost in the build" in rehearse("--build")
