"""Grammars under the real engine: what is said fits them, and what cannot go on fails its request alone."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufd.engine.builder import Backend, build_engine
from ggufd.engine.engine import Engine
from ggufd.engine.messages.events import Admitted, FinishReason, Output
from ggufd.engine.messages.sampling import Grammar, GrammarKind
from ggufd.engine.queueing.queue import RequestQueue
from ggufd.engine.sampling.constraint import GrammarCompiler, Masks
from ggufd.engine.scheduling.scheduler import Scheduler
from ggufd.errors import EngineFailure, InvalidRequest, Unsupported
from ggufd.llama.context.context import Context
from ggufd.llama.model.model import GgufModel, Model
from ggufd.llama.params import ContextParams, ModelParams
from tests.support.fakes.fake_llama import Collected, make_request, no_vectors
from tests.support.models.tiny_bert import write_tiny_bert
from tests.support.models.tiny_model import EOS, EOT, N_VOCAB

DIGITS = Grammar(GrammarKind.REGEX, "[0-9]{3}")


@pytest.fixture(scope="module")
def context(tiny_model: Path) -> Iterator[Context]:
    model = Model(ModelParams(str(tiny_model)))
    params = ContextParams(n_ctx=256, n_slots=3, n_batch=64, n_ubatch=64, n_threads=1, flash_attn="off")
    made = Context(model, params)
    yield made
    made.close()
    model.close()


@pytest.fixture(scope="module")
def grammars(context: Context) -> GrammarCompiler:
    return GrammarCompiler(context.model.vocabulary)


def engine_over(context: Context, grammars: GrammarCompiler) -> Engine:
    for slot in range(context.n_slots):
        context.trim(slot, 0)
    scheduler = Scheduler(n_batch=64, n_ubatch=64, n_outputs_max=64, max_gap_ms=100.0)
    backend = Backend(context, context.model.vocabulary, grammars)
    return build_engine(backend, RequestQueue(60.0), scheduler, no_vectors())


def run(context: Context, grammars: GrammarCompiler, *requests: Any) -> dict[int, Collected]:
    engine = engine_over(context, grammars)
    collected = {request.request_id: Collected(request.n) for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for event in engine.step():
            collected[event.request_id].add(event)  # type: ignore[union-attr]
        engine.check_integrity()
    return collected


@pytest.mark.parametrize(
    ("kind", "text", "pattern"),
    [
        (GrammarKind.REGEX, "(yes|no), [a-f]{2,5}!", "(yes|no), [a-f]{2,5}!"),
        (GrammarKind.GBNF, 'root ::= "<" [a-c]+ ">"', "<[a-c]+>"),
        (GrammarKind.LARK, 'start: "a" /[xyz]/ "the"', "a[xyz]the"),
    ],
    ids=["regex", "gbnf", "lark"],
)
@pytest.mark.parametrize("changes", [{}, {"temperature": 2.0, "seed": 1}, {"xtc_probability": 0.5, "temperature": 1.5}])
def test_what_is_said_fits_the_grammar(
    context: Context, grammars: GrammarCompiler, kind: GrammarKind, text: str, pattern: str, changes: dict[str, Any]
) -> None:
    request = make_request(1, b"hello", grammar=Grammar(kind, text), max_tokens=200, **changes)
    said = run(context, grammars, request)[1].texts[0]
    assert re.fullmatch(pattern, said)


SCHEMA = Grammar(
    GrammarKind.JSON_SCHEMA,
    json.dumps(
        {
            "type": "object",
            "properties": {
                "n": {"type": "integer", "minimum": -5, "maximum": 99},
                "ok": {"type": "boolean"},
                "name": {"type": "string", "pattern": "^[a-z]{0,8}$"},
            },
            "required": ["n", "ok", "name"],
            "additionalProperties": False,
        }
    ),
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 100.0},
        {"temperature": 5.0, "n": 3},
        {"temperature": 1.0, "xtc_probability": 1.0, "xtc_threshold": 0.01},
        {"temperature": 1.0, "typ_p": 0.3},
        {"temperature": 1.0, "mirostat": 1},
        {"temperature": 1.0, "mirostat": 2},
        {"temperature": 1.0, "top_k": 1, "dry_multiplier": 2.0},
        {"temperature": 2.0, "banned_strings": ("aa", "b", "9", "zq")},
        {"temperature": 2.0, "logit_bias": tuple((token, 100.0) for token in b"{}[]xyz\n")},
        {"temperature": 2.0, "logit_bias": ((ord("b"), -math.inf), (ord("1"), -math.inf))},
        {"temperature": 2.0, "repeat_penalty": 5.0, "presence_penalty": 3.0},
        {"temperature": 2.0, "min_tokens": 100},
        {"temperature": 2.0, "ignore_eos": True},
        {"temperature": 2.0, "n_logprobs": 2},
    ],
    ids=str,
)
def test_a_schema_holds_under_whatever_else_is_asked(
    context: Context, grammars: GrammarCompiler, changes: dict[str, Any]
) -> None:
    request = make_request(1, b"hello", **{"grammar": SCHEMA, "max_tokens": 200, "seed": 2, **changes})
    collected = run(context, grammars, request)[1]
    assert collected.failure is None
    for index in range(request.n):
        assert collected.finishes[index].reason is FinishReason.STOP
        found = json.loads(collected.texts[index])
        assert found.keys() == {"n", "ok", "name"}
        assert isinstance(found["ok"], bool)
        assert -5 <= found["n"] <= 99
        assert re.fullmatch("[a-z]{0,8}", found["name"])


def test_half_of_a_schema_does_not_look_like_the_whole(context: Context, grammars: GrammarCompiler) -> None:
    collected = run(context, grammars, make_request(1, b"hello", grammar=SCHEMA, max_tokens=9))[1]
    assert collected.finishes[0].reason is FinishReason.LENGTH
    nothing_left = tuple((token, -math.inf) for token in b"tf")
    failure = run(context, grammars, make_request(1, b"x", grammar=SCHEMA, logit_bias=nothing_left, max_tokens=99))[
        1
    ].failure
    assert failure is not None
    assert "no token is left" in failure.message


@pytest.mark.parametrize("changes", [{}, {"temperature": 2.0, "seed": 3}, {"repeat_penalty": 3.0}], ids=str)
def test_forced_tokens_are_those_that_would_be_sampled(
    context: Context, grammars: GrammarCompiler, changes: dict[str, Any]
) -> None:
    """With log-probabilities each token is sampled from its own row."""
    request = make_request(1, b"hello", grammar=SCHEMA, max_tokens=200, **changes)
    forced = run(context, grammars, request)[1]
    sampled = run(context, grammars, dataclasses.replace(request, n_logprobs=0))[1]
    assert (forced.texts, forced.tokens, forced.pieces) == (sampled.texts, sampled.tokens, sampled.pieces)
    n_forced, n_sampled = (sum(isinstance(event, Output) for event in one.events) for one in (forced, sampled))
    assert n_forced < 0.5 * n_sampled


def test_constrained_and_free_sequences_together_say_what_each_says_alone(
    context: Context, grammars: GrammarCompiler
) -> None:
    requests = [
        make_request(1, b"one", grammar=DIGITS),
        make_request(2, b"two", max_tokens=20, ignore_eos=True),
        make_request(3, b"three", grammar=Grammar(GrammarKind.REGEX, "[a-z]{10}")),
    ]
    together = run(context, grammars, *requests)
    for request in requests:
        alone = run(context, grammars, request)[request.request_id]
        assert together[request.request_id].texts == alone.texts


def test_choices_of_one_request_have_a_grammar_each(context: Context, grammars: GrammarCompiler) -> None:
    request = make_request(1, b"hello", n=3, grammar=DIGITS, temperature=3.0, seed=1)
    texts = run(context, grammars, request)[1].texts
    assert all(re.fullmatch("[0-9]{3}", texts[index]) for index in range(3))
    assert len(set(texts.values())) == 3


def test_banned_strings_are_taken_back_under_a_grammar(context: Context, grammars: GrammarCompiler) -> None:
    grammar = Grammar(GrammarKind.REGEX, "[ab]{12}")
    free = run(context, grammars, make_request(1, b"hello", grammar=grammar, temperature=2.0, seed=4))[1].texts[0]
    ban = free[3:5]
    request = make_request(1, b"hello", grammar=grammar, temperature=2.0, seed=4, banned_strings=(ban,))
    said = run(context, grammars, request)[1].texts[0]
    assert ban not in said
    assert re.fullmatch("[ab]{12}", said)


def test_what_cannot_be_enforced_is_refused(grammars: GrammarCompiler) -> None:
    with pytest.raises(InvalidRequest, match="cannot be enforced"):
        grammars.compile(Grammar(GrammarKind.REGEX, "[a-")).constraint()


def test_a_grammar_is_compiled_once_and_its_copies_go_their_own_ways(grammars: GrammarCompiler) -> None:
    grammar = Grammar(GrammarKind.REGEX, "[th]x{3}")
    compiled = grammars.compile(grammar)
    first, second = compiled.constraint(), compiled.constraint()
    assert grammars.compile(Grammar(GrammarKind.REGEX, "[th]x{3}")) is compiled
    first.accept(ord("t"))
    row = np.zeros(N_VOCAB, np.float32)
    second.mask(row)
    assert np.flatnonzero(np.isfinite(row)).tolist() == [ord("h"), ord("t")]


def test_the_grammar_used_longest_ago_is_forgotten_first(grammars: GrammarCompiler) -> None:
    first = grammars.compile(DIGITS)
    second = grammars.compile(Grammar(GrammarKind.REGEX, "second"))
    for i in range(31):
        assert grammars.compile(DIGITS) is first
        grammars.compile(Grammar(GrammarKind.REGEX, f"other{i}"))
    assert grammars.compile(Grammar(GrammarKind.REGEX, "second")) is not second


def test_large_grammars_are_kept_by_their_size(grammars: GrammarCompiler) -> None:
    kept = grammars.compile(DIGITS)
    # Refused, which takes no time.
    for i in range(9):
        grammars.compile(Grammar(GrammarKind.REGEX, f"[{i}" + "x" * 255_000))
    assert grammars.compile(DIGITS) is not kept


def test_a_grammar_that_broke_is_compiled_anew(grammars: GrammarCompiler) -> None:
    compiled = grammars.compile(DIGITS)
    with pytest.raises(EngineFailure):
        compiled.constraint().accept(ord("x"))
    assert grammars.compile(DIGITS) is not compiled


@pytest.mark.timed
def test_compiling_does_not_hold_the_caller_up(grammars: GrammarCompiler) -> None:
    grammars.prepare()
    text = "|".join(f"value{i * 7919}" for i in range(15_000))
    compiled = grammars.compile(Grammar(GrammarKind.REGEX, text))
    longest = 0.0
    before = time.perf_counter()
    n_looks = 0
    while not compiled.is_ready:
        time.sleep(0.0002)
        now = time.perf_counter()
        longest, before = max(longest, now - before), now
        n_looks += 1
    # Generous, for a busy machine: a compile that held Python would be one gap, and hardly a look.
    assert n_looks > 5
    assert longest < 0.1
    compiled.constraint().accept(ord("v"))


def test_the_mask_allows_what_may_follow_and_only_ends_at_the_end(grammars: GrammarCompiler) -> None:
    constraint = grammars.compile(Grammar(GrammarKind.REGEX, "[th]x?")).constraint()
    row = np.zeros(N_VOCAB, np.float32)
    constraint.mask(row)
    assert np.flatnonzero(np.isfinite(row)).tolist() == [ord("h"), ord("t")]
    constraint.accept(ord("t"))
    row[:] = 0
    constraint.mask(row)
    assert np.flatnonzero(np.isfinite(row)).tolist() == [ord("x"), EOS, EOT]
    constraint.accept(ord("x"))
    assert constraint.is_stopped
    constraint.rewind(2)
    row[:] = 0
    constraint.mask(row)
    assert np.flatnonzero(np.isfinite(row)).tolist() == [ord("h"), ord("t")]


def test_a_token_that_does_not_fit_is_an_error(grammars: GrammarCompiler) -> None:
    constraint = grammars.compile(DIGITS).constraint()
    with pytest.raises(EngineFailure, match="does not fit"):
        constraint.accept(ord("x"))


@pytest.mark.timed
def test_no_step_waits_for_a_compile(context: Context, grammars: GrammarCompiler) -> None:
    grammars.prepare()
    engine = engine_over(context, grammars)
    engine.add(make_request(1, b"hello", max_tokens=None, ignore_eos=True))
    for _ in range(3):
        engine.step()
    choices = "|".join(f"value{i * 7907}" for i in range(15_000))
    began_s = time.perf_counter()
    engine.add(make_request(2, b"x", grammar=Grammar(GrammarKind.REGEX, choices), max_tokens=50))
    longest_s = time.perf_counter() - began_s
    n_steps = 0
    is_admitted = False
    while not is_admitted:
        step_s = time.perf_counter()
        events = engine.step()
        longest_s = max(longest_s, time.perf_counter() - step_s)
        is_admitted = any(isinstance(event, Admitted) and event.request_id == 2 for event in events)
        n_steps += 1
    # On a quiet machine the longest is a few milliseconds; a compile on this thread would be all of it.
    assert n_steps > 5
    assert longest_s < 0.5 * (time.perf_counter() - began_s)
    engine.abort(1)
    engine.abort(2)


def test_masks_are_not_waited_for_where_no_core_was_free_to_begin(grammars: GrammarCompiler) -> None:
    masks = Masks(N_VOCAB)
    constraint = grammars.compile(DIGITS).constraint()
    go = threading.Event()
    blocked = masks._thread.submit(go.wait, 30.0)
    masks.begin([constraint.matcher])
    assert np.flatnonzero(~masks.banned(constraint.matcher)).tolist() == list(b"0123456789")
    assert not blocked.done()
    go.set()


def test_a_vocabulary_that_no_grammar_can_read_fails_those_who_send_one_and_nobody_else(tmp_path: Path) -> None:
    file = GgufModel(str(write_tiny_bert(tmp_path / "m.gguf")))
    compiler = GrammarCompiler(file.vocabulary)
    for _ in range(2):
        compiler.prepare()
        with pytest.raises(Unsupported, match="Nothing can be enforced with this model's vocabulary"):
            compiler.compile(DIGITS).constraint()
    file.close()
