"""Free text under a grammar: no mask is computed for it, and what may be said is what the masks would have allowed.

Where the demo model writes itself it takes a second or two, so these are a part of the end-to-end tests.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufd.chat.answers.answer_planner import AnswerPlanner
from ggufd.chat.prompt import ChatPrompt
from ggufd.chat.rendering.template import CHATML
from ggufd.chat.tools.formats.families import BY_NAME
from ggufd.engine.messages.events import FinishReason
from ggufd.engine.messages.sampling import Grammar, GrammarKind
from ggufd.engine.sampling.constraint import GrammarCompiler, GrammarConstraint
from ggufd.llama.context.context import Context
from ggufd.llama.grammar.grammar import MaskFiller
from ggufd.llama.model.model import Model
from ggufd.llama.params import ContextParams, ModelParams
from tests.engine.sampling.test_constraint import engine_over
from tests.support.examples import examples
from tests.support.fakes.fake_llama import Collected, make_request
from tests.support.models.tiny_model import quiet_llama
from tests.support.models.vocabularies import demo_model

TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "deep": {"type": "boolean"}},
            "required": ["place"],
        },
    },
}


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    quiet_llama()
    model = Model(ModelParams(demo_model()))
    made = Context(model, ContextParams(n_ctx=512, n_slots=2, n_batch=64, n_ubatch=64, n_threads=1, flash_attn="off"))
    yield made
    made.close()
    model.close()


@pytest.fixture(scope="module")
def grammars(context: Context) -> GrammarCompiler:
    return GrammarCompiler(context.model.vocabulary)


@pytest.fixture(scope="module")
def token_of(context: Context) -> dict[bytes, int]:
    """The token of each piece."""
    pieces = ((context.model.vocabulary.piece(token, special=False), token) for token in range(context.n_vocab))
    return {piece: token for piece, token in pieces if piece}


@functools.cache
def answer_grammar(name: str, end: str = "") -> Grammar:
    """What holds an answer that may call `TOOL` in that format; a template that ends so may know of thoughts."""
    planner = AnswerPlanner(
        CHATML + end,
        lambda text: [text],
        lambda schema: schema,
        knows_tools=True,
        carries_calls=True,
        tool_format=name,
    )
    lark = planner.plan(ChatPrompt(({"role": "user", "content": "Hi"},), tools=(TOOL,)), "", "").grammar
    assert lark is not None
    return Grammar(GrammarKind.LARK, lark)


def called(name: str) -> str:
    form = BY_NAME[name]
    return form.write([("look", {"place": "up", "deep": True})]) or ""


WRITTEN = sorted(name for name in BY_NAME if called(name))
ODD_PARTS = ["<", "</tool_call", "[TOOL", "{", '"', " Action", "\n", "é", "ab", " the", "<|im_end|>", "<tool_call>x"]


@settings(max_examples=examples(150))
@given(st.data())
def test_a_token_is_taken_exactly_where_the_mask_allows_it(
    context: Context, grammars: GrammarCompiler, token_of: dict[bytes, int], data: st.DataObject
) -> None:
    """However the text falls into tokens: marks begin in the middle of one, and end in the middle of another."""
    name = data.draw(st.sampled_from(WRITTEN))
    compiled = grammars.compile(answer_grammar(name, data.draw(st.sampled_from(["", "<think>"]))))
    held, free = compiled.constraint(), compiled.constraint()
    parts = st.sampled_from([*ODD_PARTS, called(name), called(name)[: data.draw(st.integers(0, 60))]])
    rest = "".join(data.draw(st.lists(parts, max_size=5))).encode()
    while rest:
        lengths = [n for n in range(1, min(len(rest), 16) + 1) if rest[:n] in token_of]
        n = data.draw(st.sampled_from(lengths))
        token, rest = token_of[rest[:n]], rest[n:]
        if not _agree(context, held, free, token):
            return
    for special in (*context.model.vocabulary.eog_tokens, token_of[b" the"], 7):
        _agree(context, held.__class__(compiled, held.matcher.copy(), held._masks, is_free=False), free, special)


def _agree(context: Context, held: GrammarConstraint, free: GrammarConstraint, token: int) -> bool:
    """Whether the one allows `token` by its mask; the other says the same, and both have taken it then."""
    row = np.zeros(context.n_vocab, np.float32)
    held.mask(row)
    is_allowed = bool(np.isfinite(row[token]))
    if token in context.model.vocabulary.eog_tokens:
        assert free.is_accepting == is_allowed
        return is_allowed
    if free.forced():
        # The mask has but one way of many to divide what must come: such a place is not free.
        assert not free.is_free
    elif not is_allowed:
        before = free.is_accepting, free.is_stopped, free.forced()
        assert not free.take(token)
        assert (free.is_accepting, free.is_stopped, free.forced()) == before
    if not is_allowed:
        return False
    assert free.take(token)
    held.accept(token)
    assert (free.is_accepting, free.is_stopped, free.forced()) == (held.is_accepting, held.is_stopped, held.forced())
    return True


class Masks:
    """How many masks were computed since."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n = 0
        fill = MaskFiller.fill

        def count(filler: MaskFiller, matchers: Any, words: Any) -> None:
            self.n += len(matchers)
            fill(filler, matchers, words)

        monkeypatch.setattr(MaskFiller, "fill", count)


def run(context: Context, grammars: GrammarCompiler, *requests: Any) -> dict[int, Collected]:
    engine = engine_over(context, grammars)
    collected = {request.request_id: Collected(request.n) for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for event in engine.step():
            collected[event.request_id].add(event)  # type: ignore[union-attr]
    return collected


def tokens_of(context: Context, text: str) -> list[int]:
    return context.model.vocabulary.tokenize(text, add_special=False, parse_special=True)


ASKED = "<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["hermes", "mistral", "llama-3", "pythonic"])
def test_free_text_asks_for_no_mask_and_is_what_it_is_without_tools(
    context: Context, grammars: GrammarCompiler, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    masks = Masks(monkeypatch)
    prompt = tokens_of(context, ASKED)
    said = run(context, grammars, make_request(1, prompt, grammar=answer_grammar(name), max_tokens=40))[1]
    assert masks.n == 0
    assert said.texts == run(context, grammars, make_request(1, prompt, max_tokens=40))[1].texts
    assert said.finishes[0].reason is FinishReason.LENGTH


@pytest.mark.e2e
def test_what_is_said_in_a_channel_is_free_and_its_header_is_not(
    context: Context, grammars: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = Masks(monkeypatch)
    request = make_request(1, tokens_of(context, ASKED), grammar=answer_grammar("harmony"), max_tokens=60)
    collected = run(context, grammars, request)[1]
    assert collected.texts[0].startswith("<|channel|>")
    assert 0 < masks.n < 30


JUMPED = 'OK.\n<tool_call>\n{"name": "jump", "arguments": {"height": 3}}\n</tool_call>\n'


@pytest.mark.e2e
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.5, "seed": 3},
        {"temperature": 0.5, "seed": 3, "typ_p": 0.9},
        {"banned_strings": ("height", "jump", " the")},
        {"n_logprobs": 1},
        {"temperature": 0.5, "seed": 3, "n": 2},
    ],
    ids=str,
)
def test_from_the_opening_on_there_is_nothing_but_a_call(
    context: Context, grammars: GrammarCompiler, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """The model copies what stands before, calls of a tool that there is not: what it may not say it does not say."""
    masks = Masks(monkeypatch)
    prompt = tokens_of(context, 4 * JUMPED + "OK.")
    request = make_request(1, prompt, grammar=answer_grammar("hermes"), max_tokens=100, **changes)
    collected = run(context, grammars, request)[1]
    for index in range(request.n):
        call = collected.texts[index].partition("<tool_call>")[2].partition("</tool_call>")[0]
        assert "".join(call.split()).startswith('{"name":"look","arguments":{"place":')
        assert '"jump"' not in collected.texts[index]
        if collected.finishes[index].reason is FinishReason.STOP:
            assert isinstance(json.loads(call)["arguments"]["place"], str)
    assert masks.n < collected.finishes[0].usage.completion_tokens
