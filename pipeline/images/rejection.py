"""Why an image is not in the dataset: the reasons, and which of them an exception of Pillow stands for. Pure."""

import re
import struct
from dataclasses import dataclass
from enum import StrEnum

from PIL import Image

from pipeline.images import formats


class Reason(StrEnum):
    """Why an image is not in the dataset."""

    ZERO_BYTES = "zero_bytes"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED = "unsupported"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    DECOMPRESSION_BOMB = "decompression_bomb"
    TOO_SMALL = "too_small"
    OUT_OF_MEMORY = "out_of_memory"
    UNREADABLE = "unreadable_object"
    REPLACED = "replaced_while_read"
    TIME_OUT = "time_out"
    DECODER_CRASH = "decoder_crash"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    DAMAGED_CONTAINER = "damaged_container"
    UNREADABLE_MEMBER = "unreadable_member"


# These depend on circumstances rather than the image, which may be accepted the next time.
TRANSIENT = frozenset({Reason.OUT_OF_MEMORY, Reason.UNREADABLE, Reason.REPLACED, Reason.TIME_OUT, Reason.DECODER_CRASH})
OUT_OF_MEMORY_DETAIL = "decoding needs more memory than there is"
_DETAIL_LENGTH = 300
# Pillow has no exception of its own for a file that is whole and of a kind that it does not read.
_UNSUPPORTED = re.compile(
    r"unsupported|not (yet )?(supported|implemented)|unimplemented|cannot handle|no codec available|windows media photo"
    r"|unknown (pixel |PCX |TGA )?mode|unknown data organi|unknown TGA (map depth|orientation)|unknown BLP"
    r"|unable to determine J2K image mode|invalid value for samples per pixel|cannot read this XPM file",
    re.IGNORECASE,
)
_CUT = re.compile(
    r"truncated|incomplete|not enough|unexpected end|reached eof|only got|not large enough|chunk b''", re.IGNORECASE
)
# What Pillow says when it has found no pixels: of a JPEG at its end, of the others for a compression it does not know.
_NO_PIXELS = "cannot load this image"
_NO_HEADER = "not identified by this driver"
_WITHOUT_PIXELS = {
    "JPEG": Reason.TRUNCATED,
    "PSD": Reason.UNSUPPORTED,
    "TGA": Reason.UNSUPPORTED,
    "SGI": Reason.UNSUPPORTED,
}


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Why an image was rejected, and the observation behind it."""

    reason: Reason
    detail: str


class RefusedError(Exception):
    """An image that is rejected before its pixels are decoded."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.rejection = Rejection(reason=reason, detail=detail)


def rejection_of(error: Exception, data: bytes = b"") -> Rejection:
    """The reason behind an exception that was raised while an image, of these bytes, was decoded.

    Pillow raises nearly any exception for a damaged file, depending on the format and on where the damage is.
    """
    if isinstance(error, RefusedError):
        return error.rejection
    if isinstance(error, MemoryError):
        return Rejection(reason=Reason.OUT_OF_MEMORY, detail=OUT_OF_MEMORY_DETAIL)
    # Pillow wraps what is raised while a header is read into a SyntaxError.
    wrapped = error.args[0] if isinstance(error, SyntaxError) and error.args else None
    cause = wrapped if isinstance(wrapped, Exception) else error
    detail = _one_line(str(error)) or type(cause).__name__
    if isinstance(cause, KeyError):
        detail = f"Pillow does not know the mode or compression {detail}"
    return Rejection(reason=_reason(cause, detail, formats.format_of(data), data), detail=detail)


def _reason(error: BaseException, detail: str, name: str | None, data: bytes) -> Reason:
    if isinstance(error, Image.DecompressionBombError):
        return Reason.DECOMPRESSION_BOMB
    if isinstance(error, NotImplementedError | KeyError) or _UNSUPPORTED.search(detail):
        return Reason.UNSUPPORTED
    if isinstance(error, EOFError | struct.error | IndexError) or _CUT.search(detail) or formats.is_cut(name, data):
        return Reason.TRUNCATED
    if formats.is_rare_jpeg(name, data):
        return Reason.UNSUPPORTED
    if detail == _NO_PIXELS or (detail == _NO_HEADER and name == "JPEG"):
        return _WITHOUT_PIXELS.get(name or "", Reason.CORRUPT)
    return Reason.CORRUPT


def _one_line(text: str) -> str:
    """A message without line breaks and control characters, which may come from the image, at a bounded length."""
    return "".join(character if character.isprintable() else " " for character in text)[:_DETAIL_LENGTH].strip()
