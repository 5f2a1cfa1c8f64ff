"""s3fs with a time limit on every request.

s3fs alone may wait for ever: botocore asks the server whether it may send a body (`Expect: 100-continue`), and
aiohttp's read timeout starts only once the body is sent. So there is no limit for a server that accepts the connection
and is silent, or stops reading a body (aiohttp 3.14, aiobotocore 3.10). A response that has begun may take its time.
"""

import asyncio
from functools import partial
from typing import Any

from aiobotocore.httpsession import AIOHTTPSession
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from pipeline.errors import IgptError

# Limit of a request, apart from sending its body: botocore makes several attempts in that time if they fail at once,
# one if the server does not respond.
_SECONDS = 40.0
_READ_SECONDS = 60.0  # without a byte of a response
_IMPATIENT_SECONDS = 10.0
# A server assembles the parts of a large object before it responds: as long as one attempt may take.
_SLOW_METHODS = {"complete_multipart_upload": _READ_SECONDS}
# s3fs sends ten parts of 50 MiB at a time, which share the bandwidth.
_SLOWEST_BYTES_PER_SECOND = 64 * 1024


class _Unredirected:
    """A session of aiohttp that follows no redirect: aiobotocore would go wherever the store sends it, and take what it
    finds there for the object."""

    def __init__(self, session: Any) -> None:
        self.request = partial(session.request, allow_redirects=False)


class _UnredirectedHttp(AIOHTTPSession):
    async def _get_session(self, proxy_url: str | None) -> Any:
        return _Unredirected(await super()._get_session(proxy_url))


class BoundedS3FileSystem(S3FileSystem):
    """s3fs's filesystem with botocore's endpoint and credentials, and a time limit for each request.

    A patient filesystem makes a few attempts at a failing request, the other one attempt of a few seconds.
    """

    def __init__(self, *, patient: bool = True, key: str | None = None, secret: str | None = None) -> None:
        """fsspec caches instances: there is one per process, value of `patient`, and key.

        Without a key, botocore looks for one in the process that uses the filesystem.
        """
        super().__init__(
            key=key,
            secret=secret,
            use_listings_cache=False,  # other processes write too
            config_kwargs={
                "http_session_cls": _UnredirectedHttp,
                "retries": {"mode": "standard", "max_attempts": 4 if patient else 1},
                "connect_timeout": 10 if patient else 3,
                "read_timeout": _READ_SECONDS if patient else _IMPATIENT_SECONDS,
                "max_pool_connections": 32,
                # Some servers send the checksum of the whole object with a range; the snapshot has checksums of its
                # own.
                "response_checksum_validation": "when_required",
            },
        )
        self.retries = 3 if patient else 1
        self._seconds = _SECONDS if patient else _IMPATIENT_SECONDS

    async def _call_s3(self, method: str, *parts: Any, **arguments: Any) -> Any:
        """Make a request as s3fs does. Raises ConnectionError when it exceeds its time limit."""
        seconds = max(self._seconds, _SLOW_METHODS.get(method, 0.0))
        seconds += memoryview(arguments.get("Body", b"")).nbytes / _SLOWEST_BYTES_PER_SECOND
        try:
            return await asyncio.wait_for(super()._call_s3(method, *parts, **arguments), seconds)
        except RecursionError:  # botocore asks the store again and again where the bucket is
            raise IgptError(f"the object store redirects {method} to another address, which is not followed") from None
        except TimeoutError:
            # Not a TimeoutError: fsspec replaces it by one without a text.
            raise ConnectionError(f"no response to {method} within {seconds:.0f} s") from None

    call_s3 = sync_wrapper(_call_s3)
