"""Errors across a process boundary: flattened to plain values and made again."""

from __future__ import annotations

import pytest

from server.errors import (
    EngineFailure,
    GgufdError,
    InvalidRequest,
    QueueFull,
    QueueTimeout,
    TooManyRequests,
    TryLater,
    Unsupported,
    from_code,
)


@pytest.mark.parametrize("error", [InvalidRequest("a", param="prompt"), Unsupported("b"), EngineFailure("c")], ids=repr)
def test_an_error_comes_back_as_it_was(error: GgufdError) -> None:
    assert error.code is not None
    again = from_code(error.code, error.message, param=error.param)
    assert (type(again), again.message, again.param) == (type(error), error.message, error.param)


@pytest.mark.parametrize(
    ("cls", "code"),
    [(QueueFull, "queue_full"), (QueueTimeout, "queue_timeout"), (TooManyRequests, "rate_limit_exceeded")],
)
def test_when_to_try_again_is_kept(cls: type[TryLater], code: str) -> None:
    again = from_code(code, "later", retry_after_s=17.5)
    assert isinstance(again, cls)
    assert again.retry_after_s == 17.5
    untold = from_code(code, "later")
    assert isinstance(untold, TryLater)
    assert untold.retry_after_s == cls("later").retry_after_s


def test_a_prompt_that_does_not_fit_names_its_own_field_or_the_prompt() -> None:
    assert from_code("context_length_exceeded", "too long").param == "prompt"
    assert from_code("context_length_exceeded", "too long", param="messages").param == "messages"


def test_an_unknown_code_is_the_engines_failure() -> None:
    assert type(from_code("nonsense", "what?", param="n")) is EngineFailure
