"""The rule by which images were decoded: a number of ours and the version of Pillow, which decide the pixels."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What decides the pixels of a decoded image, besides its bytes and the config."""

    rule: int
    """Raised when our code decodes an image to other pixels, or accepts other images."""
    pillow: str | None
    """Version of Pillow, as in 13.0; None: not recorded."""

    def __str__(self) -> str:
        return f"rule {self.rule}" if self.pillow is None else f"rule {self.rule}, Pillow {self.pillow}"


@dataclass(frozen=True, kw_only=True)
class Decoding(Rule):
    """How many images of a shard were decoded by a rule."""

    images: int

    @property
    def by(self) -> Rule:
        """The rule alone."""
        return Rule(rule=self.rule, pillow=self.pillow)


FIRST_RULE = Rule(rule=1, pillow=None)
"""That of snapshots of schema 2."""
