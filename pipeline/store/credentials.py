"""The key of the object store that a step of a flow uses in the processes of its tasks.

A task receives it as an argument, never from the environment of its node or its driver, and never in Ray's runtime
environment, which Ray writes to its logs.
"""

import os
import sys
from dataclasses import dataclass, field

_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
)


@dataclass(frozen=True, kw_only=True)
class StoreKey:
    """A pair of keys, with the name of what it is for."""

    role: str
    """Such as build or train."""
    access_key: str
    secret_key: str = field(repr=False)


def use(key: StoreKey) -> None:
    """Let this process, and those that it starts from now on, use a key, and no other."""
    wanted = {"AWS_ACCESS_KEY_ID": key.access_key, "AWS_SECRET_ACCESS_KEY": key.secret_key}
    if wanted == {name: os.environ[name] for name in _VARIABLES if name in os.environ}:
        return
    for name in _VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(wanted)
    forget_clients()


def forget_clients() -> None:
    """Make new clients of the store from now on, with the address and the key that the environment has then."""
    if "pipeline.store.s3" in sys.modules:
        sys.modules["pipeline.store.s3"].BoundedS3FileSystem.clear_instance_cache()
    if "pipeline.store.s3_reads" in sys.modules:
        sys.modules["pipeline.store.s3_reads"].forget_clients()
