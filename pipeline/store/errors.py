"""What an object store may answer: which faults pass by themselves and are tried again, and one line for the rest."""

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pipeline.errors import IgptError, first_line

Answer = TypeVar("Answer")

# An outage of the store that is shorter than this costs time and nothing else.
PATIENCE_SECONDS = 120.0
_LONGEST_WAIT_SECONDS = 8.0

# Known by name, so that no client has to be imported to know its errors.
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError"}
_NO_ANSWER = {
    *("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError"),
    *("HTTPClientError", "ResponseParserError", "IncompleteRead", "IncompleteReadError", "ResponseStreamingError"),
    *("ClientError", "ClientConnectorError", "ClientOSError", "ClientPayloadError", "ServerDisconnectedError"),
    *("FSTimeoutError", "JoinError", "ShortReadError"),
}
_FINAL = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # of this machine, where a download goes
_CLIENT_ERROR = re.compile(r"status code: 4(?!08|29)\d\d")
_THROTTLING = ("SlowDown", "RequestTimeout", "Throttling", "TooManyRequests", "reduce your request rate")


class ShortReadError(Exception):
    """Fewer bytes came than were asked for, though the store announced no fault."""


def is_transient(error: BaseException) -> bool:
    """Tell whether the same request may well succeed later: no answer, a broken one, a 5xx, a request to slow down."""
    if isinstance(error, (*_FINAL, IgptError)) or (isinstance(error, OSError) and error.errno in _FULL_DISK):
        return False
    response = _response(error)
    if response is not None:
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = str(response.get("Error", {}).get("Code", ""))
        return status >= 500 or status == 429 or any(word in code for word in _THROTTLING)
    if type(error).__name__ == "GenericError":  # obstore's; its text is all there is to tell them apart by
        return _CLIENT_ERROR.search(str(error)) is None
    return isinstance(error, OSError | TimeoutError) or type(error).__name__ in _NO_ANSWER


def _response(error: BaseException) -> dict[str, Any] | None:
    """The parsed answer of S3 behind an error of botocore, or behind what s3fs made of it."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            return response
    return None


def patiently(request: Callable[[], Answer], *, seconds: float = PATIENCE_SECONDS) -> Answer:
    """Make an idempotent request, again after every transient fault until `seconds` have passed; then raise the last.

    Waits are random and grow, so that many workers do not come back in step.
    """
    # Not on every machine that trains; local files need no patience.
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
    """Turn what a store answered in the end into one line that names the URL and the remedy."""
    try:
        yield
    except FileNotFoundError as error:
        if "specified bucket does not exist" in str(error).lower():  # a path may well have the word "bucket" in it
            raise IgptError(f"{url}: the bucket does not exist; create it or correct the URL") from None
        raise
    except PermissionError as error:
        if not url.startswith("s3://"):
            raise IgptError(f"{error.filename or url}: permission denied; check its owner and mode") from None
        raise IgptError(
            f"{url}: the object store refused the credentials ({first_line(error)}); "
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and the bucket's policy"
        ) from None
    except Exception as error:
        if type(error).__name__ in _NO_CREDENTIALS:
            raise IgptError(
                f"{url}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `igpt up`"
            ) from None
        if url.startswith("s3://") and is_transient(error):
            raise IgptError(
                f"{url}: the object store does not answer ({first_line(error)}); "
                "start it (`igpt up`) or set AWS_ENDPOINT_URL"
            ) from None
        raise
