"""Kept states that are of no use: whatever is wrong with one, nobody fails, no text changes, and it is gone."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufd.engine.builder import Backend, build_engine
from ggufd.engine.kv_store import slot_file, state_file
from ggufd.engine.kv_store.state_file import KeptState
from ggufd.engine.kv_store.state_head import BadStateFile
from ggufd.engine.messages.config import DiskPlace, EngineRules
from ggufd.engine.messages.events import Failed, Output
from ggufd.engine.messages.reports import Stats
from ggufd.engine.messages.requests import ActOnSlot, CacheScope, EngineRequest, SlotAction
from ggufd.engine.queueing.queue import RequestQueue
from ggufd.engine.scheduling.scheduler import Scheduler
from ggufd.errors import InvalidRequest
from ggufd.llama.context.context import Context
from ggufd.llama.model.model import Model
from ggufd.llama.params import ContextParams, ModelParams
from tests.support.fakes.fake_llama import (
    EOT,
    N_VOCAB,
    FakeDecoder,
    FakeDraft,
    FakeGrammars,
    Rig,
    make_request,
    no_vectors,
    run_alone,
)
from tests.support.models.state_models import WRITERS

ROOMY: dict[str, Any] = {"n_ctx": 1024, "n_batch": 64, "n_outputs_max": 8}
A, B = (bytes([65 + at]) * 5 + b" is how a long chat begins, and it goes on and on for ever. " * 6 for at in (0, 1))
RAM = EngineRules(cache_ram_bytes=1 << 20)


# --- a fault at every place where a state is read or brought back ----------------------------------------------------


def turns(rig: Rig) -> None:
    """Two chats take turns on one slot: each comes back from host RAM."""
    for request_id, prompt in enumerate((A, B, A + b"More", B + b"More", A + b"More and more")):
        rig.add(make_request(request_id, prompt, max_tokens=4, explain_cache=True))
        rig.run()


def shared(rig: Rig) -> None:
    """Choices fork from one prompt, and others that begin like it copy what it computed."""
    rig.add(make_request(0, A, n=3, max_tokens=6))
    rig.add(make_request(1, A + b" And then?", max_tokens=6))
    rig.run()
    rig.add(make_request(2, A[:200] + b" Or so?", max_tokens=6))
    rig.run()


def preempted(rig: Rig) -> None:
    """A long answer gives its slot up for a more urgent one, and goes on in it."""
    rig.add(make_request(0, A, max_tokens=40, ignore_eos=True, priority=5))
    for _ in range(15):
        rig.step()
    rig.add(make_request(1, B, max_tokens=4, priority=0))
    rig.run()


def moved(rig: Rig) -> None:
    """Running sequences lie apart, and one moves next to the others."""
    requests = [make_request(i, A[: 60 + i] + bytes([97 + i]) * 9, max_tokens=60, ignore_eos=True) for i in range(4)]
    for request in requests:
        rig.add(request)
    for _ in range(8):
        rig.step()
    for request_id in (1, 2):
        rig.abort(request_id)
    rig.run()


def snapshots(rig: Rig) -> None:
    """A cache that cannot be cut back is copied on the way, and an edited chat goes on from such a copy."""
    for request_id, last in enumerate((b"one" * 30, b"one" * 30, b"two" * 30)):
        rig.add(make_request(request_id, [*A, EOT, *B, EOT, *last], max_tokens=4))
        rig.run()


def pre_rolled(rig: Rig) -> None:
    """What a trimmed chat will begin with is computed while nobody waits, from a copy of what it shares."""
    messages = [bytes([97 + at]) * 70 + b"." for at in range(12)]
    for request_id in range(5):
        prompt = A[:150] + b"".join(messages[request_id : request_id + 4])
        rig.add(make_request(request_id, prompt, max_tokens=4))
        rig.run()
        while rig.engine.run_idle_maintenance():
            rig.engine.check_integrity()


Play = Callable[[Rig], None]

PLAYS: dict[str, tuple[Play, dict[str, Any], EngineRules]] = {
    "turns": (turns, {"n_slots": 1}, RAM),
    "shared": (shared, {"n_slots": 4}, EngineRules()),
    "preempted": (preempted, {"n_slots": 1}, EngineRules(cache_ram_bytes=1 << 20, preempts=True)),
    "moved": (moved, {"n_slots": 4, "copy_s_per_token": 1e-6}, EngineRules()),
    "snapshots": (snapshots, {"n_slots": 1, "can_trim": False}, RAM),
    "pre-rolled": (pre_rolled, {"n_slots": 3}, EngineRules(cache_ram_bytes=1 << 20, pre_rolls=True)),
}


def played(name: str, **faults: Any) -> Rig:
    play, options, rules = PLAYS[name]
    decoder = FakeDecoder(**(ROOMY | options))
    for fault, value in faults.items():
        setattr(decoder, fault, value)
    rig = Rig(decoder, rules=rules)
    play(rig)
    return rig


def texts(rig: Rig) -> dict[int, Any]:
    assert not [one.failure for one in rig.collected.values() if one.failure]
    return {request_id: one.texts for request_id, one in rig.collected.items() if request_id not in rig.aborted}


@pytest.mark.parametrize("fault", ["refused", "short"])
@pytest.mark.parametrize("name", PLAYS)
def test_no_state_that_cannot_be_brought_back_fails_anybody_or_changes_a_text(name: str, fault: str) -> None:
    sound = played(name)
    assert sound.engine.stats().failed_restores == 0
    assert sound.decoder.n_copies > 0, "nothing was brought back: this tests nothing"
    for place in range(sound.decoder.n_copies):
        rig = played(name, bad_restores={place: fault})
        assert texts(rig) == texts(sound)
        assert rig.engine.stats().failed_restores == 1
    rig = played(name, bad_restores=dict.fromkeys(range(1000), fault))
    assert texts(rig) == texts(sound)
    assert rig.engine.stats().failed_restores >= 1


@pytest.mark.parametrize("name", PLAYS)
def test_no_state_that_cannot_be_read_fails_anybody_or_changes_a_text(name: str) -> None:
    sound = played(name)
    assert sound.decoder.n_reads > 0
    for bad in [*({place} for place in range(sound.decoder.n_reads)), set(range(1000))]:
        assert texts(played(name, bad_reads=bad)) == texts(sound)


def test_the_texts_of_the_plays_are_those_of_a_cold_run() -> None:
    for name in ("turns", "snapshots"):
        play, options, _ = PLAYS[name]
        rig = Rig(FakeDecoder(**(ROOMY | options)))
        play(rig)
        assert texts(rig) == texts(played(name))


# --- in host RAM ------------------------------------------------------------------------------------------------------


def asked(rig: Rig, request_id: int, prompt: bytes, **changes: Any) -> int:
    """Ask; how many tokens of the prompt were at hand. The text must be a cold run's."""
    request = make_request(request_id, prompt, max_tokens=4, **changes)
    rig.add(request)
    while rig.engine.is_preparing:
        time.sleep(0.001)
    collected = rig.run()[request_id]
    assert collected.failure is None
    assert collected.texts == run_alone(request, **ROOMY).texts
    return collected.finishes[0].usage.cached_tokens


def test_a_state_of_no_use_is_dropped_and_the_chat_is_kept_anew() -> None:
    rig = Rig(FakeDecoder(n_slots=1, **ROOMY), rules=RAM)
    for request_id, prompt in enumerate((A, B)):
        asked(rig, request_id, prompt)
    rig.decoder.bad_restores = {rig.decoder.n_copies: "refused"}
    assert asked(rig, 2, A + b"x") == 0
    asked(rig, 3, B)
    assert asked(rig, 4, A + b"xy") >= len(A)
    assert rig.engine.stats().failed_restores == 1


def test_the_next_best_is_tried() -> None:
    rig = Rig(FakeDecoder(n_slots=1, **ROOMY), rules=RAM)
    for request_id, prompt in enumerate((A[:200] + b"other", B, A[:300] + b"another", B)):
        asked(rig, request_id, prompt)
    rig.decoder.bad_restores = {rig.decoder.n_copies: "short"}
    assert asked(rig, 4, A) == 200


def test_what_a_report_calls_restored_was_reused() -> None:
    rig = Rig(FakeDecoder(n_slots=1, **ROOMY), rules=RAM)
    for request_id, prompt in enumerate((A, B)):
        asked(rig, request_id, prompt)
    rig.decoder.bad_restores = {rig.decoder.n_copies: "refused"}
    asked(rig, 2, A + b"x", explain_cache=True)
    report = rig.collected[2].finishes[0].usage.cache
    assert report is not None
    assert report.source is None


def test_log_probabilities_of_a_prompt_are_whole_after_a_state_was_lost() -> None:
    """Preempted while it is read, and computed from the start again."""
    rules = EngineRules(cache_ram_bytes=1 << 20, preempts=True)
    request = make_request(0, A, max_tokens=3, prompt_logprobs=True, n_logprobs=1, priority=5)
    entries = []
    for faults in ({}, {0: "refused"}):
        rig = Rig(FakeDecoder(n_slots=1, **ROOMY), rules=rules)
        rig.decoder.bad_restores = faults
        rig.add(request)
        rig.step()
        rig.step()
        rig.add(make_request(1, B, max_tokens=4, priority=0))
        rig.run()
        assert rig.engine.stats().preemptions == 1
        entries.append([event for event in rig.collected[0].events if type(event).__name__ == "PromptLogprobs"])
    assert entries[0] == entries[1]
    assert len(entries[1][0].entries) == len(A) - 1


# --- on disk ----------------------------------------------------------------------------------------------------------


def on_disk(folder: Path, n_slots: int = 2) -> Rig:
    """An engine whose fingerprint is not told apart from another's: what is wrong, llama.cpp must say."""
    rules = EngineRules(cache_ram_bytes=1 << 20, disk=DiskPlace(str(folder), 1 << 24, "the same"))
    return Rig(FakeDecoder(n_slots=n_slots, **ROOMY), rules=rules)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the chat A in a file."""
    rig = on_disk(tmp_path)
    asked(rig, 0, A)
    rig.engine.close(5)
    assert len(list(tmp_path.glob("*.npz"))) == 1
    return tmp_path


def rewritten(folder: Path, change: Callable[[KeptState], KeptState]) -> None:
    """The same file, whole and with checksums, of a state that is not as it should be."""
    (path,) = folder.glob("*.npz")
    kept, mark = state_file.read(path)
    state_file.write(path, change(kept), mark)


def cut(n_bytes: int) -> Callable[[KeptState], KeptState]:
    return lambda kept: KeptState(kept.tokens, kept.state[:n_bytes], kept.cache_scope, kept.person)


STATES: dict[str, Callable[[KeptState], KeptState]] = {
    **{f"cut to {n}": cut(n) for n in (1, 3, 4, 8, 11, 12, 13, 400, 800)},
    "without its last byte": cut(-1),
    "longer": lambda kept: KeptState(
        kept.tokens, np.concatenate([kept.state, kept.state]), kept.cache_scope, kept.person
    ),
    "zeros": lambda kept: KeptState(kept.tokens, np.zeros_like(kept.state), kept.cache_scope, kept.person),
    "of more tokens": lambda kept: KeptState(
        kept.tokens + array("i", [7] * 9), kept.state, kept.cache_scope, kept.person
    ),
}


@pytest.mark.parametrize("change", list(STATES.values()), ids=list(STATES))
def test_a_file_whose_state_is_of_no_use_is_a_miss_and_deleted(
    folder: Path, change: Callable[[KeptState], KeptState]
) -> None:
    rewritten(folder, change)
    rig = on_disk(folder)
    assert asked(rig, 1, A + b"x" * 20) == 0
    assert rig.engine.stats().failed_restores == 1
    assert not list(folder.glob("*.npz"))
    assert asked(rig, 2, A + b"x" * 20 + b"y") >= len(A)


def test_a_file_of_another_number_of_slots_is_a_miss_even_under_one_fingerprint(folder: Path) -> None:
    assert asked(on_disk(folder, n_slots=4), 1, A + b"x") == 0
    rig = on_disk(folder, n_slots=2)
    assert asked(rig, 1, A + b"x") == 0
    assert not list(folder.glob("*.npz"))


FORMAT_1: dict[str, Any] = {
    "format": 1,
    "mark": "the same",
    "namespace": "alice",
    "adapters": np.array([0.5], np.float64),
    "asker": "bob",
    "tokens": np.array(list(A), np.int32),
    "state": np.zeros(100, np.uint8),
}
"""A file's parts by the names that earlier versions wrote."""


def test_a_file_of_an_earlier_version_is_read_and_a_new_one_has_its_parts_and_the_chat(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        np.savez(file, **FORMAT_1)
    kept, mark = state_file.read(tmp_path / "x")
    assert (kept.cache_scope, kept.person, mark) == (CacheScope("alice", (0.5,)), "bob", "the same")
    assert (kept.tokens.tolist(), kept.chat) == (list(A), "")
    kept.chat = "a name"
    state_file.write(tmp_path / "y", kept, mark)
    with np.load(tmp_path / "y") as again:
        assert {name: again[name].tolist() for name in again} == {
            name: np.asarray(part).tolist() for name, part in (FORMAT_1 | {"chat": "a name"}).items()
        }


def broken_files() -> Iterator[Any]:
    sound = FORMAT_1 | {"namespace": "", "adapters": np.array([], np.float64), "asker": ""}
    yield pytest.param(sound | {"state": np.zeros((10, 10), np.uint8)}, id="a state of two dimensions")
    yield pytest.param(sound | {"state": np.zeros(100, np.float32)}, id="a state of floats")
    yield pytest.param(sound | {"state": np.uint8(3)}, id="a state of no dimension")
    yield pytest.param(sound | {"state": np.zeros(0, np.uint8)}, id="an empty state")
    yield pytest.param(sound | {"tokens": np.zeros(300)}, id="tokens that are floats")
    yield pytest.param(sound | {"tokens": np.array(["a"] * 300)}, id="tokens that are text")
    yield pytest.param(sound | {"tokens": np.zeros((2, 200), np.int32)}, id="tokens of two dimensions")
    yield pytest.param(sound | {"tokens": np.zeros(0, np.int32)}, id="no tokens")
    yield pytest.param(sound | {"adapters": np.array(["a"])}, id="adapters that are text")
    yield pytest.param(sound | {"format": "new"}, id="another version")
    yield pytest.param({name: sound[name] for name in sound if name != "state"}, id="without a state")


@pytest.mark.parametrize("parts", list(broken_files()))
def test_a_file_with_wrong_parts_is_no_state_file(tmp_path: Path, parts: dict[str, Any]) -> None:
    with (tmp_path / "x").open("wb") as file:
        np.savez(file, **parts)
    with pytest.raises(BadStateFile):
        state_file.read(tmp_path / "x")
    with pytest.raises(InvalidRequest, match="no saved slot, or broken"):
        slot_file.read(tmp_path / "x", "the same")
    (tmp_path / "x").rename(tmp_path / f"{'0' * 32}.npz")
    rig = on_disk(tmp_path)
    assert asked(rig, 1, A + b"x") == 0
    assert rig.engine.stats().failed_restores == 1


@pytest.mark.parametrize("n_kept", [0, 3, 100, 0.2, 0.5, 0.9, -1])
def test_a_file_that_is_cut_while_it_lies_there_is_a_miss(folder: Path, n_kept: float) -> None:
    rig = on_disk(folder)
    (path,) = folder.glob("*.npz")
    data = path.read_bytes()
    path.write_bytes(data[: int(n_kept * len(data)) if isinstance(n_kept, float) else n_kept])
    assert asked(rig, 1, A + b"x") == 0
    assert rig.engine.stats().failed_restores == 1
    assert not list(folder.glob("*.npz"))


def test_every_broken_byte_of_a_file_is_a_miss_or_none(folder: Path) -> None:
    """Also where the archive then says that it is compressed, or encrypted."""
    (path,) = folder.glob("*.npz")
    whole = path.read_bytes()
    for place in range(0, len(whole), 41):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        assert asked(on_disk(folder), place, A + b"x") in (0, len(A))


# --- what was computed wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("n_slots", [1, 3])
def test_nothing_is_kept_of_what_became_nan_nor_of_what_that_went_on_from(n: int, n_slots: int) -> None:
    rig = Rig(FakeDecoder(n_slots=n_slots, **ROOMY), rules=RAM)
    for request_id, prompt in enumerate((A, B, A + b"More")):
        asked(rig, request_id, prompt)
    sound = rig.decoder.logits_after
    rig.decoder.logits_after = lambda tokens: np.full(N_VOCAB, np.nan, np.float32)  # type: ignore[method-assign]
    rig.add(make_request(9, A + b"More and more", n=n))
    assert rig.run()[9].failure is not None
    rig.decoder.logits_after = sound  # type: ignore[method-assign]
    assert rig.engine.stats().failed_restores == min(n, n_slots)
    assert asked(rig, 10, A + b"More and more") == 0
    assert asked(rig, 11, B + b"More") >= len(B)


# --- a saved slot -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", list(STATES.values()), ids=list(STATES))
def test_a_saved_slot_of_no_use_is_refused_and_the_slot_is_empty(
    tmp_path: Path, change: Callable[[KeptState], KeptState]
) -> None:
    rig = Rig(FakeDecoder(n_slots=1, **ROOMY))
    asked(rig, 0, A)
    assert not act(rig, SlotAction.SAVE, tmp_path / "x").failure
    kept, mark = state_file.read(tmp_path / "x")
    state_file.write(tmp_path / "x", change(kept), mark)
    asked(rig, 1, B)
    assert "cannot be taken in" in act(rig, SlotAction.RESTORE, tmp_path / "x").failure
    rig.engine.check_integrity()
    assert rig.decoder.tokens(0) == []
    assert asked(rig, 2, A + b"x") == 0


def act(rig: Rig, action: SlotAction, path: Path) -> Any:
    return rig.engine.act_on_slot(ActOnSlot(0, action, str(path), "mark"))


# --- a draft model ----------------------------------------------------------------------------------------------------


def drafted() -> tuple[Rig, FakeDraft]:
    decoder = FakeDecoder(n_slots=1, **ROOMY)
    draft = FakeDraft(decoder)
    return Rig(decoder, rules=EngineRules(max_draft=16), draft=draft), draft


def endless(request_id: int, prompt: bytes = A) -> EngineRequest:
    return make_request(request_id, prompt, max_tokens=60, ignore_eos=True)


def lose_the_tail(draft: FakeDraft) -> None:
    draft.trim(0, 5)


def hold_too_much(draft: FakeDraft) -> None:
    draft._slots[0] += [1, 2, 3]


def hold_nothing(draft: FakeDraft) -> None:
    draft.trim(0, 0)


@pytest.mark.parametrize("spoil", [lose_the_tail, hold_too_much, hold_nothing])
def test_what_a_draft_model_does_not_hold_is_read_anew_and_it_goes_on(spoil: Callable[[FakeDraft], None]) -> None:
    rig, draft = drafted()
    rig.add(endless(0))
    rig.run()
    spoil(draft)
    n_before = len(draft.computed)
    rig.add(endless(1, A + b" and on"))
    rig.run()
    assert rig.text(1) == run_alone(endless(1, A + b" and on"), **ROOMY).texts[0]
    stats = rig.engine.stats()
    assert stats.failed_restores == 1
    assert len(draft.computed) > n_before
    assert stats.model_accepted_tokens > 0


def test_a_draft_model_whose_cache_cannot_be_cut_back_reads_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, draft = drafted()
    trim = draft.trim
    monkeypatch.setattr(draft, "trim", lambda slot, n_keep: n_keep == 0 and trim(slot, 0))
    rig.add(endless(0))
    rig.run()
    n_before = len(draft.computed)
    rig.add(endless(1, A[:100] + B))
    rig.run()
    assert rig.text(1) == run_alone(endless(1, A[:100] + B), **ROOMY).texts[0]
    assert rig.engine.stats().failed_restores > 0
    assert len(draft.computed) > n_before


# --- over llama.cpp ---------------------------------------------------------------------------------------------------

PLAIN = {"n_ctx": 1024, "n_slots": 2, "n_batch": 256, "n_ubatch": 64, "n_threads": 1, "flash_attn": "off"}


def served(model: Model, folder: Path, prompts: list[bytes], **changes: Any) -> tuple[list[str], Stats]:
    """The texts of an engine whose fingerprint is not told apart from another's."""
    context = Context(model, ContextParams(**(PLAIN | changes)))
    scheduler = Scheduler(n_batch=256, n_ubatch=64, n_outputs_max=context.n_outputs_max, max_gap_ms=1e6)
    rules = EngineRules(cache_ram_bytes=1 << 26, disk=DiskPlace(str(folder), 1 << 26, "the same"))
    queue = RequestQueue(60.0)
    engine = build_engine(Backend(context, model.vocabulary, FakeGrammars()), queue, scheduler, no_vectors(), rules)
    said = []
    for request_id, prompt in enumerate(prompts):
        engine.add(make_request(request_id, prompt, max_tokens=12, ignore_eos=True))
        events = []
        while engine.has_work:
            events += engine.step()
            engine.check_integrity()
        assert not [event for event in events if isinstance(event, Failed)]
        said.append("".join(event.text for event in events if isinstance(event, Output)))
    stats = engine.stats()
    engine.close(5)
    context.close()
    return said, stats


LAYOUTS: list[dict[str, Any]] = [
    {"n_slots": 4},
    {"n_slots": 1},
    {"flash_attn": "on"},
    {"cache_type_k": "f32"},
    {"cache_type_v": "f32"},
]


@pytest.mark.parametrize("changes", LAYOUTS, ids=str)
def test_states_of_another_layout_are_misses_and_say_what_a_cold_run_says(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    model = Model(ModelParams(str(tiny_model)))
    prompts = [A + b" And then?", B + b" And then?"]
    cold, _ = served(model, tmp_path / "cold", prompts, **changes)
    served(model, tmp_path / "kept", [A, B])
    texts, stats = served(model, tmp_path / "kept", prompts, **changes)
    assert texts == cold
    assert stats.failed_restores == 2
    again, stats = served(model, tmp_path / "kept", prompts, **changes)
    assert again == cold
    assert (stats.failed_restores, stats.restores) == (0, 2)
    model.close()


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_states_of_two_caches_that_are_cut_are_misses(tmp_path: Path, name: str, share: float) -> None:
    """Recurrent layers and windows: llama.cpp fills one cache before it refuses the other."""
    model = Model(ModelParams(str(WRITERS[name](tmp_path / "m.gguf"))))
    changes = {"swa_full": False}
    cold, _ = served(model, tmp_path / "cold", [A + b" And then?"], **changes)
    served(model, tmp_path / "kept", [A], **changes)
    for path in (tmp_path / "kept").glob("*.npz"):
        kept, mark = state_file.read(path)
        state_file.write(path, cut(max(1, int(share * len(kept.state))))(kept), mark)
    texts, stats = served(model, tmp_path / "kept", [A + b" And then?"], **changes)
    assert texts == cold
    assert stats.failed_restores >= 1
    model.close()
