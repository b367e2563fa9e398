"""Openings of streams: what a stream says before its first real event, which another replica could say as well.

Until then a stream that breaks off is begun anew elsewhere, and nobody notices. Comments and pings are sent on at once,
for who hears nothing gives up. Events that only name the answer (`message_start`, `response.created`) are held back:
each replica names its own. Knows no connection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

_NAMING = (b"message_start", b"response.created", b"response.in_progress", b"response.queued")
"""Events before any of the answer, by name."""

_PING = b"ping"

_TEMPORARY = frozenset(("engine_down", "shutting_down", "queue_full", "unavailable", "try_later", "overloaded_error"))
"""Codes of refusals that another replica need not share."""

_MOST_HELD = 1 << 20
"""Bytes without an end of an event, after which they are sent on as they are."""


class Opened(NamedTuple):
    """What came of some bytes: what may be sent at once, and the first real events once they are there.

    `is_refused` says that the first event tells of a failure that another replica need not share.
    """

    comments: bytes = b""
    real: bytes = b""
    is_refused: bool = False


class StreamOpening(Protocol):
    """Reader of a stream's first bytes. It is fed until the first real ones."""

    def feed(self, data: bytes) -> Opened: ...

    def rest(self) -> bytes:
        """What was held of a stream that ended before anything real."""


class EventOpening:
    """Opening of server-sent events."""

    def __init__(self) -> None:
        self._line = b""
        self._event = b""
        self._held = b""

    def feed(self, data: bytes) -> Opened:
        """Read whole lines; a comment ends with its line, an event with a blank one."""
        *lines, self._line = (self._line + data).split(b"\n")
        comments = b""
        for place, line in enumerate(lines):
            if not self._event and (line.startswith(b":") or not line.strip()):
                comments += line + b"\n"
                continue
            self._event += line + b"\n"
            if line.strip():
                continue
            event, self._event = self._event, b""
            name = _name_of(event)
            if name == _PING:
                comments += event
            elif name in _NAMING:
                self._held += event
            else:
                rest = b"\n".join([*lines[place + 1 :], self._line])
                return Opened(comments, self._held + event + rest, is_refused=_is_temporary(event))
        if len(self._event) + len(self._line) > _MOST_HELD:
            return Opened(comments, self._held + self._event + self._line)
        return Opened(comments)

    def rest(self) -> bytes:
        return self._held + self._event + self._line


class LineOpening:
    """Opening of JSON lines: the first line is real."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> Opened:
        """Wait for the end of the first line."""
        self._held += data
        line, end, _ = self._held.partition(b"\n")
        if not end and len(self._held) <= _MOST_HELD:
            return Opened()
        return Opened(real=self._held, is_refused=_is_temporary(b"data: " + line))

    def rest(self) -> bytes:
        return self._held


def whole_events(separator: bytes, held: bytes, data: bytes) -> tuple[bytes, bytes]:
    """The whole events of `held` and `data`, and what is left: an error can only be told behind a whole event."""
    if not held and data.endswith(separator):
        return data, b""
    whole = held + data
    end = whole.rfind(separator)
    if end < 0 and len(whole) > _MOST_HELD:
        return whole, b""
    end = end + len(separator) if end >= 0 else 0
    return _with_comments(whole, end)


def _with_comments(whole: bytes, end: int) -> tuple[bytes, bytes]:
    """Cut at `end`, or behind the comments that follow: those of resumable streams have no blank line behind them."""
    while whole.startswith(b":", end) and (line_end := whole.find(b"\n", end)) >= 0:
        end = line_end + 1
    return whole[:end], whole[end:]


def _name_of(event: bytes) -> bytes:
    for line in event.split(b"\n"):
        if line.startswith(b"event:"):
            return line[6:].strip()
    return b""


def _is_temporary(event: bytes) -> bool:
    if b'"error"' not in event[:4096]:
        return False
    data = b"\n".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:"))
    try:
        value = json.loads(data)
    except ValueError:
        return False
    return isinstance(value, Mapping) and bool(_codes(value) & _TEMPORARY)


def _codes(value: Mapping[str, Any]) -> set[str]:
    """Codes and types of the error in an event of any API."""
    nested = value.get("response") if isinstance(value.get("response"), Mapping) else value
    assert isinstance(nested, Mapping)
    error = nested.get("error")
    places = [value, nested, error] if isinstance(error, Mapping) else [value] if error else []
    return {found for place in places for name in ("code", "type") if isinstance(found := place.get(name), str)}
