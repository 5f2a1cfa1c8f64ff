"""Progress goes to every listener, in their order, and reads the same wherever it is written."""

import pytest

from pipeline.progress import Progress, in_words, silent, together


def test_every_listener_is_told() -> None:
    told: list[tuple] = []

    def listener(name: str) -> Progress:
        return lambda step, done, total, detail="": told.append((name, step, done, total, detail))

    progress = together(listener("one"), silent, listener("two"))
    progress("list", 1, 2)
    progress("list", 2, 2, "images")
    assert told == [
        ("one", "list", 1, 2, ""),
        ("two", "list", 1, 2, ""),
        ("one", "list", 2, 2, "images"),
        ("two", "list", 2, 2, "images"),
    ]


@pytest.mark.parametrize(
    ("done", "total", "detail", "expected"),
    [
        (1200, 50_000, "images, 3 of 9 shards", "shards 1,200 of 50,000 images, 3 of 9 shards"),
        (1200, 0, "images", "shards 1,200 images"),
        (0, 0, "2 workers", "shards 2 workers"),
        (0, 0, "", "shards"),
    ],
)
def test_progress_in_words(done: int, total: int, detail: str, expected: str) -> None:
    assert in_words("shards", done, total, detail) == expected
