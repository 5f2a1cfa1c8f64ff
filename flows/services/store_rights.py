"""Which role may read and write which bucket, and whether a request to the local object store is one it may make.

store_gate.py enforces it for the local services, SeaweedFS for compose.yaml (store_keys.py).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from urllib.parse import parse_qs, unquote

BUCKETS = ("raw", "datasets", "runs", "mlflow")
# MLflow stores the files of a run below mlflow/EXPERIMENT/RUN/artifacts, and a model below mlflow/EXPERIMENT/models/ID.
_RUN = "mlflow/*/" + 32 * "?"


@dataclass(frozen=True, kw_only=True)
class Rights:
    """What a holder of a key may do."""

    read: Sequence[str]
    """Buckets."""
    write: Sequence[str] = ()
    """Buckets, or patterns of BUCKET/KEY in which * and ? also stand for slashes; what is there may be deleted, too."""
    delete: Sequence[str] = ()
    """The same, of what may be deleted and not written."""

    def may_read(self, bucket: str) -> bool:
        """Whether its objects may be read and listed."""
        return bucket in self.read

    def may_write(self, bucket: str, key: str) -> bool:
        """Whether an object may be written."""
        return _is_in(self.write, bucket, key)

    def may_delete(self, bucket: str, key: str) -> bool:
        """Whether an object may be deleted."""
        return _is_in((*self.write, *self.delete), bucket, key)


def _is_in(places: Sequence[str], bucket: str, key: str) -> bool:
    return any(bucket == place or fnmatchcase(f"{bucket}/{key}", place) for place in places)


ROLES = {
    # Flows: they plan, commit, hold leases, and log pictures and reports to MLflow, but write no model.
    "driver": Rights(
        read=BUCKETS,
        write=(
            *("datasets", "runs"),
            *(f"{_RUN}/artifacts/{name}" for name in ("*.png", "images/*", "*report.html")),
        ),
    ),
    # Tasks that decode images.
    "build": Rights(read=("raw", "datasets"), write=("datasets",)),
    # Training workers, and the tasks that draw its pictures.
    "train": Rights(read=("datasets", "runs"), write=("runs",)),
    # Tasks that extract features into a cache beside the dataset, and fit classifiers.
    "probe": Rights(read=("datasets", "runs"), write=("datasets/*-features/*",)),
    # The driver, while it registers a model.
    "register": Rights(read=("runs", "mlflow"), write=("mlflow",)),
    # MLflow's server shows the files of runs and models; the pods of `igpt serve` load models.
    "mlflow": Rights(read=("mlflow",)),
    # What Prometheus asks about.
    "exporter": Rights(read=("datasets", "runs")),
    # `igpt backup save`, every night. A restore is the administrator's.
    "backup": Rights(read=("datasets", "runs", "mlflow")),
    # `igpt clean`, every night, which removes checkpoints, features, and with `mlflow gc` what was deleted in MLflow.
    "clean": Rights(read=("datasets", "runs", "mlflow"), write=("runs", "datasets/*-features/*"), delete=("mlflow",)),
    # Ray's nodes, for tasks that no flow has started, such as those of Ray Data.
    "reader": Rights(read=("datasets",)),
}
"""The rights of each role. Any other key that the store accepts has all rights."""

STEPS = ("build", "train", "probe", "register")
"""The roles that a flow takes on, one after the other."""

_CREDENTIAL = re.compile(r"AWS4-HMAC-SHA256Credential=([^/,]+)/")
_WRITING_POSTS = {"delete", "uploads", "uploadId"}


class RefusedError(Exception):
    """The request is not allowed; its text says why."""


@dataclass(frozen=True, kw_only=True)
class StoreRequest:
    """What decides about a request: its head."""

    method: str
    target: str
    """Path and query, as sent."""
    authorization: str
    copied_from: str = ""
    """The header x-amz-copy-source."""

    @cached_property
    def query(self) -> dict[str, list[str]]:
        """The values of its query, by name."""
        return parse_qs(self.target.partition("?")[2], keep_blank_values=True)

    @property
    def deletes_many(self) -> bool:
        """Whether its body names the objects that it is about."""
        return self.method == "POST" and "delete" in self.query


def access_key(role: str, random: str) -> str:
    """An access key that carries its role."""
    return f"{role}-{random}"


def check(request: StoreRequest, deleted: Sequence[str] = ()) -> None:
    """Raise RefusedError unless the holder of the request's key has the right to make it.

    `deleted` are the keys in the body of a request that deletes many. The store itself checks the signature, so that
    nobody can use the name of another's key.
    """
    bucket, key = _bucket_and_key(request.target.partition("?")[0])
    for name in deleted:
        _check_segments(name)
    rights = _rights(request)
    if rights is None:
        return
    if request.copied_from:
        source, _ = _bucket_and_key(request.copied_from.partition("?")[0])
        if not rights.may_read(source):
            raise RefusedError(f"this key may read {_listed(rights.read)} only, not {source}")
    if request.method in ("GET", "HEAD"):
        if bucket and not rights.may_read(bucket):
            raise RefusedError(f"this key may read {_listed(rights.read)} only, not {bucket}")
    elif request.method == "POST" and not _WRITING_POSTS & request.query.keys():
        raise RefusedError("this key may not upload with a form")
    elif not key and not request.deletes_many:
        raise RefusedError("this key may not create or delete buckets")
    else:
        deletes = request.deletes_many or (request.method == "DELETE" and "uploadId" not in request.query)
        for name in deleted if request.deletes_many else [key]:
            if not (rights.may_delete if deletes else rights.may_write)(bucket, name):
                verb, places = ("delete", (*rights.write, *rights.delete)) if deletes else ("write", rights.write)
                raise RefusedError(f"this key may {verb} {_listed(places)} only, not {bucket}/{name}")


def _listed(places: Sequence[str]) -> str:
    return ", ".join(places) or "nothing"


def _rights(request: StoreRequest) -> Rights | None:
    """The rights of the key that a request names; None for a key that carries no role, and for no key at all."""
    signers = request.query.get("X-Amz-Credential", [])
    if signers or "AWSAccessKeyId" in request.query:
        # A role has no use for signed URLs. With a header beside it, or another signer, the store might take that one.
        if len(signers) != 1 or request.authorization or "AWSAccessKeyId" in request.query or _role_of(signers[0]):
            raise RefusedError("signed URLs are not accepted")
        return None
    if not request.authorization:
        return None  # the store refuses it
    # As the store reads it, which drops the spaces.
    named = _CREDENTIAL.match(request.authorization.replace(" ", ""))
    if named is None:
        raise RefusedError("only signatures of version 4 are accepted")
    return _role_of(named[1])


def _role_of(access_key: str) -> Rights | None:
    return ROLES.get(access_key.partition("-")[0])


def _bucket_and_key(path: str) -> tuple[str, str]:
    bucket, _, key = unquote(path).strip("/").partition("/")
    _check_segments(f"{bucket}/{key}")
    return bucket, key


def _check_segments(name: str) -> None:
    """Refuse names that lead to another place, because the store takes them for paths."""
    if {".", ".."} & set(name.split("/")):
        raise RefusedError("names must not have the parts . or ..")
