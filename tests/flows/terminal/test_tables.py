"""Tables for people: columns aligned by what they hold. JSON for programs."""

import json
import math
from datetime import UTC, datetime

import pytest

from flows.terminal.tables import print_json, print_table, size_text


def test_numbers_are_aligned_right_and_text_left(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(
        [
            {"split": "train", "images": 12345, "good": True, "parent": None},
            {"split": "[bold]", "images": 7, "good": False, "parent": 3},
        ]
    )
    assert capsys.readouterr().out.splitlines() == [
        "split   images  good  parent",
        "train   12,345   yes  -",
        "[bold]       7    no  3",
    ]


def test_wide_characters_take_two_cells(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"class": "猫", "n": 1}, {"class": "größer", "n": 20}])
    assert capsys.readouterr().out.splitlines() == ["class    n", "猫       1", "größer  20"]


def test_no_rows_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (2**30, "1.0 GiB"),
        (2**50, "1024.0 TiB"),
    ],
)
def test_sizes_have_binary_units(count: int, text: str) -> None:
    assert size_text(count) == text


def test_json_is_json_whatever_the_values(capsys: pytest.CaptureFixture[str]) -> None:
    print_json([{"when": datetime(2026, 1, 5, tzinfo=UTC), "none": None, "name": "größer"}])
    assert json.loads(capsys.readouterr().out) == [
        {"when": "2026-01-05 00:00:00+00:00", "none": None, "name": "größer"}
    ]


def test_cells_are_one_line_and_aligned_as_they_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"class\n": "\x1b[31m", "n": 1}, {"class\n": "[/i]", "n": 20}])
    assert capsys.readouterr().out.splitlines() == [r"class\n    n", r"\x1b[31m   1", r"[/i]      20"]


def test_json_is_valid_for_every_parser(capsys: pytest.CaptureFixture[str]) -> None:
    given = {
        "loss": math.nan,
        "more": [math.inf, -math.inf, 0.5],
        "path": "caf\udce9",
        "name": "\x1b[31m\u202e\n",
        3: (True, None),
    }
    print_json(given)
    printed = capsys.readouterr().out
    assert printed.isascii() and "\x1b" not in printed

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    assert json.loads(printed, parse_constant=refuse) == {
        "loss": None,
        "more": [None, None, 0.5],
        "path": r"caf\xe9",
        "name": "\x1b[31m\u202e\n",
        "3": [True, None],
    }
