"""The card of a version: its own numbers, an example that names it, and text from outside that formats nothing."""

import re
from dataclasses import replace

import pytest

from igpt_model.registry import card
from igpt_model.registry.gate import ACCURACY, BITS, PALETTE
from igpt_model.registry.trust import SIGNED_BY
from pipeline.hashing import sha256
from tests.igpt_model.model.test_network import BY_CLASS, MASKED, SMALL, UPSCALING

TAGS = {
    card.ARCHITECTURE: card.architecture(SMALL),
    card.ORIGIN: "s3://models/imagegpt-small",
    card.ORIGIN_FORM: "Hugging Face folder",
    card.LICENCE: "apache-2.0",
    PALETTE: "p" * 64,
    "igpt.git_commit": "c0ffee",
    "igpt.probe.cifar10.best_test_accuracy": "0.73210",
    "igpt.probe.cifar10.best_layer": "12.00000",
    "igpt.probe.cifar10.snapshot": "3 d1ge57",
}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (SMALL, "an Image GPT: 3 layers, width 32, 4 heads"),
        (replace(SMALL, layers=1, heads=1), "an Image GPT: 1 layer, width 32, 1 head,"),
        (MASKED, r"a masked \(BERT\) Image GPT: 3 layers"),
        (BY_CLASS, "a class-conditional Image GPT: 3 layers"),
        (UPSCALING, "an Image GPT that upscales from 2x2: 3 layers"),
        (replace(BY_CLASS, low_resolution=2), "a class-conditional Image GPT that upscales from 2x2: 3 layers"),
    ],
)
def test_a_model_in_words(config, words: str) -> None:
    assert re.match(words, card.architecture(config))
    assert f"{config.parameters:,} parameters; 4x4 pixels of 11 colours" in card.architecture(config)


def test_an_imported_version_has_its_origin_licence_and_what_was_measured() -> None:
    text = card.text("imagegpt-small", 2, TAGS)
    for line in (
        "- Origin: Hugging Face folder `s3://models/imagegpt-small`",
        "- Licence: apache-2.0",
        f"- Palette: SHA-256 `{'p' * 64}`",
        "- Code: commit `c0ffee`",
        "| cifar10 | best layer | 12 |",
        "| cifar10 | best test accuracy | 0.73210 |",
        'model = mlflow.pyfunc.load_model("models:/imagegpt-small/2")',
    ):
        assert line in text.splitlines()
    assert "- Signed by: nobody" in text.splitlines() and "it has no signature" in text
    signed = card.text("imagegpt-small", 2, {**TAGS, SIGNED_BY: "0123456789abcdef"})
    assert "- Signed by: key `0123456789abcdef`" in signed.splitlines()
    assert "Loading it runs the code that it brings: verify its signature before" in signed
    assert "snapshot" not in text and "Trained on" not in text
    assert "- Licence: not stated" in card.text("bare", 1, {}).splitlines()


def test_a_trained_version_has_its_dataset_and_its_numbers() -> None:
    tags = {"igpt.dataset": "s3://datasets/digits", "igpt.snapshot": "4", BITS: "2.5", ACCURACY: "0.9"}
    lines = card.text("igpt-digits", 1, {**tags, "igpt.probe_test_accuracy": "0.8"}).splitlines()
    assert "- Trained on: `s3://datasets/digits`, snapshot 4" in lines
    assert "| its validation split | bits per pixel | 2.5 |" in lines
    assert "| its validation split | accuracy of a linear probe | 0.9 |" in lines
    assert "| its test split | accuracy of a linear probe | 0.8 |" in lines


def test_text_from_outside_formats_nothing_and_what_is_too_long_is_left_out() -> None:
    hostile = "<script>|**x**\n# y `z` [a](b)"
    probes = {f"igpt.probe.d|{number}.best_test_accuracy": "0.5" for number in range(500)}
    text = card.text("a*b", 1, {card.LICENCE: hostile, card.ORIGIN: hostile, "igpt.dataset": hostile, **probes})
    assert len(text) <= 5000 and text.endswith("```") and "load_model" in text
    assert re.search(r"(?<!\\)<script>", text.replace("`<script>|**x**\\n# y  z  [a](b)`", "")) is None
    assert "\n# y" not in text
    assert text.count("\n| d\\|") > 20


def test_a_description_that_a_person_wrote_stays() -> None:
    text = card.text("m", 1, TAGS)
    assert card.is_ours("", {})
    assert card.is_ours(text, {card.WRITTEN: sha256(text.encode())})
    assert not card.is_ours(text + " Do not use it for faces.", {card.WRITTEN: sha256(text.encode())})
    assert not card.is_ours("mine", {})
