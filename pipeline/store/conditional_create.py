"""Create an object only where none is: of two creators at once one wins, also on a store without conditional writes."""

import random
import time
import uuid
from contextlib import suppress
from functools import partial

from pipeline.store import local_files, objects
from pipeline.store.errors import one_line_errors

# A claim to create an object holds this long; who made it has created the object by then, or has died.
_CLAIM_SECONDS = 15.0


class AlreadyExistsError(Exception):
    """A conditional create found the object in place."""


def create_bytes(url: str, data: bytes) -> None:
    """Put an object that must not be there yet. Raises AlreadyExistsError when it is.

    Of two creators at once one wins: by the store's condition where it has conditional writes (AWS S3 and most others),
    and by a claim beside the object on one that ignores the condition (`rclone serve s3`). Who sees no claim but his
    own after writing it may create as long as others heed it; the other, whose claim came later, sees the first.
    """
    if objects.exists(url):
        raise AlreadyExistsError(url)
    if objects.protocol(url) == "file":
        try:
            with one_line_errors(url):
                local_files.write(objects.filesystem(url)._strip_protocol(url), data, exclusive=True)
        except FileExistsError:
            raise AlreadyExistsError(url) from None
        return
    claims = f"{url}.claims"
    mine = objects.join(claims, uuid.uuid4().hex)
    tried = False
    try:
        while True:
            heeded_until = time.monotonic() + 2 / 3 * _CLAIM_SECONDS
            objects.write_bytes(mine, b"")
            seen = {file.url: file.modified for file in objects.list_files(claims)}
            held = [at for claim, at in seen.items() if claim != mine and at > seen.get(mine, at) - _CLAIM_SECONDS]
            if objects.exists(url):
                break
            if mine in seen and not held:
                tried = True
                with suppress(_ClaimExpiredError):
                    objects.ask(url, partial(_create_while_claimed, url, data, heeded_until))
                    break
            objects.delete(mine)
            time.sleep(random.uniform(0.2, 2.0))
        # Ours even if it was there already, where the answer to a try was lost.
        with suppress(FileNotFoundError):
            if tried and objects.read_bytes(url) == data:
                return
        raise AlreadyExistsError(url)
    finally:
        objects.delete(mine)


class _ClaimExpiredError(Exception):
    """Others no longer heed the claim."""


def _create_while_claimed(url: str, data: bytes, heeded_until: float) -> None:
    """One try to create an object; not when it comes late. The answer is no proof: see who reads it."""
    if time.monotonic() > heeded_until:
        raise _ClaimExpiredError
    with suppress(FileExistsError):
        objects.filesystem(url, patient=False).pipe_file(url, data, mode="create")
