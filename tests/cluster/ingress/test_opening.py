"""What a stream says before its first real event."""

from __future__ import annotations

import pytest

from ggufd.cluster.relay.opening import EventOpening, LineOpening, StreamOpening, whole_events

START = b'event: message_start\ndata: {"type":"message_start"}\n\n'
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
WORD = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'


def fed(opening: StreamOpening, data: bytes, n: int) -> tuple[bytes, bytes, bool]:
    """Comments, real bytes and whether it is a refusal, of a stream that comes `n` bytes at a time."""
    comments = b""
    for place in range(0, len(data), n):
        opened = opening.feed(data[place : place + n])
        comments += opened.comments
        if opened.real or opened.is_refused:
            return comments, opened.real + data[place + n :], opened.is_refused
    return comments, b"", False


@pytest.mark.parametrize("n", [1, 7, 1000])
class TestEvents:
    def test_comments_go_on_and_names_are_held(self, n: int) -> None:
        stream = b": ping\n\n" + START + PING + b": queue position=1\n\n" + WORD + WORD
        assert fed(EventOpening(), stream, n) == (
            b": ping\n\n" + PING + b": queue position=1\n\n",
            START + WORD + WORD,
            False,
        )

    def test_comments_of_resumable_streams_have_no_blank_line(self, n: int) -> None:
        stream = b": ping\n: ping\nid: 0\n" + WORD
        assert fed(EventOpening(), stream, n) == (b": ping\n: ping\n", b"id: 0\n" + WORD, False)

    @pytest.mark.parametrize(
        "event",
        [
            b'data: {"error":{"message":"x","type":"service_unavailable","code":"engine_down"}}\n\n',
            b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"x"}}\n\n',
            b'event: response.failed\ndata: {"type":"response.failed","response":{"error":{"code":"engine_down"}}}\n\n',
        ],
    )
    def test_a_stream_that_begins_with_a_passing_failure_is_refused(self, n: int, event: bytes) -> None:
        assert fed(EventOpening(), b": ping\n\n" + event, n)[2] is True

    @pytest.mark.parametrize(
        "event",
        [
            b'data: {"error":{"message":"engine_down","type":"invalid_request_error","code":"invalid_value"}}\n\n',
            b'data: {"choices":[{"text":"\\"error\\": {\\"code\\": \\"engine_down\\"}"}]}\n\n',
            b'data: {"error": not json, "code":"engine_down"}\n\n',
            b'data: {"error":{"code":"request_ended"}}\n\n',
        ],
    )
    def test_any_other_event_is_the_answer(self, n: int, event: bytes) -> None:
        assert fed(EventOpening(), event, n) == (b"", event, False)

    def test_what_never_ends_is_sent_on(self, n: int) -> None:
        opening = EventOpening()
        assert opening.feed(b"data: " + b"x" * 2_000_000).real.startswith(b"data: xxx")


@pytest.mark.parametrize("n", [1, 1000])
def test_the_first_line_is_real_unless_it_refuses(n: int) -> None:
    lines = b'{"message":{"content":"a"}}\n{"done":true}\n'
    assert fed(LineOpening(), lines, n) == (b"", lines, False)
    assert fed(LineOpening(), b'{"error":"x","code":"engine_down"}\n', n)[2] is True
    assert fed(LineOpening(), b'{"error":"x","code":"engine_failure"}\n', n)[2] is False


@pytest.mark.parametrize(
    ("held", "data", "whole", "left"),
    [
        (b"", b"data: 1\n\n", b"data: 1\n\n", b""),
        (b"", b"data: 1\n\ndata: 2", b"data: 1\n\n", b"data: 2"),
        (b"data: 2", b"\n\n", b"data: 2\n\n", b""),
        (b"data: 2\n", b"\ndata: 3", b"data: 2\n\n", b"data: 3"),
        (b"", b": ping\n", b": ping\n", b""),
        (b"", b"data: 1\n\n: ping\ndata", b"data: 1\n\n: ping\n", b"data"),
        (b"", b": pi", b"", b": pi"),
        (b"data: 1\n", b": ping\n", b"", b"data: 1\n: ping\n"),
    ],
)
def test_only_whole_events_are_sent_on(held: bytes, data: bytes, whole: bytes, left: bytes) -> None:
    assert whole_events(b"\n\n", held, data) == (whole, left)
