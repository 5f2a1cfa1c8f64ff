"""An object is rewritten while the block runs, also after a write has failed, and no longer afterwards."""

import threading
from pathlib import Path

import pytest

from pipeline.store import heartbeat, objects
from pipeline.store.heartbeat import beating


@pytest.mark.parametrize("error", [None, OSError("no space left on device")])
def test_it_beats_as_long_as_the_block_runs(
    error: OSError | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    three = threading.Event()
    write = objects.write_bytes

    def watched(url: str, data: bytes, *, patient: bool = True) -> None:
        assert not patient, "a beat is not tried again for long: the next one follows"
        if error is not None and data == b"2":
            raise error
        write(url, data, patient=patient)
        written.append(data)
        if len(written) == 3:
            three.set()

    monkeypatch.setattr(objects, "write_bytes", watched)
    monkeypatch.setattr(heartbeat, "_RETRY_SECONDS", 0.01)
    path = tmp_path / "beat"
    with beating(str(path), lambda count: str(count).encode(), 0.02):
        assert not path.exists(), "the first beat comes after a while"
        assert three.wait(30)
    last = path.read_bytes()
    assert written[:3] == ([b"1", b"2", b"3"] if error is None else [b"1", b"3", b"4"])
    assert last == written[-1]
    path.unlink()
    assert not any(thread.name.startswith("heartbeat") for thread in threading.enumerate())
