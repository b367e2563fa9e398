"""Request validation: the same words wherever a request is refused, with the name that the client gave the field."""

from __future__ import annotations

from typing import Any

import pytest

from ggufd.engine.messages.requests import EmbedRequest, EngineRequest
from ggufd.engine.messages.sampling import SamplingParams
from ggufd.engine.queueing.validation import RequestBounds, check_embed_request, check_request
from ggufd.errors import ContextLengthExceeded, InvalidRequest

BOUNDS = RequestBounds(n_ctx=8, n_vocab=100, n_adapters=2)


def request(**changes: Any) -> EngineRequest:
    return EngineRequest(**{"request_id": 1, "prompt": (1, 99)} | changes)


def test_what_is_within_its_bounds_passes() -> None:
    check_request(request(), BOUNDS)
    check_request(request(prompt=(0,) * 7, adapters=(0.5, 0.0), banned_regexes=("a+",)), BOUNDS)
    check_embed_request(EmbedRequest(1, ((0,) * 8, (99,)), adapters=(1.0, 1.0)), BOUNDS)


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"prompt": ()}, "messages", "'messages': the prompt is empty. Expected at least one token."),
        ({"prompt": (1,) * 8}, "messages", "maximum context length is 8 tokens, but the prompt has 8"),
        ({"prompt": (1, 100)}, "messages", "'messages': token id 100 is not in this model's vocabulary (0 to 99)."),
        ({"n": 0}, "n", "'n': expected at least one choice, got 0."),
        ({"adapters": (1.0,)}, "lora", "'lora': expected a scale for each of 2 adapters, got 1."),
        ({"sampling": SamplingParams(logit_bias=((5, 1.0), (-7, 1.0)))}, "logit_bias", "token id -7 is not"),
        ({"banned_strings": ("a", "")}, "banned_strings", "A banned string is empty"),
        ({"banned_regexes": ("(",)}, "banned_regex", "The banned regex '(' is not valid"),
    ],
)
def test_a_refusal_names_the_clients_field(changes: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        check_request(request(**changes), BOUNDS, "messages")
    assert words in refusal.value.message
    assert refusal.value.param == param
    assert isinstance(refusal.value, ContextLengthExceeded) == ("context length" in words)


@pytest.mark.parametrize(
    ("inputs", "param", "words"),
    [
        ((), "texts", "'texts': expected at least one text."),
        (((),), "texts", "'texts' is empty. Expected at least one token."),
        (
            ((1,), (1,) * 9),
            "texts[1]",
            "'texts[1]' is too large: it has 9 tokens, but at most 8 become one vector here.",
        ),
        (((100,), (1,)), "texts[0]", "'texts[0]': token id 100 is not in this model's vocabulary (0 to 99)."),
    ],
)
def test_a_refusal_names_the_input(inputs: tuple[tuple[int, ...], ...], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        check_embed_request(EmbedRequest(1, inputs), BOUNDS, "texts")
    assert words in refusal.value.message
    assert refusal.value.param == param
