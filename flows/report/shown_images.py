"""The images of a dataset that a report shows, by key, so that an erasure finds them in it."""

import json
from collections import defaultdict
from dataclasses import dataclass
from html.parser import HTMLParser

from flows.report.content import Gallery, Report
from pipeline.errors import IgptError

ELEMENT = "images"
"""The id of the element of a report that lists them, as JSON."""
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class ShownImages:
    """The images of a dataset that a report shows: where (anchors of sections) by key."""

    dataset: str
    sections_by_key: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, report: Report) -> "ShownImages":
        """Those of a report."""
        sections: dict[str, list[str]] = defaultdict(list)
        for section in report.sections:
            for block in section.blocks:
                for picture in block.pictures if isinstance(block, Gallery) else ():
                    for key in picture.keys:
                        if section.name not in sections[key]:
                            sections[key].append(section.name)
        return cls(dataset=report.dataset, sections_by_key={key: tuple(sections[key]) for key in sorted(sections)})

    def fields(self) -> dict[str, object]:
        """As JSON."""
        images = [{"key": key, "sections": list(names)} for key, names in self.sections_by_key.items()]
        return {"schema": _SCHEMA, "dataset": self.dataset, "images": images}


def read(html: str) -> ShownImages:
    """The images that a report lists. Raises IgptError for a file that is no report, or of a later version."""
    parser = _Parser()
    parser.feed(html)
    try:
        fields = json.loads("".join(parser.text))
        if fields["schema"] != _SCHEMA:
            raise IgptError(f"the report has schema {fields['schema']}, this version reads {_SCHEMA}; upgrade it")
        return ShownImages(
            dataset=fields["dataset"],
            sections_by_key={image["key"]: tuple(image["sections"]) for image in fields["images"]},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise IgptError(f"no report of igpt: it has no list of images ({error}); give a report.html") from None


class _Parser(HTMLParser):
    """Collects the text of the element with the list."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self._within = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._within = tag == "script" and ("id", ELEMENT) in attrs

    def handle_endtag(self, tag: str) -> None:
        self._within = False

    def handle_data(self, data: str) -> None:
        if self._within:
            self.text.append(data)
