"""What a Ray node serves to Prometheus, while the pipeline works."""

import http.client
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from flows.services.local_stack import Stack
from igpt_model.training.metric_names import TRAINING_METRICS
from pipeline.cluster.metrics import STAGE_GAUGES
from tests.infra.monitoring_names import queries
from tests.integration.conftest import ROOT

pytestmark = pytest.mark.services

# Ray exports gauges every ten seconds and drops them after twenty, so the second request sees repeated values.
WORK = """
import sys, time, urllib.request
import ray
from pipeline.cluster import tasks
from igpt_model.training.metric_names import TRAINING_METRICS
from pipeline.cluster.metrics import Meter
tasks.connect(sys.argv[1])
node = ray.nodes()[0]
def look():
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return urllib.request.urlopen(address, timeout=10).read().decode()
with Meter("pretrain", "s3://runs/metered", TRAINING_METRICS) as meter:
    meter.progress("start", 0, 0)
    meter.progress("train", 10, 40)
    meter.record(10, dict.fromkeys(TRAINING_METRICS, 0.5))
    meter.record(0, {"system/127.0.0.1/cpu_utilization_percentage": 1.0})
    ray.get(ray.remote(lambda: None).remote())
    deadline = time.monotonic() + 40
    while "ray_igpt_step{" not in look() and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(25)
    print(look())
"""


def test_a_node_serves_what_the_dashboard_draws_while_there_is_work(stack: Stack) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORK, stack.ray_address],
        env={**stack.environment(), "PATH": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    served = {
        sample.name: {**sample.labels, "": sample.value}
        for family in text_string_to_metric_families(done.stdout)
        for sample in family.samples
    }
    for query in queries():
        if query.panel == "GPU":
            continue  # there is none here
        for name in query.metrics:
            assert name in served, query
            assert query.labels <= set(served[name]), query
    told = served["ray_igpt_stage_done"]
    assert (told["stage"], told["subject"], told["step"], told[""]) == ("pretrain", "s3://runs/metered", "train", 10)
    assert served["ray_igpt_step"][""] == 10 and served["ray_igpt_train_loss"]["run"] == "s3://runs/metered"
    ours = {f"ray_igpt_{name}" for name in (*STAGE_GAUGES, *TRAINING_METRICS)}
    assert ours <= set(served)


def test_the_agent_that_serves_them_starts_no_job_for_who_has_not_the_token(stack: Stack) -> None:
    """The agent listens on every node, and its other port accepts jobs, which can be any command line."""
    agents = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, IndexError):
            parent = process.parent()  # the agent's title has overwritten its own environment
            named = process.cmdline()[0].startswith("ray::DashboardAgent")
            if (
                named
                and parent is not None
                and parent.environ().get("RAY_AUTH_TOKEN_PATH") == str(stack.ray_token_path)
            ):
                agents.append(process)
    (agent,) = agents
    answers = []
    for port in {link.laddr.port for link in agent.net_connections("inet") if link.status == psutil.CONN_LISTEN}:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        with suppress(OSError, http.client.HTTPException):  # gRPC is no HTTP/1.1
            connection.request(
                "POST", "/api/job_agent/jobs/", '{"entrypoint": "id"}', {"Content-Type": "application/json"}
            )
            answers.append(connection.getresponse().status)
    assert http.client.UNAUTHORIZED in answers
    assert not [status for status in answers if status < http.client.BAD_REQUEST]
