"""Multipart forms (RFC 7578) with one file, read as they arrive: the file goes on in pieces and is never held whole.

Head, fields and their number are bounded. Knows no route and no field.
"""

from __future__ import annotations

import email.errors
import email.message
import email.parser
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from ggufd.errors import InvalidRequest

_MAX_HEAD_BYTES = 8 * 1024
_MAX_FIELD_BYTES = 4 * 1024
_MAX_PARTS = 32
_MAX_PREAMBLE_BYTES = 1024
_MAX_NAME = 255

FILE_FIELD = "file"

Write = Callable[[bytes], Awaitable[None]]


@dataclass(slots=True)
class Form:
    """Fields of a form, and the name of its file; None where it has none."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


def boundary_of(content_type: str) -> bytes:
    """Boundary of a form. Raises InvalidRequest for a content type that is none."""
    message = email.message.Message()
    message["content-type"] = content_type.replace("\r", " ").replace("\n", " ")[:1000]
    boundary = message.get_boundary() if message.get_content_type() == "multipart/form-data" else None
    if not boundary or not boundary.isascii() or len(boundary) > 200:
        raise InvalidRequest("Expected a form with a file: multipart/form-data, with a boundary.")
    return boundary.encode()


async def read_form(stream: AsyncIterator[bytes], boundary: bytes, write: Write) -> Form:
    """Read a whole form, whose file goes to `write` in pieces. Raises InvalidRequest for one that is broken."""
    # The first boundary may stand at the very beginning; then no line ends before it.
    source, delimiter, form = _Source(stream, b"\r\n"), b"\r\n--" + boundary, Form()
    await source.text(delimiter, _MAX_PREAMBLE_BYTES, "what stands before the first part")
    for _ in range(_MAX_PARTS):
        if (await source.text(b"\r\n", _MAX_HEAD_BYTES, "the end of a boundary", or_end=b"--")).startswith(b"--"):
            return form
        name, filename = _names(await source.text(b"\r\n\r\n", _MAX_HEAD_BYTES, "the head of a part"))
        if name == FILE_FIELD:
            if form.filename is not None:
                raise InvalidRequest("'file': expected one file, got more.", param=FILE_FIELD)
            form.filename = filename or FILE_FIELD
            async for piece in source.pieces(delimiter):
                await write(piece)
        else:
            value = await source.text(delimiter, _MAX_FIELD_BYTES, f"the field {name[:40]!a}")
            form.fields[name] = _text(value, name)
    raise InvalidRequest(f"The form has too many parts: at most {_MAX_PARTS - 1} are read.")


def _names(head: bytes) -> tuple[str, str]:
    """Names of a part and of its file, which may be empty. Raises InvalidRequest for a head without a name."""
    try:
        message = email.parser.HeaderParser().parsestr(head.decode("utf-8", "replace"))
        name = message.get_param("name", header="content-disposition")
        filename = message.get_filename() or ""
    except (email.errors.MessageError, ValueError, LookupError, TypeError):
        name, filename = None, ""
    if not isinstance(name, str) or not name:
        raise InvalidRequest("The form is broken: a part has no name (content-disposition: form-data; name=...).")
    return name, "".join(char for char in filename if char.isprintable())[:_MAX_NAME]


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"The field {name[:40]!a} of the form is not UTF-8.") from None


class _Source:
    """Bytes of a body as they come, behind those of `head`."""

    def __init__(self, stream: AsyncIterator[bytes], head: bytes) -> None:
        self._stream = stream
        self._held = bytearray(head)

    async def _more(self) -> None:
        async for piece in self._stream:
            if piece:
                self._held += piece
                return
        raise InvalidRequest("The form is broken: it ends before its last boundary.")

    async def text(self, delimiter: bytes, limit: int, what: str, *, or_end: bytes | None = None) -> bytes:
        """All up to a delimiter, which is dropped; up to the next bytes alone where those are `or_end`."""
        while True:
            if or_end is not None and self._held.startswith(or_end):
                return or_end
            place = self._held.find(delimiter)
            if place > limit or (place < 0 and len(self._held) > limit + len(delimiter)):
                raise InvalidRequest(f"The form is broken: {what} is longer than {limit} bytes.")
            if place >= 0:
                text = bytes(self._held[:place])
                del self._held[: place + len(delimiter)]
                return text
            await self._more()

    async def pieces(self, delimiter: bytes) -> AsyncIterator[bytes]:
        """The same in pieces, however long it is."""
        while True:
            place = self._held.find(delimiter)
            # The beginning of a delimiter may be the last that came.
            n_safe = place if place >= 0 else max(0, len(self._held) - len(delimiter) + 1)
            if n_safe:
                piece = bytes(self._held[:n_safe])
                del self._held[:n_safe]
                yield piece
            if place >= 0:
                del self._held[: len(delimiter)]
                return
            await self._more()
