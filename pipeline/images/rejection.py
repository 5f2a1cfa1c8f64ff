"""Why an image is not in the dataset: the reasons, and which of them an exception of Pillow stands for. Pure."""

import re
import struct
from dataclasses import dataclass
from enum import StrEnum

from PIL import Image


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


# These depend on circumstances rather than the image, which may be accepted the next time.
TRANSIENT = frozenset({Reason.OUT_OF_MEMORY, Reason.UNREADABLE, Reason.REPLACED, Reason.TIME_OUT, Reason.DECODER_CRASH})
OUT_OF_MEMORY_DETAIL = "decoding needs more memory than there is"
_DETAIL_LENGTH = 300
# Pillow has no exception of its own for a file that is whole and of a kind that it does not read.
_UNSUPPORTED = re.compile(
    r"unsupported|not (yet )?supported|unimplemented|cannot handle|unknown (pixel |PCX |TGA )?mode|unknown data organi"
    r"|unknown TGA (map depth|orientation)|unknown filter category|unable to determine J2K image mode"
    r"|unknown compression method|more samples per pixel|invalid value for samples per pixel|windows media photo"
    r"|invalid texture compression|unknown colou?r|no codec available",
    re.IGNORECASE,
)
_CUT = re.compile(
    r"truncated|incomplete|not enough|unexpected end|reached eof|only got|not large enough", re.IGNORECASE
)


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


def rejection_of(error: Exception) -> Rejection:
    """The reason behind an exception that was raised while an image was decoded.

    Pillow raises nearly any exception for a damaged file, depending on the format and on where the damage is.
    """
    if isinstance(error, RefusedError):
        return error.rejection
    if isinstance(error, MemoryError):
        return Rejection(reason=Reason.OUT_OF_MEMORY, detail=OUT_OF_MEMORY_DETAIL)
    # Pillow turns what is raised while a header is read into a SyntaxError. A KeyError: a mode that is not in a table.
    cause = error.__cause__ if isinstance(error, SyntaxError) and error.__cause__ else error
    detail = _one_line(str(error)) or type(cause).__name__
    if isinstance(error, Image.DecompressionBombError):
        reason = Reason.DECOMPRESSION_BOMB
    elif isinstance(cause, NotImplementedError | KeyError) or _UNSUPPORTED.search(detail):
        reason = Reason.UNSUPPORTED
    elif isinstance(cause, EOFError | struct.error | IndexError) or _CUT.search(detail):
        reason = Reason.TRUNCATED
    else:
        reason = Reason.CORRUPT
    return Rejection(reason=reason, detail=detail)


def _one_line(text: str) -> str:
    """A message without line breaks and control characters, which may come from the image, at a bounded length."""
    return "".join(character if character.isprintable() else " " for character in text)[:_DETAIL_LENGTH].strip()
