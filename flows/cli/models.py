"""The commands that use a model: sample, complete, upscale, score and convert. They only need access to the model."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from flows.cli.options import ConfigFile, Home, Json, check_png
from flows.services import settings
from flows.terminal.console import Reporter, console
from pipeline.errors import IgptError
from pipeline.images import palette
from pipeline.store import objects

if TYPE_CHECKING:
    from igpt_model.inference.sample import Drawing
    from igpt_model.model.bundle import ModelBundle

# Modules that need torch are imported in the functions, to keep the command line fast.
Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="A training run, one of its checkpoints or a model folder (path or s3://), or models:/..."
    ),
]
Images = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files of any size, paths or s3:// URLs.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")]
Draws = Annotated[int, typer.Option(help="Number of results per image.", min=1)]
ClassName = Annotated[
    str | None,
    typer.Option("--class", help="Name or number of the class, for class-conditional models.", show_default=False),
]
Temperature = Annotated[float, typer.Option(help="Below 1 sharpens; 0 takes the most likely colour.")]
TopK = Annotated[int | None, typer.Option(help="Draw only from this many most likely colours.", show_default=False)]
TopP = Annotated[
    float | None,
    typer.Option(help="Draw only from the most likely colours with this total probability.", show_default=False),
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same images.", min=0, max=2**32 - 1)]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU if there is one.", show_default=False)]
_SAMPLES = 60


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (sample, complete, upscale, score, convert):
        app.command()(command)


def sample(
    model: Model,
    output: Output = Path("samples.png"),
    count: Annotated[
        int | None,
        typer.Option(
            help="Number of images; by default 60, of a class-conditional model as many of each class.",
            min=1,
            show_default=False,
        ),
    ] = None,
    columns: Annotated[int, typer.Option(help="Number of images in a row of the sheet.", min=1)] = 10,
    class_name: ClassName = None,
    temperature: Temperature = 1.0,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Draw images from a model. A class-conditional model draws every class in rows of its own, or that of --class."""
    _prepare(output)
    from igpt_model.tracking import sheets

    drawing = _drawing(temperature, top_k, top_p, seed)
    bundle = _load(model, device)
    _refuse_upscaling(bundle, model)
    labels = _labels(bundle, class_name, count or _SAMPLES)
    if labels is None and bundle.model.config.classes is not None:
        labels = _every_class(bundle.model.config.classes, count)
    number = (count or _SAMPLES) if labels is None else len(labels)
    reporter = Reporter("sample")
    sheet = sheets.sample_sheet(bundle, drawing, count=number, columns=columns, labels_N=labels, progress=reporter)
    _write(output, sheets.to_png(sheet), reporter, f"{number} images")


def complete(
    images: Images,
    model: Model,
    output: Output = Path("completions.png"),
    rows: Annotated[
        int | None, typer.Option(help="Keep this many upper rows; half by default.", min=0, show_default=False)
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(help="Mask image: keep pixels where it is white, draw where it is black.", show_default=False),
    ] = None,
    draws: Draws = 5,
    class_name: ClassName = None,
    temperature: Temperature = 1.0,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Complete images. Each row of the sheet shows the original, the kept pixels, and completions.

    Pixels are drawn row by row, each given the pixels before it. A kept pixel that comes after a drawn one is preserved
    but does not influence it.
    """
    _prepare(output)
    if rows is not None and mask is not None:
        raise IgptError("--rows and --mask exclude each other: give one")
    from igpt_model.inference import image_files
    from igpt_model.tracking import sheets

    contents = image_files.read_files(images)
    mask_file = image_files.read_files([mask]) if mask is not None else []
    drawing = _drawing(temperature, top_k, top_p, seed)
    bundle = _load(model, device)
    _refuse_upscaling(bundle, model)
    side = bundle.model.config.resolution
    if mask is not None:
        known_T = image_files.to_pictures(mask_file, [mask], side)[0].mean(2).reshape(-1) > 127.5
    else:
        kept = side // 2 if rows is None else rows
        if kept > side:
            raise IgptError(f"--rows is {kept}: the model's images have {side} rows")
        known_T = np.arange(side * side) < kept * side
    tokens_NT = bundle.quantize(image_files.to_pictures(contents, images, side))
    labels = _needed_labels(bundle, class_name, len(images))
    reporter = Reporter("complete")
    sheet = sheets.completion_sheet(
        bundle, tokens_NT, known_T, drawing, draws=draws, labels_N=labels, progress=reporter
    )
    _write(output, sheets.to_png(sheet), reporter, f"{len(images)} images, {draws} completions each")


def upscale(
    images: Images,
    model: Model,
    output: Output = Path("upscaled.png"),
    draws: Draws = 5,
    class_name: ClassName = None,
    temperature: Temperature = 1.0,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Upscale images with a super-resolution model. Each row shows the image, its small version, and upscaled ones.

    The model only sees the small version, at its low resolution.
    """
    _prepare(output)
    from igpt_model.inference import image_files
    from igpt_model.tracking import sheets

    contents = image_files.read_files(images)
    drawing = _drawing(temperature, top_k, top_p, seed)
    bundle = _load(model, device)
    config = bundle.model.config
    if config.low_resolution is None:
        raise IgptError(f"{model}: this model does not upscale: it was trained without low_resolution")
    low_NP = bundle.quantize(image_files.to_pictures(contents, images, config.low_resolution))
    originals = image_files.to_pictures(contents, images, config.resolution)
    labels = _needed_labels(bundle, class_name, len(images))
    reporter = Reporter("upscale")
    sheet = sheets.upscaling_sheet(bundle, originals, low_NP, drawing, draws=draws, labels_N=labels, progress=reporter)
    _write(output, sheets.to_png(sheet), reporter, f"{len(images)} images, upscaled {draws} times each")


def score(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... | MODEL DATASET OUT [FIELD=VALUE]...",
            help="With --model, image files of any size, paths or s3:// URLs.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="As for `igpt sample`; without it, MODEL is the first argument."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="PNG file with the loss of every pixel.", show_default=False),
    ] = None,
    class_name: ClassName = None,
    device: Device = None,
    config: ConfigFile = None,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Print how likely images are, in nats and bits per pixel.

    These are negative log-likelihoods: lower is more likely. Exact for the image at the model's resolution and
    palette; on a GPU, in bfloat16, to 0.01 nats. A super-resolution model scores an image given its small version.
    `igpt score MODEL DATASET OUT` writes those of a dataset, or of many raw images, as Parquet, as `igpt features`
    does.
    """
    if model is None:
        _score_many(images, config, {"--output": output, "--class": class_name, "--device": device}, as_json, home)
        return
    for option, given in (("--config", config), ("--json", as_json or None), ("--home", home)):
        if given is not None:
            raise IgptError(f"{option} is for `igpt score MODEL DATASET OUT`: leave it out with --model")
    _prepare(output)
    from igpt_model.inference import image_files
    from igpt_model.inference.score import score_images
    from igpt_model.tracking import sheets

    contents = image_files.read_files(images)
    bundle = _load(model, device)
    squares = image_files.to_pictures(contents, images, bundle.model.config.resolution)
    tokens_NT = bundle.quantize(squares)
    low_NP = bundle.shrink(squares) if bundle.model.config.low_resolution is not None else None
    labels = _needed_labels(bundle, class_name, len(images))
    result = score_images(bundle, tokens_NT, labels_N=labels, low_NP=low_NP)
    for name, nats, bits in zip(images, result.nats_per_pixel, result.bits_per_pixel, strict=True):
        console.print(f"{nats:.4f} nats per pixel, {bits:.4f} bits per pixel  {name}")
    if output is not None:
        sheet = sheets.surprise_sheet(bundle, tokens_NT, result.pixels_BT.cpu().numpy())
        _write(output, sheets.to_png(sheet), Reporter("score"), f"{len(images)} images")


def _score_many(
    arguments: list[str], config: Path | None, of_images: dict[str, object], as_json: bool, home: Path | None
) -> None:
    """`igpt score MODEL DATASET OUT`. Raises IgptError for options of the other form."""
    if len(arguments) < 3 or any("=" in argument for argument in arguments[:3]):
        raise IgptError("give --model MODEL with image files, or MODEL DATASET OUT to score many images")
    for option, given in of_images.items():
        if given is not None:
            raise IgptError(f"{option} is for image files: give --model MODEL, or leave it out")
    from flows.cli import batch

    model, dataset, out, *overrides = arguments
    batch.run("score", model, dataset, out, overrides, config, as_json=as_json, home=home)


def convert(
    source: Annotated[
        str, typer.Argument(help="An igpt model, a Hugging Face folder, or an .npz of OpenAI's variables.")
    ],
    folder: Annotated[str, typer.Argument(help="Folder to create, a path or s3:// URL.")],
    palette: Annotated[
        str | None,
        typer.Option(help="Palette for a model without one: .npy [colours, 3] in [-1, 1] or JSON.", show_default=False),
    ] = None,
) -> None:
    """Convert models for Hugging Face's transformers, or from there.

    Writes a folder for from_pretrained, or an igpt model from a foreign one.
    """
    _prepare(None)
    _check_new(folder)
    from igpt_model.convert import foreign, hugging_face

    palette_K3 = None if palette is None else read_palette(palette)
    write: Callable[[Path], object]
    opened = None if source.startswith("models:") else foreign.open_foreign(source, palette_K3)
    if opened is not None:
        write, kind, last = opened.bundle.save, "a model folder", "model.json"
    else:
        if palette_K3 is not None:
            raise IgptError(f"--palette is {palette}: an igpt model has its own, leave it out")
        bundle = _load(source, "cpu")
        write, kind = lambda path: hugging_face.to_hugging_face(bundle, path), "a Hugging Face folder"
        last = hugging_face.CONFIG
    remote = objects.protocol(folder) != "file"
    with tempfile.TemporaryDirectory(
        prefix=".igpt-convert-", dir=None if remote else objects.local_path(folder).absolute().parent
    ) as temporary:
        converted = Path(temporary) / "model"
        converted.mkdir()
        write(converted)
        if remote:
            # The file by which a folder is known as a model comes last.
            for path in sorted(converted.iterdir(), key=lambda path: path.name == last):
                objects.upload(path, objects.join(folder, path.name))
        else:
            converted.replace(objects.local_path(folder))  # atomically
    console.print(f"{folder} is now {kind}")


def _check_new(folder: str) -> None:
    """Raise IgptError unless a folder can be created: nothing is there, and what holds it is."""
    if objects.protocol(folder) != "file":
        objects.check_reachable(folder)
        if next(objects.list_files(folder), None) is not None:
            raise IgptError(f"{folder}: it exists already; give a folder that does not exist yet")
        return
    path = objects.local_path(objects.absolute(folder))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise IgptError(f"{folder}: it exists already; give a folder that does not exist yet")
    if not path.parent.is_dir():
        raise IgptError(f"{folder}: the folder {path.parent} does not exist; create it first")


def _prepare(output: Path | None) -> None:
    """Prepare the environment, and check the output file before the slow imports. Raises IgptError for a bad one."""
    settings.activate(settings.home_folder(None))
    if output is not None:
        check_png(output)


def _write(output: Path, png: bytes, reporter: Reporter, what: str) -> None:
    objects.write_bytes(str(output.absolute()), png)
    reporter.close()
    reporter.say(f"{what} in {output}")


def _load(model: str, device: str | None) -> "ModelBundle":
    """The model of a run, a checkpoint, a folder or a registry URI, on a device."""
    from igpt_model.runs.open_model import on_device, open_model

    def from_registry(reference: str) -> "ModelBundle":
        from flows import trust
        from igpt_model.tracking import runs

        uri = settings.tracking_uri()
        runs.check_reachable(uri)
        return trust.registry(uri).open(reference)

    return on_device(open_model(model, from_registry), device)


def read_palette(url: str) -> np.ndarray:
    """Read a palette, float32 [colours, 3]. Raises IgptError when the file is missing or not a palette."""
    try:
        return palette.from_bytes(objects.read_bytes(objects.absolute(url)), url)
    except (FileNotFoundError, IsADirectoryError):
        raise IgptError(f"{url}: no palette there; give an .npy of [colours, 3] or a JSON list of clusters") from None


def _drawing(temperature: float, top_k: int | None, top_p: float | None, seed: int) -> "Drawing":
    from igpt_model.inference.sample import Drawing

    return Drawing(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)


def _refuse_upscaling(bundle: "ModelBundle", model: str) -> None:
    if bundle.model.config.low_resolution is not None:
        raise IgptError(f"{model}: this is a super-resolution model, which needs a small image: use `igpt upscale`")


def _labels(bundle: "ModelBundle", class_name: str | None, count: int) -> np.ndarray | None:
    """The class number of `class_name`, `count` times; None without a class."""
    if class_name is None:
        return None
    classes = bundle.model.config.classes
    if classes is None:
        raise IgptError(f"--class is {class_name!r}: this model was trained without class_conditional, leave it out")
    if class_name in bundle.classes:
        number = bundle.classes.index(class_name)
    elif class_name.isdecimal() and int(class_name) < classes:
        number = int(class_name)
    else:
        names = ", ".join(bundle.classes[:20]) + (", ..." if len(bundle.classes) > 20 else "")
        raise IgptError(f"--class is {class_name!r}: it must be one of {names}, or a number below {classes}")
    return np.full(count, number)


def _every_class(classes: int, count: int | None) -> np.ndarray:
    """The class numbers of `count` images that show every class about equally often, in order.

    By default as many of each as 60 images allow, and one at least. Raises IgptError for fewer images than classes.
    """
    if count is None:
        count = max(1, _SAMPLES // classes) * classes
    if count < classes:
        raise IgptError(
            f"--count is {count}: the model has {classes} classes and draws each; give {classes} or more, or name one "
            "class with --class"
        )
    return np.sort(np.arange(count) % classes)


def _needed_labels(bundle: "ModelBundle", class_name: str | None, count: int) -> np.ndarray | None:
    """Like _labels, but raises IgptError when a class-conditional model is given no class."""
    labels = _labels(bundle, class_name, count)
    if labels is None and bundle.model.config.classes is not None:
        raise IgptError("this model is class-conditional: name the class of the images with --class")
    return labels
