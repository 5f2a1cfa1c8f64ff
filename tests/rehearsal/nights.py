"""What happens in the rehearsal: two nights of weekly refreshes and the day between them, or one nightly build."""

import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from tests.rehearsal import prometheus
from tests.rehearsal.site import (
    IMAGES,
    NODES,
    SERVERS,
    STEPS,
    Production,
    RehearsalError,
    digits,
    refresh_config,
    start_services,
)

ARRIVED, LATER = 150, 40
FORGOTTEN = "ray-worker-2"
OTHER = "0123456789abcdef0123456789abcdef01234567"
_BLOCK = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock
message = {"subject": "{{subject}}", "body": "{{body}}"}
CustomWebhookNotificationBlock(name="igpt", url=sys.argv[1], json_data=message).save("igpt", overwrite=True)
"""

Checks = list[tuple[str, bool]]  # what must be true, and whether it is


def two_nights(site: Production) -> None:
    """A night with two lost nodes that ends with an unfinished training, an upgrade by day, and the night after it."""
    unfinished = first_night(site)
    by_day(site)
    second_night(site, unfinished)


def nightly_build(site: Production) -> None:
    """The nightly build only, with a node lost in it."""
    begin(site)
    run = fire(site, "nightly")
    lose_in_build(site)
    complete(site, run)
    conclude(site, check_dataset(site, {1: IMAGES}))


def begin(site: Production) -> None:
    """Deploy, without a schedule yet, and start Prometheus and the worker."""
    prometheus.start(site)
    site.start("backup")
    for line in site.deploy().strip().splitlines():
        site.tell(line.strip())
    site.start_worker()


def first_night(site: Production) -> dict[str, Any]:
    """The refresh loses a node in the build, another in the training, and then its driver; returns its run."""
    site.must_run("prefect-worker", ["python", "-c", _BLOCK, site.webhook.url])
    begin(site)
    run = fire(site, "weekly")
    site.start("exporter", "--every=2")
    lose_in_build(site)
    lose_in_training(site)
    saved = newest_checkpoint(site)
    site.wait("a checkpoint by the workers that are left", lambda: newest_checkpoint(site) > saved, "prefect-worker")
    site.lose("prefect-worker")
    if newest_checkpoint(site) >= STEPS:
        raise RehearsalError("the driver was lost when the training was done already")
    site.tell(f"the driver's machine is lost; the night ends with the training at {newest_checkpoint(site)} of {STEPS}")
    return run


def by_day(site: Production) -> None:
    """Save all data, stop the services, migrate their databases, start them again; meanwhile images arrive.

    A node is forgotten in the upgrade, which a command says before it writes.
    """
    prometheus.wait_for(site, "IgptNoBackup", site.began_at)
    alive = [name for name in NODES if not site.hosts[name].is_lost]
    with ThreadPoolExecutor() as pool:
        saving = pool.submit(site.must_run, "backup", ["igpt", "backup", "save", str(site.backups)])
        for together in (("exporter", *alive), SERVERS):
            list(pool.map(site.stop, together))
        saved = saving.result()
    site.tell(f"upgrade: the services are stopped, and {saved.strip().splitlines()[-1]}")
    site.wait("the end of the alert", lambda: not is_firing(site, "IgptNoBackup"), "prometheus", "backup", seconds=60)
    site.upload(digits(IMAGES, IMAGES + ARRIVED))
    for name in ("ray-worker-1", "prefect-worker"):
        site.hosts[name].plug()
    start_services(site, {FORGOTTEN: {"IGPT_GIT_COMMIT": OTHER}})
    site.start("exporter", "--every=2")
    site.start_worker()
    find_forgotten(site)
    site.tell(f"upgrade: the databases are migrated, the services answer again; {ARRIVED} images have arrived")


def is_firing(site: Production, name: str) -> bool:
    """Whether an alert fires now."""
    return any(alert.name == name for alert in prometheus.firing(site))


def find_forgotten(site: Production) -> None:
    """A build names the node that runs another commit, and writes nothing; then the node is brought up to date."""
    dataset = refresh_config()["dataset"]
    fields = [f"{name}={value}" for name, value in dataset.items()]
    refused = site.run_beside("prefect-worker", ["igpt", "dataset", "build", *fields])
    address = site.hosts[FORGOTTEN].address
    lines = [line for line in refused.stderr.splitlines() if f"Ray's node {address} runs" in line]
    if (
        refused.returncode != 2
        or not lines
        or OTHER[:12] not in lines[0]
        or site.files("datasets/digits", "000002.json")
    ):
        raise RehearsalError(f"a node of another commit was not told: {refused.stdout}{refused.stderr}")
    site.tell(f"upgrade: refused, {lines[0].strip()[:110]}")
    site.stop(FORGOTTEN)
    site.start(FORGOTTEN)
    site.wait("that node again", lambda: set(NODES) <= site.nodes(), FORGOTTEN)


def clean(site: Production) -> None:
    """Remove what the finished trainings and probes do not need any more, at once instead of after days."""
    said = site.must_run("clean", ["igpt", "clean", "checkpoints=0", "features=0"])
    site.tell(f"cleaned: {' '.join(said.split())[:160]}")


def second_night(site: Production, unfinished: Mapping[str, Any]) -> None:
    """The refresh closes the lost run, finishes its training, and trains anew while Prefect's server is away."""
    run = fire(site, "weekly")
    # The server may have closed the lost run before, after five minutes without a heartbeat.
    began = datetime.fromisoformat(unfinished["expected_start_time"])
    prometheus.wait_for(site, "IgptRunFailed", began, deployment="weekly")
    message, *_ = site.wait("the notification", lambda: site.webhook.received, "prefect-server")
    site.tell(f"notified: {message['subject']}: {message['body'].splitlines()[0]}")
    build_beside_trainings(site)
    site.wait("the end of that training", lambda: site.files("runs/digits", "result.json") >= 1, "prefect-worker")
    site.tell("the training of the night before is finished")
    site.wait("the next training", lambda: site.files("runs/digits", "run.json") == 2, "prefect-worker")
    site.tell("the training on the new snapshot begins")
    away = datetime.now(UTC)
    site.stop("prefect-server")
    site.tell("Prefect's server is away")
    prometheus.wait_for(site, "IgptSourceDown", away, source="prefect")
    seen = newest_checkpoint(site)
    site.start("prefect-server")
    site.wait("Prefect", lambda: site.answers("prefect-server", ":4200/api/health"), "prefect-server")
    site.tell(f"Prefect's server is back; the training has come to checkpoint {seen} of {STEPS} meanwhile")
    complete(site, run)
    probes = site.wait("a probe of each new version", lambda: runs_of_two_versions(site), "prefect-worker")
    for probe in probes:
        site.tell(f"the registered version's event started: {probe['name']}")
        complete(site, probe)
    checks = check_dataset(site, {1: IMAGES, 2: IMAGES + ARRIVED, 3: IMAGES + ARRIVED + LATER})
    had = site.files("runs/digits", "checkpoints/*/index.json")
    clean(site)
    left = site.files("runs/digits", "checkpoints/*/index.json") + site.files("datasets/digits-features", "*")
    checks.append(("old checkpoints and features are removed", had > 0 and left == 0))
    checks.append(("the lost run was closed as Crashed", current(site, unfinished)["state_type"] == "CRASHED"))
    check_models(site, checks)


def build_beside_trainings(site: Production) -> None:
    """Images arrive after the refresh has built; the nightly build does not wait until its trainings are done."""
    second = site.s3.folder / "datasets/digits/snapshots/000002.json"
    site.wait("the snapshot of the refresh", second.exists, "prefect-worker")
    site.upload(digits(IMAGES + ARRIVED, IMAGES + ARRIVED + LATER))
    complete(site, fire(site, "nightly"))
    if (finished := site.files("runs/digits", "result.json")) > 1:
        raise RehearsalError(f"{finished} trainings were finished when the nightly build was")
    site.tell(f"the nightly build published {LATER} more images while the trainings went on")


def fire(site: Production, deployment: str) -> dict[str, Any]:
    """Schedule a deployment, and wait for the run that the schedule starts."""
    before = len(site.runs(deployment))
    site.deploy(deployment)
    run: dict[str, Any]
    *_, run = site.wait(
        "a run by the schedule", lambda: site.runs(deployment)[before:], "prefect-worker", "prefect-server"
    )
    site.tell(f"the schedule of {deployment} fired")
    return run


def lose_in_build(site: Production) -> None:
    """Lose a node between two shards; an alert fires, and it is back when the dataset is published."""
    shards = "datasets/digits/shards"
    lost = f"{site.hosts['ray-worker-2'].address}: shard"
    site.wait("ten shards", lambda: site.files(shards, "*.tar") >= 10, "prefect-worker")
    check_secrets(site)
    site.wait("a line of the node in the run's log", lambda: site.logged(lost), "prefect-worker", seconds=60)
    at = datetime.now(UTC)
    site.lose("ray-worker-2")
    made = site.files(shards, "*.tar")
    site.tell(f"Ray node lost in the build, after {made} shards")
    prometheus.wait_for(site, "IgptNodeLost", at, instance="ray-worker-2:8090")
    site.wait("a snapshot", (site.s3.folder / "datasets/digits/LATEST").exists, "prefect-worker")
    site.tell(f"the dataset is published, {site.files(shards, '*.tar')} shards")
    if made == site.files(shards, "*.tar"):
        raise RehearsalError("the node was lost when the build was done already")
    lines = site.logged(lost)
    site.tell(f"Prefect's log has {len(lines)} lines of the lost node, such as: {lines[-1]}")
    site.bring_back("ray-worker-2")
    site.tell("the node is back")


def check_secrets(site: Production) -> None:
    """Check that no process shows a secret, but for the two that SECURITY.md names. Raises RehearsalError."""
    shown = site.shown_secrets()
    known = {"MLFLOW_SECRET_KEY": r"mlflow: .*", "PREFECT_PASSWORD": r"prefect-worker: .*flows\.prefect_ops\.launcher"}
    unknown = sorted(whose for secret, whose in shown if not re.fullmatch(known.get(secret, ""), whose, re.DOTALL))
    if unknown or not shown:
        raise RehearsalError(f"processes show secrets: {unknown or 'not even the two that are known to'}")
    site.tell("no process shows a secret but MLflow's key of forms and Prefect's password in the launcher of runs")


def lose_in_training(site: Production) -> None:
    """Lose the other node after two checkpoints, until an alert fires."""
    site.wait("two checkpoints", lambda: site.files("runs/digits", "index.json") >= 2, "prefect-worker")
    site.tell(f"on Prefect's page: {'; '.join(site.progress())}")
    at = datetime.now(UTC)
    site.lose("ray-worker-1")
    site.tell(f"Ray node lost in the training, after checkpoint {newest_checkpoint(site)} of {STEPS}")
    prometheus.wait_for(site, "IgptNodeLost", at, instance="ray-worker-1:8090")


def complete(site: Production, run: Mapping[str, Any]) -> None:
    """Wait for the end of a run. Raises RehearsalError with the worker's log when it ends otherwise."""
    open_states = ("SCHEDULED", "PENDING", "RUNNING")
    site.wait("the run's end", lambda: current(site, run)["state_type"] not in open_states, "prefect-worker")
    ended = current(site, run)
    site.tell(f"run {ended['name']} is {ended['state_type']}")
    if ended["state_type"] != "COMPLETED":
        raise RehearsalError(site.log("prefect-worker").read_text()[-6000:])


def checkpoints(site: Production) -> dict[str, int]:
    """The step of the newest checkpoint of each training, by its folder."""
    newest: dict[str, int] = {}
    for path in site.paths("runs/digits", "checkpoints/*/index.json"):
        run = path.parents[2].name
        newest[run] = max(newest.get(run, 0), int(path.parent.name))
    return newest


def newest_checkpoint(site: Production) -> int:
    """The step of the newest checkpoint of the training that was begun last."""
    steps = checkpoints(site)
    folder = site.s3.folder / "runs/digits"
    unfinished = [step for run, step in steps.items() if not (folder / run / "result.json").exists()]
    return max(unfinished, default=STEPS if steps else 0)


def runs_of_two_versions(site: Production) -> list[dict[str, Any]]:
    """The probes of the two versions, once there are both."""
    runs = site.runs("candidate")
    return runs if len({run["parameters"]["model"] for run in runs}) == 2 else []


def current(site: Production, run: Mapping[str, Any]) -> dict[str, Any]:
    """A run as it is now; its name says what it makes once it has begun."""
    runs: list[dict[str, Any]] = site.prefect("flow_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    return runs[0]


def check_dataset(site: Production, images: Mapping[int, int]) -> Checks:
    """Check the published dataset: the number of images of each snapshot by its number."""
    snapshots = json.loads(site.igpt("dataset", "ls", "s3://datasets/digits", "--json"))
    counted = {snapshot["number"]: (snapshot["images"], snapshot["rejected"]) for snapshot in snapshots}
    return [
        (
            "every image is in a shard or in quarantine",
            counted == {number: (count, 1) for number, count in images.items()},
        ),
        (
            "the dataset's files are what its manifest says",
            bool(site.igpt("dataset", "verify", "s3://datasets/digits")),
        ),
    ]


def check_models(site: Production, checks: Checks) -> None:
    """Check the trainings and the registered versions too, and conclude. Raises RehearsalError."""
    runs = json.loads(site.igpt("runs", "ls", "s3://runs/digits", "--json"))
    restarts = sorted(run["restarts"] for run in runs)
    finished = [run["state"] for run in runs] == ["finished"] * 2
    checks.append((f"both trainings are finished, restarted {restarts} times", finished))
    checks.append(("one of them lost a worker and its driver, and continued", restarts[-1] >= 2))
    versions = json.loads(site.igpt("models", "ls", "digits", "--json"))
    aliases = {version["number"]: set(version["aliases"]) for version in versions}
    two = set(aliases) == {1, 2} and "candidate" in aliases[2]
    checks.append(("each training is a version, the newer one the candidate", two))
    checks.append(("one version is the champion", sum("champion" in names for names in aliases.values()) == 1))
    shown = [json.loads(site.igpt("models", "show", f"digits/{number}", "--json"))["tags"] for number in (1, 2)]
    lineage = {"igpt.snapshot", "igpt.run", "igpt.prefect_run", "igpt.mlflow_run"}
    checks.append(("their tags name their dataset, run and flow", all(lineage <= set(tags) for tags in shown)))
    trained_on = [tags["igpt.snapshot"] for tags in shown]
    checks.append(("version 1 was trained on snapshot 1, version 2 on 2", trained_on == ["1", "2"]))
    picture = site.hosts["prefect-worker"].folder / "samples.png"
    site.igpt("sample", "--model", "models:/digits@champion", "--count", "4", "--output", str(picture))
    checks.append(("the champion samples images", picture.exists()))
    states = [run["state_type"] for name in ("weekly", "candidate") for run in site.runs(name)]
    ended = sorted(states) == ["COMPLETED"] * 3 + ["CRASHED"]
    checks.append((f"no run is left open ({', '.join(states)})", ended))
    conclude(site, checks)


def conclude(site: Production, checks: Checks) -> None:
    """Print the checks. Raises RehearsalError when one failed."""
    for line, passed in checks:
        site.tell(f"{'ok  ' if passed else 'NOT '}{line}")
    if not all(passed for _, passed in checks):
        raise RehearsalError("a check failed")
