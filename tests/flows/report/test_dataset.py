"""Where the images of the source went, and what was rejected why."""

from dataclasses import replace
from unittest import mock

from flows.report import dataset
from flows.report.content import Facts, Gallery, Table
from pipeline.inspect.rejected_pictures import rejected_pictures
from tests.conftest import run_here
from tests.flows.report.conftest import HOSTILE, REJECTED, Built


def test_images_are_counted_by_split_and_class(built: Built) -> None:
    facts, splits, classes = dataset.counts(built.result).blocks
    assert isinstance(facts, Facts) and isinstance(splits, Table) and isinstance(classes, Table)
    values = {fact.name: fact.value for fact in facts.facts}
    assert (values["images in the source"], values["in the dataset"], values["rejected"]) == ("125", "120", "5")
    assert sum(int(str(row[1])) for row in splits.rows) == 120
    assert {row[0] for row in classes.rows} == set(HOSTILE)


def test_of_many_shards_the_classes_are_not_counted(built: Built) -> None:
    data = built.result.snapshot
    many = replace(data, shards=data.shards * 200)
    assert len(dataset.counts(replace(built.result, snapshot=many)).blocks) == 2


def test_rejected_images_are_shown_with_their_reasons(built: Built) -> None:
    with mock.patch("pipeline.cluster.tasks.map_tasks", run_here):
        shown = rejected_pictures(built.result.snapshot, built.config)
    table, gallery = dataset.rejected(built.result, shown).blocks
    assert isinstance(table, Table) and isinstance(gallery, Gallery)
    counts = dict(table.rows)
    assert counts == {"duplicate": 1, "too small": 2, "truncated": 1, "zero bytes": 1}
    groups = {group.title: group for group in gallery.groups if group.title}
    assert list(groups) == sorted(counts)
    assert [len(group.pictures) for group in groups.values()] == [1, 2, 1, 0]
    assert sorted(key for picture in gallery.pictures for key in picture.keys) == sorted(
        image.key for image in shown if image.pixels is not None
    )
    (cut,) = groups["truncated"].pictures
    assert cut.caption.startswith('<b onmouseover="x()">\\u202e.png: ') and REJECTED not in cut.caption
    assert [group.text for group in gallery.groups if group.text] == [
        "empty.png: the object is empty; no picture of it"
    ]


def test_nothing_rejected_is_no_section(built: Built) -> None:
    clean = replace(built.result.snapshot, shards=())
    assert dataset.rejected(replace(built.result, snapshot=clean), []).blocks == ()
