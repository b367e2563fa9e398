"""Parser of server-sent events from bytes that may be cut anywhere.

Follows the event-stream format of the WHATWG HTML standard ("Server-sent events", 9.2.6), as far as `data` lines go:
comments, `event`, `id` and `retry` lines are passed over. Knows neither HTTP nor JSON.
"""

from __future__ import annotations


class SseReader:
    """Incremental parser: bytes in, the data of every event that they complete out.

    Lines may end in LF, CRLF or CR. Several `data` lines of one event are joined by LF. An event that the stream
    breaks off in the middle of is never given out, as the standard says.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of each event completed by `chunk`, in order."""
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")  # the second half of a CRLF that was cut in two
            self._after_cr = False
        self._after_cr = self._after_cr or chunk.endswith(b"\r")
        text = self._rest + chunk
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = text.split(b"\n")
        return [data for line in lines if (data := self._line(line)) is not None]

    def _line(self, line: bytes) -> bytes | None:
        """Take one line; the event's data if this line ended an event that has any."""
        if not line:
            event, self._data = self._data, []
            return b"\n".join(event) if event else None
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line == b"data":
            self._data.append(b"")
        return None
