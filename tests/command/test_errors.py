"""Errors across a process boundary: flattened to plain values and made again."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.client.stream import RequestStream
from ggufd.engine.messages.events import Failed
from ggufd.engine.messages.requests import EmbedRequest
from ggufd.engine.sampling.sampling import NoNumbers
from ggufd.errors import ContextLengthExceeded, EngineFailure, GgufdError, InvalidRequest, TryLater, from_code, tree

CLASSES = list(tree())
FIELDS = st.none() | st.sampled_from(["prompt", "messages[0].content", "input[3]"])


@given(st.sampled_from(CLASSES), st.text(), FIELDS, st.floats(0, 1e6))
def test_every_error_comes_back_as_it_was(
    cls: type[GgufdError], message: str, param: str | None, later_s: float
) -> None:
    again = from_code(cls.code, message, param=param, retry_after_s=later_s)
    assert type(again) is cls
    assert (again.code, again.status, again.type) == (cls.code, cls.status, cls.type)
    assert (again.message, str(again), again.param) == (message, message, param)
    assert getattr(again, "retry_after_s", later_s) == later_s


@given(st.sampled_from(CLASSES), st.text(), FIELDS)
def test_so_it_does_through_the_messages_of_the_engine(cls: type[GgufdError], message: str, param: str | None) -> None:
    stream = RequestStream(EmbedRequest(7, ((1,),)), lambda _: None, lambda *_: None)
    sent = cls(message, param=param)
    if isinstance(sent, TryLater):
        sent.retry_after_s = 17.5
    stream.put(Failed.by(7, sent))
    with pytest.raises(GgufdError) as caught:
        asyncio.run(stream.take())
    assert type(caught.value) is cls
    assert (caught.value.message, caught.value.param) == (message, param)
    assert getattr(caught.value, "retry_after_s", 17.5) == 17.5


def test_an_error_that_a_room_adds_for_itself_crosses_as_the_one_that_it_is() -> None:
    assert NoNumbers not in CLASSES
    assert type(from_code(NoNumbers.code, str(NoNumbers()))) is EngineFailure


def test_no_two_classes_share_a_code() -> None:
    assert len({cls.code for cls in CLASSES}) == len(CLASSES)


@pytest.mark.parametrize("cls", [one for one in CLASSES if issubclass(one, TryLater)])
def test_when_to_try_again_is_never_missing(cls: type[TryLater]) -> None:
    untold = from_code(cls.code, "later")
    assert isinstance(untold, TryLater)
    assert untold.retry_after_s == cls("later").retry_after_s > 0


@pytest.mark.parametrize(
    ("error", "param", "numbers"),
    [
        (ContextLengthExceeded.of_prompt(600, 512), "prompt", ("600", "512")),
        (ContextLengthExceeded.of_prompt(600, 512, param="messages"), "messages", ("600", "512")),
        (ContextLengthExceeded.of_input(300, 256, param="input[2]"), "input[2]", ("300", "256")),
    ],
)
def test_what_does_not_fit_stays_that_on_the_other_side(
    error: ContextLengthExceeded, param: str, numbers: tuple[str, ...]
) -> None:
    again = from_code(error.code, error.message, param=error.param)
    assert isinstance(again, ContextLengthExceeded)
    assert isinstance(again, InvalidRequest)
    assert (again.code, again.status, again.param) == ("context_length_exceeded", 400, param)
    assert all(number in again.message for number in numbers)


def test_an_unknown_code_is_the_engines_failure() -> None:
    assert type(from_code("nonsense", "what?", param="n")) is EngineFailure
