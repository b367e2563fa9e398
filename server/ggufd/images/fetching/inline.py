"""Bytes that a request carries itself: data URIs and base64."""

from __future__ import annotations

import asyncio
import base64
import binascii
from urllib.parse import unquote_to_bytes

from ggufd.errors import InvalidRequest
from ggufd.images.fetching.limits import too_large

_PIECE_CHARS = 1 << 20
"""Characters that are decoded at once, in about 3 ms; in between the event loop has its turn."""

_MOST_ESCAPES = 20_000
"""Percent-encoded bytes of an image that is no base64: each becomes an object on the way."""

_ESCAPES = {"%2b": "+", "%2f": "/", "%3d": "=", "%0a": "", "%0d": "", "%20": ""}
"""What base64 may be escaped for."""

_WHITE = b" \t\r\n\v\f"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")

_HEADER_CHARS = 1024
"""Where the comma of a data URI must stand."""


async def data_uri(uri: str, max_bytes: int) -> bytes:
    """Bytes of a data URI. Its media type is not believed: the bytes say what they are. Raises InvalidRequest."""
    comma = uri.find(",", 0, _HEADER_CHARS)
    if comma < 0:
        raise InvalidRequest("The data URI has no comma: data:image/png;base64,... was expected.")
    is_base64 = uri[:comma].rstrip().lower().endswith(";base64")
    if is_base64:
        return await base64_bytes(uri, max_bytes, start=comma + 1)
    if uri.count("%") > _MOST_ESCAPES:
        raise InvalidRequest("The data URI has too many percent-encoded bytes. Send the image as base64.")
    data = _unquoted(uri[comma + 1 :])
    _check_size(len(data), max_bytes)
    return data


def _unquoted(text: str) -> bytes:
    try:
        return unquote_to_bytes(text)
    except UnicodeEncodeError:
        raise InvalidRequest("The data URI holds half a character: percent-encoded bytes were expected.") from None


async def base64_bytes(text: str, max_bytes: int, start: int = 0) -> bytes:
    """Bytes of base64 of either alphabet, from `start` on; white space, escapes and missing padding are allowed.

    Raises InvalidRequest.
    """
    decoded, rest, at = bytearray(), b"", start
    while at < len(text):
        end = _end_of_piece(text, at)
        rest += _clean(text[at:end])
        at = end
        # Padding is for the end only.
        whole = len(rest.rstrip(b"=")) // 4 * 4
        decoded += _decoded(rest[:whole])
        rest = rest[whole:]
        _check_size(len(decoded), max_bytes)
        await asyncio.sleep(0)
    rest = rest.rstrip(b"=")
    decoded += _decoded(rest + b"=" * (-len(rest) % 4))
    _check_size(len(decoded), max_bytes)
    return bytes(decoded)


def _end_of_piece(text: str, start: int) -> int:
    """End of the piece that begins at `start`: no escape is cut."""
    end = start + _PIECE_CHARS
    cut = text.rfind("%", end - 2, end)
    return end if cut < 0 else cut


def _clean(text: str) -> bytes:
    if "%" in text:
        for escape, char in _ESCAPES.items():
            text = text.replace(escape.upper(), char).replace(escape, char)
    try:
        return text.encode("ascii").translate(_URL_SAFE, _WHITE)
    except UnicodeEncodeError:
        raise _not_base64() from None


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise _not_base64() from None


def _not_base64() -> InvalidRequest:
    return InvalidRequest(
        "The image is not base64: a data URI (data:image/png;base64,...) or the base64 of a file was expected."
    )


def _check_size(n_bytes: int, max_bytes: int) -> None:
    if n_bytes > max_bytes:
        raise InvalidRequest(too_large(max_bytes))
