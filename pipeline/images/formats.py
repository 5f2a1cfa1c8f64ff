"""The image formats that are read: by a file's name in a listing, by its first bytes when it is decoded. Pure.

Named one by one, so that a malicious file cannot reach the decoders that start other programs (PostScript) or that have
had many holes. docs/data.md has the reason for every format of Pillow's that is left out.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.images.metadata import jpeg_segments


@dataclass(frozen=True, kw_only=True)
class Format:
    """An image format that is read."""

    name: str
    """Pillow's name for it."""
    extensions: str
    """Of its files, separated by spaces. Not those that other kinds of files use more often."""
    is_format: Callable[[bytes], bool]
    """Whether a file's bytes begin as those of this format do, be the rest whole or damaged."""


def _starts(*signatures: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(signatures)


def _is_png(data: bytes) -> bool:
    return data.startswith(b"\x89PNG") and not _is_cgbi(data)


def _is_cgbi(data: bytes) -> bool:
    """A PNG as programs for iPhones hold it, with a chunk of Apple's first and a bare deflate stream."""
    return data.startswith(b"\x89PNG") and data[12:16] == b"CgBI"


def _is_webp(data: bytes) -> bool:
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


def _brands(data: bytes) -> set[bytes]:
    """The brands of an ISO media file, which say how its contents are encoded."""
    if data[4:8] != b"ftyp":
        return set()
    box = data[: min(int.from_bytes(data[:4], "big"), 1024)]
    return {box[8:12], *(box[start : start + 4] for start in range(16, len(box), 4))}


def _is_bmp(data: bytes) -> bool:
    # A text may begin with these letters; the sizes and offsets that follow in a BMP are no text.
    return data.startswith(b"BM") and len(data) > 2 and any(byte < 9 for byte in data[2:18])


def _is_dib(data: bytes) -> bool:
    """A BMP without its file header, as icons and clipboards hold it: header size, width, height, planes = 1, bits."""
    size = int.from_bytes(data[:4], "little")
    planes = data[8:10] if size == 12 else data[12:14]
    return size in {12, 40, 52, 56, 64, 108, 124} and planes == b"\1\0"


def _is_icon(kind: int) -> Callable[[bytes], bool]:
    # A TGA file may begin with the same four bytes, but not with a number of pictures behind them.
    start = struct.pack("<HH", 0, kind)
    return lambda data: data.startswith(start) and len(data) > 5 and data[4:6] != b"\0\0"


def _is_pcx(data: bytes) -> bool:
    return len(data) > 3 and data[0] == 10 and data[1] in {0, 2, 3, 5} and data[2] <= 1 and data[3] in {1, 2, 4, 8}


def _is_sgi(data: bytes) -> bool:
    return data.startswith(b"\x01\xda") and len(data) > 3 and data[2] <= 1 and data[3] in {1, 2}


def _is_blp(data: bytes) -> bool:
    # BLP1 may hold a JPEG of any size, which Pillow decodes whatever size the header gives.
    return data.startswith(b"BLP2") or (data.startswith(b"BLP1") and data[4:8] not in {b"", bytes(4)})


_PPM = re.compile(rb"P([1-6f]|0CMYK)[ \t\r\n]+[\d#-]")
# Possessive, since a text of comments must not be matched in every division.
_XBM = re.compile(rb"(?:\s|/\*(?:[^*]|\*(?!/))*+\*/)*+#define[ \t]+\S*width[ \t]+\d")


def _is_tga(data: bytes) -> bool:
    """TGA has no signature at its front, and none at all in its first version; its header leaves little room though."""
    if data.endswith(b"TRUEVISION-XFILE.\0"):
        return True
    if len(data) < 18:
        return False
    _, has_map, kind, _, map_length, map_bits, _, _, width, height, bits, flags = struct.unpack_from("<3B2HB4H2B", data)
    depths = {1: {8}, 2: {16, 24, 32}, 3: {1, 8, 16}}.get(kind & ~8, set())
    if has_map:
        mapped = has_map == 1 and 0 < map_length <= 4096 and map_bits in {15, 16, 24, 32}
    else:
        mapped = kind & ~8 != 1 and map_length == 0
    return mapped and bits in depths and width > 0 and height > 0 and not flags & 0xC0


FORMATS = (
    Format(name="JPEG", extensions=".jpg .jpeg .jpe .jif .jfif .mpo", is_format=_starts(b"\xff\xd8")),
    Format(name="PNG", extensions=".png .apng", is_format=_is_png),
    Format(name="GIF", extensions=".gif", is_format=_starts(b"GIF8")),
    Format(name="WEBP", extensions=".webp", is_format=_is_webp),
    Format(name="BMP", extensions=".bmp", is_format=_is_bmp),
    Format(
        name="TIFF",
        extensions=".tif .tiff",
        is_format=_starts(b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+"),
    ),
    Format(name="PPM", extensions=".ppm .pgm .pbm .pnm .pfm", is_format=lambda data: bool(_PPM.match(data))),
    Format(name="AVIF", extensions=".avif .avifs", is_format=lambda data: bool(_brands(data) & {b"avif", b"avis"})),
    Format(
        name="JPEG2000",
        extensions=".jp2 .j2k .j2c .jpc .jpf .jpx",
        is_format=_starts(b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"),
    ),
    Format(name="ICO", extensions=".ico", is_format=_is_icon(1)),
    Format(name="CUR", extensions=".cur", is_format=_is_icon(2)),
    Format(name="ICNS", extensions=".icns", is_format=_starts(b"icns")),
    Format(name="PSD", extensions=".psd", is_format=lambda data: data.startswith(b"8BPS") and data[4:6] != b"\0\2"),
    Format(name="DDS", extensions=".dds", is_format=_starts(b"DDS ")),
    Format(name="BLP", extensions=".blp", is_format=_is_blp),
    Format(name="QOI", extensions=".qoi", is_format=_starts(b"qoif")),
    Format(name="SGI", extensions=".sgi .rgb .rgba", is_format=_is_sgi),
    Format(name="SUN", extensions=".ras", is_format=_starts(b"\x59\xa6\x6a\x95")),
    Format(name="DCX", extensions=".dcx", is_format=_starts(b"\xb1\x68\xde\x3a")),
    Format(name="PCX", extensions=".pcx", is_format=_is_pcx),
    Format(name="XPM", extensions=".xpm", is_format=_starts(b"/* XPM */")),
    Format(name="XBM", extensions=".xbm", is_format=lambda data: bool(_XBM.match(data[:4096]))),
    Format(name="DIB", extensions=".dib", is_format=_is_dib),
    Format(name="TGA", extensions=".tga .icb .vda", is_format=_is_tga),  # last, since it has no signature
)
EXTENSIONS = frozenset(" ".join(known.extensions for known in FORMATS).split())

# Markers of what the pixels of a JPEG are coded by; 0xF7 is JPEG-LS.
_JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}

_TOLD_BYTES = 60
# Files that stand for others which were not fetched, and containers.
_STANDS_FOR = {
    b"version https://git-lfs.github.com/": "a Git LFS pointer: fetch the file with `git lfs pull`",
    b"/annex/objects/": "a git-annex pointer: fetch the file with `git annex get`",
    b"\x1f\x8b": "compressed by gzip: decompress it",
}

_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
# Whole images that are not read, so that they are told from damaged ones: these can be converted.
_UNREAD: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    ("HEIF", lambda data: bool(_brands(data) & _HEIF)),
    ("Apple's PNG (CgBI)", _is_cgbi),
    ("Canon CR3", lambda data: b"crx " in _brands(data)),
    ("JPEG XL", _starts(b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")),
    ("JPEG XR", _starts(b"II\xbc\x01")),
    ("PSB", _starts(b"8BPS\0\2")),
    ("BLP1 with a JPEG", _starts(b"BLP1")),
    ("PostScript", _starts(b"%!PS", b"\xc5\xd0\xd3\xc6")),
    (
        "SVG",
        lambda data: (
            bool(re.match(rb"(?:\xef\xbb\xbf)?\s*<(\?xml|!--|!DOCTYPE svg|svg)", data)) and b"<svg" in data[:4096]
        ),
    ),
    ("WMF", _starts(b"\xd7\xcd\xc6\x9a")),
    ("EMF", lambda data: data.startswith(b"\1\0\0\0") and data[40:44] == b" EMF"),
    ("FITS", _starts(b"SIMPLE  =")),
    ("OpenEXR", _starts(b"\x76\x2f\x31\x01")),
    ("Radiance HDR", _starts(b"#?RADIANCE", b"#?RGBE")),
    ("DICOM", lambda data: data[128:132] == b"DICM"),
    ("XCF", _starts(b"gimp xcf")),
    ("DjVu", _starts(b"AT&TFORM")),
    ("PAM", _starts(b"P7\nWIDTH")),
    ("IM", _starts(b"Image type: ")),
    ("Windows Paint (MSP)", _starts(b"DanM", b"LinS")),
    ("PhotoCD", lambda data: data[2048:2052] == b"PCD_"),
    ("GIMP brush", lambda data: data[20:24] == b"GIMP"),
    ("FLI", lambda data: data[4:6] in {b"\x11\xaf", b"\x12\xaf"} and data[20:22] == b"\0\0"),
    ("FTEX", _starts(b"FTEX")),
    ("PIXAR", _starts(b"\x80\xe8\0\0")),
    ("XV thumbnail", _starts(b"P7 332")),
)


def has_image_extension(name: str) -> bool:
    """Whether a file is an image, by its extension."""
    return f".{name.rpartition('.')[2].lower()}" in EXTENSIONS


def format_of(data: bytes) -> str | None:
    """Pillow's name for the format of a file's bytes; None when it is none of FORMATS."""
    return next((known.name for known in FORMATS if known.is_format(data)), None)


def describe(data: bytes) -> str:
    """What a file that is no image is: what it stands for, or how it begins."""
    known = next((what for start, what in _STANDS_FOR.items() if data.startswith(start)), None)
    if known is not None:
        return known
    text = data[:_TOLD_BYTES].lstrip()
    if text and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in text):
        return f"a text: {' '.join(text.decode().split())}"
    return f"starts with {data[:8].hex()}"


def is_cut(name: str | None, data: bytes) -> bool:
    """Whether a file is shorter than its header says, for the formats of which Pillow does not find that out."""
    if name == "WEBP":
        return 8 + int.from_bytes(data[4:8], "little") > len(data)
    # The directory of a TIFF often stands at its end.
    return name == "TIFF" and int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big") >= len(data)


def is_rare_jpeg(name: str | None, data: bytes) -> bool:
    """Whether a JPEG is coded in a way that hardly any decoder reads: lossless, hierarchical, or arithmetic."""
    frames = (marker for marker, _, _ in jpeg_segments(data) if marker in _JPEG_FRAMES) if name == "JPEG" else ()
    return next(iter(frames), 0xC0) not in {0xC0, 0xC1, 0xC2}


def unread_format_of(data: bytes) -> str | None:
    """The name of the image format of a file's bytes, when it is one that is known and not read."""
    return next((name for name, is_format in _UNREAD if is_format(data)), None)
