"""The real context on a tiny F32 model: what is computed does not depend on what else is, or on where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import llama_cpp
import numpy as np
import pytest

from ggufd.engine.builder import Backend, build_engine
from ggufd.engine.messages.events import Output
from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.messages.sampling import SamplingParams
from ggufd.engine.queueing.queue import RequestQueue
from ggufd.engine.scheduling.scheduler import Scheduler
from ggufd.errors import EngineFailure, ModelError
from ggufd.llama.context.batch import NoRoomError
from ggufd.llama.context.context import Context
from ggufd.llama.model.model import Model
from ggufd.llama.params import ContextParams, ModelParams
from tests.support.fakes.fake_llama import FakeGrammars, make_request, no_vectors
from tests.support.models.tiny_model import N_VOCAB

N_SLOTS = 6


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Model]:
    loaded = Model(ModelParams(str(tiny_model)))
    yield loaded
    loaded.close()


def make_context(model: Model, **changes: object) -> Context:
    numbers = {"n_ctx": 256, "n_slots": N_SLOTS, "n_batch": 256, "n_ubatch": 64, "n_threads": 1, "flash_attn": "off"}
    return Context(model, ContextParams(**(numbers | changes)))  # type: ignore[arg-type]


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    made = make_context(model)
    yield made
    made.close()


def some_tokens(seed: int, n: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 256, n)]


def compute(context: Context, slot: int, tokens: Sequence[int], *, n_chunk: int = 256) -> np.ndarray:
    """Append tokens to a slot in chunks; a copy of the last one's logits."""
    for start in range(0, len(tokens), n_chunk):
        chunk = tokens[start : start + n_chunk]
        context.batch.clear()
        context.batch.add(slot, chunk, context.n_past(slot), 1)
        context.decode()
    return context.logits()[-1].copy()


def greedy(context: Context, slot: int, prompt: Sequence[int], n: int) -> list[int]:
    token = int(compute(context, slot, prompt).argmax())
    tokens = [token]
    while len(tokens) < n:
        tokens.append(int(compute(context, slot, tokens[-1:]).argmax()))
    return tokens


# --- decode -----------------------------------------------------------------------------------------------------------


def test_a_batch_of_all_slots_says_what_each_says_alone(context: Context) -> None:
    prompts = [some_tokens(i, 3 + 7 * i) for i in range(N_SLOTS)]
    alone = []
    for prompt in prompts:
        alone.append(greedy(context, 0, prompt, 40))
        context.trim(0, 0)
    together = [[int(compute(context, slot, prompt).argmax())] for slot, prompt in enumerate(prompts)]
    for _ in range(39):
        context.batch.clear()
        for slot in range(N_SLOTS):
            context.batch.add(slot, together[slot][-1:], context.n_past(slot), 1)
        context.decode()
        for slot, row in enumerate(context.logits()):
            together[slot].append(int(row.argmax()))
    assert together == alone


def test_chunks_of_different_lengths_in_one_batch_find_their_own_logits(context: Context) -> None:
    """Ubatches reorder the outputs inside llama.cpp; the rows seen here stay in the batch's order."""
    prompts = [some_tokens(i, n) for i, n in enumerate((5, 1, 30, 2, 2, 17))]
    alone = []
    for prompt in prompts:
        alone.append(compute(context, 0, prompt))
        context.trim(0, 0)
    context.batch.clear()
    for slot, prompt in enumerate(prompts):
        assert context.batch.add(slot, prompt, 0, 1) == slot
    context.decode()
    assert np.abs(context.logits() - np.array(alone)).max() < 1e-4


@pytest.mark.parametrize("n_chunk", [1, 7, 64])
def test_a_prompt_in_chunks_is_the_prompt_at_once(context: Context, n_chunk: int) -> None:
    tokens = some_tokens(1, 150)
    whole = compute(context, 0, tokens)
    assert np.abs(compute(context, 1, tokens, n_chunk=n_chunk) - whole).max() < 1e-4


def test_logits_of_many_rows_stand_in_their_order(context: Context) -> None:
    tokens = some_tokens(1, 40)
    context.batch.clear()
    assert context.batch.add(0, tokens, 0, 30) == 0
    assert context.batch.add(1, tokens[:5], 0, 2) == 30
    context.decode()
    rows = context.logits().copy()
    assert rows.shape == (32, N_VOCAB)
    assert np.abs(rows[0] - compute(context, 2, tokens[:11])).max() < 1e-4
    assert np.abs(rows[29] - compute(context, 3, tokens)).max() < 1e-4
    assert np.abs(rows[30] - compute(context, 4, tokens[:4])).max() < 1e-4


def test_too_many_outputs_are_refused_before_c_sees_them(context: Context) -> None:
    context.batch.clear()
    context.batch.add(0, some_tokens(1, 100), 0, context.n_outputs_max + 1)
    with pytest.raises(EngineFailure, match="at most 64"):
        context.decode()
    assert context.n_past(0) == 0


def test_a_full_slot_has_no_room_and_leaves_the_others(model: Model) -> None:
    context = make_context(model, n_ctx=256, n_slots=2)
    tokens = some_tokens(1, 256)
    compute(context, 0, tokens)
    before = compute(context, 1, tokens[:20])
    context.batch.clear()
    context.batch.add(0, [1], 256, 1)
    with pytest.raises(NoRoomError):
        context.decode()
    context.trim(1, 19)
    assert np.abs(compute(context, 1, tokens[19:20]) - before).max() < 1e-4
    context.close()


def test_a_batch_holds_a_row_for_every_slot(model: Model) -> None:
    context = make_context(model, n_slots=40, n_batch=16, n_ubatch=16)
    assert context.n_batch >= 40
    assert context.n_outputs_max >= 40
    context.close()


def test_a_context_that_llama_cpp_cannot_make_is_a_model_error(model: Model) -> None:
    with pytest.raises(ModelError, match="could not make a context of 300 slots"):
        make_context(model, n_slots=300)


@pytest.mark.parametrize("changes", [{"cache_type_k": "q8_0"}, {"cache_type_v": "q4_0", "flash_attn": "on"}])
def test_a_cache_type_that_does_not_fit_the_heads_is_a_model_error(model: Model, changes: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=r"multiple of 32; those of this model are 8 wide\. Use one of f16"):
        make_context(model, **changes)


def test_facts_of_the_context(context: Context) -> None:
    assert (context.n_slots, context.n_ctx, context.n_vocab) == (N_SLOTS, 256, N_VOCAB)
    assert context.can_trim
    assert context.n_threads == 1
    context.set_threads(2)
    assert llama_cpp.llama_n_threads(context.handle) == 2
    context.set_threads(None)
    assert llama_cpp.llama_n_threads(context.handle) == 1


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_copied_state_goes_on_as_its_original(context: Context) -> None:
    tokens = some_tokens(1, 90)
    compute(context, 4, some_tokens(9, 120))
    compute(context, 0, tokens)
    context.set_state(4, context.get_state(0))
    assert context.n_past(4) == len(tokens)
    assert np.abs(compute(context, 4, [7]) - compute(context, 0, [7])).max() < 1e-5
    assert greedy(context, 4, [8], 30) == greedy(context, 0, [8], 30)


def test_a_copy_may_be_cut_and_leaves_its_original_whole(context: Context) -> None:
    tokens = some_tokens(1, 90)
    expected = compute(context, 0, tokens)
    context.set_state(1, context.get_state(0))
    assert context.trim(1, 40)
    fresh = compute(context, 2, [*tokens[:40], *b"other"])
    assert np.abs(compute(context, 1, list(b"other")) - fresh).max() < 1e-4
    context.trim(0, 89)
    assert np.abs(compute(context, 0, tokens[89:]) - expected).max() < 1e-4


def test_after_a_trim_nothing_of_the_tail_is_left(context: Context) -> None:
    stem, secret = some_tokens(1, 50), some_tokens(2, 100)
    compute(context, 0, [*stem, *secret])
    assert context.trim(0, len(stem))
    assert context.n_past(0) == len(stem)
    fresh = compute(context, 1, [*stem, *b"question"])
    assert np.abs(compute(context, 0, list(b"question")) - fresh).max() < 1e-4


def test_states_of_a_step_that_was_just_computed_are_read_whole(context: Context) -> None:
    """A copy right after a decode reads what that decode wrote."""
    tokens = some_tokens(3, 30)
    for n in range(1, len(tokens)):
        compute(context, 0, tokens[n - 1 : n])
        context.set_state(3, context.get_state(0))
        assert context.n_past(3) == n
    fresh = compute(context, 1, tokens)
    assert np.abs(compute(context, 3, tokens[-1:]) - fresh).max() < 1e-4


def test_an_empty_slot_can_be_copied_too(context: Context) -> None:
    compute(context, 1, some_tokens(1, 20))
    context.set_state(1, context.get_state(0))
    assert context.n_past(1) == 0


def test_a_state_that_is_no_state_is_refused(context: Context) -> None:
    with pytest.raises(EngineFailure, match="could not be restored"):
        context.set_state(0, np.zeros(64, np.uint8))


def test_a_state_may_live_in_another_context_of_as_many_slots(model: Model, context: Context) -> None:
    other = make_context(model)
    tokens = some_tokens(1, 60)
    compute(context, 5, tokens)
    other.set_state(1, context.get_state(5))
    assert np.abs(compute(other, 1, [3]) - compute(context, 5, [3])).max() < 1e-5
    other.close()


@pytest.mark.parametrize(
    "changes", [{"n_slots": 2}, {"flash_attn": "on"}, {"cache_type_k": "f32"}, {"cache_type_v": "f32"}], ids=str
)
def test_a_state_of_a_context_of_another_layout_is_refused(
    model: Model, context: Context, changes: dict[str, object]
) -> None:
    other = make_context(model, **changes)
    compute(context, 0, some_tokens(1, 20))
    compute(other, 0, some_tokens(2, 30))
    with pytest.raises(EngineFailure, match="could not be restored"):
        other.set_state(0, context.get_state(0))
    assert other.n_past(0) == 0
    tokens = some_tokens(3, 40)
    assert np.abs(compute(other, 0, tokens) - compute(other, 1, tokens)).max() < 1e-5
    other.close()


@pytest.mark.parametrize("n_bytes", [0, 1, 4, 8, 12, 16, 100, 0.3, 0.7, -1, "longer"])
def test_a_state_of_the_wrong_length_is_refused_and_leaves_nothing(context: Context, n_bytes: float | str) -> None:
    compute(context, 1, some_tokens(1, 90))
    whole = context.get_state(1)
    if isinstance(n_bytes, str):
        state = np.concatenate([whole, whole[:10]])
    else:
        state = whole[: int(n_bytes * len(whole)) if isinstance(n_bytes, float) else n_bytes]
    compute(context, 0, some_tokens(2, 30))
    with pytest.raises(EngineFailure, match="could not be restored"):
        context.set_state(0, state)
    assert context.n_past(0) == 0
    tokens = some_tokens(3, 40)
    assert np.abs(compute(context, 0, tokens) - compute(context, 2, tokens)).max() < 1e-5


def test_a_state_for_which_there_is_no_memory_is_a_failure(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise MemoryError

    compute(context, 0, some_tokens(1, 20))
    monkeypatch.setattr(np, "empty", refuse)
    with pytest.raises(EngineFailure, match="no memory for the state of slot 0"):
        context.get_state(0)


# --- under the engine -------------------------------------------------------------------------------------------------


class RealRig:
    """The engine over the real context, integrity checked after every step."""

    def __init__(self, context: Context) -> None:
        scheduler = Scheduler(
            n_batch=context.n_batch, n_ubatch=64, n_outputs_max=context.n_outputs_max, max_gap_ms=100.0
        )
        backend = Backend(context, context.model.vocabulary, FakeGrammars())
        self.engine = build_engine(backend, RequestQueue(60.0), scheduler, no_vectors())
        self.tokens: dict[int, list[int]] = {}

    def step(self) -> None:
        for event in self.engine.step():
            if isinstance(event, Output):
                self.tokens.setdefault(event.request_id, []).extend(event.tokens)
        self.engine.check_integrity()

    def run(self, *requests: EngineRequest) -> None:
        for request in requests:
            self.engine.add(request)
        while self.engine.has_work:
            self.step()


def long_request(request_id: int, n_prompt: int = 50, n: int = 40) -> EngineRequest:
    return make_request(request_id, some_tokens(request_id, n_prompt), max_tokens=n, ignore_eos=True)


def alone(model: Model, request: EngineRequest) -> list[int]:
    context = make_context(model, n_slots=1)
    rig = RealRig(context)
    rig.run(request)
    context.close()
    return rig.tokens[request.request_id]


def test_the_engine_says_together_what_each_request_says_alone(model: Model, context: Context) -> None:
    requests = [long_request(i, n_prompt=1 + 13 * i) for i in range(10)]
    rig = RealRig(context)
    rig.run(*requests)
    for request in requests:
        assert rig.tokens[request.request_id] == alone(model, request)


def test_closing_holes_changes_no_text(model: Model, context: Context) -> None:
    requests = [long_request(i, n=120) for i in range(N_SLOTS)]
    rig = RealRig(context)
    for request in requests:
        rig.engine.add(request)
    for _ in range(10):
        rig.step()
    for request_id in (1, 2, 4):
        rig.engine.abort(request_id)
    before = [state.slot for state in rig.engine.stats().slots if state.request_id is not None]
    rig.run()
    assert before == [0, 3, 5]
    for request_id in (0, 3, 5):
        assert rig.tokens[request_id] == alone(model, requests[request_id])


def test_a_chat_goes_on_from_cache_with_the_text_it_has_afresh(model: Model, context: Context) -> None:
    rig = RealRig(context)
    history = some_tokens(1, 40)
    for turn in range(4):
        request = make_request(turn, history, max_tokens=10, ignore_eos=True)
        rig.run(request, long_request(100 + turn, n=15))
        assert rig.tokens[turn] == alone(model, request)
        history = [*history, *rig.tokens[turn], *b"next"]
    assert rig.engine.stats().cached_tokens > 120


def test_choices_fork_from_one_prompt(model: Model, context: Context) -> None:
    rig = RealRig(context)
    sampling = SamplingParams(seed=4, temperature=1.0, ignore_eos=True)
    request = EngineRequest(1, tuple(some_tokens(1, 100)), n=4, max_tokens=20, sampling=sampling)
    rig.engine.add(request)
    outputs: dict[int, list[int]] = {}
    while rig.engine.has_work:
        for event in rig.engine.step():
            if isinstance(event, Output):
                outputs.setdefault(event.index, []).extend(event.tokens)
    assert len({tuple(tokens) for tokens in outputs.values()}) == 4
    assert rig.engine.stats().computed_tokens < 100 + 3 * 40 + 4 * 20
    own = make_context(model, n_slots=1)
    single = RealRig(own)
    single.engine.add(request)
    expected: dict[int, list[int]] = {}
    while single.engine.has_work:
        for event in single.engine.step():
            if isinstance(event, Output):
                expected.setdefault(event.index, []).extend(event.tokens)
    own.close()
    assert outputs == expected
