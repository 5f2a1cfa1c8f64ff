"""The list of images in a report is what the report shows, for people and for programs."""

import json
from dataclasses import replace

import pytest

from flows.report import page, shown_images
from flows.report.content import Gallery, Group, Report, Section, Text
from flows.report.shown_images import ShownImages
from pipeline.errors import IgptError
from tests.flows.report.test_page import Parsed, picture, tiles

HOSTILE_KEY = "</script><script>\"' \u202e"


def keys_shown(html: bytes) -> set[str]:
    """The keys beside the pictures themselves."""
    lists = [json.loads(a["data-keys"]) for tag, a in Parsed(html).elements if tag == "figure" and "data-keys" in a]
    return {key for keys in lists for key in keys}


def report_of(*blocks: Gallery) -> Report:
    sections = tuple(Section(name=f"s{number}", title="S", blocks=(block,)) for number, block in enumerate(blocks))
    return Report(title="t", subtitle="", headline=(), dataset="s3://data/<b>", sections=sections)


def test_the_list_is_what_is_shown_and_where() -> None:
    twice = replace(picture(key="ab"), keys=("ab", "cd"))
    html = page.render(
        report_of(
            Gallery(groups=(Group(pictures=(twice, picture())), Group(pictures=(picture(key=HOSTILE_KEY),)))),
            Gallery(groups=(Group(pictures=(picture(key="cd"),)),)),
        )
    )
    listed = shown_images.read(html.decode())
    assert listed.sections_by_key == {HOSTILE_KEY: ("s0",), "ab": ("s0",), "cd": ("s0", "s1")}
    assert listed.dataset == "s3://data/<b>"
    assert keys_shown(html) == set(listed.sections_by_key)
    codes = [a for tag, a in Parsed(html).elements if tag == "code"]
    assert len(codes) == 3


def test_what_is_left_out_for_its_size_is_not_listed() -> None:
    html = page.render(report_of(tiles(60, 64)), limit=400_000)
    listed = shown_images.read(html.decode()).sections_by_key
    assert 0 < len(listed) < 60 and keys_shown(html) == set(listed)


def test_a_report_without_images_says_so() -> None:
    report = Report(
        title="t", subtitle="", headline=(), dataset="d",
        sections=(Section(name="a", title="A", blocks=(Text(text="x"),)),),
    )  # fmt: skip
    html = page.render(report).decode()
    assert "This file shows no image of a dataset." in html
    assert shown_images.read(html) == ShownImages(dataset="d", sections_by_key={})


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("", "no report of igpt"),
        ("<p>images</p>", "no report of igpt"),
        ('<script type="application/json" id="images">{"schema": 2}</script>', "schema 2, this version reads 1"),
        ('<script type="application/json" id="images">[]</script>', "no report of igpt"),
    ],
)
def test_another_file_is_refused_in_a_line(html: str, expected: str) -> None:
    with pytest.raises(IgptError, match=expected):
        shown_images.read(html)
