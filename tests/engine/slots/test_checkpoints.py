"""Models whose cache cannot be cut back: what is reused, and that it says what no cache would have said."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.builder import Backend, build_engine
from ggufd.engine.messages.config import EngineRules
from ggufd.engine.messages.events import Admitted, Output
from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.queueing.queue import RequestQueue
from ggufd.engine.scheduling.scheduler import Scheduler
from ggufd.engine.slots.checkpoints import checkpoints_of
from ggufd.errors import EngineFailure
from ggufd.llama.context.context import Context
from ggufd.llama.model.model import Model
from ggufd.llama.params import ContextParams, ModelParams
from tests.support.fakes.fake_llama import EOT, FakeGrammars, Rig, make_engine, make_request, no_vectors, run_alone
from tests.support.models.state_models import WRITERS
from tests.support.models.tiny_model import EOT as TINY_EOT
from tests.support.models.tiny_model import quiet_llama

# --- where ------------------------------------------------------------------------------------------------------------


class TestCheckpoints:
    END = 9

    def prompt(self, *lengths: int) -> list[int]:
        """Messages of these lengths, each with its end; and an opened one."""
        return [token for n in lengths for token in [1] * (n - 1) + [self.END]] + [1] * 5

    def test_the_first_message_the_last_ones_and_the_last_token(self) -> None:
        prompt = self.prompt(100, 100, 100, 100, 100, 100)
        assert checkpoints_of(prompt, {self.END}, 0, 0) == [100, 400, 500, 604]

    def test_where_the_prompt_leaves_an_earlier_one(self) -> None:
        assert checkpoints_of(self.prompt(300), {self.END}, 0, 150) == [150, 304]
        assert checkpoints_of([1] * 300, (), 0, 0) == [299]

    def test_what_is_computed_already_and_what_is_short_is_none(self) -> None:
        prompt = self.prompt(100, 100, 100, 100)
        assert checkpoints_of(prompt, {self.END}, 250, 0) == [300, 404]
        assert checkpoints_of([1] * 20, (), 0, 0) == []

    def test_none_is_within_an_image(self) -> None:
        prompt = [*[1] * 200, *[-3] * 100]
        found = checkpoints_of(prompt, {self.END}, 0, 0, lambda n: 200 if 200 < n < 300 else n)
        assert found == [200]

    @given(st.lists(st.sampled_from([1, 9]), min_size=1, max_size=400), st.integers(0, 400), st.integers(0, 400))
    def test_they_lie_ahead_apart_and_before_the_last_token(self, prompt: list[int], n_past: int, at: int) -> None:
        found = checkpoints_of(prompt, {9}, n_past, min(at, len(prompt)))
        assert found == sorted(set(found))
        assert all(n_past < length < len(prompt) for length in found)
        assert all(b - a >= 64 for a, b in itertools.pairwise(found))


# --- over the fake ----------------------------------------------------------------------------------------------------

SYSTEM = b"s" * 80 + bytes([0])
FIRST = b"what is the first of all questions, and who would ever answer it? " * 2


def chat(*parts: bytes) -> list[int]:
    """Messages, each with its end; the last one is opened."""
    return [token for part in parts[:-1] for token in (*part, EOT)] + list(parts[-1])


def make_rig(**options: Any) -> Rig:
    return make_engine(n_slots=2, n_ctx=1024, n_batch=256, can_trim=False, cache_ram_bytes=1 << 20, **options)


def n_cached(rig: Rig, request_id: int, prompt: list[int]) -> int:
    """Serve a request; how much of its prompt was reused. Its text must be that of a fresh engine."""
    request = make_request(request_id, prompt, max_tokens=6, ignore_eos=True)
    rig.add(request)
    collected = rig.run()[request_id]
    assert collected.texts == run_alone(request, n_ctx=1024, n_batch=256, can_trim=False).texts
    return next(event.cached_tokens for event in collected.events if isinstance(event, Admitted))


def test_another_answer_to_the_same_prompt_computes_one_token() -> None:
    rig, prompt = make_rig(), chat(SYSTEM, FIRST, b"a: ")
    assert n_cached(rig, 1, prompt) == 0
    assert n_cached(rig, 2, prompt) == len(prompt) - 1


def test_a_chat_goes_on_where_it_ended() -> None:
    rig, prompt = make_rig(), chat(SYSTEM, FIRST, b"a: ")
    n_cached(rig, 1, prompt)
    said = rig.collected[1].tokens[0]
    # The last token that was said is not computed yet.
    assert n_cached(rig, 2, [*prompt, *said, EOT, *FIRST]) == len(prompt) + len(said) - 1


def test_an_edited_message_is_read_from_its_beginning() -> None:
    rig = make_rig()
    n_cached(rig, 1, chat(SYSTEM, FIRST, FIRST, FIRST, b"a: "))
    assert n_cached(rig, 2, chat(SYSTEM, FIRST, FIRST, b"x" + FIRST, b"a: ")) == len(chat(SYSTEM, FIRST, FIRST, b""))
    assert n_cached(rig, 3, chat(SYSTEM, b"x" + FIRST, b"a: ")) == len(chat(SYSTEM, b""))


def test_what_two_prompts_share_is_kept_for_the_third() -> None:
    """Without ends of messages too: the second one tells where they part."""
    rig = make_rig()
    shared = list(b"everybody knows this beginning of a hundred characters " * 2)
    assert n_cached(rig, 1, [*shared, *FIRST]) == 0
    assert n_cached(rig, 2, [*shared, *b"other" * 20]) == 0
    assert n_cached(rig, 3, [*shared, *b"third" * 20]) == len(shared)


def test_without_host_ram_nothing_is_copied() -> None:
    rig = make_engine(n_slots=2, n_ctx=1024, n_batch=256, can_trim=False)
    prompt = chat(SYSTEM, FIRST, b"a: ")
    assert n_cached(rig, 1, prompt) == 0
    assert n_cached(rig, 2, prompt) == 0
    assert len(rig.engine._cache.host) == 0


def test_a_cache_that_can_be_cut_back_makes_no_copies_on_the_way() -> None:
    rig = make_engine(n_slots=2, n_ctx=1024, n_batch=256, cache_ram_bytes=1 << 20)
    n_cached(rig, 1, chat(SYSTEM, FIRST, b"a: "))
    assert len(rig.engine._cache.host) == 0


PARTS = st.lists(st.sampled_from([SYSTEM, FIRST, b"x" * 70, b"yes"]), min_size=1, max_size=5)


@given(st.lists(PARTS, min_size=1, max_size=6), st.sampled_from([2_000, 1 << 20]))
def test_whatever_came_before_a_text_is_that_of_a_fresh_engine(asked: list[list[bytes]], n_bytes: int) -> None:
    rig = make_engine(n_slots=2, n_ctx=1024, n_batch=256, can_trim=False, cache_ram_bytes=n_bytes)
    requests = [make_request(i, chat(*parts, b"a: "), max_tokens=4) for i, parts in enumerate(asked)]
    rig.add(*requests)
    found = rig.run()
    for request in requests:
        assert found[request.request_id].texts == run_alone(request, n_ctx=1024, n_batch=256, can_trim=False).texts


@given(st.lists(PARTS, min_size=1, max_size=6), st.sampled_from([0, 2_000, 1 << 20]), st.integers(1, 3))
def test_a_copy_that_cannot_be_cut_back_is_not(asked: list[list[bytes]], n_bytes: int, n_slots: int) -> None:
    """The fake fails where one is: so does llama.cpp with a sliding window, or says something else."""
    options: dict[str, Any] = {"n_ctx": 1024, "n_batch": 256, "copies_all": False}
    rig = make_engine(n_slots=n_slots, cache_ram_bytes=n_bytes, preempts=True, **options)
    requests = [make_request(i, chat(*parts, b"a: "), max_tokens=4, n=1 + i % 2) for i, parts in enumerate(asked)]
    for request in requests:
        rig.add(request)
        rig.step()
    found = rig.run()
    for request in requests:
        assert found[request.request_id].texts == run_alone(request, **options).texts


# --- over llama.cpp ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    quiet_llama()
    folder = tmp_path_factory.mktemp("state")
    return {name: write(folder / f"{name}.gguf") for name, write in WRITERS.items()}


@pytest.fixture(params=WRITERS)
def context(request: pytest.FixtureRequest, files: dict[str, Path]) -> Iterator[Context]:
    model = Model(ModelParams(str(files[request.param])))
    params = ContextParams(
        n_ctx=1024, n_slots=2, n_batch=512, n_ubatch=64, n_threads=1, flash_attn="off", swa_full=False
    )
    made = Context(model, params)
    yield made
    made.close()
    model.close()


def serve(context: Context, *requests: EngineRequest, cache_ram_bytes: int) -> list[tuple[str, int]]:
    """Text and reused tokens of each, one after another on one engine."""
    scheduler = Scheduler(n_batch=context.n_batch, n_ubatch=64, n_outputs_max=64, max_gap_ms=1e6)
    rules = EngineRules(cache_ram_bytes=cache_ram_bytes)
    queue = RequestQueue(60.0)
    backend = Backend(context, context.model.vocabulary, FakeGrammars())
    engine = build_engine(backend, queue, scheduler, no_vectors(), rules)
    found = []
    for request in requests:
        engine.add(request)
        text, n_reused = "", 0
        while engine.has_work:
            for event in engine.step():
                if isinstance(event, Output):
                    text += event.text
                elif isinstance(event, Admitted):
                    n_reused = event.cached_tokens
            engine.check_integrity()
        found.append((text, n_reused))
    for slot in engine._cache.table.slots:
        engine._cache.cells.evict(slot)
    return found


def test_reuse_by_snapshots_says_what_no_cache_says(context: Context) -> None:
    assert not context.can_trim

    def prompt(*parts: bytes) -> list[int]:
        return [token for part in parts[:-1] for token in (*part, TINY_EOT)] + list(parts[-1])

    prompts = [
        prompt(SYSTEM, FIRST, FIRST, b"a: "),
        prompt(SYSTEM, FIRST, FIRST, b"a: "),
        prompt(SYSTEM, FIRST, b"x" + FIRST, b"a: "),
        prompt(SYSTEM, b"y" + FIRST, b"a: "),
        prompt(SYSTEM, FIRST, FIRST, b"a: "),
    ]
    requests = [make_request(i, tokens, max_tokens=16, ignore_eos=True) for i, tokens in enumerate(prompts)]
    cached = serve(context, *requests, cache_ram_bytes=64 << 20)
    fresh = [serve(context, request, cache_ram_bytes=0)[0] for request in requests]
    assert [text for text, _ in cached] == [text for text, _ in fresh]
    assert [n for _, n in fresh] == [0] * 5
    first = len(prompts[0])
    assert [n for _, n in cached] == [0, first - 1, len(SYSTEM) + len(FIRST) + 2, len(SYSTEM) + 1, first - 1]
    assert len({text for text, _ in cached}) > 1


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.95])
def test_a_state_that_is_cut_leaves_neither_of_two_caches_filled(context: Context, share: float) -> None:
    """llama.cpp fills that of all layers, and then refuses that of the window or the recurrent ones."""

    def computed(slot: int) -> Any:
        context.batch.clear()
        context.batch.add(slot, list(FIRST), 0, 1)
        context.decode()
        return context.logits()[-1].copy()

    expected = computed(1)
    state = context.get_state(1)
    with pytest.raises(EngineFailure, match="could not be restored"):
        context.set_state(0, state[: int(share * len(state))])
    assert context.n_past(0) == 0
    assert np.abs(computed(0) - expected).max() < 1e-5


def test_a_window_in_a_full_cache_says_what_no_cache_says(files: dict[str, Path]) -> None:
    """A chat comes back from host RAM and is edited nearer to its end, or further from it, than the window is wide."""
    model = Model(ModelParams(str(files["window"])))
    made = Context(model, ContextParams(n_ctx=1024, n_slots=1, n_batch=512, n_ubatch=64, flash_attn="off"))
    assert made.can_trim
    assert not made.copies_all
    here, there = list(SYSTEM + FIRST * 2), list(FIRST * 3)
    prompts = [here, there, here[:-20] + list(b"edited"), there, here[:-100] + list(b"edited"), here[:-120]]
    requests = [make_request(i, tokens, max_tokens=16, ignore_eos=True) for i, tokens in enumerate(prompts)]
    cached = serve(made, *requests, cache_ram_bytes=64 << 20)
    fresh = [serve(made, request, cache_ram_bytes=0)[0] for request in requests]
    assert [text for text, _ in cached] == [text for text, _ in fresh]
    assert cached[3][1] == len(there) - 1
    # In its slot it can be cut back, behind what was copied there.
    assert cached[5][1] == len(here) - 121
    made.close()
    model.close()
