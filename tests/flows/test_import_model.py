"""Importing models, versions with probes, and copies of versions, with MLflow on a database file and no server.

integration/test_import.py has the commands, on all services.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import mlflow.pyfunc  # not the lazy stand-in for it, whose attributes nobody reads
import numpy as np
import pytest
from mlflow import MlflowClient

from flows.import_model import EXPERIMENT, Imported, import_model
from igpt_model.convert.hugging_face import to_hugging_face
from igpt_model.probing.head import ProbeHead
from igpt_model.registry import card
from igpt_model.registry.client import CHAMPION, IDENTITY, Registry, Version
from igpt_model.registry.gate import PALETTE, ROLLED_BACK, GateConfig
from igpt_model.registry.register import register_probed, write_card
from pipeline.errors import IgptError
from pipeline.images import palette
from tests.igpt_model.convert.test_hugging_face import SIZES, colours_of, random_bundle
from tests.igpt_model.convert.test_openai import openai_variables

WIDTH = SIZES["two layers of 8x8"].width
ANY_GAIN = GateConfig(min_bits_gain=None, min_accuracy_gain=None, across_splits=True)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, before = tmp_path_factory.mktemp("mlflow"), mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where MLflow keeps the files of runs
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        try:
            yield f"sqlite:///{folder}/mlflow.db"
        finally:
            mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model in each form that is imported, in folders and files named after the form."""
    root, bundle = tmp_path_factory.mktemp("sources"), random_bundle(SIZES["two layers of 8x8"])
    to_hugging_face(bundle, root / "theirs")
    (root / "theirs" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (root / "ours").mkdir()
    bundle.save(root / "ours")
    np.savez(root / "openai.npz", **openai_variables(masked=False))
    np.savez(root / "masked.npz", **openai_variables(masked=True))
    return root


@pytest.fixture
def put(uri: str, sources: Path) -> Callable[..., Imported]:
    """Import one of the sources."""
    return lambda source, name, **given: import_model(str(sources / source), name=name, tracking_uri=uri, **given)


@pytest.mark.parametrize(
    ("source", "given", "form", "licence"),
    [
        ("theirs", {}, "Hugging Face folder", "apache-2.0"),
        ("theirs", {"licence": "mine"}, "Hugging Face folder", "mine"),
        ("ours", {}, "model folder", card.NOT_STATED),
        ("openai.npz", {"palette_K3": colours_of(17)}, "OpenAI's variables", card.NOT_STATED),
        ("masked.npz", {"palette_K3": colours_of(17), "licence": "mit"}, "OpenAI's variables", "mit"),
    ],
)
def test_a_model_is_registered_with_its_origin(
    source: str,
    given: dict[str, object],
    form: str,
    licence: str,
    put: Callable[..., Imported],
    sources: Path,
    uri: str,
) -> None:
    name = f"{source}-{len(given)}"
    imported = put(source, name, commit="c0ffee0", **given)
    version = imported.version
    assert imported.is_new and version.aliases == ("candidate",)
    tags = version.tags
    assert (tags[card.ORIGIN], tags[card.ORIGIN_FORM]) == (str(sources / source), form)
    assert (tags[card.LICENCE], tags["igpt.git_commit"]) == (licence, "c0ffee0")
    assert tags["mlflow.source.git.commit"] == "c0ffee0"
    assert tags[PALETTE] == palette.sha256(colours_of(17))
    assert version.description == card.text(name, 1, tags)
    loaded = mlflow.pyfunc.load_model(version.uri)
    assert len(loaded.predict(np.zeros((3, 9, 9, 3), np.uint8))) == 3


def test_the_same_model_is_registered_once_in_whichever_form(put: Callable[..., Imported], uri: str) -> None:
    first = put("theirs", "once").version
    for source, given in (("theirs", {}), ("ours", {}), ("theirs", {"licence": "another"})):
        again = put(source, "once", **given)
        assert (again.is_new, again.version.uri) == (False, first.uri)
    assert [version.number for version in Registry(uri).versions("once")] == [1]
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None and experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.run_name for run in runs].count("once") == 1
    after = Registry(uri).find(first.uri)
    assert after.tags[card.LICENCE] == "another" and "- Licence: another" in after.description
    assert put("openai.npz", "once", palette_K3=colours_of(17)).is_new  # another model


@pytest.mark.parametrize(
    ("source", "name", "given", "expected"),
    [
        ("openai/imagegpt-small", "no", {}, "nothing there; give a Hugging Face folder .`hf download"),
        ("openai.npz", "no", {}, "hold no palette"),
        ("ours", "no", {"palette_K3": colours_of(17)}, "an igpt model has its own palette"),
        ("theirs/model.safetensors", "no", {}, "one file of a model"),
        ("theirs", "a/b", {}, "--name is 'a/b': MLflow takes names"),
        ("theirs", "it's", {}, "is not a model name"),
        ("theirs", "", {}, "--name is ''"),
    ],
)
def test_what_is_refused_leaves_nothing(
    source: str, name: str, given: dict[str, object], expected: str, put: Callable[..., Imported], uri: str
) -> None:
    before = Registry(uri).names()
    with pytest.raises(IgptError, match=expected):
        put(source, name, **given)
    assert Registry(uri).names() == before


def test_an_upload_that_fails_leaves_no_version_and_can_be_repeated(
    put: Callable[..., Imported], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(MlflowClient, "log_model_artifacts", fails)
        put("theirs", "broken")
    assert "broken" not in Registry(uri).names()
    assert put("theirs", "broken").version.number == 1


def with_probe(registry: Registry, version: Version) -> Version:
    head = ProbeHead(
        mean_C=np.zeros(WIDTH, np.float32),
        scale_C=np.ones(WIDTH, np.float32),
        weight_KC=np.ones((2, WIDTH), np.float32),
        bias_K=np.zeros(2, np.float32),
        labels_K=np.array([0, 1]),
    )
    bundle = replace(registry.open(version.uri), classes=("cat", "dog"))
    return register_probed(
        bundle, version, tracking_uri=registry.tracking_uri, dataset="s3://datasets/pets", best_layer=2, head=head
    )[0]


def test_a_version_with_its_probe_classifies_and_is_registered_once(put: Callable[..., Imported], uri: str) -> None:
    registry = Registry(uri)
    version = put("theirs", "probed").version
    registry.promote(version.uri, GateConfig())
    second = with_probe(registry, registry.find(version.uri))
    assert (second.number, second.aliases) == (2, ("candidate",))
    assert with_probe(registry, registry.find(version.uri)).number == 2
    table = mlflow.pyfunc.load_model(second.uri).predict(np.zeros((1, 9, 9, 3), np.uint8), {"task": "classify"})
    assert list(table.columns) == ["cat", "dog"]
    assert second.tags[card.LICENCE] == "apache-2.0" and second.tags[card.PROBED_VERSION] == version.uri
    assert second.tags[IDENTITY] != version.tags[IDENTITY] and "igpt.promotion" not in second.tags
    assert "- Classifies with a probe on: `s3://datasets/pets`" in second.description


@pytest.fixture
def copy(put: Callable[..., Imported], uri: str, request: pytest.FixtureRequest) -> Version:
    """A copy of a copy of a promoted version; the version that was copied last is gone."""
    registry, client, name = Registry(uri), MlflowClient(uri), request.node.name
    original = put("theirs", f"{name}-original").version
    registry.promote(original.uri, GateConfig())
    client.copy_model_version(original.uri, f"{name}-staging")
    client.copy_model_version(f"models:/{name}-staging/1", name)
    client.delete_model_version(f"{name}-staging", "1")
    return registry.find(f"{name}/1")


def test_a_copy_is_measured_and_verified(copy: Version, uri: str, tmp_path: Path) -> None:
    registry = Registry(uri)
    original = registry.find(f"{copy.name}-original/1")
    assert copy.copied_from == f"models:/{copy.name}-staging/1"
    assert registry.logged_model(copy) == registry.logged_model(original) == original.model_id
    registry.tag(copy, {"igpt.probe.pets.best_test_accuracy": "0.9"})
    registry.measure(copy, {"probe_best_test_accuracy": 0.9}, dataset="s3://datasets/pets", digest="d" * 64)
    measured = MlflowClient(uri).get_logged_model(original.model_id).metrics or []
    assert [(metric.key, metric.value) for metric in measured] == [("probe_best_test_accuracy", 0.9)]
    write_card(registry, registry.find(copy.uri))
    described = registry.find(copy.uri).description
    assert f'load_model("{copy.uri}")' in described and "| pets | best test accuracy | 0.9 |" in described
    assert registry.fetch(copy, tmp_path).model.config == SIZES["two layers of 8x8"]
    assert copy.tags[IDENTITY] == original.tags[IDENTITY]
    MlflowClient(uri).delete_logged_model(original.model_id)
    registry.measure(copy, {"probe_best_test_accuracy": 0.8}, dataset="s3://datasets/pets", digest="d" * 64)
    run = MlflowClient(uri).get_run(copy.run_id)
    assert run.data.metrics["probe_best_test_accuracy"] == 0.8


def test_a_copy_is_promoted_and_rolled_back_under_its_own_name(copy: Version, uri: str) -> None:
    registry, client = Registry(uri), MlflowClient(uri)
    assert "igpt.promotion" not in copy.tags
    client.set_registered_model_alias(copy.name, CHAMPION, "1")  # as on MLflow's page
    with pytest.raises(IgptError, match="is the first champion"):
        registry.rollback(copy.name)
    client.copy_model_version(f"models:/{copy.name}-original/1", copy.name)
    promoted = registry.promote(f"{copy.name}/2", ANY_GAIN)
    assert promoted.decision.passed and promoted.previous == 1
    assert registry.find(f"{copy.name}/2").tags["igpt.promotion"] == "promoted"
    assert registry.rollback(copy.name).version.number == 1
    assert ROLLED_BACK in registry.find(f"{copy.name}/2").tags


def test_a_description_that_a_person_wrote_stays(put: Callable[..., Imported], uri: str) -> None:
    version = put("theirs", "described").version
    registry = Registry(uri)
    registry.describe(version, "Not for faces.")
    registry.tag(version, {"igpt.probe.pets.best_test_accuracy": "0.9"})
    write_card(registry, registry.find(version.uri))
    assert registry.find(version.uri).description == "Not for faces."
