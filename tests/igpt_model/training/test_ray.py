"""Whether a training fits on a cluster is known before Ray would wait for ever."""

import subprocess
import sys
from pathlib import Path

import pytest
import ray

from igpt_model.config import PretrainConfig
from igpt_model.training.ray import _MailboxPoller, check_resources
from igpt_model.training.ray_mailbox import Mailbox
from pipeline.errors import IgptError
from tests.igpt_model.training.test_loop import Recorder

ROOT = Path(__file__).parents[3]
NODES = {"10.0.0.1": {"CPU": 4.0, "memory": 1e9}, "10.0.0.2": {"CPU": 2.0, "GPU": 1.0}, "10.0.0.3": {"memory": 1e9}}


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"workers": 6}, 0),
        ({"workers": 7}, 1),
        ({"workers": 3, "cpus_per_worker": 2}, 0),
        ({"workers": 3, "cpus_per_worker": 3}, 2),
        ({"workers": 4, "placement": "STRICT_PACK"}, 0),
        ({"workers": 5, "placement": "STRICT_PACK"}, 1),
        ({"workers": 2, "placement": "STRICT_SPREAD"}, 0),
        ({"workers": 3, "placement": "STRICT_SPREAD"}, 1),
        ({"workers": 1, "use_gpu": True}, 0),
        ({"workers": 2, "use_gpu": True}, 1),
        ({"workers": 40, "min_workers": 6}, 0),
        ({"workers": 40, "min_workers": 8}, 2),
    ],
    ids=str,
)
def test_workers_that_have_no_room_are_counted(fields: dict, missing: int) -> None:
    config = PretrainConfig.from_fields(runs="r", preset="tiny", global_batch=64, **fields)
    if not missing:
        check_resources(config, NODES)
        return
    with pytest.raises(
        IgptError, match=f": {missing} missing; set {'min_' if 'min_workers' in fields else ''}workers,"
    ):
        check_resources(config, NODES)


def test_what_the_nodes_have_is_told_in_one_line() -> None:
    config = PretrainConfig.from_fields(runs="r", preset="tiny", workers=50, use_gpu=True, global_batch=64)
    nodes = {f"10.0.1.{number}": {"CPU": 1.0} for number in range(10)}
    with pytest.raises(IgptError) as raised:
        check_resources(config, nodes)
    line = str(raised.value)
    assert line.startswith("workers 50 need 1 CPU and 1 GPU each, placed PACK, and the Ray cluster has room for 0 (")
    assert "10.0.1.0: 1 CPU and 0 GPU, " in line and ", and 2 more)" in line and "\n" not in line


# A head without CPUs, to which a node is added as an autoscaler does: for what waits, and after a while.
GROWING = """
import threading, time
import ray
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.cluster_utils import Cluster
from igpt_model.config import PretrainConfig
from igpt_model.training.ray import ClusterTooSmallError, await_resources
from pipeline.cluster import tasks
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
def config(workers, seconds):
    fields = {"workers": workers, "nodes_seconds": seconds, "use_gpu": True, "global_batch": 64}
    return PretrainConfig.from_fields(runs="r", preset="tiny", **fields)
said, demands = [], []
def autoscale():
    client = ray._private.worker.global_worker.gcs_client
    while not demands:
        time.sleep(0.2)
        for gang in get_cluster_resource_state(client).pending_gang_resource_requests:
            demands.append([dict(sorted(request.resources_bundle.items())) for request in gang.requests])
    time.sleep(3)  # longer than a wait of which nothing is said
    cluster.add_node(num_cpus=2, num_gpus=2)
try:
    await_resources(config(2, 0), said.append)
except ClusterTooSmallError as error:
    print("at once:", error)
try:
    await_resources(config(2, 1), said.append)
except ClusterTooSmallError as error:
    print("after a second:", error)
training = threading.Thread(target=await_resources, args=(config(2, 120), said.append))
training.start()
autoscale()  # here, because Ray's nodes set handlers of signals
training.join()
print(said, demands)
deadline = time.monotonic() + 20
while ray.available_resources().get("GPU") != 2.0 and time.monotonic() < deadline:
    time.sleep(0.2)
print(ray.available_resources()["GPU"], "free")
"""


@pytest.mark.programs
def test_a_training_waits_for_nodes_that_an_autoscaler_adds_for_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GROWING], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    at_once, after, told, free = done.stdout.strip().splitlines()[-4:]
    assert at_once.startswith("at once: workers 2 need 1 CPU and 1 GPU each")
    assert after.startswith("after a second: workers 2 need")
    bundle = {"CPU": 1.0, "GPU": 1.0}
    waited = [f"waiting up to {seconds} s for nodes for 2 workers" for seconds in (1, 120)]
    assert told == f"{waited} {[[bundle, bundle]]}"
    assert free == "2.0 free", "the training itself takes them"


@pytest.mark.usefixtures("own_ray")
def test_groups_of_workers_that_take_the_place_of_others_are_counted() -> None:
    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    recorder = Recorder()
    config = PretrainConfig.from_fields(dataset="d", runs="r", steps=9)
    poller = _MailboxPoller(mailbox, config, recorder, lambda *told: None)
    seen = []
    for event in ("begin", 3, 4, "begin", "begin", 4, 5):
        ray.get(mailbox.begin.remote() if event == "begin" else mailbox.beat.remote(event, 2))
        poller._forward()
        seen.append({step: values["worker_restarts"] for step, values in recorder.values.items()})
    # Nothing before the first step: it would be at a step that a continued training has long done.
    assert seen == [{}, {3: 0}, {3: 0}, {3: 0, 4: 1}, {3: 0, 4: 2}, {3: 0, 4: 2}, {3: 0, 4: 2}]
