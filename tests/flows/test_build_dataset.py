"""What a build says about its plan and its result."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flows.build_dataset import _table, describe, describe_plan
from pipeline.build.build import BuildResult, PlannedBuild
from pipeline.build.plan import Plan, ShardPlan
from tests.pipeline.dataset.test_snapshot import entry, make

KEEP = (entry("train", 0), entry("train", 1))
MAKE = (ShardPlan(split="train", name="train-000002-ab", rows=np.arange(3)),)
PLAN = Plan(keep=KEEP, make=MAKE, rewrite=(), drop=(), new_images=1200, changed_images=0, deleted_images=3)
RERUN = PlannedBuild(
    plan=PLAN,
    changed_config=(),
    palette="kept",
    parent=4,
    images_in=2000,
    left_out={},
    unlabelled=0,
    unmatched_labels=0,
)
SHARDS = "keep 2 shards, make 1, rewrite 0, drop 0"


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, f"{SHARDS}; 1,200 images new, 0 changed, 3 deleted; palette kept"),
        ({"plan": None}, "nothing to do: the source is unchanged since snapshot 4"),
        ({"parent": None, "palette": "fitted"}, f"{SHARDS}; palette fitted"),
        ({"palette": "refitted"}, f"{SHARDS}; palette refitted"),
        (
            {"changed_config": ("resolution", "seed")},
            f"{SHARDS}; rebuild everything, because resolution, seed changed; palette kept",
        ),
        (
            {"changed_config": ("keep_columns",)},
            f"{SHARDS}; write every index anew, because keep_columns changed; palette kept",
        ),
        (
            {"plan": None, "moved_from": "s3://raw/photos"},
            "nothing to do: the source is unchanged since snapshot 4; the raw images moved here from s3://raw/photos, "
            "their addresses follow",
        ),
        (
            {"plan": None, "older_images": 1900, "older_rules": ("rule 1",), "rule": "rule 2, Pillow 13.0"},
            "nothing to do: the source is unchanged since snapshot 4; 1,900 images were decoded by rule 1, today's is "
            "rule 2, Pillow 13.0: kept, --remake makes them anew",
        ),
        (
            {"recovered": 2, "older_images": 8, "older_rules": ("rule 1",), "rule": "rule 2", "remake": True},
            f"{SHARDS}; 1,200 images new, 0 changed, 3 deleted; palette kept; 2 images refused by an older rule are "
            "accepted now; 8 images were decoded by rule 1, today's is rule 2: made anew",
        ),
        (
            {"unlabelled": 1000},
            f"{SHARDS}; 1,200 images new, 0 changed, 3 deleted; palette kept; 1,000 images without a label",
        ),
        (
            {"unmatched_labels": 7, "parent": None},
            f"{SHARDS}; palette kept; 7 rows of the label file without an image",
        ),
    ],
)
def test_a_plan_is_one_line(fields: dict, line: str) -> None:
    assert describe_plan(replace(RERUN, **fields)) == line


@pytest.fixture
def result(tmp_path: Path) -> BuildResult:
    made = make(tmp_path, number=5)
    return BuildResult(snapshot=made, planned=RERUN, shards_reused=0, images_taken_over=0, seconds={}, task_seconds={})


def test_a_result_is_one_line(result: BuildResult) -> None:
    rest = "8 of 2,000 images in 3 shards, 3 rejected (3 truncated)"
    assert describe(result) == f"snapshot 5 is published: {rest}"
    unchanged = replace(result, planned=replace(RERUN, plan=None))
    assert describe(unchanged) == f"snapshot 5 is unchanged: {rest}"


def test_the_numbers_of_the_splits_are_told_when_duplicates_were_dropped(result: BuildResult) -> None:
    first, *others = result.snapshot.shards
    with_duplicates = replace(first, rejected={"duplicate": 2})
    made = replace(result, snapshot=replace(result.snapshot, shards=(with_duplicates, *others)))
    counts = ", ".join(f"{split} {made.snapshot.images(split)}" for split in ("train", "validation", "test"))
    assert describe(made).endswith(f"2 duplicate, 2 truncated); {counts}")


def test_the_artifact_has_a_row_for_each_split_and_reason(result: BuildResult) -> None:
    assert _table(result) == [
        {"split": "train", "images": 8, "shards": 2},
        {"split": "validation", "images": 0, "shards": 1},
        {"split": "test", "images": 0, "shards": 0},
        {"split": "rejected: truncated", "images": 3, "shards": ""},
    ]
