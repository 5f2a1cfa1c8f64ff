"""The report of a refresh has all sections, that of a probe only its own; the listed images are those shown."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from flows.config.refresh import RefreshConfig
from flows.pretrain import PretrainOutcome
from flows.report import assemble, page, shown_images
from flows.report.assemble import Further
from flows.report.content import Report
from igpt_model.config import PretrainConfig
from igpt_model.evaluating.sample_quality import SampleQuality
from igpt_model.probing.checkpoint_scores import CheckpointScore
from igpt_model.probing.config import ProbeConfig
from igpt_model.probing.result import ProbeResult
from pipeline.inspect.tables import images, rejected
from tests.conftest import run_here
from tests.flows.report.conftest import COSTS, HOSTILE, ORIGIN, Built, Logger
from tests.flows.report.test_page import Parsed, check_nothing_is_outside
from tests.flows.report.test_shown_images import keys_shown

CHECKPOINTS = [
    CheckpointScore(run="<a>", parameters=9, step=step, validation_loss=loss, layer=1, test_accuracy=accuracy)
    for step, loss, accuracy in ((10, 2.0, 0.5), (20, 1.5, 0.75))
]
SECTIONS = ["drawn", "loss", "probe", "confusion", "neighbours", "dataset", "rejected", "costs", "lineage", "settings"]


@pytest.fixture
def make(
    built: Built, trained: PretrainOutcome, probed: ProbeResult, training_config: PretrainConfig
) -> Callable[[Further], Report]:
    def report_with(further: Further) -> Report:
        config = RefreshConfig(dataset=built.config, pretrain=training_config.with_fields(dataset=None))
        logger: Any = Logger()
        with mock.patch("pipeline.cluster.tasks.map_tasks", run_here):
            return assemble.of_refresh(config, built.result, trained, probed, COSTS, ORIGIN, logger, further)

    return report_with


@pytest.fixture
def report(make: Callable[[Further], Report]) -> Report:
    return make(Further())


def test_a_refresh_has_every_section_of_harmless_text(report: Report) -> None:
    assert [section.name for section in report.sections] == SECTIONS
    html = page.render(report)
    check_nothing_is_outside(html)
    assert len(html) < 200_000
    assert sum(text.count(HOSTILE[1]) for text in Parsed(html).texts) > 3
    assert [fact.value for fact in report.headline] == ["1.500", "75.0%", "40.0%", "120", "1 min 06 s"]


def test_the_listed_images_are_those_shown_and_are_of_the_dataset(report: Report, built: Built) -> None:
    html = page.render(report)
    listed = shown_images.read(html.decode())
    assert listed.dataset == built.result.snapshot.dataset
    assert set(listed.sections_by_key) == keys_shown(html)
    data = built.result.snapshot
    by_section: dict[str, int] = {}
    for names in listed.sections_by_key.values():
        for name in names:
            by_section[name] = by_section.get(name, 0) + 1
    assert by_section == {"drawn": data.of_split("train")[0].images + 6, "neighbours": 2 + 3, "rejected": 4}
    known = {key for tables in (images(data), rejected(data)) for table in tables for key in table["key"].to_pylist()}
    assert set(listed.sections_by_key) <= known


def test_a_demo_has_what_it_measured_beside(
    make: Callable[[Further], Report], probed: ProbeResult, quality: SampleQuality
) -> None:
    report = make(Further(by_rows=replace(probed, pooling="rows"), samples=quality))
    names = [section.name for section in report.sections]
    assert [name for name in names if name not in SECTIONS] == ["quality", "probe-by-rows"]
    assert names.index("quality") == names.index("drawn") + 1
    values = {fact.name: fact.value for fact in report.headline}
    assert values["samples that can be named"] == "81.2%" and values["probe by rows"] == "75.0%"
    html = page.render(report)
    check_nothing_is_outside(html)
    texts = " ".join(Parsed(html).texts)
    for said in ("500 samples at temperature 1", "43.4", "33.7", "the features of each row of an image in turn"):
        assert said in texts, said


def test_a_probe_has_its_own_sections_alone(built: Built, probed: ProbeResult) -> None:
    report = assemble.of_probe(ProbeConfig(model="m"), probed, built.result.snapshot, {}, ORIGIN)
    assert [section.name for section in report.sections] == [
        *("probe", "confusion", "neighbours", "lineage", "settings")
    ]
    assert "time" not in {fact.name for fact in report.headline}


def test_a_probe_of_checkpoints_shows_them_and_no_image(built: Built) -> None:
    data = built.result.snapshot
    report = assemble.of_checkpoints(ProbeConfig(model="m"), CHECKPOINTS, "correlation <1>", data, COSTS, ORIGIN)
    assert [section.name for section in report.sections] == ["checkpoints", "costs", "lineage", "settings"]
    assert [fact.value for fact in report.headline] == ["2", "75.0%", "1 min 06 s"]
    html = page.render(report)
    check_nothing_is_outside(html)
    assert shown_images.read(html.decode()).sections_by_key == {}
    assert "correlation <1>." in Parsed(html).texts
