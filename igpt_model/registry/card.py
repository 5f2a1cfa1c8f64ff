"""The model card of a version: its description in Markdown, made of its own tags. Pure."""

from collections.abc import Mapping

from igpt_model.model.config import ModelConfig
from igpt_model.registry.gate import ACCURACY, BITS, PALETTE
from igpt_model.registry.trust import SIGNED_BY
from pipeline.hashing import sha256
from pipeline.printable import printable

ARCHITECTURE = "igpt.architecture"
"""Tag: the shape and kind of the model, in words."""
LICENCE = "igpt.licence"
NOT_STATED = "not stated"
"""The licence of a version whose source names none."""
ORIGIN = "igpt.origin"
"""Tag: URL or path that an imported version was made from."""
ORIGIN_FORM = "igpt.origin_form"
ORIGIN_SHA256 = "igpt.origin_sha256"
"""Tag: the files of the weights there, with their SHA-256."""
PROBED_ON = "igpt.probed_on"
"""Tag: dataset and snapshot of the probe that a version classifies with."""
PROBED_VERSION = "igpt.probed_version"
"""Tag: the version that was probed to make this one."""
WRITTEN = "igpt.card_sha256"
"""Tag: digest of the description as this module made it; another one is a person's, and stays."""
_LONGEST = 5000  # what MLflow keeps of a description
_LONGEST_VALUE = 300
_PROBE = "igpt.probe."
_LOADING = {
    True: "verify its signature before (docs/models.md, Whether a version is ours).",
    False: "it has no signature, so whoever can write the models' bucket can have changed it.",
}
"""What to know before a version is loaded, by whether it is signed."""


def architecture(config: ModelConfig) -> str:
    """The shape and kind of a model in words."""
    if config.objective == "masked":
        kind = "a masked (BERT) Image GPT"
    else:
        kind = "a class-conditional Image GPT" if config.classes is not None else "an Image GPT"
    if config.low_resolution is not None:
        kind += f" that upscales from {config.low_resolution}x{config.low_resolution}"
    layers = f"{config.layers} layer{'s' if config.layers > 1 else ''}"
    heads = f"{config.heads} head{'s' if config.heads > 1 else ''}"
    return (
        f"{kind}: {layers}, width {config.width}, {heads}, {config.parameters:,} "
        f"parameters; {config.resolution}x{config.resolution} pixels of {config.colours} colours"
    )


def text(name: str, number: int, tags: Mapping[str, str]) -> str:
    """The card of a version, from its tags alone."""
    uri = f"models:/{name}/{number}"
    what = tags.get(ARCHITECTURE, "an Image GPT")
    lines = [f"**{_safe(name)}, version {number}** is {_safe(what)}.", ""]
    facts = {
        "Origin": f"{tags.get(ORIGIN_FORM, 'file')} {_code(tags[ORIGIN])}" if ORIGIN in tags else "",
        "Trained on": _dataset(tags),
        "Parent": _code(tags["igpt.parent_model"]) if "igpt.parent_model" in tags else "",
        "Classifies with a probe on": _code(tags[PROBED_ON]) if PROBED_ON in tags else "",
        "Licence": _safe(tags.get(LICENCE, NOT_STATED)),
        "Palette": f"SHA-256 {_code(tags[PALETTE])}" if PALETTE in tags else "",
        "Signed by": f"key {_code(tags[SIGNED_BY])}" if SIGNED_BY in tags else "nobody",
        "Code": f"commit {_code(tags['igpt.git_commit'])}" if "igpt.git_commit" in tags else "",
    }
    lines += [f"- {label}: {value}" for label, value in facts.items() if value]
    if rows := numbers(tags):
        lines += ["", "| measured on | number | value |", "|---|---|---|"]
        lines += [f"| {_safe(on)} | {_safe(label)} | {_safe(value)} |" for on, label, value in rows]
    example = [
        *("", f"Loading it runs the code that it brings: {_LOADING[SIGNED_BY in tags]}"),
        *("", "```python", "import mlflow, numpy as np", "", f'model = mlflow.pyfunc.load_model("{uri}")'),
        "images = np.zeros((1, 32, 32, 3), np.uint8)  # any size",
        "features = model.predict(images)  # float32 [1, width]",
        "```",
    ]
    while len("\n".join(lines + example)) > _LONGEST:
        lines.pop()
    return "\n".join(lines + example)


def is_ours(description: str, tags: Mapping[str, str]) -> bool:
    """Whether a description may be replaced: it is empty, or as it was made here."""
    return not description or tags.get(WRITTEN) == sha256(description.encode())


def _dataset(tags: Mapping[str, str]) -> str:
    dataset, snapshot = tags.get("igpt.dataset"), tags.get("igpt.snapshot")
    return f"{_code(dataset)}, snapshot {_safe(snapshot or 'unknown')}" if dataset else ""


def numbers(tags: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """What was measured, as (dataset, number, value)."""
    rows = [
        ("its validation split", label, tags[tag])
        for tag, label in ((BITS, "bits per pixel"), (ACCURACY, "accuracy of a linear probe"))
        if tag in tags
    ]
    if "igpt.probe_test_accuracy" in tags:
        rows.append(("its test split", "accuracy of a linear probe", tags["igpt.probe_test_accuracy"]))
    for tag, value in sorted(tags.items()):
        dataset, _, number = tag.removeprefix(_PROBE).rpartition(".")
        if tag.startswith(_PROBE) and dataset and not number.endswith("snapshot"):
            whole = number.endswith("layer")
            rows.append((dataset, number.replace("_", " "), value.partition(".")[0] if whole else value))
    return rows


def _safe(value: str) -> str:
    """Text from outside in a line of Markdown, where it formats nothing."""
    short = printable(value)[:_LONGEST_VALUE]
    return "".join(f"\\{character}" if character in "\\`*_[]<>|#" else character for character in short)


def _code(value: str) -> str:
    """Text from outside as code."""
    return f"`{printable(value)[:_LONGEST_VALUE].replace('`', ' ')}`"
