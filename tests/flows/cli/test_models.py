"""The commands that use a model: the files they write, and the one-line error for each bad input."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from igpt_model.runs.open_model import load_model
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.store import objects
from tests.igpt_model.convert.test_openai import openai_variables
from tests.igpt_model.training.test_loop import Recorder, digits_snapshot, short_training

KINDS = {"masked": {"objective": "masked"}, "by_class": {"classes": 3}, "upscaling": {"low_resolution": 4}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run in run/, an untrained model of each kind in its own folder, and two image files."""
    root = tmp_path_factory.mktemp("models")
    data = digits_snapshot(root)
    train(short_training(data, root), data, str(root / "run"), Worker(), Recorder())
    colours = np.linspace(-1, 1, 16, dtype=np.float32)[:, None].repeat(3, 1)
    for name, fields in KINDS.items():
        config = ModelConfig(layers=2, width=32, heads=4, resolution=8, colours=16, **fields)  # type: ignore[arg-type]
        (root / name).mkdir()
        ModelBundle(model=ImageGPT(config), palette_K3=colours, classes=("one", "two", "three")).save(root / name)
    for number, digit in enumerate(load_digits().images[300:302]):
        Image.fromarray(np.rint(digit * (255 / 16)).astype(np.uint8)).resize((40, 32), 0).save(root / f"{number}.png")
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(root / "mask.png")
    return root


def cells(path: Path, rows: int, columns: int) -> np.ndarray:
    """The images of a sheet, uint8 [rows, columns, 8, 8, 3]."""
    sheet = np.asarray(Image.open(path).convert("RGB"))
    factor = sheet.shape[0] // (rows * 10 + 2)
    sheet = sheet[::factor, ::factor]
    assert sheet.shape == (rows * 10 + 2, columns * 10 + 2, 3)
    return sheet[2:, 2:].reshape(rows, 10, columns, 10, 3).transpose(0, 2, 1, 3, 4)[:, :, :8, :8]


def test_sample_draws_the_same_sheet_with_the_same_seed(igpt, root: Path) -> None:
    assert igpt("sample", "--model", root / "run", "--count", 6, "--columns", 3, "-o", "a.png").code == 0
    assert igpt("sample", "-m", root / "run", "--count", 6, "--columns", 3, "-o", "b.png").code == 0
    assert igpt("sample", "-m", root / "run", "--count", 6, "--columns", 3, "--seed", 1, "-o", "c.png").code == 0
    first, again, other = (cells(Path(f"{name}.png"), 2, 3) for name in "abc")
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_checkpoint_opens_as_a_model(igpt, root: Path) -> None:
    whole = igpt("score", root / "0.png", "-m", root / "run")
    checkpoint = igpt("score", root / "0.png", "-m", root / "run" / "checkpoints" / "00000030")
    assert whole.code == checkpoint.code == 0
    assert whole.out == checkpoint.out


def test_complete_keeps_the_given_pixels(igpt, root: Path) -> None:
    bundle = load_model(str(root / "run"))
    images = (root / "0.png", root / "1.png")
    assert igpt("complete", *images, "-m", root / "run", "--draws", 3).code == 0
    completed = cells(Path("completions.png"), 2, 5)
    square = Image.open(images[0]).convert("RGB").resize((8, 8), Image.Resampling.BOX, box=(4, 0, 36, 32))
    assert np.array_equal(completed[0, 0], bundle.pictures(bundle.quantize(np.asarray(square)[None]))[0])
    assert np.array_equal(completed[:, 1, :4], completed[:, 0, :4])
    assert (completed[:, 1, 4:] == 200).all()
    for draw in (2, 3, 4):
        assert np.array_equal(completed[:, draw, :4], completed[:, 0, :4])
    assert not np.array_equal(completed[:, 2], completed[:, 3])
    assert igpt("complete", images[0], "-m", root / "run", "--mask", root / "mask.png", "-o", "m.png").code == 0
    masked = cells(Path("m.png"), 1, 7)[0]
    diagonal = np.eye(8, dtype=bool)
    assert (masked[1][~diagonal] == 200).all()
    assert all(np.array_equal(cell[diagonal], masked[0][diagonal]) for cell in masked[1:])


def test_score_prints_the_likelihood_of_an_image_and_draws_it_by_pixel(igpt, root: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)).save("noise.png")
    ended = igpt("score", root / "0.png", "noise.png", "-m", root / "run", "-o", "s.png")
    assert ended.code == 0
    digit, noise = (float(line.split()[0]) for line in ended.out.splitlines()[:2])
    assert 0 < digit < noise
    assert cells(Path("s.png"), 2, 2)[1, 1].mean() > cells(Path("s.png"), 2, 2)[0, 1].mean()


def test_class_conditional_and_super_resolution_models(igpt, root: Path) -> None:
    for given, images, rows in (((), 60, 6), (("--count", 7, "--columns", 2), 7, 4), (("--count", 3), 3, 3)):
        sampled = igpt("sample", "-m", root / "by_class", *given)
        assert sampled.code == 0 and f"{images} images" in sampled.out, sampled
        sheet = np.asarray(Image.open("samples.png"))
        assert sheet.shape[0] % (rows * 10 + 2) == 0, "every class has rows of its own"
    assert (
        igpt("sample", "-m", root / "by_class", "--count", 4, "--columns", 2, "--class", "two", "-o", "2.png").code == 0
    )
    assert igpt("complete", root / "0.png", "-m", root / "by_class", "--class", "2").code == 0
    scores = [igpt("score", root / "0.png", "-m", root / "by_class", "--class", name) for name in ("one", "0", "two")]
    assert [score.code for score in scores] == [0, 0, 0]
    assert igpt("upscale", root / "0.png", root / "1.png", "-m", root / "upscaling", "--draws", 2).code == 0
    upscaled = cells(Path("upscaled.png"), 2, 4)
    small = upscaled[:, 1, ::2, ::2].repeat(2, 1).repeat(2, 2)
    assert np.array_equal(small, upscaled[:, 1])
    assert igpt("score", root / "0.png", "-m", root / "upscaling").code == 0


def test_convert_goes_both_ways(igpt, root: Path) -> None:
    assert igpt("convert", root / "run", "theirs").code == 0
    files = {path.name for path in Path("theirs").iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert igpt("convert", "theirs", "ours").code == 0
    ours, run = (igpt("score", root / "0.png", "-m", model) for model in ("ours", root / "run"))
    assert ours.out == run.out
    np.savez("openai.npz", **openai_variables(masked=False))
    np.save("centres.npy", np.random.default_rng(0).uniform(-1, 1, (17, 3)).astype(np.float32))
    assert igpt("convert", "openai.npz", "from-openai", "--palette", "centres.npy").code == 0
    assert igpt("sample", "-m", "from-openai", "--count", 2).code == 0


def test_convert_reads_from_and_writes_to_a_store(
    igpt, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store without folders; the file by which a folder is known as a model is written last."""
    theirs, ours = (f"memory://{tmp_path.name}/{name}" for name in ("theirs", "ours"))
    uploaded, upload = list[str](), objects.upload
    monkeypatch.setattr(objects, "upload", lambda path, url: (uploaded.append(url), upload(path, url)))
    assert igpt("convert", root / "run", theirs).code == 0
    assert igpt("convert", theirs, ours).code == 0
    assert (len(uploaded), uploaded[2], uploaded[5]) == (6, f"{theirs}/config.json", f"{ours}/model.json")
    for url in (theirs, ours):
        again = igpt("convert", root / "run", url)
        assert again.code == 2 and "it exists already" in again.err
    in_store, run = (igpt("score", root / "0.png", "-m", model) for model in (ours, root / "run"))
    assert in_store.code == 0 and in_store.out == run.out


BAD = {
    "no model": ("sample -m nothing", "nothing: no model there"),
    "a folder without weights": ("sample -m half", "weights.safetensors is missing"),
    "a damaged model": ("sample -m damaged", "damaged model folder"),
    "a registered model without a server": ("sample -m models:/igpt@champion", "no MLflow server is known"),
    "no image": ("complete nothing.png -m {root}/run", "nothing.png: nothing is there"),
    "a folder of images": ("score half -m {root}/run", "half: this is a folder"),
    "not an image": ("complete words.png -m {root}/run", "words.png: not_an_image"),
    "a truncated image": ("score cut.png -m {root}/run", "cut.png: truncated"),
    "no such mask": ("complete {root}/0.png -m {root}/run --mask nothing.png", "nothing.png: nothing is there"),
    "rows and mask": ("complete {root}/0.png -m {root}/run --rows 3 --mask words.png", "exclude each other"),
    "too many rows": ("complete {root}/0.png -m {root}/run --rows 9", "--rows is 9: the model's images have 8 rows"),
    "output that is not PNG": ("sample -m {root}/run -o samples.jpg", "the output is a PNG file"),
    "output in a folder that does not exist": (
        "sample -m {root}/run -o no/where.png",
        "does not exist; create it first",
    ),
    "a bad temperature": ("sample -m {root}/run --temperature -1", "temperature is -1.0"),
    "a bad top-p": ("complete {root}/0.png -m {root}/run --top-p 2", "top_p is 2.0"),
    "a class for an unconditional model": ("sample -m {root}/run --class two", "trained without class_conditional"),
    "an unknown class": ("sample -m {root}/by_class --class four", "it must be one of one, two, three"),
    "fewer samples than classes": ("sample -m {root}/by_class --count 2", "--count is 2: the model has 3 classes"),
    "no class for a conditional model": (
        "complete {root}/0.png -m {root}/by_class",
        "name the class of the images with --class",
    ),
    "a masked model drawing": ("sample -m {root}/masked", "masked model cannot draw"),
    "a masked model scoring": ("score {root}/0.png -m {root}/masked", "masked model has no likelihood"),
    "upscaling with another kind of model": ("upscale {root}/0.png -m {root}/run", "this model does not upscale"),
    "sampling from a super-resolution model": ("sample -m {root}/upscaling", "use `igpt upscale`"),
    "no such device": ("sample -m {root}/run --device abacus", "device is 'abacus'"),
    "converting to a folder with files": ("convert {root}/run half", "half: it exists already"),
    "converting a masked model": ("convert {root}/masked out", "only an autoregressive one"),
    "converting without palette": ("convert some.npz out", "give kmeans_centers.npy with --palette"),
    "converting a model that does not exist": ("convert nothing out", "nothing: no model there"),
    "converting one file of a folder": (
        "convert damaged/weights.safetensors out",
        "one file of a model; give the folder",
    ),
    "converting into nowhere": ("convert {root}/run no/where", "does not exist; create it first"),
    "a palette for a model that has one": ("convert {root}/run out --palette nothing.npy", "no palette there"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_writes_nothing(name: str, igpt, root: Path, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "model.json").write_text((root / "masked" / "model.json").read_text())
    (tmp_path / "half" / "palette.npy").write_bytes((root / "masked" / "palette.npy").read_bytes())
    (tmp_path / "damaged").mkdir()
    for path in (root / "masked").iterdir():
        (tmp_path / "damaged" / path.name).write_bytes(path.read_bytes()[:200])
    (tmp_path / "words.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((root / "0.png").read_bytes()[:80])
    before = sorted(tmp_path.rglob("*"))
    command, expected = BAD[name]
    ended = igpt(*command.format(root=root).split())
    assert ended.code == 2, ended.out + ended.err
    (line,) = ended.err.splitlines()
    assert line.startswith("igpt: ") and expected in line
    assert sorted(tmp_path.rglob("*")) == before
