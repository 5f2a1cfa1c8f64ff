"""References to versions that are refused before a server is asked. integration/test_registry.py has a real one."""

import pytest
from mlflow.entities.model_registry import ModelVersion

from igpt_model.registry.client import Registry, _version
from pipeline.errors import IgptError


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("digits", "name a version, as in NAME@candidate, NAME@champion or NAME/3"),
        ("models:/digits", "name a version"),
        ("digits/latest", "name a version"),
        ("digits/-1", "name a version"),
        ("", "name a version"),
        ("@champion", "'' is not a model name"),
        ("models:/a/b/1", "'a/b' is not a model name"),
        ("it's@champion", "is not a model name"),
    ],
)
def test_what_names_no_version_is_refused_in_one_line(reference: str, expected: str) -> None:
    with pytest.raises(IgptError, match=expected) as raised:
        Registry("http://127.0.0.1:9").find(reference)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("model_id", "source"), [("m-1", "s3://mlflow/1"), (None, "models:/m-1")])
def test_a_version_has_its_aliases_and_the_model_that_it_is(model_id: str | None, source: str) -> None:
    entity = ModelVersion("digits", "3", 1_767_571_200_000, source=source, run_id="r", model_id=model_id)
    version = _version(entity, {"champion": 3, "candidate": 4, "best": 3})
    assert (version.uri, version.model_id, version.aliases) == ("models:/digits/3", "m-1", ("best", "champion"))
    assert version.created.isoformat() == "2026-01-05T00:00:00+00:00"


PROMOTED_ELSEWHERE = {"igpt.promotion": "promoted", "igpt.previous_champion": "7", "igpt.palette_sha256": "p"}


@pytest.mark.parametrize(
    ("source", "tags", "kept", "copied_from"),
    [
        ("models:/m-1", PROMOTED_ELSEWHERE, PROMOTED_ELSEWHERE, None),
        ("s3://mlflow/1/model", PROMOTED_ELSEWHERE, PROMOTED_ELSEWHERE, None),
        ("models:/staging/2", PROMOTED_ELSEWHERE, {"igpt.palette_sha256": "p"}, "models:/staging/2"),
        (
            "models:/staging/2",
            {**PROMOTED_ELSEWHERE, "igpt.promotion_of": "models:/staging/2"},
            {"igpt.palette_sha256": "p"},
            "models:/staging/2",
        ),
        (
            "models:/staging/2",
            {**PROMOTED_ELSEWHERE, "igpt.promotion_of": "models:/digits/3"},
            {**PROMOTED_ELSEWHERE, "igpt.promotion_of": "models:/digits/3"},
            "models:/staging/2",
        ),
    ],
)
def test_a_copy_has_the_tags_of_what_was_copied_but_not_its_promotion(
    source: str, tags: dict[str, str], kept: dict[str, str], copied_from: str | None
) -> None:
    entity = ModelVersion("digits", "3", 1_767_571_200_000, source=source, run_id="r")
    entity._tags = tags
    version = _version(entity, {})
    assert (version.tags, version.copied_from) == (kept, copied_from)
    assert version.model_id == ("m-1" if source == "models:/m-1" else "")
