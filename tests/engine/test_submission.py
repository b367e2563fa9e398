"""Submission by itself: what is refused leaves nothing in the queue, and choices share what is prepared for them."""

from __future__ import annotations

from typing import Any

import pytest

from ggufd.engine.messages.sampling import Grammar, GrammarKind
from ggufd.engine.sequence.sequence import Status
from ggufd.errors import ContextLengthExceeded, InvalidRequest
from tests.support.fakes.fake_llama import N_VOCAB, make_engine, make_request


@pytest.mark.parametrize(
    ("prompt", "changes", "error"),
    [
        ((), {}, InvalidRequest),
        ((N_VOCAB,), {}, InvalidRequest),
        ((-1,), {}, InvalidRequest),
        ((1,) * 512, {}, ContextLengthExceeded),
        ((1,), {"n": 0}, InvalidRequest),
        ((1,), {"adapters": (1.0,)}, InvalidRequest),
        ((1,), {"banned_strings": ("",)}, InvalidRequest),
        ((1,), {"banned_regexes": ("(",)}, InvalidRequest),
    ],
)
def test_what_cannot_be_served_is_refused_and_not_queued(
    prompt: tuple[int, ...], changes: dict[str, Any], error: type[Exception]
) -> None:
    rig = make_engine(n_ctx=512)
    with pytest.raises(error):
        rig.engine._submission.add(make_request(1, prompt, **changes))
    assert not rig.engine.has_work
    rig.engine.check_integrity()


def test_every_choice_is_a_waiting_sequence_and_they_share_the_grammar() -> None:
    rig = make_engine()
    rig.engine._submission.add(make_request(1, b"abc", n=3, grammar=Grammar(GrammarKind.GBNF, "ab/c")))
    sequences = list(rig.queue.waiting())
    assert [(one.index, one.status, one.tokens.tolist()) for one in sequences] == [
        (index, Status.WAITING, list(b"abc")) for index in range(3)
    ]
    assert len({id(one.grammar) for one in sequences}) == 1
    assert sequences[0].grammar is not None
