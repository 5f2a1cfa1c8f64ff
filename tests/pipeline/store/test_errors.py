"""Transient errors of a store are retried for a while, others are not."""

import errno
from collections.abc import Callable

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ParamValidationError
from obstore.exceptions import GenericError

from pipeline.errors import IgptError, system_error_line
from pipeline.store.errors import ShortReadError, is_transient, one_line_errors, with_retries


def answered(status: int, code: str) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "words"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject"
    )


def translated(status: int, code: str) -> OSError:
    """As s3fs raises it."""
    error = OSError(errno.EIO, "words")
    error.__cause__ = answered(status, code)
    return error


TRANSIENT = {
    "500": answered(500, "InternalError"),
    "503": answered(503, "SlowDown"),
    "503 of s3fs": translated(503, "SlowDown"),
    "400 RequestTimeout": answered(400, "RequestTimeout"),
    "429": answered(429, "TooManyRequests"),
    "no connection": EndpointConnectionError(endpoint_url="http://127.0.0.1:9"),
    "reset": ConnectionResetError(),
    "time-out": TimeoutError(),
    "obstore, broken body": GenericError("error decoding response body"),
    "obstore, 503": GenericError("Server returned non-2xx status code: 503 Service Unavailable"),
    "obstore, 429": GenericError("Server returned non-2xx status code: 429 Too Many Requests"),
    "no connection of httpx": type("ConnectError", (Exception,), {})("refused"),
    "cut off": ShortReadError("read 5 of 7 bytes"),
}
FINAL = {
    "missing": FileNotFoundError("missing"),
    "forbidden": PermissionError("no"),
    "403": answered(403, "AccessDenied"),
    "400": answered(400, "InvalidArgument"),
    "400 of s3fs": translated(400, "InvalidArgument"),
    "obstore, 403": GenericError("Server returned non-2xx status code: 403 Forbidden"),
    "full disk": OSError(errno.ENOSPC, "No space left on device"),
    "our own": IgptError("bad input"),
    "a defect": KeyError("x"),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_transient_errors_are_retried(name: str) -> None:
    assert is_transient(TRANSIENT[name])
    tries: list[int] = []

    def request() -> str:
        tries.append(1)
        if len(tries) < 4:
            raise TRANSIENT[name]
        return "answer"

    assert with_retries(request) == "answer"
    assert len(tries) == 4


@pytest.mark.parametrize("name", FINAL)
def test_permanent_errors_are_raised_at_once(name: str) -> None:
    assert not is_transient(FINAL[name])
    tries: list[int] = []

    def request() -> None:
        tries.append(1)
        raise FINAL[name]

    with pytest.raises(type(FINAL[name])):
        with_retries(request)
    assert len(tries) == 1


def test_retries_end() -> None:
    with pytest.raises(TimeoutError):
        with_retries(always(TimeoutError()), seconds=0.3)


def always(error: Exception) -> Callable[[], None]:
    def request() -> None:
        raise error

    return request


@pytest.mark.parametrize("name", TRANSIENT)
def test_transient_errors_that_persist_become_one_line(name: str) -> None:
    words = r"^s3://b/k: the object store does not answer \(.*\); start it"
    with pytest.raises(IgptError, match=words) as raised, one_line_errors("s3://b/k"):
        raise TRANSIENT[name]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "error", "told"),
    [
        ("/d/x", OSError(errno.ENOSPC, "No space left on device"), "/d/x: No space left on device; free some space"),
        ("/d/x", OSError(errno.EACCES, "Permission denied", "/d"), "/d: permission denied; check its owner and mode"),
        ("/d/x", NotADirectoryError(errno.ENOTDIR, "x", "/d/f/y"), "/d/f/y: a file stands where the path has a folder"),
        (
            "s3:///x",
            ParamValidationError(report='Invalid bucket name "": Bucket name must match [a-z]'),
            "s3:///x: not an S3",
        ),
        ("http://h/x", ConnectionResetError(errno.ECONNRESET, "reset"), "http://h/x: the server does not answer"),
        (
            "hf://datasets/x",
            TRANSIENT["no connection of httpx"],
            "hf://datasets/x: the server does not answer (refused)",
        ),
    ],
)
def test_an_error_names_the_file_or_url(url: str, error: Exception, told: str) -> None:
    with pytest.raises((IgptError, OSError)) as raised, one_line_errors(url):
        raise error
    line = system_error_line(raised.value) if isinstance(raised.value, OSError) else str(raised.value)
    assert line is not None and line.startswith(told) and "must match" not in line
