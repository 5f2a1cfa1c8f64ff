"""The rehearsal of a night in production, as `make rehearsal` runs it."""

import subprocess
import sys

import pytest

from tests.integration.conftest import ROOT

pytestmark = pytest.mark.services


@pytest.mark.needs("postgres")
@pytest.mark.timeout(1600)
def test_a_night_in_production_with_two_lost_nodes(needs_hosts: None) -> None:
    command = [sys.executable, "-m", "tests.rehearsal"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("the night is over") and "NOT " not in done.stdout
    assert "Ray node lost in the build" in done.stdout and "Ray node lost in the training" in done.stdout
