"""Format and size of an image file by its first bytes, before any decoder sees it."""

from __future__ import annotations

from typing import NamedTuple

from ggufd.errors import InvalidRequest

TAKEN = "PNG, JPEG, WebP, GIF and BMP are taken."

_MAGICS = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
)

_OTHERS = (
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\1\0", "ICO"),
    (b"%PDF", "PDF"),
    (b"8BPS", "PSD"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"PK\3\4", "ZIP"),
    (b"\x1a\x45\xdf\xa3", "WebM"),
    (b"%!PS", "PostScript"),
)
"""Formats that people try, for the message only."""

_TEXT_BYTES = 512

_MOST_SCANS = 32
"""Scans of a JPEG. Encoders make up to about ten; each costs a pass over the whole image, however short it is."""

_SCAN_MARKER = b"\xff\xda"


class WebpSize(NamedTuple):
    """Width and height of a WebP file."""

    width: int
    height: int


def image_format(data: bytes) -> str:
    """Pillow's name of the file's format. Raises InvalidRequest for one that is not taken."""
    for magic, name in _MAGICS:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise InvalidRequest(f"{_what(data)} {TAKEN}")


def _what(data: bytes) -> str:
    if not data:
        return "The image is empty."
    named = next((name for magic, name in _OTHERS if data.startswith(magic)), None) or _container(data) or _text(data)
    return f"The file is {named}, which is not read here." if named else "The file is no image."


def _container(data: bytes) -> str | None:
    """HEIC, AVIF or a video, which all are boxes that begin with their brand."""
    if data[4:8] != b"ftyp":
        return None
    brand = data[8:12]
    return "HEIC" if brand in (b"heic", b"heix", b"mif1", b"msf1") else "AVIF" if brand[:3] == b"avi" else "MP4"


def _text(data: bytes) -> str | None:
    beginning = data[:_TEXT_BYTES].lstrip().lower()
    if b"<svg" in beginning:
        return "SVG"
    return "HTML or XML" if beginning.startswith((b"<!doctype", b"<html", b"<?xml")) else None


def webp_size(data: bytes) -> WebpSize | None:
    """Size of a WebP file; None where its first chunk is no image.

    Pillow's decoder takes memory for the whole canvas when it opens the file.
    """
    chunk, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if chunk == b"VP8X":
        return WebpSize(_int(body[4:7]) + 1, _int(body[7:10]) + 1)
    if chunk == b"VP8L":
        bits = _int(body[1:5])
        return WebpSize((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    return WebpSize(_int(body[6:8]) & 0x3FFF, _int(body[8:10]) & 0x3FFF) if chunk == b"VP8 " else None


def _int(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def has_too_many_scans(data: bytes) -> bool:
    """Whether a JPEG has so many scans that decoding is meant to take long."""
    return data.count(_SCAN_MARKER) > _MOST_SCANS
