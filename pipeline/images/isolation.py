"""Decode in a child process with limits on time and memory, so that a crash or a hang costs only one image.

Used for a shard whose task has died once. The child is this module run as a program. Parent and child exchange frames
over pipes: the lengths of both parts, JSON, bytes.
"""

import json
import os
import select
import struct
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ImageFile

from pipeline.images import decode
from pipeline.images.decode import Pictures, Recipe
from pipeline.images.rejection import OUT_OF_MEMORY_DETAIL, Reason, Rejection
from pipeline.operating_system import OUT_OF_MEMORY_STATUS, bound_memory

_HEAD = struct.Struct("<IQ")
# Memory for decoding on top of the interpreter's: the file, Pillow's four bytes per pixel, and a few copies.
_SPARE_BYTES = 512 * 1024 * 1024
_BYTES_PER_PIXEL = 24
# A new child imports Pillow and NumPy first.
_START_SECONDS = 60.0
_DAMAGED = "damaged"  # argument of a child that shows what is left of a file


class IsolatedDecoder:
    """Decodes images one by one in a child process, which is replaced when it dies. A context manager."""

    def __init__(self, recipe: Recipe, seconds: float, *, damaged: bool = False) -> None:
        """`seconds` is the time limit of one image; `damaged`: show what is left of a file that is cut off."""
        self._recipe, self._seconds, self._damaged = recipe, seconds, damaged
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "IsolatedDecoder":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def decode(self, data: bytes, key: str) -> Pictures | Rejection:
        """As decode.decode, with two more reasons to reject an image: its decoding takes too long, or crashes."""
        is_new = self._child is None
        child = self._child or self._start()
        assert child.stdin is not None and child.stdout is not None
        deadline = time.monotonic() + self._seconds + (_START_SECONDS if is_new else 0)
        try:
            _write(child.stdin, {"key": key}, data)
            answer, pixels = _read(child.stdout, deadline)
        except TimeoutError:
            self._end()
            return Rejection(reason=Reason.TIME_OUT, detail=f"decoding took more than {self._seconds:g} s")
        except (EOFError, OSError):
            code = child.wait()
            self._end()
            if code == OUT_OF_MEMORY_STATUS:
                return Rejection(reason=Reason.OUT_OF_MEMORY, detail=OUT_OF_MEMORY_DETAIL)
            return Rejection(reason=Reason.DECODER_CRASH, detail=f"the decoder ended with status {code}")
        if "reason" in answer:
            return Rejection(reason=Reason(answer["reason"]), detail=answer["detail"])
        shaped = np.frombuffer(pixels, np.uint8).reshape(answer["shape"])
        return Pictures(pixels=shaped, width=answer["width"], height=answer["height"])

    def _start(self) -> subprocess.Popen[bytes]:
        self._child = subprocess.Popen(
            [
                *(sys.executable, "-m", "pipeline.images.isolation", json.dumps(asdict(self._recipe))),
                *([_DAMAGED] if self._damaged else []),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # The folder of the package, which may have been sent to the worker rather than installed.
            cwd=Path(__file__).parents[2],
        )
        return self._child

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def _write(stream: BinaryIO | Any, head: dict[str, Any], body: bytes) -> None:
    text = json.dumps(head).encode()
    stream.write(_HEAD.pack(len(text), len(body)) + text)
    stream.write(body)
    stream.flush()


def _read(stream: BinaryIO | Any, deadline: float | None = None) -> tuple[dict[str, Any], bytes]:
    """Read a frame. Raises EOFError at the end of the stream and TimeoutError after the deadline."""
    text_bytes, body_bytes = _HEAD.unpack(_exactly(stream, _HEAD.size, deadline))
    head = json.loads(_exactly(stream, text_bytes, deadline))
    return head, _exactly(stream, body_bytes, deadline)


def _exactly(stream: BinaryIO | Any, count: int, deadline: float | None) -> bytes:
    parts = []
    while count:
        if deadline is not None:
            ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
        part = os.read(stream.fileno(), min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def main() -> None:
    """The child: decode frame after frame until the parent closes the pipe."""
    recipe = Recipe(**json.loads(sys.argv[1]))
    ImageFile.LOAD_TRUNCATED_IMAGES = sys.argv[2:] == [_DAMAGED]
    bound_memory(_SPARE_BYTES + _BYTES_PER_PIXEL * recipe.max_pixels)
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the output of decoders must not get between the frames
    while True:
        try:
            head, data = _read(source)
        except EOFError:
            return
        outcome = decode.decode(data, recipe, head["key"])
        if isinstance(outcome, Rejection):
            _write(sink, {"reason": outcome.reason.value, "detail": outcome.detail}, b"")
        else:
            answer = {"shape": outcome.pixels.shape, "width": outcome.width, "height": outcome.height}
            _write(sink, answer, outcome.pixels.tobytes())


if __name__ == "__main__":
    main()
