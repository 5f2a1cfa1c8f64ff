"""The page: nothing from outside, hostile texts shown as texts, and a bounded size with any number of pictures."""

import io
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from flows.report import page
from flows.report.content import Curve, Fact, Facts, Gallery, Group, Matrix, Picture, Report, Section, Table, Text
from igpt_model.tracking import figures
from pipeline.errors import IgptError
from tests.flows.report.conftest import HOSTILE

_RESOURCES = {"src", "srcset", "data", "poster", "background", "action", "formaction", "xlink:href"}


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and its texts."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(html.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def resources(self) -> Iterator[tuple[str, str]]:
        """What a browser loads by itself."""
        for tag, attributes in self.elements:
            for name, value in attributes.items():
                if name in _RESOURCES or (name == "href" and tag != "a"):
                    yield tag, value


def check_nothing_is_outside(html: bytes) -> None:
    """No resource but data: and parts of the page itself, no style that loads, no script that runs."""
    parsed = Parsed(html)
    assert [value for _, value in parsed.resources() if not value.startswith(("data:image/", "#"))] == []
    assert {tag for tag, _ in parsed.elements} & {"link", "iframe", "object", "embed", "base", "form", "video"} == set()
    assert [attributes for tag, attributes in parsed.elements if tag == "script"] == [
        {"type": "application/json", "id": "images"}
    ]
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    style = next(text for text in parsed.texts if "--ink" in text)
    assert not [word for word in ("url(", "//", "@import") if word in style]
    policy = next(a["content"] for tag, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def picture(side: int = 4, key: str = "", seed: int = 0) -> Picture:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return Picture(data=buffer.getvalue(), alt=HOSTILE[0], caption=HOSTILE[1], keys=(key,) if key else (), mark="wrong")


def report_of(*sections: Section, **fields: str) -> Report:
    texts = {"title": HOSTILE[1], "subtitle": HOSTILE[2], "dataset": HOSTILE[0], **fields}
    return Report(headline=(Fact(name=HOSTILE[0], value=HOSTILE[1], note=HOSTILE[2]),), sections=sections, **texts)


EVERY_BLOCK = (
    Facts(facts=(Fact(name=HOSTILE[0], value=HOSTILE[1], note=HOSTILE[2], link='http://m/"><script>'),)),
    Text(text=HOSTILE[1]),
    Table.of([{HOSTILE[0]: HOSTILE[1], "n": 12_345, "x": 0.5}], caption=HOSTILE[2]),
    Curve(svg=figures.loss_curve_svg({"training": [(1, 2.0), (2, 1.0)]}, {"uniform": 3.0}), description=HOSTILE[1]),
    Matrix(classes=HOSTILE, counts_KK=np.eye(3, dtype=np.int64)),
    Gallery(
        groups=(Group(title=HOSTILE[0], text=HOSTILE[1], pictures=(picture(key=HOSTILE[0]),)),), caption=HOSTILE[2]
    ),
)


def test_nothing_comes_from_outside_and_hostile_texts_are_texts() -> None:
    html = page.render(
        report_of(
            Section(name="a", title=HOSTILE[1], blocks=EVERY_BLOCK),
            Section(name="b", title=HOSTILE[0], blocks=EVERY_BLOCK, collapsed=True),
        )
    )
    check_nothing_is_outside(html)
    parsed = Parsed(html)
    seen = " ".join(parsed.texts)
    assert seen.count(HOSTILE[1]) > 8, "as the text that it is"
    assert "\x1b" not in html.decode() and "\u202e" not in html.decode()
    assert "a\\x1b[31m\\u202eb'c & d" in seen
    assert "12,345" in parsed.texts


def test_a_long_text_is_cut() -> None:
    html = page.render(report_of(Section(name="a", title="A", blocks=(Text(text="x" * 10_000),)))).decode()
    assert "x" * 500 + "…" in html and "x" * 501 not in html


def tiles(count: int, side: int, seed: int = 0) -> Gallery:
    pictures = tuple(picture(side, f"{number:020x}", seed + number) for number in range(count))
    return Gallery(groups=tuple(Group(pictures=pictures[start : start + 50]) for start in range(0, count, 50)))


def test_the_file_stays_under_the_limit_with_any_number_of_pictures_and_says_so() -> None:
    heavy = Section(name="heavy", title="Heavy", blocks=(tiles(400, 128),))
    light = Section(name="light", title="Light", blocks=(tiles(10, 8, 1000),))
    report = report_of(heavy, light)
    assert sum(len(p.data) for p in heavy.blocks[0].pictures) > 1.5 * page.LIMIT_BYTES
    html = page.render(report)
    assert page.LIMIT_BYTES / 4 < len(html) <= page.LIMIT_BYTES == 10_000_000
    shown = [attributes for tag, attributes in Parsed(html).elements if tag == "img"]
    left_out = 410 - len(shown)
    assert 10 < len(shown) < 410, "the light section keeps its pictures"
    assert f"{left_out} more pictures are left out, so that this file stays under 10 MB." in html.decode()
    assert "left out" not in page.render(report_of(light)).decode()


def test_many_classes_and_rows_fit_too() -> None:
    names = [f"class {number} " + "x" * 2000 for number in range(5000)]
    rows = [{"class": name, "train": 1, "validation": 2, "test": 3} for name in names]
    blocks = (Table.of(rows), Table.of(rows), tiles(200, 256))
    assert len(page.render(report_of(Section(name="a", title="A", blocks=blocks)))) <= page.LIMIT_BYTES


def test_one_that_is_too_large_without_pictures_is_refused() -> None:
    report = report_of(Section(name="a", title="A", blocks=(tiles(3, 8),)))
    with pytest.raises(IgptError, match="over 5,000 bytes without any picture"):
        page.render(report, limit=5000)


def test_it_reads_well_in_the_dark_on_a_phone_and_on_paper() -> None:
    html = page.render(replace(report_of(), title="a")).decode()
    for what in ("prefers-color-scheme: dark", "max-width: 40rem", "@media print", "prefers-reduced-motion"):
        assert what in html
    assert 'name="viewport" content="width=device-width' in html
