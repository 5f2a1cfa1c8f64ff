"""How much one person, and all of them together, may ask of a playground."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on pictures and requests. Whoever goes beyond one is told in a line."""

    file_bytes: int = 20 * 1024 * 1024
    """Largest file of a picture."""
    pixels: int = 50_000_000
    """Largest picture, in pixels: more than most phones take."""
    kept_pixels: int = 4_000_000
    """Pixels that a page keeps of a picture; a larger one is averaged down."""
    draws: int = 8
    """Pictures of one request."""
    waiting: int = 16
    """Requests that wait or are computed at a time, of all people together."""
    requests_per_minute: int = 60
    """Requests of one person."""
    pages: int = 64
    """Pages that are open at a time."""
