"""The artifacts of a flow run on Prefect's page. The page reads Markdown; what is given here is plain text."""

import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from prefect.artifacts import create_image_artifact, create_link_artifact, create_table_artifact

from pipeline.printable import printable

_MARKUP = re.compile(r"([!-/:-@\[-`{-~])")  # the punctuation that Markdown lets a backslash escape
_URL_CHARACTERS = ":/?#[]@!$&'*+,;=%~"  # that stay as they are; not the parentheses, which end a link


def link(key: str, url: str, text: str, description: str = "") -> None:
    """A link with its text."""
    create_link_artifact(key=key, link=_url(url), link_text=plain(text), description=plain(description))


def image(key: str, url: str, description: str) -> None:
    """A picture at a URL."""
    create_image_artifact(key=key, image_url=_url(url), description=plain(description))


def table(key: str, rows: Sequence[Mapping[str, object]], description: str) -> None:
    """A table of values by column."""
    shown = [
        {printable(name): printable(value) if isinstance(value, str) else value for name, value in row.items()}
        for row in rows
    ]
    create_table_artifact(key=key, table=shown, description=plain(description))


def plain(text: str) -> str:
    """Markdown that shows a text as it is."""
    return _MARKUP.sub(r"\\\1", printable(text))


def _url(url: str) -> str:
    return quote(url, safe=_URL_CHARACTERS, errors="surrogateescape")
