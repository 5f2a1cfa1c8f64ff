"""Artifacts: what the page that reads Markdown gets of names from outside."""

from typing import Any

import pytest

from flows.prefect_ops import artifacts


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What Prefect is asked to store, by kind."""
    asked: dict[str, dict[str, Any]] = {}
    for kind in ("link", "image", "table"):
        monkeypatch.setattr(
            artifacts, f"create_{kind}_artifact", lambda kind=kind, **fields: asked.update({kind: fields})
        )
    return asked


HOSTILE = "[a](http://evil) *b* `c` <img src=x> # d\n\x1b[31m"
ESCAPED = r"\[a\]\(http\:\/\/evil\) \*b\* \`c\` \<img src\=x\> \# d\\n\\x1b\[31m"


def test_descriptions_and_texts_are_plain_text(created: dict[str, dict[str, Any]]) -> None:
    artifacts.link("k", "http://h/#/models/m", HOSTILE, HOSTILE)
    artifacts.image("k", "http://h/a.png", HOSTILE)
    artifacts.table("k", [{"split\n": "x\x1b", "images": 3}], HOSTILE)
    assert created["link"] == {"key": "k", "link": "http://h/#/models/m", "link_text": ESCAPED, "description": ESCAPED}
    assert created["image"] == {"key": "k", "image_url": "http://h/a.png", "description": ESCAPED}
    assert created["table"] == {"key": "k", "table": [{r"split\n": r"x\x1b", "images": 3}], "description": ESCAPED}


def test_a_url_cannot_end_its_link(created: dict[str, dict[str, Any]]) -> None:
    artifacts.link("k", "http://h/a?b=c&d=e#f) [x](y \n", "t")
    assert created["link"]["link"] == "http://h/a?b=c&d=e#f%29%20[x]%28y%20%0A"
