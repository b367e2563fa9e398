"""Image files of colour patches, in every format, and files that are meant to hurt."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Sequence

from PIL import Image

Colour = tuple[int, int, int]

RED: Colour = (255, 0, 0)
GREEN: Colour = (0, 255, 0)
BLUE: Colour = (0, 0, 255)
WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)
YELLOW: Colour = (255, 255, 0)
MAGENTA: Colour = (255, 0, 255)
CYAN: Colour = (0, 255, 255)

PATCHES: tuple[Colour, ...] = (BLACK, RED, GREEN, YELLOW, BLUE, MAGENTA, CYAN, WHITE)
"""The corners of the RGB cube: red is the lowest bit of the index, blue the highest."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

MEDIA_TYPES = {name: f"image/{name.lower()}" for name in FORMATS}


def patches(colours: Sequence[Colour], columns: int = 4, patch: int = 16) -> Image.Image:
    """Image of square patches, row by row."""
    rows = -(-len(colours) // columns)
    image = Image.new("RGB", (columns * patch, rows * patch), WHITE)
    for index, colour in enumerate(colours):
        image.paste(colour, _box(index, columns, patch))
    return image


def _box(index: int, columns: int, patch: int) -> tuple[int, int, int, int]:
    left, top = index % columns * patch, index // columns * patch
    return left, top, left + patch, top + patch


def image_bytes(image: Image.Image, name: str = "PNG", **options: object) -> bytes:
    """File of an image. WebP without loss; JPEG as good as it can."""
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(name, {}) | options
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def patch_file(colours: Sequence[Colour], name: str = "PNG", columns: int = 4, patch: int = 16) -> bytes:
    """File of colour patches; `patch_file([RED] * 16)` is a plain red square of 64 x 64."""
    return image_bytes(patches(colours, columns, patch), name)


def data_uri(data: bytes, name: str = "PNG") -> str:
    """Data URI of a file."""
    return f"data:{MEDIA_TYPES[name]};base64,{base64.b64encode(data).decode('ascii')}"


def patch_uri(colours: Sequence[Colour], name: str = "PNG", columns: int = 4, patch: int = 16) -> str:
    """Data URI of colour patches."""
    return data_uri(patch_file(colours, name, columns, patch), name)


# --- hostile files --------------------------------------------------------------------------------------------------


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG, its checksum right."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of_zeros(width: int, height: int, said: tuple[int, int] | None = None) -> bytes:
    """Grey PNG of black pixels in a few bytes; its header may say another size than what follows has."""
    packer = zlib.compressobj(9)
    row = b"\0" * (width + 1)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", *(said or (width, height)), 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")


def gif_of_frames(size: int, n_frames: int) -> bytes:
    """GIF animation of equal frames, a dozen bytes each."""
    frame = (
        b"\x21\xf9\x04\x00\x00\x00\x00\x00" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    )
    first = image_bytes(Image.new("P", (size, size)), "GIF")
    return first[:-1] + frame * n_frames + b";"


def webp_canvas(width: int, height: int) -> bytes:
    """WebP whose header says a canvas, and which holds next to nothing."""
    body = b"\x10\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", len(body)) + body
    small = image_bytes(Image.new("RGBA", (1, 1)), "WEBP")[12:]
    return b"RIFF" + struct.pack("<I", 4 + len(chunk) + len(small)) + b"WEBP" + chunk + small


def bmp_header(width: int, height: int) -> bytes:
    """BMP whose header says a size, without pixels."""
    return (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    )


def jpeg_of_scans(n_scans: int) -> bytes:
    """Progressive JPEG whose last scan is repeated."""
    data = image_bytes(patches(PATCHES), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * n_scans + data[-2:]


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
