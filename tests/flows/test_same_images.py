"""The gate's numbers on the same images: what is measured when, and in what words a champion is not measured."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.same_images import SameImages
from igpt_model.evaluating.ray import Executor
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from igpt_model.registry.client import Registry, Version
from igpt_model.registry.gate import ACCURACY, BITS, SPLITS, GateConfig, decide_compared
from igpt_model.tracking import runs
from pipeline.dataset.snapshot import Snapshot
from tests.igpt_model.training.test_loop import digits_snapshot


@pytest.fixture
def data(tmp_path: Path) -> Snapshot:
    """The candidate's dataset, with measurements of its own."""
    return digits_snapshot(tmp_path / "digits")


class Shelf(Registry):
    """Versions in memory, instead of those of a server: what is compared are tags and models."""

    def __init__(self, data: Snapshot) -> None:
        self.data, self.opened, self.versions_by_uri = data, [], {}  # type: ignore[var-annotated]
        self.tracking_uri = "http://nowhere"

    def add(self, number: int, **tags: str) -> Version:
        common = {**runs.lineage_tags(self.data), BITS: "3.0", ACCURACY: "0.8", "igpt.files_sha256": str(number) * 64}
        version = Version(
            name="digits", number=number, run_id="", model_id="", tags={**common, **tags}, aliases=(),
            created=datetime.now(UTC),
        )  # fmt: skip
        self.versions_by_uri[version.uri] = version
        return version

    def find(self, reference: str) -> Version:
        return self.versions_by_uri[reference]

    def open(self, reference: str) -> ModelBundle:
        self.opened.append(reference)
        torch.manual_seed(int(reference[-1]))
        network = ImageGPT(ModelConfig(layers=1, width=16, heads=2, resolution=8, colours=16))
        torch.nn.init.normal_(network.head.weight, std=0.1 * int(reference[-1]))
        return ModelBundle(model=network.eval(), palette_K3=self.data.palette(), classes=self.data.classes)


@pytest.fixture
def shelf(data: Snapshot) -> Shelf:
    return Shelf(data)


YESTERDAY = {SPLITS: "y" * 64, runs.CONTENT_TAG: "y" * 64}


def same_images(shelf: Shelf, gate: GateConfig, **fields: Any) -> SameImages:
    return SameImages(registry=shelf, gate=gate, executor=Executor.here, **fields)


def test_versions_of_the_same_images_are_compared_by_their_tags(shelf: Shelf) -> None:
    champion, candidate = (shelf.add(number, **{SPLITS: "s" * 64}) for number in (1, 2))
    for tags in ({}, {"igpt.palette_sha256": "p"}):
        other = replace(champion, tags={**champion.tags, **tags, **(YESTERDAY if tags else {})})
        comparison = same_images(shelf, GateConfig())(candidate, other)
        assert (comparison.candidate, comparison.champion) == (candidate.tags, other.tags)
    allowed = same_images(shelf, GateConfig(across_splits=True))
    yesterday = replace(champion, tags={**champion.tags, **YESTERDAY})
    assert allowed(candidate, yesterday).champion == yesterday.tags
    assert shelf.opened == []


def test_after_an_arrival_both_are_evaluated_on_the_candidates_images_once(shelf: Shelf) -> None:
    champion, candidate = shelf.add(3, **YESTERDAY), shelf.add(1, **{SPLITS: "s" * 64})
    gate = GateConfig(min_accuracy_gain=None)
    first, again = (same_images(shelf, gate)(candidate, champion) for _ in range(2))
    assert first == again and shelf.opened == [candidate.uri, champion.uri]
    # Version 3 is worse: it is further from giving all colours the same probability, which it has not learned.
    assert float(first.candidate[BITS]) < float(first.champion[BITS])
    decision = decide_compared(first, gate)
    assert decision.passed, decision.text
    assert decision.compared == {BITS: float(first.candidate[BITS]), f"champion.{BITS}": float(first.champion[BITS])}
    back = decide_compared(same_images(shelf, gate)(shelf.add(9, **{SPLITS: "s" * 64}), champion), gate)
    assert back.refusals[0].startswith("its bits per pixel")


def test_the_accuracy_is_that_of_a_probe_on_the_candidates_dataset(shelf: Shelf, data: Snapshot) -> None:
    champion, candidate = shelf.add(3, **YESTERDAY), shelf.add(1, **{SPLITS: "s" * 64})
    gate = GateConfig(min_bits_gain=None)
    refused = decide_compared(same_images(shelf, gate)(candidate, champion), gate)
    assert len(refused.refusals) == 1 and "\n" not in refused.text
    assert f"`igpt probe model=models:/digits/3 dataset={data.dataset} snapshot=1` makes one" in refused.text
    probed = []

    def probe(version: Version, on: Snapshot) -> None:
        probed.append(version.uri)
        tags = {
            runs.probe_tag(on, "best_validation_accuracy"): "0.7",
            runs.probe_tag(on, "snapshot"): "1 " + on.content_digest,
        }
        shelf.add(3, **YESTERDAY, **tags)

    comparison = same_images(shelf, gate, probe=probe)(candidate, champion)
    assert comparison.champion[ACCURACY] == "0.7" and decide_compared(comparison, gate).passed
    same_images(shelf, gate, probe=probe)(candidate, shelf.find(champion.uri))
    assert probed == [champion.uri], "once: the tags are found"
    assert shelf.opened == []


def test_a_dataset_that_is_gone_is_told_in_the_decision(shelf: Shelf) -> None:
    champion = shelf.add(3, **YESTERDAY)
    for tags, expected in (
        ({"igpt.dataset": ""}, "does not tell its dataset"),
        ({"igpt.snapshot": "9"}, "there is no snapshot 9"),
        ({runs.CONTENT_TAG: "z" * 64}, "is not the one that models:/digits/1 was trained on"),
    ):
        candidate = shelf.add(1, **{SPLITS: "s" * 64, **tags})
        decision = decide_compared(same_images(shelf, GateConfig())(candidate, champion), GateConfig())
        assert not decision.passed and expected in decision.text and "\n" not in decision.text
