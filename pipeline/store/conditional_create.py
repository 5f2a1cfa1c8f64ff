"""Create an object only if it does not exist: one of several concurrent creators wins, whatever the store supports."""

import random
import time
import uuid
from contextlib import suppress
from functools import partial

from pipeline.store import local_files, objects
from pipeline.store.errors import one_line_errors

# A claim is valid this long; its owner has created the object by then, or has died.
_CLAIM_SECONDS = 15.0


class AlreadyExistsError(Exception):
    """The object to be created exists already."""


def create_bytes(url: str, data: bytes) -> None:
    """Put an object that must not exist yet. Raises AlreadyExistsError when it does.

    One of several concurrent creators wins: by a conditional write where the store has them (AWS S3 and most others),
    by claims beside the object where the store ignores the condition (`rclone serve s3`). A creator writes a claim,
    then lists the claims. If its own is the only one, it may create the object for as long as others respect the claim;
    a creator whose claim came later sees the first.
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
    own_claim = objects.join(claims, uuid.uuid4().hex)
    tried = False
    try:
        while True:
            valid_until = time.monotonic() + 2 / 3 * _CLAIM_SECONDS
            objects.write_bytes(own_claim, b"")
            written = {file.url: file.modified for file in objects.list_files(claims)}
            now = written.get(own_claim, 0.0)
            others = [claim for claim, at in written.items() if claim != own_claim and at > now - _CLAIM_SECONDS]
            if objects.exists(url):
                break
            if own_claim in written and not others:
                tried = True
                with suppress(_ClaimExpiredError):
                    objects.request(url, partial(_create_while_claimed, url, data, valid_until))
                    break
            objects.delete(own_claim)
            time.sleep(random.uniform(0.2, 2.0))
        # The response to an earlier try may have been lost: an object with our content is ours.
        with suppress(FileNotFoundError):
            if tried and objects.read_bytes(url) == data:
                return
        raise AlreadyExistsError(url)
    finally:
        objects.delete(own_claim)


class _ClaimExpiredError(Exception):
    """Others no longer respect the claim."""


def _create_while_claimed(url: str, data: bytes, valid_until: float) -> None:
    """Try once to create an object, unless the claim has expired. The caller reads the object to see who created it."""
    if time.monotonic() > valid_until:
        raise _ClaimExpiredError
    with suppress(FileExistsError):
        objects.filesystem(url, patient=False).pipe_file(url, data, mode="create")
