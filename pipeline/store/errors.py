"""Errors of object stores: which are transient and retried, and a one-line message for the others."""

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pipeline.errors import IgptError, NoAnswerError, first_line

Answer = TypeVar("Answer")

# A store outage shorter than this only costs time.
RETRY_SECONDS = 120.0
_LONGEST_WAIT_SECONDS = 8.0

# By name, so that recognising a client's errors does not need its import.
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError"}
_NO_ANSWER = {
    "ClientConnectorError",
    "ClientError",
    "ClientOSError",
    "ClientPayloadError",
    "ConnectError",
    "ConnectTimeout",
    "ConnectTimeoutError",
    "ConnectionClosedError",
    "EndpointConnectionError",
    "FSTimeoutError",
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "JoinError",
    "ReadError",
    "ReadTimeout",
    "ReadTimeoutError",
    "RemoteProtocolError",
    "ResponseParserError",
    "ResponseStreamingError",
    "ServerDisconnectedError",
    "ShortReadError",
}
_FINAL = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # of this machine, while downloading
_CLIENT_ERROR = re.compile(r"status code: 4(?!08|29)\d\d")
_THROTTLING = ("SlowDown", "RequestTimeout", "Throttling", "TooManyRequests", "reduce your request rate")


class ShortReadError(Exception):
    """The store returned fewer bytes than requested, without an error."""


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: no response, a broken one, a 5xx, a request to slow down."""
    if isinstance(error, (*_FINAL, IgptError)) or (isinstance(error, OSError) and error.errno in _FULL_DISK):
        return False
    response = _response(error)
    if response is not None:
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = str(response.get("Error", {}).get("Code", ""))
        return status >= 500 or status == 429 or any(word in code for word in _THROTTLING)
    if type(error).__name__ == "GenericError":  # obstore's; only its text tells client errors from server errors
        return _CLIENT_ERROR.search(str(error)) is None
    return isinstance(error, OSError | TimeoutError) or type(error).__name__ in _NO_ANSWER


def _response(error: BaseException) -> dict[str, Any] | None:
    """The parsed S3 response of a botocore error, or of the botocore error that s3fs translated."""
    for origin in (error, error.__cause__):
        response = getattr(origin, "response", None)
        if isinstance(response, dict):
            return response
    return None


def with_retries(request: Callable[[], Answer], *, seconds: float = RETRY_SECONDS) -> Answer:
    """Make an idempotent request; retry transient errors for up to `seconds`, then raise the last one.

    Waits grow and are randomised, so that many workers do not retry in step.
    """
    # Not installed on every training machine; requests to local files are not retried.
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential  # noqa: PLC0415

    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_delay(seconds),
        wait=wait_random_exponential(multiplier=0.1, max=_LONGEST_WAIT_SECONDS),
        reraise=True,
    )
    return retrying(request)


@contextmanager
def one_line_errors(url: str) -> Iterator[None]:
    """Turn store errors into a one-line IgptError that names the URL and the remedy."""
    try:
        yield
    except FileNotFoundError as error:
        if "specified bucket does not exist" in str(error).lower():  # the word "bucket" alone may be part of a path
            raise IgptError(f"{url}: the bucket does not exist; create it or correct the URL") from None
        raise
    except NotADirectoryError as error:
        raise IgptError(
            f"{error.filename or url}: a file stands where the path has a folder; give another path"
        ) from None
    except PermissionError as error:
        if not url.startswith("s3://"):
            raise IgptError(f"{error.filename or url}: permission denied; check its owner and mode") from None
        raise IgptError(
            f"{url}: the object store refused the credentials ({first_line(error)}); "
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and the bucket's policy"
        ) from None
    except Exception as error:
        if type(error).__name__ == "ParamValidationError":  # botocore's, before it sends anything
            reason = " ".join(str(error).split()).removeprefix("Parameter validation failed: ")
            reason = reason.partition(": Bucket name must match")[0]  # two regular expressions follow
            raise IgptError(f"{url}: not an S3 URL ({reason}); give one such as s3://bucket/prefix") from None
        if type(error).__name__ in _NO_CREDENTIALS:
            raise IgptError(
                f"{url}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `igpt up`"
            ) from None
        if url.startswith("s3://") and is_transient(error):
            raise NoAnswerError(
                f"{url}: the object store does not answer ({first_line(error)}); "
                "start it (`igpt up`) or set AWS_ENDPOINT_URL"
            ) from None
        if "://" in url and not url.startswith("file://") and is_transient(error):
            raise IgptError(f"{url}: the server does not answer ({first_line(error)}); correct the URL") from None
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = url  # a write to a full disk names no file
        raise
