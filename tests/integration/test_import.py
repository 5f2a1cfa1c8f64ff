"""Models from outside: published weights become versions like any other, with a dataset, a probe and a child.

The commands are those of the first section of docs/models.md.
"""

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from flows.services.local_stack import Stack
from igpt_model.inference.features import image_features
from igpt_model.registry import card
from igpt_model.registry.client import Registry
from igpt_model.registry.gate import PALETTE, GateConfig
from igpt_model.registry.register import HUGGING_FACE
from pipeline.images import palette
from pipeline.store import objects
from tests.igpt_model.convert.test_hugging_face import colours_of, hf_inputs, published, write_processor
from tests.igpt_model.convert.test_openai import openai_variables
from tests.integration.conftest import Refreshed, igpt

pytestmark = pytest.mark.services

NAME = "imported"
SHAPE = ("preset=tiny", "layers=2", "width=32", "heads=2")


def colours() -> np.ndarray:
    """Sixteen greys, as of digits, float32 [16, 3]."""
    return np.linspace(-1, 1, 16, dtype=np.float32)[:, None].repeat(3, 1)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder in the form of a published one, with a card, of 8x8 pixels in sixteen greys."""
    from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hub") / "theirs"
    shape = ImageGPTConfig(vocab_size=17, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    ImageGPTForCausalImageModeling(shape).save_pretrained(folder)
    write_processor(folder, colours(), 8)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return folder


@pytest.fixture(scope="module")
def imported(theirs: Path, stack: Stack) -> str:
    """The URI of the imported model."""
    command = igpt("models", "import", str(theirs), "--name", NAME)
    assert command.code == 0, command.out + command.err
    assert f"models:/{NAME}/1 is registered: an Image GPT: 2 layers" in command.out
    assert "licence apache-2.0" in command.out
    return f"models:/{NAME}/1"


def test_it_is_a_version_like_any_other(imported: str, theirs: Path, stack: Stack, tmp_path: Path) -> None:
    from transformers import ImageGPTForCausalImageModeling

    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    model = mlflow.pyfunc.load_model(imported)
    bundle = Registry(stack.mlflow_url).open(imported)
    tokens = torch.from_numpy(bundle.quantize(pictures))
    assert model.predict(pictures) == pytest.approx(image_features(bundle, tokens)[1].numpy(), abs=1e-5)
    with torch.inference_mode():
        logits = ImageGPTForCausalImageModeling.from_pretrained(theirs).eval()(hf_inputs(tokens, 16)).logits
    bits = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens, reduction="none").mean(1) / np.log(2)
    assert model.predict(pictures, {"task": "score"}) == pytest.approx(bits.numpy(), abs=1e-4)
    assert model.predict(pictures, {"task": "complete", "samples": 2}).shape == (2, 2, 8, 8, 3)
    assert model.predict(pictures, {"task": "sample", "samples": 3}).shape == (3, 8, 8, 3)
    sheet = tmp_path / "samples.png"
    assert igpt("sample", "-m", imported, "--count", "2", "-o", str(sheet)).code == 0
    assert Image.open(sheet).format == "PNG"


def test_its_tags_card_and_run_tell_its_origin(imported: str, theirs: Path, stack: Stack) -> None:
    version = Registry(stack.mlflow_url).find(imported)
    assert version.aliases == ("candidate",)
    tags = version.tags
    assert (tags[card.ORIGIN], tags[card.ORIGIN_FORM]) == (str(theirs), "Hugging Face folder")
    assert tags[card.LICENCE] == "apache-2.0"
    assert tags[PALETTE] == palette.sha256(colours())
    assert tags[card.ORIGIN_SHA256].startswith("model.safetensors ")
    assert tags["igpt.git_commit"]
    assert version.description == card.text(NAME, 1, tags)
    client = MlflowClient(stack.mlflow_url)
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED" and run.data.params["model.layers"] == "2"
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert HUGGING_FACE in {file.path for file in client.list_artifacts(version.run_id)}
    shown = igpt("models", "show", imported)
    assert "apache-2.0" in shown.out
    example = version.description.partition("```python\n")[2].partition("```")[0]
    scope: dict[str, np.ndarray] = {}
    exec(example, scope)
    assert scope["features"].shape == (1, 32)


def test_the_same_model_is_registered_once_wherever_it_comes_from(imported: str, theirs: Path, stack: Stack) -> None:
    for path in theirs.iterdir():
        objects.upload(path, f"s3://raw/hub/theirs/{path.name}")
    assert igpt("convert", "s3://raw/hub/theirs", "s3://raw/hub/ours").code == 0
    refused = igpt("convert", "s3://raw/hub/theirs", "s3://raw/hub/ours")
    assert refused.code == 2 and "it exists already" in refused.err
    assert igpt("convert", "s3://raw/hub/ours", "s3://raw/hub/back").code == 0
    names = {file.url.rsplit("/", 1)[1] for file in objects.list_files("s3://raw/hub/back")}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
    for source in (str(theirs), "s3://raw/hub/theirs", "s3://raw/hub/ours", "s3://raw/hub/back"):
        again = igpt("models", "import", source, "--name", NAME, "--json")
        assert again.code == 0, again.err
        answer = json.loads(again.out)
        assert (answer["uri"], answer["is_new"]) == (imported, False)
    runs = MlflowClient(stack.mlflow_url)
    experiment = runs.get_experiment_by_name("imported")
    assert experiment is not None
    assert [run.info.run_name for run in runs.search_runs([experiment.experiment_id])].count(NAME) == 1


def test_a_run_and_openais_variables_are_imported_too(refreshed: Refreshed, stack: Stack, tmp_path: Path) -> None:
    command = igpt("models", "import", refreshed.run, "--name", "imported-run", "--licence", "ours alone", "--json")
    assert command.code == 0, command.err
    tags = json.loads(command.out)["tags"]
    assert (tags[card.ORIGIN_FORM], tags["igpt.run"]) == ("training run", refreshed.run)
    assert (tags["igpt.dataset"], tags[card.LICENCE]) == ("s3://datasets/refreshed", "ours alone")
    registered = Registry(stack.mlflow_url).find("refreshed/1").tags
    for tag in ("igpt.validation_bits_per_pixel", "igpt.splits_digest", PALETTE):
        assert tags[tag] == registered[tag]
    np.savez(tmp_path / "openai.npz", **openai_variables(masked=False))
    np.save(tmp_path / "centres.npy", np.random.default_rng(0).uniform(-1, 1, (17, 3)).astype(np.float32))
    fields = ("--palette", str(tmp_path / "centres.npy"))
    command = igpt("models", "import", str(tmp_path / "openai.npz"), "--name", "imported-npz", *fields)
    assert command.code == 0 and "licence not stated" in command.out


REFUSED = {
    "nothing there": (("openai/imagegpt-small",), "hf download openai/imagegpt-small"),
    "a damaged folder": (("s3://raw/hub/damaged",), "s3://raw/hub/damaged: damaged weights"),
    "a registered version": ((f"models:/{NAME}/1",), "it is registered already"),
    "no palette": (("some.npz",), "some.npz: OpenAI's variables hold no palette"),
    "no bucket": (("s3://no-such-bucket/model",), "the bucket does not exist"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_failed_import_leaves_nothing(what: str, imported: str, theirs: Path, stack: Stack) -> None:
    if what == "a damaged folder":
        for path in theirs.iterdir():
            damaged = path.read_bytes()[:-1] if path.suffix == ".safetensors" else path.read_bytes()
            objects.write_bytes(f"s3://raw/hub/damaged/{path.name}", damaged)
    arguments, expected = REFUSED[what]
    before = Registry(stack.mlflow_url).names()
    command = igpt("models", "import", *arguments, "--name", "refused")
    assert command.code == 2
    (line,) = command.err.splitlines()
    assert expected in line
    assert Registry(stack.mlflow_url).names() == before
    for name in ("a/b", "it's", "..", "n" * 251):
        wrong = igpt("models", "import", "anything", "--name", name)
        assert wrong.code == 2 and len(wrong.err.splitlines()) == 1 and "name" in wrong.err


def test_it_is_probed_classifies_and_has_children(
    imported: str, refreshed: Refreshed, stack: Stack, tmp_path: Path
) -> None:
    file = tmp_path / "palette.npy"
    assert igpt("models", "palette", f"{NAME}/1", str(file)).code == 0
    build = (f"raw={refreshed.config['dataset']['raw']}", "dataset=s3://datasets/in-its-colours", "resolution=8")
    built = igpt("dataset", "build", *build, "colours=16", "test_fraction=0.2", "--palette", str(file))
    assert built.code == 0, built.err
    probe = (f"model=models:/{NAME}/1", "dataset=s3://datasets/in-its-colours", "strengths=[0.1]", "register=true")
    for _ in range(2):  # a rerun registers nothing twice
        probed = igpt("probe", *probe)
        assert probed.code == 0, probed.out + probed.err
        assert f"models:/{NAME}/2, alias candidate, classifies" in probed.out
    registry = Registry(stack.mlflow_url)
    assert [version.number for version in registry.versions(NAME)] == [2, 1]
    first, second = registry.find(imported), registry.find(f"{NAME}@candidate")
    accuracy = first.tags["igpt.probe.in-its-colours.best_test_accuracy"]
    for version in (first, second):
        assert f"| in-its-colours | best test accuracy | {accuracy} |" in version.description
    assert second.tags[card.LICENCE] == "apache-2.0" and second.tags[card.PROBED_VERSION] == imported
    grey = np.full((1, 8, 8, 3), 90, np.uint8)
    table = mlflow.pyfunc.load_model(second.uri).predict(grey, {"task": "classify"})
    assert len(table.columns) == 10 and float(table.sum(axis=1).iloc[0]) == pytest.approx(1)
    assert registry.promote(second.uri, GateConfig()).decision.passed
    child = igpt(
        *("pretrain", "dataset=s3://datasets/in-its-colours", "runs=s3://runs/grandchildren", "steps=3"),
        *("global_batch=16", "workers=1", "warmup_steps=1", "sample_every=0", "experiment=grandchildren", *SHAPE),
        f"parent=models:/{NAME}@champion",
    )
    assert child.code == 0, child.out + child.err
    unregistered = igpt("probe", f"model={refreshed.run}", "dataset=s3://datasets/refreshed", "register=true")
    assert unregistered.code == 2 and "give a registered version" in unregistered.err


@pytest.mark.long
def test_the_small_published_shape_is_registered_whole(stack: Stack, tmp_path: Path) -> None:
    """Random weights in the configuration of openai/imagegpt-small: 306 MB."""
    from transformers import ImageGPTForCausalImageModeling

    torch.manual_seed(0)
    ImageGPTForCausalImageModeling(published("small")[0]).save_pretrained(tmp_path / "small")
    write_processor(tmp_path / "small", colours_of(512), 32)
    command = igpt("models", "import", str(tmp_path / "small"), "--name", "imagegpt-small")
    assert command.code == 0, command.err
    assert "24 layers, width 512, 8 heads, 76,571,648 parameters; 32x32 pixels of 512 colours" in command.out
    model = mlflow.pyfunc.load_model("models:/imagegpt-small@candidate")
    assert model.predict(np.zeros((1, 40, 50, 3), np.uint8)).shape == (1, 512)


def test_a_copy_is_probed_compared_promoted_and_rolled_back(refreshed: Refreshed, stack: Stack) -> None:
    client, registry = MlflowClient(stack.mlflow_url), Registry(stack.mlflow_url)
    original = registry.find("refreshed@champion")
    client.copy_model_version(original.uri, "staging")
    client.copy_model_version("models:/staging/1", "production")
    client.delete_model_version("staging", "1")  # MLflow knows where the files of a copy of a copy are
    copy = registry.find("production/1")
    assert copy.copied_from == "models:/staging/1" and "igpt.promotion" not in copy.tags
    assert registry.logged_model(copy) == original.model_id
    fields = ("dataset=s3://datasets/refreshed", "strengths=[0.01]", "labels_per_class=[3]", "draws=2")
    probed = igpt("probe", "model=models:/production/1", *fields)
    assert probed.code == 0, probed.out + probed.err
    copy = registry.find("production/1")
    assert "igpt.probe.refreshed.3_labels_pretrained_mean" in copy.tags
    assert "igpt.probe.refreshed.3_labels_pretrained_mean" not in registry.find(original.uri).tags
    measured = client.get_logged_model(original.model_id).metrics or []
    assert "probe_3_labels_pretrained_mean" in {metric.key for metric in measured}
    assert 'load_model("models:/production/1")' in copy.description
    shown = igpt("models", "show", "production/1")
    assert "A copy of models:/staging/1." in shown.out
    compared = igpt("models", "compare", "production/1", original.uri, "--json")
    assert compared.code == 0 and "igpt.files_sha256" not in {row["tag"] for row in json.loads(compared.out)}
    client.set_registered_model_alias("production", "champion", "1")  # as on MLflow's page
    refused = igpt("models", "rollback", "production")
    assert refused.code == 2 and "is the first champion" in refused.err
    client.copy_model_version(original.uri, "production")
    promoted = igpt("models", "promote", "production/2", "min_bits_gain=-1", "min_accuracy_gain=-1")
    assert promoted.code == 0, promoted.out + promoted.err
    assert "is the champion again" in igpt("models", "rollback", "production").out
