"""A trimmed history: what follows the dropped messages is moved, not computed."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.messages.events import CacheSource
from ggufd.engine.slots.chunk_reuse import plan_moves
from ggufd.llama.calibration.attention_model import AttentionShape, write_attention_model
from ggufd.llama.context.context import Context
from ggufd.llama.model.model import Model
from ggufd.llama.params import ContextParams, ModelParams
from tests.support.fakes.fake_llama import make_engine, make_request, run_alone

TOKENS = st.lists(st.integers(0, 3), max_size=40)


@given(TOKENS, TOKENS, st.integers(1, 5), st.integers(0, 40))
def test_moves_make_the_cache_a_beginning_of_the_prompt(
    cached: list[int], prompt: list[int], n_min: int, limit: int
) -> None:
    n_prefix = 0
    while n_prefix < min(len(cached), len(prompt), limit) and cached[n_prefix] == prompt[n_prefix]:
        n_prefix += 1
    moves = plan_moves(array("i", cached), array("i", prompt), n_prefix, n_min, limit)
    result = cached[:n_prefix]
    behind = n_prefix
    for move in moves:
        assert move.n >= n_min
        assert move.source >= behind
        assert move.target == len(result)
        result += cached[move.source : move.source + move.n]
        behind = move.source + move.n
    assert result == prompt[: len(result)]
    assert len(result) <= max(limit, n_prefix)


SYSTEM = b"You are a pirate. "
OLD = b"Some old message that is dropped. "
KEPT = b"A message that stays in the history of this chat. "
NEW = b"And a new one."


def test_a_trimmed_history_is_moved_when_that_is_allowed() -> None:
    rig = make_engine(n_slots=2, n_cache_reuse=16)
    rig.add(make_request(1, SYSTEM + OLD + KEPT))
    rig.run()
    before = rig.n_computed
    rig.add(make_request(2, SYSTEM + KEPT + NEW, max_tokens=5, explain_cache=True))
    collected = rig.run()[2]
    usage = collected.finishes[0].usage
    assert usage.cache is not None
    assert usage.cache.source is CacheSource.MOVED
    assert usage.moved_tokens == len(KEPT)
    assert usage.cached_tokens == len(SYSTEM) + len(KEPT)
    assert rig.n_computed - before == len(NEW) + 4
    assert collected.texts[0] == run_alone(make_request(2, SYSTEM + KEPT + NEW, max_tokens=5)).texts[0]


def test_nothing_is_moved_unasked() -> None:
    rig = make_engine(n_slots=2)
    rig.add(make_request(1, SYSTEM + OLD + KEPT))
    rig.run()
    rig.add(make_request(2, SYSTEM + KEPT + NEW))
    usage = rig.run()[2].finishes[0].usage
    assert usage.moved_tokens == 0
    assert usage.cached_tokens <= len(SYSTEM) + 2


def test_what_was_moved_is_not_copied_before_it_is_rotated() -> None:
    """Two requests for one trimmed history at once: the second may only copy after the next decode."""
    rig = make_engine(n_slots=3, n_cache_reuse=16)
    rig.add(make_request(1, SYSTEM + OLD + KEPT))
    rig.run()
    rig.add(*(make_request(i, SYSTEM + KEPT + NEW + bytes([i]), max_tokens=3) for i in (2, 3)))
    rig.run()
    for i in (2, 3):
        alone = run_alone(make_request(i, SYSTEM + KEPT + NEW + bytes([i]), max_tokens=3))
        assert rig.text(i) == alone.texts[0]


@pytest.fixture
def one_layer(tmp_path: Path) -> Model:
    """With one layer, keys and values depend on a token and its place alone, so a move must be exact."""
    path = tmp_path / "one-layer.gguf"
    write_attention_model(path, AttentionShape(4, 2, 64), 1)
    return Model(ModelParams(str(path)))


def test_moved_tokens_are_rotated_to_their_new_places(one_layer: Model) -> None:
    context = Context(one_layer, ContextParams(n_ctx=256, n_slots=1, n_threads=1, flash_attn="off", cache_type_k="f32"))
    tokens = np.random.default_rng(1).integers(1, 60, 100).tolist()

    def logits_of(new: list[int], start: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        context.batch.clear()
        context.batch.add(0, new, start, 1)
        context.decode()
        return context.logits()[0].copy()

    logits_of(tokens, 0)
    context.move(0, 40, 10, 50)
    context.trim(0, 60)
    assert context.n_past(0) == 60
    moved = logits_of([7, 8, 9], 60)
    context.trim(0, 0)
    fresh = logits_of([*tokens[:10], *tokens[40:90], 7, 8, 9], 0)
    unmoved_would_be = np.abs(fresh).max()
    context.close()
    one_layer.close()
    assert np.abs(moved - fresh).max() < 2e-3 * unmoved_would_be
