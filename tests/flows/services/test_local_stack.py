"""The local services: start, reuse, failure, restart and end.

One stack serves the module, and its tests depend on their order.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import psutil
import pytest
from botocore.client import BaseClient
from mlflow import MlflowClient

from flows.services import local_stack
from flows.services.local_stack import ServiceStatus, Stack
from flows.services.store_keys import derive
from igpt_model.registry.signatures import public_key_of, read_keys
from pipeline.errors import IgptError

pytestmark = pytest.mark.services

ALL = {"s3", "prefect", "mlflow", "ray"}
ROOT = Path(__file__).parents[3]
# A user's program, configured by the environment alone. Its detached actor and the actor's child keep running.
DRIVER = """
import os, subprocess, ray
ray.init(log_to_driver=False, logging_level="ERROR")

@ray.remote(num_cpus=0)
class Keeper:
    def keep(self):
        import s3fs
        store = s3fs.S3FileSystem()
        try:
            store.pipe("s3://datasets/kept", b"written over")
        except PermissionError:
            return os.getpid(), subprocess.Popen(["sleep", "600"]).pid, store.cat("s3://datasets/kept").decode()

print(*ray.get(Keeper.options(name="keeper", lifetime="detached").remote().keep.remote()))
"""
AS_NOBODY = """
import os, socket, sys
paths = sys.stdin.read().split("\\0")
os.setgroups([]), os.setgid(65534), os.setuid(65534)
print(len(paths))
def tries(path):
    yield lambda: os.listdir(path)
    yield lambda: open(path, "rb").close()
    yield lambda: open(path, "ab").close()
    yield lambda: open(path + "/x", "xb").close()
    yield lambda: socket.socket(socket.AF_UNIX).connect(path)
for path in paths:
    for number, attempt in enumerate(tries(path)):
        try:
            attempt()
            print(number, path)
        except OSError:
            pass
"""
STRANGER = "import os, ray; ray.init(os.environ['RAY_ADDRESS'], log_to_driver=False); print('got in')"
UP = "import sys; from pathlib import Path; from flows.services import local_stack; local_stack.up(Path(sys.argv[1]))"


@contextmanager
def folder_for_services() -> Iterator[Path]:
    # With characters that break a URL or an unquoted command line.
    folder = Path(tempfile.mkdtemp(prefix="igpt 'stack?#"))
    yield folder
    local_stack.down(folder)
    shutil.rmtree(folder)


@pytest.fixture
def other_home() -> Iterator[Path]:
    with folder_for_services() as folder:
        yield folder


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with folder_for_services() as folder:
        yield folder


@pytest.fixture(scope="module")
def stack(home: Path) -> Stack:
    started = local_stack.up(home)
    for bucket in ("raw", "datasets"):
        s3(started).put_object(Bucket=bucket, Key="kept", Body=b"kept")
    MlflowClient(started.mlflow_url).create_experiment("kept")
    return started


@pytest.fixture(scope="module")
def stranger(stack: Stack) -> subprocess.Popen:
    """A Ray driver without the token. Ray refuses it only after a while, so it runs beside the other tests."""
    environment = {**os.environ, **stack.environment()}
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        del environment[name]
    return subprocess.Popen([sys.executable, "-c", STRANGER], env=environment, stdout=-1, stderr=-2, text=True)


def s3(stack: Stack) -> BaseClient:
    return boto3.client(
        "s3",
        endpoint_url=stack.s3_url,
        aws_access_key_id=stack.s3_access_key,
        aws_secret_access_key=stack.s3_secret_key,
        region_name="us-east-1",
    )


def read(stack: Stack, key: str) -> bytes:
    return s3(stack).get_object(Bucket="raw", Key=key)["Body"].read()


def listed(stack: Stack) -> dict[str, str]:
    return {item["Key"]: item["ETag"] for item in s3(stack).list_objects_v2(Bucket="raw").get("Contents", [])}


def statuses(home: Path) -> dict[str, ServiceStatus]:
    return {service.name: service for service in local_stack.status(home)}


def answering(home: Path) -> set[str]:
    return {service.name for service in local_stack.status(home) if service.answers}


def kill(home: Path, name: str) -> set[psutil.Process]:
    """Kill the main process of a service, and return its descendants."""
    process = psutil.Process(statuses(home)[name].pid)
    children = set(process.children(recursive=True))
    process.kill()
    process.wait(10)
    return children


def process_tree(home: Path) -> set[psutil.Process]:
    roots = [psutil.Process(pid) for pid in local_stack.process_ids(home)]
    return {process for root in roots for process in (root, *root.children(recursive=True))}


def processes_of(home: Path) -> set[psutil.Process]:
    """The processes that have the home in their environment or command line."""
    processes = set()
    for process in psutil.process_iter():
        try:
            text = " ".join([*process.cmdline(), *process.environ().values()])
        except psutil.Error:
            continue
        if str(home) in text and process.pid != os.getpid():
            processes.add(process)
    return processes


def alive(processes: set[psutil.Process]) -> set[psutil.Process]:
    return {process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE}


def listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


def record(home: Path) -> dict:
    return json.loads((home / "services.json").read_text())


def test_a_folder_without_services_has_no_status(tmp_path: Path) -> None:
    assert local_stack.load(tmp_path) is None
    assert local_stack.status(tmp_path) == []
    assert local_stack.process_ids(tmp_path) == []
    local_stack.down(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def start_elsewhere(home: Path) -> subprocess.Popen:
    """An `up` in another process, which has started all services and waits for them."""
    process = subprocess.Popen([sys.executable, "-c", UP, str(home)], cwd=ROOT, stderr=subprocess.PIPE)
    while not (home / "services.json").exists() or set(record(home)["processes"]) != ALL:
        assert process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.faults
def test_an_interrupted_start_leaves_nothing_behind(other_home: Path) -> None:
    process = start_elsewhere(other_home)
    process.send_signal(signal.SIGSTOP)  # on a busy machine, `up` could finish while the processes are listed
    started = process_tree(other_home)
    assert len(started) >= 4
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    assert b"KeyboardInterrupt" in process.communicate(timeout=60)[1]
    assert not alive(started | processes_of(other_home))
    assert local_stack.load(other_home) is None


@pytest.mark.faults
def test_a_failed_start_is_explained_in_one_line_and_leaves_nothing_behind(other_home: Path) -> None:
    (other_home / "mlflow").mkdir()
    (other_home / "mlflow" / "mlflow.db").write_bytes(b"no database " * 1000)
    with pytest.raises(IgptError) as failure:
        local_stack.up(other_home)
    message = str(failure.value)
    assert message.startswith("mlflow ended while it started")
    assert "file is not a database" in message
    assert str(other_home / "logs" / "mlflow.log") in message
    assert "\n" not in message
    assert not alive(processes_of(other_home))
    assert local_stack.load(other_home) is None


@pytest.mark.faults
def test_a_damaged_record_is_reported_and_down_ends_its_services(other_home: Path) -> None:
    process = start_elsewhere(other_home)
    process.kill()
    process.communicate()
    started = process_tree(other_home)
    (other_home / "services.json").write_text('{"ports": {')
    for call in (local_stack.up, local_stack.load, local_stack.status):
        with pytest.raises(IgptError, match=r"services\.json is damaged; `igpt down`"):
            call(other_home)
    assert alive(started)
    local_stack.down(other_home)
    assert not alive(started | processes_of(other_home))
    assert local_stack.load(other_home) is None


def test_up_starts_everything_a_program_needs(home: Path, stack: Stack, stranger: subprocess.Popen) -> None:
    assert answering(home) == ALL
    assert local_stack.load(home) == stack
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER],
        env={**os.environ, **stack.environment()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert driver.returncode == 0, driver.stderr
    worker, child, content = driver.stdout.splitlines()[-1].split()
    assert content == "kept"
    assert {int(worker), int(child)} <= {process.pid for process in process_tree(home)}


def test_up_again_keeps_running_services(home: Path, stack: Stack) -> None:
    before = local_stack.process_ids(home)
    lines: list[str] = []
    assert local_stack.up(home, say=lines.append) == stack
    assert local_stack.process_ids(home) == before
    assert lines == []


def test_credentials_stay_private(home: Path, stack: Stack) -> None:
    assert (home / "services.json").stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    pairs = derive(stack.administrator).values()
    of_files = (stack.ray_token_path.read_text(), stack.signing_key.read_text())
    hidden = (stack.s3_secret_key, *of_files, *(pair.secret_key for pair in pairs))
    for path in (stack.signing_key, stack.trusted_keys):
        assert path.stat().st_mode & 0o777 == 0o600
    for path in (stack.ray_token_path, *stack.keys_folder.iterdir()):
        assert path.stat().st_mode & 0o777 == 0o400
    assert not any(secret in repr(stack) for secret in hidden)
    command_lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in command_lines for secret in hidden if secret in line]


def test_a_new_signing_key_is_trusted_beside_the_former(home: Path, stack: Stack) -> None:
    private, before = stack.signing_key.read_text(), read_keys(stack.trusted_keys.read_text())
    assert set(before.keys.values()) == {public_key_of(bytes.fromhex(private))}
    stack.signing_key.unlink()
    local_stack.up(home)
    after = read_keys(stack.trusted_keys.read_text())
    assert stack.signing_key.read_text() != private
    assert set(after.keys.values()) - set(before.keys.values()) == {
        public_key_of(bytes.fromhex(stack.signing_key.read_text()))
    }
    assert before.keys.items() < after.keys.items()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_another_user_of_the_machine_reads_and_reaches_none_of_their_files(home: Path, stack: Stack) -> None:
    ray_folder = Path(record(home)["ray_folder"])
    made = [path for root in (home, ray_folder) for path in (root, *root.rglob("*"))]
    sockets = [path for path in made if path.is_socket()]
    assert len(made) > 50 and sockets
    # As `nobody`, whose groups are gone too; in a child, because nobody comes back.
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY],
        input="\0".join(map(str, made)),
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    tried, *reached = done.stdout.splitlines()
    assert int(tried) == len(made) and reached == []


def test_services_listen_on_loopback_only(home: Path, stack: Stack) -> None:
    connections = [connection for process in process_tree(home) for connection in process.net_connections()]
    listening = [connection for connection in connections if connection.status == psutil.CONN_LISTEN]
    assert {connection.laddr.ip.removeprefix("::ffff:") for connection in listening} == {"127.0.0.1"}


def test_a_written_object_is_visible_at_once(home: Path, stack: Stack) -> None:
    s3(stack).list_objects_v2(Bucket="raw")
    etags = set()
    for body in (b"one", b"two", b"longer"):
        s3(stack).put_object(Bucket="raw", Key="changing", Body=body)
        assert read(stack, "changing") == body
        etags.add(listed(stack)["changing"])
    assert len(etags) == 3
    s3(stack).delete_object(Bucket="raw", Key="changing")
    assert "changing" not in listed(stack)

    (home / "s3" / "raw" / "by hand").write_bytes(b"by hand")
    while "by hand" not in listed(stack):
        time.sleep(0.1)
    assert read(stack, "by hand") == b"by hand"


def test_status_reports_refused_keys(home: Path, stack: Stack) -> None:
    kept = (home / "services.json").read_bytes()
    (home / "services.json").write_text(json.dumps({**record(home), "s3_secret_key": "another"}))
    wrong = statuses(home)["s3"]
    (home / "services.json").write_bytes(kept)
    assert not wrong.answers
    assert "refuses the recorded keys" in wrong.detail


@pytest.mark.faults
@pytest.mark.sample
def test_a_killed_service_is_noticed_and_started_again_once(home: Path, stack: Stack) -> None:
    before = statuses(home)
    orphans = kill(home, "ray")
    assert len(orphans) > 6
    kill(home, "s3")
    assert answering(home) == {"prefect", "mlflow"}
    assert "has ended" in statuses(home)["ray"].detail
    results: list[Stack] = []
    lines: list[str] = []
    ups = [threading.Thread(target=lambda: results.append(local_stack.up(home, say=lines.append))) for _ in range(2)]
    for thread in ups:
        thread.start()
    for thread in ups:
        thread.join()
    assert results == [stack, stack]
    assert sum(line.startswith("waiting for another igpt") for line in lines) == 1
    assert answering(home) == ALL
    kept = {name for name, service in statuses(home).items() if service.pid == before[name].pid}
    assert kept == {"prefect", "mlflow"}
    assert len([process for process in processes_of(home) if "rclone" in process.name()]) == 1
    assert not alive(orphans)
    assert read(stack, "kept") == b"kept"


@pytest.mark.faults
def test_a_service_whose_port_is_taken_moves_and_its_dependents_restart(home: Path, stack: Stack) -> None:
    old = process_tree(home)
    prefect = statuses(home)["prefect"].pid
    kill(home, "s3")
    kill(home, "mlflow")
    with listen(int(stack.s3_url.rpartition(":")[2])) as foreign:
        assert "another program has its port" in statuses(home)["s3"].detail
        lines: list[str] = []
        moved = local_stack.up(home, say=lines.append)
        assert moved.s3_url != stack.s3_url
        assert moved.mlflow_url == stack.mlflow_url
        (line,) = [line for line in lines if line.startswith("s3: another program has port")]
        assert line.endswith(moved.s3_url.rpartition(":")[2])
        with socket.create_connection(foreign.getsockname()):
            foreign.accept()[0].close()
    assert answering(home) == ALL
    assert {process.pid for process in alive(old)} == {prefect}, "old processes of restarted services still run"
    assert read(moved, "kept") == b"kept"
    assert MlflowClient(moved.mlflow_url).get_experiment_by_name("kept") is not None
    for name in ("mlflow", "ray"):
        assert psutil.Process(statuses(home)[name].pid).environ()["AWS_ENDPOINT_URL"] == moved.s3_url


def test_ray_refuses_a_driver_without_the_token(stranger: subprocess.Popen) -> None:
    out, _ = stranger.communicate(timeout=120)
    assert stranger.returncode != 0
    assert "got in" not in out
    assert "Unauthenticated" in out or "AuthenticationError" in out


def test_down_ends_everything_and_keeps_what_up_needs(home: Path, stack: Stack) -> None:
    running = process_tree(home) | processes_of(home)
    assert len(running) > 8
    kept = record(home)
    local_stack.down(home)
    assert not alive(running | processes_of(home))
    assert not Path(kept["ray_folder"]).exists()
    assert local_stack.process_ids(home) == []
    assert local_stack.load(home) is None
    assert answering(home) == set()
    assert {**kept, "processes": {}} == record(home)
    local_stack.down(home)
    assert {**kept, "processes": {}} == record(home)


def test_an_unrelated_process_with_a_recorded_id_is_not_ended(home: Path, stack: Stack) -> None:
    kept = (home / "services.json").read_bytes()
    with subprocess.Popen(["sleep", "600"]) as unrelated:
        stale = {"pid": unrelated.pid, "started": psutil.Process(unrelated.pid).create_time() - 3600}
        (home / "services.json").write_text(json.dumps({**record(home), "processes": dict.fromkeys(ALL, stale)}))
        assert local_stack.process_ids(home) == []
        assert answering(home) == set()
        local_stack.down(home)
        assert unrelated.poll() is None
        unrelated.kill()
    assert (home / "services.json").read_bytes() == kept
