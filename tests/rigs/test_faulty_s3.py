"""The proxy that injects faults: without faults it changes nothing, and each kind of fault really happens."""

import http.client
import io
import os
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
import s3fs
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from flows.services.ports import free_port
from tests.rigs.faulty_s3 import FaultyS3
from tests.rigs.s3_faults import Fault, Faults, Injection
from tests.rigs.s3_server import S3Server, launch_here, serve

CONTENT = os.urandom(12_000_000)
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serve(tmp_path_factory.mktemp("s3") / "data", "127.0.0.1", free_port(), launch_here) as started:
        yield started


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultyS3]:
    with FaultyS3(server.url) as started:
        yield started


def client(server: S3Server, url: str) -> Any:
    """A boto3 client that does not retry."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(signature_version="s3v4", retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    )


@pytest.fixture
def s3(server: S3Server, proxy: FaultyS3) -> Any:
    return client(server, proxy.url)


class RawClient:
    """A plain HTTP client, which uses signed URLs over its own connections."""

    def __init__(self, s3: Any, proxy: FaultyS3) -> None:
        self.s3 = s3
        self.host = urlsplit(proxy.url).netloc

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, timeout=10)

    def target(self, method: str, key: str) -> str:
        """The signed path of an object, or of the bucket's listing when the key is empty."""
        operation = f"{method.lower()}_object" if key else "list_objects_v2"
        parameters = {"Bucket": "raw"} | ({"Key": key} if key else {})
        url = self.s3.generate_presigned_url(operation, Params=parameters)
        return str(urlsplit(url)._replace(scheme="", netloc="").geturl())

    def request(self, method: str, key: str, body: bytes | None = None) -> http.client.HTTPResponse:
        """Send one request on a new connection; the answer's body is not read yet."""
        connection = self.connection()
        connection.request(method, self.target(method, key), body=body)
        return connection.getresponse()


@contextmanager
def reset_by_peer() -> Iterator[None]:
    """Fail unless the connection is reset; for a closed one, http.client raises a subclass of the same error."""
    with pytest.raises(ConnectionResetError) as raised:
        yield
    assert raised.type is ConnectionResetError


@pytest.fixture
def raw(s3: Any, proxy: FaultyS3) -> RawClient:
    return RawClient(s3, proxy)


def test_boto3_works_through_it(s3: Any, server: S3Server) -> None:
    s3.put_object(Bucket="raw", Key="boto/one object, [with] +signs&.bin", Body=CONTENT[:100_001])
    parts = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
    s3.upload_fileobj(io.BytesIO(CONTENT), "raw", "boto/large.bin", Config=parts)
    s3.put_object(Bucket="raw", Key="boto/empty", Body=b"")
    assert server.bucket("raw").joinpath("boto/large.bin").read_bytes() == CONTENT
    assert s3.get_object(Bucket="raw", Key="boto/large.bin")["Body"].read() == CONTENT
    ranged = s3.get_object(Bucket="raw", Key="boto/large.bin", Range="bytes=11-70010")
    assert ranged["Body"].read() == CONTENT[11:70011]
    assert s3.get_object(Bucket="raw", Key="boto/empty")["Body"].read() == b""
    assert s3.head_object(Bucket="raw", Key="boto/large.bin")["ContentLength"] == len(CONTENT)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="raw", Prefix="boto/", PaginationConfig={"PageSize": 1})
    listed = [(entry["Key"], entry["Size"]) for page in pages for entry in page.get("Contents", [])]
    assert listed == [
        ("boto/empty", 0),
        ("boto/large.bin", len(CONTENT)),
        ("boto/one object, [with] +signs&.bin", 100_001),
    ]
    keys = [{"Key": key} for key, _ in listed]
    s3.delete_object(Bucket="raw", Key="boto/empty")
    s3.delete_objects(Bucket="raw", Delete={"Objects": keys})
    with pytest.raises(ClientError, match="NoSuchKey"):
        s3.get_object(Bucket="raw", Key="boto/large.bin")


def test_s3fs_works_through_it(proxy: FaultyS3, server: S3Server) -> None:
    fs = s3fs.S3FileSystem(
        key=server.access_key,
        secret=server.secret_key,
        endpoint_url=proxy.url,
        use_listings_cache=False,
        skip_instance_cache=True,
        # The server sends the checksum of the whole object with a range.
        config_kwargs={"response_checksum_validation": "when_required"},
    )
    contents = {f"raw/fs/{number}.bin": CONTENT[number * 1000 : number * 3000] for number in range(40)}
    fs.pipe(contents)
    assert fs.cat(list(contents)) == contents
    assert fs.find("raw/fs") == sorted(contents)
    ranges = fs.cat_ranges(["raw/fs/30.bin"] * 3, [0, 100, 59_000], [10, 20_000, 60_000])
    assert ranges == [contents["raw/fs/30.bin"][start:end] for start, end in ((0, 10), (100, 20_000), (59_000, 60_000))]
    with fs.open("raw/fs/large.bin", "wb", block_size=5 * MIB) as stream:
        stream.write(CONTENT)
    with fs.open("raw/fs/large.bin", "rb", block_size=MIB) as stream:
        assert stream.read() == CONTENT
    fs.rm("raw/fs", recursive=True)
    assert fs.find("raw/fs") == []
    assert proxy.requests["127.0.0.1", "PUT"] >= 40


def test_a_wrong_key_is_still_refused(server: S3Server, proxy: FaultyS3) -> None:
    stranger = replace(server, secret_key="wrong")
    with pytest.raises(ClientError, match=r"Forbidden|SignatureDoesNotMatch|403"):
        client(stranger, proxy.url).list_objects_v2(Bucket="raw")


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [(Fault.INTERNAL_ERROR, 500, b"InternalError"), (Fault.SLOW_DOWN, 503, b"SlowDown")],
)
def test_an_error_is_answered_and_the_server_sees_nothing(
    proxy: FaultyS3, raw: RawClient, server: S3Server, fault: Fault, status: int, code: bytes
) -> None:
    connection = raw.connection()
    with proxy.inject(Faults(share=1, kinds=(fault,))) as injection:
        for method, body in (("PUT", CONTENT[:300_000]), ("GET", None), ("HEAD", None), ("DELETE", None)):
            connection.request(method, raw.target(method, f"refused-{fault}"), body=body)
            answer = connection.getresponse()
            assert answer.status == status
            assert (b"<Code>" + code + b"</Code>" in answer.read()) == (method != "HEAD")
    assert injection.counts == {fault: 4}
    assert not (server.bucket("raw") / f"refused-{fault}").exists()
    connection.request("GET", raw.target("GET", f"refused-{fault}"))  # on the same connection, without faults
    assert connection.getresponse().status == 404


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
def test_a_reset_reaches_the_client_and_not_the_server(
    proxy: FaultyS3, raw: RawClient, server: S3Server, method: str
) -> None:
    kept, new = server.bucket("raw") / "kept", server.bucket("raw") / "reset"
    kept.write_bytes(b"kept")
    key = "reset" if method == "PUT" else "kept"
    with proxy.inject(Faults(share=1, kinds=(Fault.RESET,))) as injection, reset_by_peer():
        raw.request(method, key, b"new" if method == "PUT" else None)
    assert injection.counts == {Fault.RESET: 1}
    assert kept.exists() and not new.exists()


@pytest.mark.parametrize("size", [1, 1000, 300_000])
def test_a_truncated_body_is_shorter_than_announced(proxy: FaultyS3, raw: RawClient, size: int) -> None:
    assert raw.request("PUT", "whole", CONTENT[:size]).status == 200
    with proxy.inject(Faults(share=1, kinds=(Fault.TRUNCATE,))) as injection:
        answer = raw.request("GET", "whole")
        assert (answer.status, answer.length) == (200, size)
        with pytest.raises(http.client.IncompleteRead) as raised:
            answer.read()
    assert injection.counts == {Fault.TRUNCATE: 1}
    assert len(raised.value.partial) < size
    assert CONTENT.startswith(raised.value.partial)


def test_a_listing_is_truncated_and_an_empty_object_reset(proxy: FaultyS3, raw: RawClient) -> None:
    raw.request("PUT", "empty", b"")
    with proxy.inject(Faults(share=1, kinds=(Fault.TRUNCATE,))) as injection:
        with pytest.raises(http.client.IncompleteRead):
            raw.request("GET", "").read()
        with reset_by_peer():
            raw.request("GET", "empty")
    assert injection.counts == {Fault.TRUNCATE: 1, Fault.RESET: 1}


def test_a_stall_holds_the_request_and_ends_without_an_answer(proxy: FaultyS3, raw: RawClient) -> None:
    raw.request("PUT", "slow", b"slow")
    with proxy.inject(Faults(share=1, kinds=(Fault.STALL,), stall_seconds=0.5, max_stalls=1)) as injection:
        since = time.monotonic()
        with pytest.raises(http.client.RemoteDisconnected):
            raw.request("GET", "slow")
        assert 0.4 < time.monotonic() - since < 20
        assert raw.request("GET", "slow").read() == b"slow"  # max_stalls is reached
    assert injection.counts == {Fault.STALL: 1}


def test_a_lost_answer_belongs_to_an_executed_request(proxy: FaultyS3, raw: RawClient, server: S3Server) -> None:
    written = server.bucket("raw") / "lost"
    with proxy.inject(Faults(share=1, kinds=(Fault.LOST_ANSWER,))) as injection:
        with reset_by_peer():
            raw.request("PUT", "lost", CONTENT[:200_000])
        assert written.read_bytes() == CONTENT[:200_000]
        assert raw.request("GET", "lost").read() == CONTENT[:200_000]  # does not apply to reads
        with reset_by_peer():
            raw.request("DELETE", "lost")
        assert not written.exists()
    assert injection.counts == {Fault.LOST_ANSWER: 2}


def test_an_answer_is_lost_to_a_client_that_waits_before_it_sends(proxy: FaultyS3, s3: Any, server: S3Server) -> None:
    # boto3 sends "Expect: 100-continue"
    with proxy.inject(Faults(share=1, kinds=(Fault.LOST_ANSWER,))), pytest.raises(Exception, match="onnection"):
        s3.put_object(Bucket="raw", Key="lost-too", Body=CONTENT[:200_000])
    assert (server.bucket("raw") / "lost-too").read_bytes() == CONTENT[:200_000]


def test_a_client_that_tries_again_gets_everything_through(proxy: FaultyS3, raw: RawClient, server: S3Server) -> None:
    contents = {f"patient/{number}": CONTENT[number : number + 5000] for number in range(30)}
    tries = 0

    def insist(method: str, key: str, body: bytes | None = None) -> bytes:
        nonlocal tries
        while True:
            tries += 1
            with suppress(OSError, http.client.HTTPException):
                answer = raw.request(method, key, body)
                data = answer.read()
                if answer.status == 200:
                    return data

    with proxy.inject(Faults(share=1 / 3, stall_seconds=0.1, max_stalls=2)) as injection:
        for key, content in contents.items():
            insist("PUT", key, content)
        assert {key: insist("GET", key) for key in contents} == contents
    assert {key: (server.bucket("raw") / key).read_bytes() for key in contents} == contents
    assert tries == 60 + injection.counts.total()
    assert set(injection.counts) == set(Fault)
    assert 0.2 < injection.counts.total() / tries < 0.5


def test_only_the_given_prefix_and_methods_are_hit(proxy: FaultyS3, raw: RawClient) -> None:
    for key in ("here/a", "there/a"):
        raw.request("PUT", key, b"a")
    with proxy.inject(Faults(share=1, kinds=(Fault.SLOW_DOWN,), prefix="/raw/here/", methods=frozenset({"GET"}))):
        assert [raw.request(method, "here/a").status for method in ("GET", "HEAD")] == [503, 200]
        assert [raw.request(method, "there/a").status for method in ("GET", "HEAD")] == [200, 200]


def test_a_stopped_proxy_refuses_connections_until_its_time_is_over(proxy: FaultyS3, raw: RawClient) -> None:
    raw.request("PUT", "outage", b"there")
    open_connection = raw.connection()
    open_connection.request("GET", raw.target("GET", "outage"))
    assert open_connection.getresponse().read() == b"there"
    since = time.monotonic()
    proxy.stop_for(2)
    with reset_by_peer():
        open_connection.request("GET", raw.target("GET", "outage"))
        open_connection.getresponse()
    with pytest.raises(ConnectionRefusedError):
        raw.request("GET", "outage")
    while True:
        try:
            assert raw.request("GET", "outage").read() == b"there"
            break
        except ConnectionRefusedError:
            assert time.monotonic() - since < 30
    assert time.monotonic() - since > 1.9


def test_an_outage_that_was_ended_early_does_not_end_the_next_one(proxy: FaultyS3, raw: RawClient) -> None:
    proxy.stop_for(0.2)
    proxy.resume()
    assert raw.request("PUT", "between", b"there").status == 200
    proxy.stop()
    time.sleep(0.4)
    with pytest.raises(ConnectionRefusedError):
        raw.request("GET", "between")
    proxy.resume()
    assert raw.request("GET", "between").read() == b"there"


def test_bodies_are_not_held_in_memory(proxy: FaultyS3, raw: RawClient) -> None:
    size = 40 * MIB

    def zeros() -> Iterator[bytes]:
        for _ in range(size // MIB):
            yield bytes(MIB)

    connection = raw.connection()
    tracemalloc.start()
    try:
        connection.request("PUT", raw.target("PUT", "zeros"), body=zeros(), headers={"Content-Length": str(size)})
        assert connection.getresponse().status == 200
        answer = raw.request("GET", "zeros")
        read = 0
        while piece := answer.read(MIB):
            read += len(piece)
        assert read == size
        assert tracemalloc.get_traced_memory()[1] < 10 * MIB
    finally:
        tracemalloc.stop()


METHODS = st.lists(st.sampled_from(["GET", "PUT", "HEAD", "POST", "DELETE"]), max_size=60)


@given(methods=METHODS, share=st.floats(0, 1), seed=st.integers(0, 9), kinds=st.sets(st.sampled_from(Fault)))
def test_faults_are_reproducible_possible_and_bounded(
    methods: list[str], share: float, seed: int, kinds: set[Fault]
) -> None:
    faults = Faults(share=share, seed=seed, kinds=tuple(sorted(kinds)), max_stalls=2)
    one, other = Injection(faults), Injection(faults)
    dealt = [one.deal(method, "/raw/a") for method in methods]
    assert dealt == [other.deal(method, "/raw/a") for method in methods]
    assert set(dealt) <= {*kinds, None}
    assert dealt.count(Fault.STALL) <= 2
    for method, fault in zip(methods, dealt, strict=True):
        assert fault is None or fault.applies_to(method)


@pytest.mark.parametrize("share", [0.0, 1 / 3, 1.0])
def test_the_share_is_kept_and_all_kinds_are_equally_frequent(share: float) -> None:
    injection = Injection(Faults(share=share, max_stalls=10**9))
    dealt = Counter(injection.deal(method, "/") for method in ["GET", "PUT"] * 3000)
    hit = 6000 - dealt.pop(None, 0)
    assert abs(hit / 6000 - share) < 0.02
    assert not hit or max(dealt.values()) - min(dealt.values()) < 0.02 * hit
    assert not hit or set(dealt) == set(Fault)


def test_a_burst_ends() -> None:
    injection = Injection(Faults(share=1, max_faults=3, methods=frozenset({"GET"})))
    dealt = [injection.deal(method, "/") for method in ("PUT", "GET") * 5]
    assert [fault is not None for fault in dealt] == [False, True] * 3 + [False] * 4


def test_another_seed_hits_other_requests() -> None:
    patterns = set()
    for seed in range(5):
        injection = Injection(Faults(share=0.5, seed=seed))
        patterns.add(tuple(injection.deal("GET", "/") for _ in range(100)))
    assert len(patterns) == 5
