"""S3 as s3fs gives it, whose every request is answered in time, or fails.

s3fs's own may never: botocore asks the server whether it may send a body (`Expect: 100-continue`), and aiohttp's time
for an answer begins only when the body is sent. A server that takes the connection and says nothing, or takes no more
of a body, is waited for without end (aiohttp 3.14, aiobotocore 3.10). An answer that has begun may take its time.
"""

import asyncio
from typing import Any

from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

# What a request may take beside the sending of its body: botocore makes several attempts in that time when they fail,
# one when there is no answer.
_SECONDS = 40.0
_READ_SECONDS = 60.0  # without a byte of an answer
_IMPATIENT_SECONDS = 10.0
# A server puts the parts of a large object together before it answers: as long as one attempt may take.
_SLOW_METHODS = {"complete_multipart_upload": _READ_SECONDS}
# s3fs sends ten parts of 50 MiB at a time, which share the line.
_SLOWEST_BYTES_PER_SECOND = 64 * 1024


class BoundedS3FileSystem(S3FileSystem):
    """s3fs's filesystem with the endpoint and keys that botocore finds, and a time for each request.

    A patient one tries a failing request a few times, the other once and for some seconds.
    """

    def __init__(self, *, patient: bool = True) -> None:
        """Make one per process and kind: fsspec gives the same one again."""
        super().__init__(
            use_listings_cache=False,  # other processes write too
            config_kwargs={
                "retries": {"mode": "standard", "max_attempts": 4 if patient else 1},
                "connect_timeout": 10 if patient else 3,
                "read_timeout": _READ_SECONDS if patient else _IMPATIENT_SECONDS,
                "max_pool_connections": 32,
                # Some servers answer a range with the checksum of the whole object; what must be right is verified
                # against the snapshot's own checksums.
                "response_checksum_validation": "when_required",
            },
        )
        self.retries = 3 if patient else 1
        self._seconds = _SECONDS if patient else _IMPATIENT_SECONDS

    async def _call_s3(self, method: str, *parts: Any, **arguments: Any) -> Any:
        """Make a request of S3 as s3fs does. Raises ConnectionError when it takes longer than it may."""
        seconds = max(self._seconds, _SLOW_METHODS.get(method, 0.0))
        seconds += memoryview(arguments.get("Body", b"")).nbytes / _SLOWEST_BYTES_PER_SECOND
        try:
            return await asyncio.wait_for(super()._call_s3(method, *parts, **arguments), seconds)
        except TimeoutError:
            # Not a TimeoutError, which fsspec would replace by one without a text.
            raise ConnectionError(f"no answer to {method} in {seconds:.0f} s") from None

    call_s3 = sync_wrapper(_call_s3)
