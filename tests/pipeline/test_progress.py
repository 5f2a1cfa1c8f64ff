"""Progress goes to every listener, in their order."""

from pipeline.progress import Progress, silent, together


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
