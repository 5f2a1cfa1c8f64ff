"""Text from outside (labels, keys, paths, answers of servers) as one harmless line; stored data stay as they are."""

import re

# Control characters, which terminals obey; line and paragraph separators; invisible characters, of which some reorder
# the text around them; surrogates, which stand for the bytes of names that are not UTF-8. Not the joiners U+200C and
# U+200D, which Persian, Hindi and emoji are written with.
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}
_BYTES = range(0xDC80, 0xDD00)  # what Python makes of the bytes 0x80 to 0xff of a name that is not UTF-8 (PEP 383)


def printable(text: str) -> str:
    r"""The text on one line, with each unprintable character as an escape: \x1b, \n, \u202e. Idempotent."""
    return UNPRINTABLE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if match[0] in _SHORT:
        return _SHORT[match[0]]
    if code in _BYTES:
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
