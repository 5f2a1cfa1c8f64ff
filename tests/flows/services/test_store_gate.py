"""The local object store lets each key do what its role may, and rclone behind it cannot be reached another way."""

import http.client
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import boto3
import psutil
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from flows.services.ports import HOST, free_port
from flows.services.store_rights import ROLES
from tests.flows.services.test_store_rights import MAY_DELETE, MAY_READ, MAY_WRITE, PLACES
from tests.rigs.s3_server import S3Server, launch_here, serve

BYTES = 3_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("store") / "data"
    with serve(folder, HOST, free_port(), launch_here) as running:
        for place in PLACES.values():
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"as it was")
        yield running


def client(server: S3Server, role: str | None = None, **changed: str) -> Any:
    variables = {**server.environment(role=role), **changed}
    return boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, request_checksum_calculation="when_required"),
    )


def refused(call: Any, **arguments: Any) -> str | None:
    """The code with which a request is refused, or None."""
    try:
        call(**arguments)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return None


def addressed(place: str) -> dict[str, str]:
    bucket, _, key = place.partition("/")
    return {"Bucket": bucket, "Key": key}


@pytest.mark.parametrize("role", ROLES)
def test_a_key_does_what_its_role_may_and_no_more(server: S3Server, role: str) -> None:
    """In one connection: a refused request, also one with a body, leaves it in order."""
    s3, owner = client(server, role), client(server)
    for name, place in PLACES.items():
        where = addressed(place)
        assert refused(s3.get_object, **where) == (None if name in MAY_READ[role] else "AccessDenied")
        before = (server.folder / place).read_bytes()
        expected = None if name in MAY_WRITE[role] else "AccessDenied"
        assert refused(s3.put_object, **where, Body=b"x" * BYTES) == expected
        assert ((server.folder / place).read_bytes() == before) == (expected is not None)
        expected = None if name in MAY_DELETE[role] else "AccessDenied"
        objects = {"Objects": [{"Key": where["Key"]}]}
        assert refused(s3.delete_objects, Bucket=where["Bucket"], Delete=objects) == expected
        assert (server.folder / place).exists() == (expected is not None)
        owner.put_object(**where, Body=b"as it was")
        listed = refused(s3.list_objects_v2, Bucket=where["Bucket"])
        assert listed == (None if where["Bucket"] in ROLES[role].read else "AccessDenied")
    assert {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]} == {"raw", "datasets", "runs", "mlflow"}


def test_the_user_of_the_machine_may_do_everything(server: S3Server) -> None:
    s3 = client(server)
    for place in PLACES.values():
        s3.put_object(**addressed(place), Body=b"as it was")
        assert s3.get_object(**addressed(place))["Body"].read() == b"as it was"


def test_nobody_uses_the_name_of_another_key(server: S3Server) -> None:
    stolen = client(server, "build", AWS_ACCESS_KEY_ID=server.pairs["register"].access_key)
    assert refused(stolen.put_object, **addressed(PLACES["a model"]), Body=b"x") == "SignatureDoesNotMatch"
    made_up = client(server, "build", AWS_ACCESS_KEY_ID="owner-1")
    assert refused(made_up.list_buckets) == "InvalidAccessKeyId"
    signed = client(server, "driver").generate_presigned_url("get_object", Params=addressed(PLACES["a model"]))
    with pytest.raises(HTTPError, match="403"):
        urlopen(signed)


def test_names_that_lead_elsewhere_are_refused(server: S3Server) -> None:
    s3 = client(server, "build")
    model = f"../{PLACES['a model']}"
    before = (server.folder / PLACES["a model"]).read_bytes()
    assert refused(s3.put_object, Bucket="datasets", Key=model, Body=b"x") == "AccessDenied"
    assert refused(s3.delete_objects, Bucket="datasets", Delete={"Objects": [{"Key": model}]}) == "AccessDenied"
    copied = {"Bucket": "datasets", "Key": "x", "CopySource": f"datasets/{model}"}
    assert refused(s3.copy_object, **copied) == "AccessDenied"
    assert (server.folder / PLACES["a model"]).read_bytes() == before


@pytest.mark.parametrize(
    "head",
    [
        "GET http://x/raw/x HTTP/1.1\r\nHost: x",
        "PUT /raw/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked",
        "PUT /raw/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2",
        "PUT /raw/x HTTP/1.1\r\nHost: x\r\nContent-Length: +1",
        "GET /raw/x HTTP/1.1\r\nHost: x\r\nAuthorization: a\r\nAuthorization: b",
        "GET /raw/x HTTP/1.1\r\nHost: x\r\nX: a\r\n continued",
        "GET /raw/x HTTP/1.1\r\nHost: x\r\nX: a\nAuthorization: b",
        "GET /raw/x HTTP/1.1\r\nHost: x\r\nContent-Length : 1",
        "GET /raw/x y HTTP/1.1\r\nHost: x",
    ],
)
def test_a_request_that_can_be_read_in_two_ways_is_refused(server: S3Server, head: str) -> None:
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == http.HTTPStatus.BAD_REQUEST
        assert answer.will_close, "so that no client sends its next request into the end of the connection"


def test_a_body_that_is_refused_before_it_is_sent_ends_the_connection_and_says_so(server: S3Server) -> None:
    host, _, port = server.url.removeprefix("http://").partition(":")
    named = f"AWS4-HMAC-SHA256 Credential={server.pairs['mlflow'].access_key}/20261127/us-east-1/s3/aws4_request"
    head = f"PUT /raw/x HTTP/1.1\r\nHost: x\r\nAuthorization: {named}\r\nContent-Length: 9\r\nExpect: 100-continue"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == http.HTTPStatus.FORBIDDEN and answer.will_close


def signed(server: S3Server, method: str, place: str, body: bytes = b"", **headers: str) -> bytes:
    """A whole request, as it is sent."""
    request = AWSRequest(method=method, url=f"{server.url}/{place}", data=body, headers=headers)
    pair = server.pairs["build"]
    S3SigV4Auth(Credentials(pair.access_key, pair.secret_key), "s3", "us-east-1").add_auth(request)
    lines = [f"{method} /{place} HTTP/1.1", f"Host: {server.url.removeprefix('http://')}"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


@pytest.mark.parametrize("piece_bytes", [1, 100, 10**6])
def test_requests_are_the_same_however_their_bytes_arrive(server: S3Server, piece_bytes: int) -> None:
    place, body = PLACES["a shard"], b"\r\n\r\nPUT /" + bytes([piece_bytes % 251])
    sent = signed(server, "PUT", place, body)
    refused_one = signed(server, "PUT", PLACES["a model"], body)
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for request, status in ((sent, 200), (refused_one, 403), (signed(server, "GET", place), 200)):
            for begin in range(0, len(request), piece_bytes):
                connection.sendall(request[begin : begin + piece_bytes])
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            content = answer.read()
            assert (answer.status, answer.will_close) == (status, False), content
    assert content == body
    # All at once: each is passed on whole, and answered in turn.
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(sent + signed(server, "HEAD", place) + signed(server, "GET", place, Connection="close"))
        with connection.makefile("rb") as answers:
            got = answers.read()
    assert got.count(b"HTTP/1.1 200 OK") == 3 and got.endswith(b"\r\n\r\n" + body)


def test_a_client_that_does_not_read_is_waited_for(server: S3Server) -> None:
    """And what it is sent does not gather in the gate."""
    content = bytes(100_000_000)
    client(server).put_object(Bucket="raw", Key="large", Body=content)
    host, _, port = server.url.removeprefix("http://").partition(":")
    (gate,) = {
        process for process in psutil.Process().children(recursive=True)
        if any(link.laddr.port == int(port) for link in process.net_connections("tcp"))
    }  # fmt: skip
    before = gate.memory_info().rss
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(signed(server, "GET", "raw/large"))
        time.sleep(1)
        assert gate.memory_info().rss - before < 20_000_000
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.read() == content


def test_rclone_listens_on_no_port_and_ends_with_the_gate(tmp_path: Path) -> None:
    started = []

    def launch(*arguments: Any) -> Any:
        started.append(launch_here(*arguments))
        return started[0]

    with serve(tmp_path / "data", HOST, free_port(), launch) as server:
        (rclone,) = psutil.Process(started[0].pid).children()
        assert rclone.name() == "rclone"
        assert not [c for c in rclone.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        (listening,) = [c for c in psutil.Process(started[0].pid).net_connections("tcp") if c.status == "LISTEN"]
        assert listening.laddr.port == int(server.url.rpartition(":")[2])
        words = " ".join([*started[0].args, *rclone.cmdline()])
        assert not [pair for pair in server.pairs.values() if pair.secret_key in words]
        started[0].kill()
        rclone.wait(timeout=10)
