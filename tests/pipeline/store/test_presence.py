"""Builds and collections of one dataset at the same time."""

import threading
from pathlib import Path

from pipeline.store import presence


def test_a_build_waits_for_a_collection(tmp_path: Path) -> None:
    order: list[str] = []

    def work() -> None:
        with presence.building(str(tmp_path)):
            order.append("build")

    with presence.collecting(str(tmp_path)):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(0.5)
        order.append("collected")
    thread.join(10)
    assert order == ["collected", "build"]
