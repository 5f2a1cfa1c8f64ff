"""A report as one HTML file that needs nothing else: its style and pictures are in it, and no script."""

import base64
from dataclasses import replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flows.report.content import Gallery, Picture, Report
from flows.report.shown_images import ELEMENT, ShownImages
from pipeline.errors import IgptError
from pipeline.printable import printable

LIMIT_BYTES = 10_000_000
_FOLDER = Path(__file__).parent
_LONGEST = 500  # characters of a text from outside


def render(report: Report, limit: int = LIMIT_BYTES) -> bytes:
    """A report as HTML of at most `limit` bytes, in UTF-8; with fewer pictures if it would be larger.

    Raises IgptError when it is larger without any picture.
    """
    while len(html := _html(report)) > limit:
        report = _with_fewer_pictures(report, limit)
    return html


def _with_fewer_pictures(report: Report, limit: int) -> Report:
    """A report whose largest gallery has half of its pictures."""
    galleries = [block for section in report.sections for block in section.blocks if isinstance(block, Gallery)]
    heaviest = max(galleries, key=_weight, default=None)
    if heaviest is None or not _weight(heaviest):
        raise IgptError(f"the report is over {limit:,} bytes without any picture")
    sections = []
    for section in report.sections:
        blocks = tuple(heaviest.smaller() if block is heaviest else block for block in section.blocks)
        sections.append(replace(section, blocks=blocks))
    return replace(report, sections=tuple(sections))


def _weight(gallery: Gallery) -> int:
    return sum(len(picture.data) for picture in gallery.pictures)


def _html(report: Report) -> bytes:
    # `finalize` sees what the template puts out, before it is escaped.
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    style = (_FOLDER / "page.css").read_text()
    shown = ShownImages.of(report)
    text = environment.get_template("page.html.jinja").render(report=report, style=style, shown=shown, list_id=ELEMENT)
    return text.encode()


def _harmless(value: object) -> object:
    """A text from outside on one line, without what reorders the text around it, at a bounded length."""
    if not isinstance(value, str) or hasattr(value, "__html__"):  # marked as safe in the template
        return value
    shown = printable(value)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"


def _data_uri(picture: Picture) -> str:
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.data).decode()}"
