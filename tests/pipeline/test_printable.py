"""Text from outside as one line that neither a terminal nor a reader takes for something else."""

import sys
import unicodedata

import pytest

from pipeline.printable import UNPRINTABLE, printable

# Of the characters that embed, override or isolate a direction of writing, and that end it.
DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("größer 猫 [/i] :cat: $x$", "größer 猫 [/i] :cat: $x$"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x9b31mred", r"\x9b31mred"),
        ("a\r\n\tb\0", r"a\r\n\tb\x00"),
        ("gpj\u202egnp", r"gpj\u202egnp"),
        ("\u2028\ufeff\U000e0041", r"\u2028\ufeff\U000e0041"),
        ("caf\udce9", r"caf\xe9"),
        ("\ud83d", r"\ud83d"),
        (r"\x1b", r"\x1b"),
        ("می\u200cخواهم", "می\u200cخواهم"),
    ],
)
def test_what_is_not_printable_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_every_character_that_controls_or_reorders_is_escaped_and_every_letter_kept() -> None:
    for character in map(chr, range(sys.maxunicode + 1)):
        category, direction = unicodedata.category(character), unicodedata.bidirectional(character)
        if category in ("Cc", "Cs", "Zl", "Zp") or direction in DIRECTIONS:
            assert UNPRINTABLE.fullmatch(character), hex(ord(character))
            assert printable(character).isascii()
        elif category[0] in "LMNPS" or category == "Zs":
            assert not UNPRINTABLE.fullmatch(character), hex(ord(character))
