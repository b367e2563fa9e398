"""Open requests: which of them wait, how long they take, and who is told of their end."""

from __future__ import annotations

import asyncio

import pytest

from ggufd.engine.client import stream as stream_module
from ggufd.engine.client.open_requests import OpenRequests
from ggufd.engine.client.stream import RequestStream
from ggufd.engine.messages.events import Admitted, Failed, Output
from ggufd.engine.messages.requests import EngineRequest
from ggufd.errors import EngineDown, EngineFailure, InvalidRequest


def opened(requests: OpenRequests, number: int, n: int = 1) -> RequestStream:
    """A request that was added, whose abort removes it."""

    def abort(stream: RequestStream) -> None:
        if stream in requests:
            requests.remove(stream)

    stream = RequestStream(EngineRequest(number, (1,), n=n), abort, lambda stream, index: None)
    requests.add(stream)
    return stream


def test_requests_wait_until_they_are_admitted() -> None:
    requests = OpenRequests()
    assert (bool(requests), requests.n_free(4)) == (False, 4)
    first, second = opened(requests, 1, n=3), opened(requests, 2)
    assert (requests.n_waiting, requests.n_running) == (2, 0)
    requests.deliver(first, Admitted(1, 0, 0))
    assert (requests.n_waiting, requests.n_running, requests.n_free(4), requests.n_free(2)) == (1, 1, 1, 0)
    assert list(requests) == [first, second]
    assert requests.get(2) is second
    assert requests.get(3) is None


def test_a_failure_closes_a_request_and_raises_what_it_says() -> None:
    requests = OpenRequests()
    stream = opened(requests, 1)
    requests.deliver(stream, Failed(1, "invalid_value", "no such token", param="prompt"))
    assert not requests
    with pytest.raises(InvalidRequest, match="no such token"):
        asyncio.run(stream.take())


def test_the_forecast_grows_with_those_ahead_and_is_a_second_at_least() -> None:
    requests = OpenRequests()
    assert requests.wait_s(1, 4) == 1.0
    assert requests.wait_s(12, 4) == 3.0


async def test_who_waits_for_the_end_of_all_is_told_when_the_last_ends() -> None:
    requests = OpenRequests()
    await requests.wait_empty()
    streams = [opened(requests, number) for number in (1, 2)]
    waiting = asyncio.ensure_future(requests.wait_empty())
    await asyncio.sleep(0)
    requests.remove(streams[0])
    await asyncio.sleep(0)
    assert not waiting.done()
    requests.fail(EngineDown("it died"))
    await waiting
    with pytest.raises(EngineDown, match="it died"):
        await streams[1].take()


def test_a_slow_reader_is_dropped_once_and_those_after_it_in_the_message_get_their_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_module, "_MAX_UNREAD", 1)
    requests = OpenRequests()
    slow, other = opened(requests, 1), opened(requests, 2)
    for event in (Output(1, 0, "a"), Output(1, 0, "b"), Output(2, 0, "c")):
        stream = requests.get(event.request_id)
        assert stream is not None
        requests.deliver(stream, event)
    assert list(requests) == [other]
    assert asyncio.run(other.take()) == [Output(2, 0, "c")]
    assert asyncio.run(slow.take()) == [Output(1, 0, "a")]
    with pytest.raises(EngineFailure, match="read too slowly"):
        asyncio.run(slow.take())
