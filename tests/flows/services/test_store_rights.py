"""Each role may do what its step needs, and nothing else: a table of roles, places, and reading or writing."""

import pytest

from flows.services.store_rights import BUCKETS, ROLES, STEPS, RefusedError, StoreRequest, access_key, check

RUN, MODEL = f"1/{'0a' * 16}/artifacts", f"1/models/m-{'0a' * 16}/artifacts"
# An object of each kind, by bucket and key.
PLACES = {
    "an image": "raw/photos/1.png",
    "a shard": "datasets/photos/shards/train-000000-ab.tar",
    "a feature": "datasets/photos-features/ab/1.npy",
    "a checkpoint": "runs/photos/checkpoints/100/model.safetensors",
    "a picture of a run": f"mlflow/{RUN}/loss.png",
    "a picture of a step": f"mlflow/{RUN}/images/samples+step+1.webp",
    "a report of a run": f"mlflow/{RUN}/report.html",
    "a report of a probe": f"mlflow/{RUN}/other.probe-report.html",
    "a model": f"mlflow/{MODEL}/data/image_gpt/model.safetensors",
    "a model's copy": f"mlflow/{RUN}/hugging_face/model.safetensors",
}
REPORTS = ("a report of a run", "a report of a probe")
MAY_READ = {
    "driver": set(PLACES),
    "build": {"an image", "a shard", "a feature"},
    "train": {"a shard", "a feature", "a checkpoint"},
    "probe": {"a shard", "a feature", "a checkpoint"},
    "register": {
        *("a checkpoint", "a picture of a run", "a picture of a step", *REPORTS, "a model", "a model's copy"),
    },
    "mlflow": {"a picture of a run", "a picture of a step", *REPORTS, "a model", "a model's copy"},
    "exporter": {"a shard", "a feature", "a checkpoint"},
    "backup": set(PLACES) - {"an image"},
    "clean": set(PLACES) - {"an image"},
    "reader": {"a shard", "a feature"},
}
MAY_WRITE = {
    "driver": {"a shard", "a feature", "a checkpoint", "a picture of a run", "a picture of a step", *REPORTS},
    "build": {"a shard", "a feature"},
    "train": {"a checkpoint"},
    "probe": {"a feature"},
    "register": {"a picture of a run", "a picture of a step", *REPORTS, "a model", "a model's copy"},
    "mlflow": set(),
    "exporter": set(),
    "backup": set(),
    "clean": {"a feature", "a checkpoint"},
    "reader": set(),
}
MAY_DELETE = {
    **MAY_WRITE,
    "clean": set(PLACES) - {"an image", "a shard"},
}


def authorization(key: str) -> str:
    return f"AWS4-HMAC-SHA256 Credential={key}/20261126/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=ab"


def asked(role: str, method: str, target: str, **fields: str) -> StoreRequest:
    return StoreRequest(method=method, target=target, authorization=authorization(access_key(role, "0a1b")), **fields)


def is_allowed(request: StoreRequest, *deleted: str) -> bool:
    try:
        check(request, deleted)
    except RefusedError:
        return False
    return True


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_what_the_table_says(role: str) -> None:
    def allowed(method: str, suffix: str = "") -> set[str]:
        return {name for name, place in PLACES.items() if is_allowed(asked(role, method, f"/{place}{suffix}"))}

    assert set(MAY_READ) == set(MAY_WRITE) == set(ROLES)
    for method in ("GET", "HEAD"):
        assert allowed(method) == MAY_READ[role]
    part = "?partNumber=1&uploadId=x"
    for method, suffix in (("PUT", ""), ("POST", "?uploads"), ("PUT", part), ("DELETE", "?uploadId=x")):
        assert allowed(method, suffix) == MAY_WRITE[role], method
    assert allowed("DELETE") == MAY_DELETE[role]
    deletable = {
        name
        for name, place in PLACES.items()
        if is_allowed(asked(role, "POST", f"/{place.split('/')[0]}?delete"), place.partition("/")[2])
    }
    assert deletable == MAY_DELETE[role]
    assert is_allowed(asked(role, "GET", "/")), "the list of buckets"
    for bucket in BUCKETS:
        may_list = any(PLACES[name].startswith(f"{bucket}/") for name in MAY_READ[role])
        assert is_allowed(asked(role, "GET", f"/{bucket}?list-type=2")) == may_list
        assert not is_allowed(asked(role, "PUT", f"/{bucket}")) and not is_allowed(asked(role, "DELETE", f"/{bucket}"))


def test_of_the_steps_registration_alone_writes_models() -> None:
    flows = ["driver", *STEPS, "reader"]
    assert [role for role in flows if MAY_WRITE[role] & {"a model", "a model's copy"}] == ["register"]


def test_a_copy_needs_the_right_to_read_its_source() -> None:
    for source, allowed in (("/raw/1.png", True), ("raw/1.png?versionId=1", True), ("mlflow/1/x", False)):
        assert is_allowed(asked("build", "PUT", "/datasets/x", copied_from=source)) == allowed
    assert not is_allowed(asked("build", "PUT", "/datasets/x", copied_from="raw/../mlflow/x"))


@pytest.mark.parametrize(
    "request_",
    [
        asked("build", "PUT", "/datasets/../mlflow/x"),
        asked("build", "PUT", "/datasets/%2e%2E/mlflow/x"),
        asked("build", "PUT", "/datasets%2F..%2Fmlflow/x"),
        asked("build", "PUT", "//mlflow/x"),
        asked("build", "POST", "/datasets"),
        asked("build", "GET", "/raw/x?X-Amz-Credential=igpt"),
        StoreRequest(method="GET", target="/raw/x?AWSAccessKeyId=build-1", authorization=""),
        StoreRequest(method="PUT", target="/raw/x", authorization=f"{' '.join(authorization('build-1'))}"),
        StoreRequest(method="GET", target="/raw/x", authorization="AWS build-1:c2lnbmF0dXJl"),
        StoreRequest(method="GET", target="/raw/x", authorization="Bearer build-1"),
        asked("driver", "PUT", f"/mlflow/1/models/{'0a' * 16}x/artifacts/x.png"),
    ],
)
def test_no_other_way_leads_there(request_: StoreRequest) -> None:
    assert not is_allowed(request_)


def test_objects_that_are_deleted_together_lie_where_the_key_may_write() -> None:
    request = asked("build", "POST", "/datasets?delete")
    assert is_allowed(request, "a", "b/c")
    assert not is_allowed(request, "a", "../raw/x") and not is_allowed(request, "..")


def test_a_key_without_a_role_is_left_to_the_store() -> None:
    """It knows the pair of the machine's user, and refuses every other, and requests without a key."""
    for name in ("igpt0a1b", "unknown-0a1b", "igpt0a1b/build-1"):
        check(StoreRequest(method="PUT", target="/mlflow/x", authorization=authorization(name)))
    check(StoreRequest(method="PUT", target="/mlflow/x", authorization=""))
