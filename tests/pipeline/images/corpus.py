"""Image files of every format and mode: those that Pillow writes, and by hand those that it only reads.

All show the same cutting of a real photograph, which is small, so that thousands of them can be decoded.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import sklearn.datasets
from PIL import Image, ImageCms

from pipeline.images.decode import Pictures, Recipe, decode
from pipeline.images.rejection import Rejection

PHOTO = np.ascontiguousarray(sklearn.datasets.load_sample_images().images[0][60:92, 200:240])  # uint8 [32, 40, 3]
HEIGHT, WIDTH = PHOTO.shape[:2]
GREY = np.asarray(Image.fromarray(PHOTO).convert("L"))  # uint8 [32, 40]
WIDE = GREY.astype(np.uint16) << 8 | PHOTO[..., 1]  # uint16 [32, 40]
MODES = ("1", "L", "P", "PA", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
NUMBER_MODES = ("I", "F", "I;16", "I;16B", "I;16L")


def in_mode(mode: str) -> Image.Image:
    """The photograph in one of Pillow's modes, half transparent where the mode has transparency."""
    rgb = Image.fromarray(PHOTO)
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1)))
    if mode == "P":
        return rgb.quantize(32)
    if mode == "PA":
        palette = rgb.quantize(32).convert("PA")
        palette.putalpha(alpha)
        return palette
    if mode in {"LA", "La", "RGBA", "RGBa"}:
        image = rgb.convert("L" if mode in {"LA", "La"} else "RGB")
        image.putalpha(alpha)
        return image.convert(mode)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.applyTransform(rgb, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    if mode == "F":
        return Image.fromarray(WIDE.astype(np.float32) / 65535)
    if mode == "I":
        return Image.fromarray(WIDE.astype(np.int32))
    if mode.startswith("I;16"):
        return Image.frombytes(mode, (WIDTH, HEIGHT), WIDE.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    return rgb.convert(mode)


def encoded(image: Image.Image | np.ndarray, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, file_format, **options)
    return buffer.getvalue()


def outcome_of(data: bytes, resolution: int = 16, max_pixels: int = 10**6) -> Pictures | Rejection:
    return decode(data, Recipe(resolution=resolution, smallest_side=1, max_pixels=max_pixels))


def picture_of(data: bytes) -> np.ndarray:
    """uint8 [16, 16, 3]."""
    outcome = outcome_of(data)
    assert isinstance(outcome, Pictures), outcome
    return outcome.pixels[0]


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: np.ndarray, colour: int, *before: bytes, bits: int = 8, interlaced: bool = False) -> bytes:
    """A PNG, as the specification says: `pixels` [H, W] or [H, W, C]; `before` are chunks before the pixels.

    Colour 0 is grey, 2 RGB, 3 a palette, 4 grey with alpha, 6 RGBA.
    """
    height, width = pixels.shape[:2]
    passes = [pixels]
    if interlaced:  # Adam7
        starts = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
        passes = [pixels[top::down, left::right] for top, left, down, right in starts]
    rows = b"".join(b"\0" + _packed(row, bits) for part in passes for row in part if part.size)
    header = struct.pack(">2I5B", width, height, bits, colour, 0, 0, int(interlaced))
    body = chunk(b"IHDR", header), *before, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def _packed(row: np.ndarray, bits: int) -> bytes:
    if bits == 16:
        return row.astype(">u2").tobytes()
    if bits == 8:
        return row.astype(np.uint8).tobytes()
    return np.packbits(np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :].reshape(-1)).tobytes()


def tiff(
    pixels: np.ndarray | bytes,
    *,
    order: str = "<",
    size: tuple[int, int] | None = None,
    texts: Mapping[int, bytes] = MappingProxyType({}),
    **tags: Any,
) -> bytes:
    """An uncompressed TIFF of one strip, with texts by their tags.

    Other tags by name: bits, photometric, samples, form, extra, planar, orientation, compression, unit.
    """
    numbers = {"bits": 258, "photometric": 262, "samples": 277, "extra": 338, "form": 339}
    numbers |= {"orientation": 274, "planar": 284, "compression": 259, "unit": 296}
    array = pixels if isinstance(pixels, bytes) else pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    width, height = size or (pixels.shape[1], pixels.shape[0])  # type: ignore[union-attr]
    bands = tags.get("samples", 1)
    fields = {256: (width,), 257: (height,), 273: (8,), 278: (height,), 279: (len(array),)}
    defaults = {"bits": (8,) * bands, "photometric": 1, "compression": 1, "samples": 1}
    for name, value in {**defaults, **tags}.items():
        fields[numbers[name]] = value if isinstance(value, tuple) else (value,)
    body, entries = array + b"\0" * (len(array) % 2), b""
    for tag, values in sorted({**fields, **texts}.items()):
        kind, letter = (2, "B") if tag in texts else (4, "L") if tag in {273, 279} else (3, "H")
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(packed) > 4:
            body, packed = body + packed, struct.pack(order + "L", 8 + len(body))
        entries += struct.pack(order + "HHL", tag, kind, len(values)) + packed.ljust(4, b"\0")
    header = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "L", 8 + len(body))
    return header + body + struct.pack(order + "H", len(fields) + len(texts)) + entries + bytes(4)


def psd(pixels: np.ndarray, mode: int, bits: int = 8, colours: bytes = b"", *, packed: bool = False) -> bytes:
    """A Photoshop file of one layer: `pixels` [C, H, W]; mode 1 is grey, 2 a palette, 3 RGB, 4 CMYK, 9 LAB."""
    bands, height, width = pixels.shape
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, bands, height, width, bits, mode)
    head += struct.pack(">I", len(colours)) + colours + bytes(8)
    if not packed:
        return head + b"\0\0" + pixels.tobytes()
    rows = [bytes([width - 1]) + row.tobytes() for band in pixels for row in band]  # one literal run a row
    return head + b"\0\1" + b"".join(struct.pack(">H", len(row)) for row in rows) + b"".join(rows)


def sun(pixels: np.ndarray, depth: int, kind: int = 1, colours: bytes = b"") -> bytes:
    """A Sun raster file: `pixels` [H, bytes of a row]."""
    width = pixels.shape[1] * 8 // depth
    fields = (0x59A66A95, width, pixels.shape[0], depth, pixels.size, kind, int(bool(colours)), len(colours))
    return struct.pack(">8I", *fields) + colours + pixels.tobytes()


def xpm(indexed: Image.Image, *, transparent: bool = False) -> bytes:
    """An X pixel map of a palette image of at most 64 colours."""
    colours = np.array(indexed.getpalette(), np.uint8).reshape(-1, 3)
    lines = [f"{indexed.width} {indexed.height} {len(colours)} 1"]
    names = ["None" if transparent and not i else f"#{bytes(c).hex()}" for i, c in enumerate(colours)]
    lines += [f"{chr(48 + i)} c {name}" for i, name in enumerate(names)]
    lines += ["".join(chr(48 + i) for i in row) for row in np.asarray(indexed)]
    text = ",\n".join(f'"{line}"' for line in lines)
    return f"/* XPM */\nstatic char *photo[] = {{\n{text}}};\n".encode()


def cursor(icon: bytes) -> bytes:
    """A Windows cursor of an icon with a bitmap."""
    return b"\0\0\2\0" + icon[4:]


def bmp(pixels: bytes, bits: int, compression: int = 0, masks: tuple[int, ...] = (), colours: bytes = b"") -> bytes:
    """A Windows bitmap with a header of 40 bytes, its rows from the bottom up and padded to four bytes."""
    tail = struct.pack(f"<{len(masks)}I", *masks) + colours
    offset = 54 + len(tail)
    info = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, bits, compression, len(pixels), 0, 0, len(colours) // 4, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + info + tail + pixels


def bmp_with_alpha() -> bytes:
    """A Windows bitmap of the fourth version: masks for each channel, and one for transparency."""
    pixels = np.dstack([PHOTO[::-1, :, ::-1], GREY[::-1]]).tobytes()
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII4I", 108, WIDTH, HEIGHT, 1, 32, 3, len(pixels), 0, 0, 0, 0, *masks)
    info += b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + len(pixels), 0, 0, 14 + len(info)) + info + pixels


def tiled_tiff(pixels: np.ndarray, side: int = 16) -> bytes:
    """An uncompressed TIFF of square tiles: `pixels` [H, W, 3]."""
    height, width = (-(-length // side) * side for length in pixels.shape[:2])
    whole = np.zeros((height, width, 3), np.uint8)
    whole[: pixels.shape[0], : pixels.shape[1]] = pixels
    tiles = whole.reshape(height // side, side, width // side, side, 3).swapaxes(1, 2).reshape(-1, side * side * 3)
    count, size = tiles.shape
    behind = 8 + tiles.size
    tables = struct.pack(f"<{2 * count}L3H", *range(8, behind, size), *[size] * count, 8, 8, 8)
    fields = {256: (3, 1, pixels.shape[1]), 257: (3, 1, pixels.shape[0]), 258: (3, 3, behind + 8 * count)}
    fields |= {259: (3, 1, 1), 262: (3, 1, 2), 277: (3, 1, 3), 322: (3, 1, side), 323: (3, 1, side)}
    fields |= {324: (4, count, behind), 325: (4, count, behind + 4 * count)}
    entries = b"".join(struct.pack("<HHLL", tag, *field) for tag, field in fields.items())
    directory = struct.pack("<H", len(fields)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<L", behind + len(tables)) + tiles.tobytes() + tables + directory


def tga(pixels: np.ndarray, kind: int, bits: int, flags: int = 0x20) -> bytes:
    """A TGA of the first version, without a footer; `flags` 0x20: rows from the top."""
    return struct.pack("<3B5x4H2B", 0, 0, kind, 0, 0, pixels.shape[1], pixels.shape[0], bits, flags) + pixels.tobytes()


def icns(**blocks: bytes) -> bytes:
    """A macOS icon of blocks by their codes."""
    body = b"".join(code.encode() + struct.pack(">I", 8 + len(block)) + block for code, block in blocks.items())
    return b"icns" + struct.pack(">I", 8 + len(body)) + body


def exif(orientation: int) -> bytes:
    """EXIF with an orientation, and with a text where the resolution is a number, as some phones write it."""
    fields = struct.pack("<HHLHH", 0x112, 3, 1, orientation, 0) + struct.pack("<HHL4s", 0x11A, 2, 4, b"72 \0")
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + fields + bytes(4)


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    """A JPEG with segments behind its first marker: marker and contents."""
    data = encoded(PHOTO, "JPEG", quality=95)
    inserted = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return data[:2] + inserted + data[2:]


def png_with(*chunks: bytes) -> bytes:
    """A PNG with chunks between its header and its pixels."""
    data = encoded(PHOTO, "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


@cache
def written_by_pillow() -> dict[str, bytes]:
    """Each mode in each format that Pillow writes, by `FORMAT mode`; formats that hold no pixels are left out."""
    Image.init()
    files = {}
    for file_format in sorted(Image.SAVE):
        for mode in (*MODES, *NUMBER_MODES):
            with warnings.catch_warnings(), suppress(OSError, KeyError, ValueError, SystemError):  # no such mode in it
                warnings.simplefilter("ignore", DeprecationWarning)
                files[f"{file_format} {mode}"] = encoded(in_mode(mode), file_format)
    rgb = in_mode("RGB")
    variants: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "JPEG progressive": (rgb, "JPEG", {"progressive": True}),
        "JPEG 4:4:4": (rgb, "JPEG", {"subsampling": 0}),
        "JPEG RGB": (rgb, "JPEG", {"keep_rgb": True}),
        "JPEG restarts": (rgb, "JPEG", {"restart_marker_blocks": 2}),
        "PNG of 1 bit": (rgb.quantize(2), "PNG", {"bits": 1}),
        "PNG of 2 bits": (rgb.quantize(4), "PNG", {"bits": 2}),
        "PNG of 4 bits": (rgb.quantize(16), "PNG", {"bits": 4}),
        "PNG animated": (rgb, "PNG", {"save_all": True, "append_images": [rgb.rotate(180)]}),
        "GIF animated": (in_mode("P"), "GIF", {"save_all": True, "append_images": [in_mode("P").rotate(180)]}),
        "GIF of few rows": (in_mode("P"), "GIF", {"interlace": 0}),
        "GIF transparent": (in_mode("P"), "GIF", {"transparency": 3}),
        "PNG transparent": (in_mode("P"), "PNG", {"transparency": 3}),
        "PNG with alphas": (in_mode("P"), "PNG", {"transparency": bytes(range(0, 256, 8))}),
        "WEBP lossless": (in_mode("RGBA"), "WEBP", {"lossless": True, "exact": True}),
        "WEBP animated": (rgb, "WEBP", {"save_all": True, "append_images": [rgb.rotate(180)]}),
        "AVIF 4:4:4": (rgb, "AVIF", {"subsampling": "4:4:4", "quality": 100}),
        "AVIF animated": (rgb, "AVIF", {"save_all": True, "append_images": [rgb.rotate(180)]}),
        "JPEG2000 codestream": (rgb, "JPEG2000", {"no_jp2": True}),
        "JPEG2000 lossy": (rgb, "JPEG2000", {"irreversible": True, "quality_layers": [20], "tile_size": (16, 16)}),
        "ICO bitmap": (in_mode("RGBA").resize((32, 32)), "ICO", {"bitmap_format": "bmp"}),
        "ICO bitmap with a palette": (in_mode("P").resize((32, 32)), "ICO", {"bitmap_format": "bmp"}),
        "ICO of many sizes": (in_mode("RGBA"), "ICO", {"sizes": [(16, 16), (24, 24), (32, 32)]}),
        "TGA run-length": (in_mode("RGBA"), "TGA", {"compression": "tga_rle"}),
        "TGA from the top": (rgb, "TGA", {"orientation": 1}),
        "SGI of 16 bits": (rgb, "SGI", {"bpc": 2}),
        "DDS DXT1": (rgb, "DDS", {"pixel_format": "DXT1"}),
        "DDS DXT5": (in_mode("RGBA"), "DDS", {"pixel_format": "DXT5"}),
        "DDS BC3": (in_mode("RGBA"), "DDS", {"pixel_format": "BC3"}),
        "DDS BC5": (rgb, "DDS", {"pixel_format": "BC5"}),
        "MPO of two": (rgb, "MPO", {"save_all": True, "append_images": [rgb.rotate(180)]}),
        "TIFF of two": (rgb, "TIFF", {"save_all": True, "append_images": [rgb.rotate(180)]}),
        "TIFF big": (rgb, "TIFF", {"big_tiff": True}),
    }
    for compression in ("packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "lzma", "zstd", "webp"):
        variants[f"TIFF {compression}"] = (rgb, "TIFF", {"compression": compression})
    for compression in ("group3", "group4", "tiff_ccitt"):
        variants[f"TIFF {compression}"] = (in_mode("1"), "TIFF", {"compression": compression})
    for mode in NUMBER_MODES:
        variants[f"TIFF tiff_lzw {mode}"] = (in_mode(mode), "TIFF", {"compression": "tiff_lzw"})
    for name, (image, file_format, options) in variants.items():
        with suppress(OSError):  # a codec that this build of Pillow lacks
            files[name] = encoded(image, file_format, **options)
    return files


@cache
def written_by_hand() -> dict[str, bytes]:
    """What Pillow reads and does not write, or writes in one way only."""
    rgb, icon = in_mode("RGB"), encoded(in_mode("RGBA").resize((32, 32)), "ICO", bitmap_format="bmp")
    palette = rgb.quantize(32)
    colours = np.array(palette.getpalette(), np.uint8)
    planes = np.ascontiguousarray(PHOTO.transpose(2, 0, 1))
    bgr = np.ascontiguousarray(PHOTO[..., ::-1])
    bgrx_flipped = np.dstack([bgr[::-1], np.full_like(GREY, 255)]).tobytes()
    five_bits = PHOTO.astype(np.uint16) >> 3
    packed_555 = (five_bits[..., 0] << 10 | five_bits[..., 1] << 5 | five_bits[..., 2])[::-1].tobytes()
    rgb_16 = PHOTO.astype(np.uint16) << 8 | 37
    bars = [bytes([WIDTH, value]) + b"\0\0" for value in range(0, HEIGHT * 2, 2)]  # run-length: one colour a row
    pcx = encoded(rgb, "PCX")
    cmyk = encoded(in_mode("CMYK"), "JPEG")
    ycck = cmyk[: cmyk.index(b"Adobe") + 11] + b"\2" + cmyk[cmyk.index(b"Adobe") + 12 :]
    return {
        "PNG interlaced": png(PHOTO, 2, interlaced=True),
        "PNG interlaced of 16 bits": png(WIDE, 0, bits=16, interlaced=True),
        "PNG grey of 1 bit": png(GREY >> 7, 0, bits=1),
        "PNG grey of 2 bits": png(GREY >> 6, 0, bits=2),
        "PNG grey of 4 bits": png(GREY >> 4, 0, bits=4),
        "PNG RGB of 16 bits": png(rgb_16, 2, bits=16),
        "PNG RGBA of 16 bits": png(np.dstack([rgb_16, WIDE]), 6, bits=16),
        "PNG grey with alpha of 16 bits": png(np.dstack([WIDE, WIDE[::-1]]), 4, bits=16),
        "PNG RGB with a transparent colour": png(PHOTO, 2, chunk(b"tRNS", PHOTO[16, 20].astype(">u2").tobytes())),
        "PNG grey with a transparent tone": png(GREY, 0, chunk(b"tRNS", struct.pack(">H", GREY[16, 20]))),
        "TIFF big-endian": tiff(PHOTO, order=">", samples=3, photometric=2),
        "TIFF planar": tiff(planes, samples=3, photometric=2, planar=2, size=(WIDTH, HEIGHT)),
        "TIFF white is zero": tiff(255 - GREY, photometric=0),
        "TIFF of 16 bits big-endian": tiff(WIDE, order=">", bits=16),
        "TIFF RGB of 16 bits": tiff(rgb_16, samples=3, bits=(16,) * 3, photometric=2),
        "TIFF with unassociated alpha": tiff(np.dstack([PHOTO, GREY]), samples=4, photometric=2, extra=2),
        "TIFF with ignored alpha": tiff(np.dstack([PHOTO, GREY]), samples=4, photometric=2, extra=0),
        "TIFF of tiles": tiled_tiff(PHOTO),
        "TIFF turned": tiff(PHOTO, samples=3, photometric=2, orientation=6),
        "PPM plain": b"P3\n# a comment\n40 32\n255\n" + b" ".join(b"%d" % value for value in PHOTO.reshape(-1)),
        "PPM plain grey": b"P2 40 32 255\n" + b" ".join(b"%d" % value for value in GREY.reshape(-1)),
        "PPM plain bits": b"P1 40 32\n" + b"".join(b"%d" % (value > 127) for value in GREY.reshape(-1)),
        "PPM up to 99": b"P6 40 32 99\n" + (PHOTO // 3).clip(0, 99).tobytes(),
        "PPM of 16 bits": b"P5 40 32 65535\n" + WIDE.astype(">u2").tobytes(),
        "PPM up to 4095": b"P5 40 32 4095\n" + (WIDE >> 4).astype(">u2").tobytes(),
        "PPM of floats": b"Pf 40 32 1.0\n" + (WIDE[::-1] / 65535).astype(">f4").tobytes(),
        "BMP of 16 bits": bmp(packed_555, 16),
        "BMP of 32 bits": bmp(bgrx_flipped, 32),
        "BMP with masks": bmp(packed_555, 16, 3, (0x7C00, 0x3E0, 0x1F)),
        "BMP run-length": bmp(
            b"".join(bars) + b"\0\1", 8, 1, colours=np.arange(256, dtype=np.uint8).repeat(4).tobytes()
        ),
        "BMP with alpha": bmp_with_alpha(),
        "BMP run-length of 4 bits": bmp(
            b"".join(bytes([WIDTH, value % 16 * 17, 0, 0]) for value in range(HEIGHT)) + b"\0\1",
            4,
            2,
            colours=np.arange(0, 256, 16, dtype=np.uint8).repeat(4).tobytes(),
        ),
        "TGA first version": tga(bgr, 2, 24),
        "TGA grey first version": tga(GREY, 3, 8, flags=0),
        "PSD RGB": psd(planes, 3),
        "PSD RGB packed": psd(planes, 3, packed=True),
        "PSD RGBA": psd(np.concatenate([planes, GREY[None]]), 3),
        "PSD grey": psd(GREY[None], 1),
        "PSD palette": psd(np.asarray(palette)[None], 2, colours=np.resize(colours, (256, 3)).T.tobytes()),
        "PSD CMYK": psd(255 - np.asarray(in_mode("CMYK")).transpose(2, 0, 1), 4),
        "SUN RGB": sun(bgr.reshape(HEIGHT, -1), 24),
        "SUN RGB in order": sun(PHOTO.reshape(HEIGHT, -1), 24, kind=3),
        "SUN grey": sun(GREY, 8),
        "SUN palette": sun(np.asarray(palette), 8, colours=colours.reshape(-1, 3).T.tobytes()),
        "XPM": xpm(palette),
        "XPM transparent": xpm(palette, transparent=True),
        "CUR": cursor(icon),
        "DCX": struct.pack("<3I", 0x3ADE68B1, 12, 0) + pcx,
        "MPO as JPEG": encoded(rgb, "MPO", save_all=True, append_images=[rgb.rotate(180)]),
        **{f"JPEG turned {turn}": jpeg_with((0xE1, exif(turn))) for turn in range(1, 9)},
        **{f"PNG turned {turn}": png_with(chunk(b"eXIf", exif(turn)[6:])) for turn in range(1, 9)},
        "PNG turned behind its pixels": png(PHOTO, 2)[:-12] + chunk(b"eXIf", exif(6)[6:]) + chunk(b"IEND", b""),
        "JPEG CMYK as YCCK": ycck,
        "JPEG CMYK without Adobe": ycck[: ycck.index(b"Adobe") - 4] + ycck[ycck.index(b"Adobe") + 12 :],
        "WEBP turned": encoded(rgb, "WEBP", lossless=True, exif=exif(6)),
        "ICNS of a PNG and of runs": icns(icp4=encoded(rgb.resize((16, 16)), "PNG"), is32=bytes(768)),
        "ICNS of bytes": icns(is32=PHOTO[:16, :16].tobytes(), s8mk=GREY[:16, :16].tobytes()),
        "ICNS of a JPEG 2000": icns(icp5=encoded(in_mode("RGBA").resize((32, 32)), "JPEG2000")),
    }


@cache
def with_other_tones() -> dict[str, bytes]:
    """Files of which Pillow's own conversion loses the tones or the transparency."""
    big_key = struct.pack(">H", WIDE[16, 20])
    rgb_16 = PHOTO.astype(np.uint16) << 8 | 37
    return {
        "PNG of 16 bits with a transparent tone": png(WIDE, 0, chunk(b"tRNS", big_key), bits=16),
        "PNG RGB of 16 bits with a transparent colour": png(
            rgb_16, 2, chunk(b"tRNS", rgb_16[16, 20].astype(">u2").tobytes()), bits=16
        ),
        "PNG of 2 bits with a transparent tone": png(GREY >> 6, 0, chunk(b"tRNS", b"\0\1"), bits=2),
        "PNG of 4 bits with a transparent tone": png(GREY >> 4, 0, chunk(b"tRNS", b"\0\7"), bits=4),
        "TIFF of 12 bits": tiff(_twelve_bits(WIDE >> 4), bits=12, size=(WIDTH, HEIGHT)),
        "TIFF of 16 bits, white is zero": tiff(65535 - WIDE, bits=16, photometric=0),
        "TIFF of floats, white is zero": tiff(1 - GREY.astype(np.float32) / 255, bits=32, form=3, photometric=0),
        "TIFF of signed 16 bits": tiff(GREY.astype(np.int16), bits=16, form=2),
        "TIFF of 32 bits to 255": tiff(GREY.astype(np.int32), bits=32, form=2),
        "TIFF of 32 bits from -100 to 155": tiff(GREY.astype(np.int32) - 100, bits=32, form=2),
        "TIFF of all 32 bits": tiff(WIDE.astype(np.uint32) << 16, bits=32),
        "TIFF of floats to 255": tiff(GREY.astype(np.float32), bits=32, form=3),
        "TIFF of floats over 255": tiff(GREY * np.float32(1.1) - 9, bits=32, form=3),
        "TIFF of floats from -1 to 1": tiff(GREY.astype(np.float32) / 127.5 - 1, bits=32, form=3),
        "TIFF of floats with gaps": tiff(np.where(GREY > 200, np.nan, GREY).astype(np.float32), bits=32, form=3),
    }


def _twelve_bits(values: np.ndarray) -> bytes:
    bits = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 4:]
    return np.packbits(bits.reshape(-1)).tobytes()


@cache
def written_by_others() -> dict[str, bytes]:
    """The files that scikit-learn ships, and what matplotlib writes."""
    import matplotlib.image

    folder = Path(sklearn.datasets.__file__).parent / "images"
    files = {f"scikit-learn {path.name}": path.read_bytes() for path in sorted(folder.glob("*.jpg"))}
    digit = sklearn.datasets.load_digits().images[0]  # float64 [8, 8], 0 to 16
    large = np.kron(digit, np.ones((4, 4)))
    files["scikit-learn digit"] = encoded((large * 15.9375).astype(np.uint8), "PNG")
    files["scikit-learn digit in floats"] = encoded((large / 16).astype(np.float32), "TIFF")
    for file_format in ("png", "jpg", "tiff", "webp", "gif", "avif"):
        buffer = io.BytesIO()
        matplotlib.image.imsave(buffer, large, format=file_format)
        files[f"matplotlib {file_format}"] = buffer.getvalue()
    return files


def corpus() -> dict[str, bytes]:
    """All files, by a name that begins with the format."""
    return {**written_by_pillow(), **written_by_hand(), **with_other_tones(), **written_by_others()}
