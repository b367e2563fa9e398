"""Prompts with images over the fake context, which refuses a batch of tokens and rows, and says which rows it read."""

from __future__ import annotations

import dataclasses
import os
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggufd.engine.costs.cost_model import Weights
from ggufd.engine.messages.config import EngineRules
from ggufd.engine.messages.events import CacheReport, CacheSource, FinishReason
from ggufd.engine.messages.images import ImageRows, ImageSpan, row_tokens
from ggufd.engine.messages.requests import ActOnSlot, EngineRequest, SlotAction
from ggufd.keys.principal import BACKGROUND
from ggufd.llama.context.batch import Logits
from tests.support.fakes.fake_llama import (
    FakeDecoder,
    FakeDraft,
    Rig,
    make_engine,
    make_image,
    make_image_request,
    make_request,
    run_alone,
)

TEXT = bytes(range(97, 123)) * 2
"""A text long enough to be worth sharing: 52 tokens."""

PERIOD = 64
"""Tokens of that text and an image of 12 rows."""


@pytest.fixture
def red(tmp_path: Path) -> ImageRows:
    return make_image(tmp_path, "red")


@pytest.fixture
def green(tmp_path: Path) -> ImageRows:
    return make_image(tmp_path, "green")


@pytest.fixture
def blue(tmp_path: Path) -> ImageRows:
    return make_image(tmp_path, "blue", 20)


def check_rows(rig: Rig, *requests: EngineRequest, since: int = 0) -> None:
    """Every row that was read is the one that stands there in some prompt, counted from its image's beginning."""
    places = {
        (span.start + index, number, index)
        for request in requests
        for span in request.images
        for index, number in enumerate(row_tokens(span.rows.digest, span.rows.n_rows))
    }
    assert {(row.position, row.number, row.index) for row in rig.decoder.embedded[since:]} <= places


def said(rig: Rig, request: EngineRequest, **decoder: Any) -> str:
    """What a request said, after a check that it says the same alone."""
    collected = rig.collected[request.request_id]
    assert collected.failure is None, collected.failure
    assert collected.texts == run_alone(request, **decoder).texts
    return collected.texts[0]


def ask(rig: Rig, request: EngineRequest, **decoder: Any) -> int:
    """Run a request; how many tokens of its prompt were reused."""
    n_read = len(rig.decoder.embedded)
    rig.add(request)
    rig.run()
    said(rig, request, **decoder)
    check_rows(rig, request, since=n_read)
    return rig.collected[request.request_id].finishes[0].usage.cached_tokens


# --- reading ----------------------------------------------------------------------------------------------------------


def test_each_row_of_an_image_is_read_once_and_in_its_place(red: ImageRows, blue: ImageRows) -> None:
    rig = make_engine(n_slots=1, n_batch=16)
    request = make_image_request(1, [b"look: ", red, b" and ", blue, red, b" what is it?"])
    assert ask(rig, request) == 0
    positions = [row.position for row in rig.decoder.embedded]
    assert positions == [at for span in request.images for at in range(span.start, span.end)]
    assert [row.index for row in rig.decoder.embedded] == [*range(12), *range(20), *range(12)]


def test_an_image_may_stand_anywhere(red: ImageRows) -> None:
    prompts: list[list[bytes | ImageRows]] = [[red, b"text"], [b"text", red], [red], [b"text"]]
    texts = set()
    for parts in prompts:
        rig = make_engine(n_slots=2)
        ask(rig, make_image_request(1, parts))
        texts.add(rig.text(1))
    assert len(texts) == len(prompts)


def test_tokens_and_rows_of_one_step_are_two_decodes(red: ImageRows) -> None:
    rig = make_engine(n_slots=2)
    streaming = make_request(1, b"hello", max_tokens=30, ignore_eos=True)
    looking = make_image_request(2, [red, b" what?"])
    rig.add(streaming)
    for _ in range(4):
        rig.step()
    rig.add(looking)
    steps, tokens = rig.engine.stats().steps, len(rig.collected[1].tokens[0])
    rig.step()
    stats = rig.engine.stats()
    assert stats.steps == steps + 2
    assert len(rig.collected[1].tokens[0]) == tokens + 1, "a stream waits for no image"
    # The fake takes 10 ms a pass and half a millisecond a row.
    assert stats.step_s == pytest.approx(2 * 0.010 + 13 * 0.0005)
    assert (rig.engine.steps().records[-1].n_decode, rig.engine.steps().records[-1].n_prefill) == (1, 12)
    assert rig.engine.steps().records[-1].decode_s == pytest.approx(stats.step_s)
    rig.run()
    said(rig, streaming)
    said(rig, looking)


def test_a_long_image_is_read_in_pieces_beside_a_stream(tmp_path: Path) -> None:
    rig = make_engine(n_slots=2, n_batch=64, max_gap_ms=30.0)
    rig.scheduler.costs.model.weights = Weights(0.009, 0.001, 0, 0)
    rig.add(make_request(1, b"hello", max_tokens=60, ignore_eos=True))
    for _ in range(4):
        rig.step()
    looking = make_image_request(2, [make_image(tmp_path, "large", 150), b" what?"])
    rig.add(looking)
    longest = 0.0
    while not rig.collected[2].is_done:
        rig.step()
        longest = max(longest, rig.engine.stats().step_s)
    rig.run()
    # Two passes, and the least chunk.
    assert longest <= 0.010 + 0.010 + 32 * 0.0005 + 0.001
    assert len(rig.decoder.embedded) == 150
    said(rig, looking)


def test_rows_and_tokens_of_one_step_take_no_longer_than_the_gap(tmp_path: Path) -> None:
    rig = make_engine(n_slots=5, n_ctx=1024, n_batch=512, max_gap_ms=100.0)
    streams = [make_request(i, bytes([65 + i]) * 200, max_tokens=150, ignore_eos=True) for i in range(4)]
    rig.add(*streams)
    while not all(rig.collected[i].tokens.get(0) for i in range(4)):
        rig.step()
    rig.add(make_image_request(9, [TEXT * 3, make_image(tmp_path, "large", 700), b" what?"]))
    steps: list[tuple[float, int]] = []
    while not rig.collected[9].is_done:
        n_read = len(rig.decoder.embedded)
        rig.step()
        steps.append((rig.engine.stats().step_s, len(rig.decoder.embedded) - n_read))
    assert max(seconds for seconds, _ in steps) <= 0.1
    # And no shorter than need be: each but the last takes half of it, which is one tile where two were expected to
    # take too long.
    reading = [seconds for seconds, n in steps if n]
    assert min(reading[:-1]) > 0.05
    assert statistics.median(reading) > 0.08
    rig.run()


def test_rows_are_unmapped_when_their_request_is_over_and_their_file_may_be_gone_before(red: ImageRows) -> None:
    rig = make_engine(n_slots=1, n_batch=8)
    rig.add(make_image_request(1, [red, b"what?"], n=2, max_tokens=3))
    os.unlink(red.path)
    rig.step()
    assert red.path in Path("/proc/self/maps").read_text()
    rig.run()
    assert set(rig.collected[1].texts) == {0, 1}
    assert red.path not in Path("/proc/self/maps").read_text()


def test_an_abort_while_an_image_is_read_unmaps_it(red: ImageRows) -> None:
    rig = make_engine(n_slots=1, n_batch=8)
    request = make_image_request(1, [red, b"what?"])
    rig.add(request)
    rig.step()
    assert 0 < len(rig.decoder.embedded) < red.n_rows
    rig.abort(1)
    assert red.path not in Path("/proc/self/maps").read_text()
    again = dataclasses.replace(request, request_id=2)
    # Half an image is worth nothing.
    assert ask(rig, again) == 0


# --- refusals ---------------------------------------------------------------------------------------------------------


def failure_of(rig: Rig, request: EngineRequest) -> Any:
    other = make_request(99, b"other")
    rig.add(other, request)
    rig.run()
    said(rig, other)
    return rig.collected[request.request_id].failure


def test_rows_that_are_missing_or_of_another_width_fail_only_their_request(tmp_path: Path, red: ImageRows) -> None:
    gone = dataclasses.replace(red, path=str(tmp_path / "gone"))
    failed = failure_of(make_engine(), make_image_request(1, [gone, b"a"]))
    assert "the rows of the image at token 0 cannot be read (No such file or directory)" in failed.message
    Path(red.path).write_bytes(b"\0" * (red.n_rows * 5 * 4))
    failed = failure_of(make_engine(), make_image_request(1, [red, b"a"]))
    assert "240 bytes for 12 rows, where 4 numbers a row were expected" in failed.message


@pytest.mark.parametrize("wrong", ["number", "place", "order", "overlap", "none", "digest", "stray", "empty"])
def test_images_that_are_not_in_the_prompt_are_refused(red: ImageRows, green: ImageRows, wrong: str) -> None:
    good = make_image_request(1, [b"a", red, b"b", green, b"c"])
    first, second = good.images
    bad: dict[str, dict[str, Any]] = {
        "number": {"prompt": (*good.prompt[:5], -1, *good.prompt[6:])},
        "place": {"images": (ImageSpan(0, red), second)},
        "order": {"images": (second, first)},
        "overlap": {"images": (first, first, second)},
        "none": {"images": (first,)},
        "digest": {"images": (ImageSpan(1, dataclasses.replace(red, digest="xyz")), second)},
        "stray": {"prompt": (*good.prompt, -7)},
        "empty": {"images": (ImageSpan(0, dataclasses.replace(red, n_rows=0)), first, second)},
    }
    rig = make_engine()
    failed = failure_of(rig, dataclasses.replace(good, **bad[wrong]))
    assert failed.param == "prompt"
    assert "the image at token" in failed.message or "is not in this model's vocabulary" in failed.message
    assert not rig.decoder.embedded


def test_log_probabilities_of_a_prompt_with_images_are_refused(red: ImageRows) -> None:
    request = make_image_request(1, [b"a", red, b"b"], n_logprobs=1, prompt_logprobs=True)
    failed = failure_of(make_engine(), request)
    assert (failed.param, "images" in failed.message) == ("prompt_logprobs", True)


def test_a_prompt_with_images_must_fit_as_tokens_must(tmp_path: Path) -> None:
    failed = failure_of(make_engine(n_ctx=64), make_image_request(1, [make_image(tmp_path, "a", 60), b"12345"]))
    assert "maximum context length is 64 tokens, but the prompt has 65" in failed.message


# --- prefix reuse -----------------------------------------------------------------------------------------------------


def test_the_next_turn_about_an_image_reads_none_of_it_again(red: ImageRows) -> None:
    rig = make_engine(n_slots=1)
    first = make_image_request(1, [TEXT, red, b"what is it?"])
    ask(rig, first)
    n_read = len(rig.decoder.embedded)
    answer = bytes(rig.collected[1].tokens[0])
    n = len(first.prompt) + len(answer) - 1
    assert ask(rig, make_image_request(2, [TEXT, red, b"what is it?" + answer + b"and its color?"])) == n
    assert len(rig.decoder.embedded) == n_read


@pytest.mark.parametrize("can_trim", [True, False], ids=["any", "whole"])
def test_nothing_behind_a_changed_image_is_reused(red: ImageRows, green: ImageRows, can_trim: bool) -> None:
    rig = make_engine(n_slots=1, can_trim=can_trim)
    ask(rig, make_image_request(1, [TEXT, red, TEXT, b"what is it?"]))
    assert ask(rig, make_image_request(2, [TEXT, green, TEXT, b"what is it?"])) == (len(TEXT) if can_trim else 0)


def test_of_two_images_side_by_side_the_first_is_reused_alone(
    red: ImageRows, green: ImageRows, blue: ImageRows
) -> None:
    rig = make_engine(n_slots=1)
    n = len(TEXT) + red.n_rows
    ask(rig, make_image_request(1, [TEXT, red, green, b"what?"]))
    assert ask(rig, make_image_request(2, [TEXT, red, b"what?"])) == n
    assert ask(rig, make_image_request(3, [TEXT, red, blue, b"what?"])) == n
    assert ask(rig, make_image_request(4, [TEXT, red, green, b"what?"])) == n
    assert ask(rig, make_image_request(5, [TEXT, green, red, b"what?"])) == len(TEXT)


def test_the_same_image_twice_is_matched_place_by_place(red: ImageRows) -> None:
    rig = make_engine(n_slots=1)
    ask(rig, make_image_request(1, [red, red, b"what?"]))
    assert ask(rig, make_image_request(2, [red, b"what?"])) == red.n_rows
    assert ask(rig, make_image_request(3, [red, red, red, b"what?"])) == red.n_rows


def test_a_prompt_that_ends_with_an_image_reads_all_of_it_again(red: ImageRows) -> None:
    rig = make_engine(n_slots=1)
    ask(rig, make_image_request(1, [TEXT, red]))
    assert ask(rig, make_image_request(2, [TEXT, red])) == len(TEXT)


@pytest.mark.parametrize("seed", range(3))
def test_several_choices_share_the_images(red: ImageRows, blue: ImageRows, seed: int) -> None:
    rig = make_engine(n_slots=3)
    request = make_image_request(
        1, [TEXT, red, blue, TEXT], n=3, temperature=1.0, seed=seed, max_tokens=5, ignore_eos=True
    )
    rig.add(request)
    collected = rig.run()[1]
    assert len(rig.decoder.embedded) == red.n_rows + blue.n_rows
    assert collected.texts == run_alone(request).texts
    assert len(set(collected.texts.values())) == 3


def test_two_that_share_an_image_at_once_read_it_once(red: ImageRows) -> None:
    rig = make_engine(n_slots=4, n_batch=16)
    requests = [make_image_request(i, [TEXT, red, TEXT, b"%d" % i]) for i in (1, 2)]
    rig.add(*requests)
    rig.run()
    assert len(rig.decoder.embedded) == red.n_rows
    for request in requests:
        said(rig, request)


def test_an_image_that_begins_like_the_cached_one_is_another(tmp_path: Path, red: ImageRows) -> None:
    rig = make_engine(n_slots=1)
    alike = make_image(tmp_path, "twin", alike="red")
    assert row_tokens(alike.digest, 7) == row_tokens(red.digest, 7)
    ask(rig, make_image_request(1, [TEXT, red, TEXT]))
    assert ask(rig, make_image_request(2, [TEXT, alike, TEXT])) == len(TEXT)


def test_the_cache_tells_at_which_image_a_prompt_parts(tmp_path: Path, red: ImageRows) -> None:
    rig = make_engine(n_slots=1)
    ask(rig, make_image_request(1, [TEXT, red, TEXT]))
    alike = make_image(tmp_path, "twin", alike="red")
    rig.add(make_image_request(2, [TEXT, alike, TEXT], explain_cache=True))
    rig.run()
    report = rig.collected[2].finishes[0].usage.cache
    assert isinstance(report, CacheReport)
    assert report.source is CacheSource.SAME_SLOT
    assert report.difference is not None
    assert report.difference.token == len(TEXT)
    assert report.difference.held == (*row_tokens(red.digest, red.n_rows), *TEXT[:4])


def test_a_slot_with_images_is_saved_and_restored(tmp_path: Path, red: ImageRows) -> None:
    rig = make_engine(n_slots=2)
    ask(rig, make_image_request(1, [TEXT, red, b"what is it?"]))
    (kept,) = [slot for slot in rig.engine.stats().slots if slot.n_past]
    path = str(tmp_path / "slot.npz")
    assert not rig.engine.act_on_slot(ActOnSlot(kept.slot, SlotAction.SAVE, path, "mark")).failure
    rig.engine.act_on_slot(ActOnSlot(kept.slot, SlotAction.ERASE))
    other = 1 - kept.slot
    done = rig.engine.act_on_slot(ActOnSlot(other, SlotAction.RESTORE, path, "mark"))
    assert (done.failure, done.n_tokens) == ("", kept.n_past)
    assert ask(rig, make_image_request(2, [TEXT, red, b"what is it not?"])) == len(TEXT) + red.n_rows + len(
        "what is it"
    )


def test_chats_with_images_come_back_from_host_ram(red: ImageRows, green: ImageRows) -> None:
    rig = make_engine(n_slots=1, cache_ram_bytes=1 << 20)
    ask(rig, make_image_request(1, [TEXT, red, TEXT]))
    ask(rig, make_image_request(2, [b"else", green, TEXT]))
    n_read = len(rig.decoder.embedded)
    assert ask(rig, make_image_request(3, [TEXT, red, TEXT, b"more"])) >= 2 * len(TEXT) + red.n_rows
    assert rig.engine.stats().restores == 1
    assert len(rig.decoder.embedded) == n_read


def test_a_half_read_image_in_host_ram_is_worth_what_stands_before_it(tmp_path: Path, green: ImageRows) -> None:
    large = make_image(tmp_path, "large", 90)
    for before, n_restored in ((TEXT, 1), (b"short", 0)):
        rig = make_engine(n_slots=1, n_batch=64, cache_ram_bytes=1 << 20)
        rig.scheduler.costs.model.weights = Weights(0, 1e-5, 0, 0)
        rig.add(make_image_request(1, [before, large, TEXT]))
        while not rig.decoder.embedded:
            rig.step()
        assert len(rig.decoder.embedded) == 64
        rig.abort(1)
        ask(rig, make_image_request(2, [green, TEXT]))
        assert ask(rig, make_image_request(3, [before, large, TEXT])) == (len(TEXT) if n_restored else 0)
        assert rig.engine.stats().restores == n_restored


# --- what is left out -------------------------------------------------------------------------------------------------


def test_the_context_of_a_chat_with_images_is_not_shifted(red: ImageRows) -> None:
    rig = make_engine(n_slots=2, n_ctx=64, shifts_context=True)
    rig.add(
        make_image_request(1, [b"look", red, b"what?"], max_tokens=None, ignore_eos=True),
        make_request(2, b"no image here", max_tokens=80, ignore_eos=True),
    )
    rig.run()
    finish = rig.collected[1].finishes[0]
    assert finish.reason is FinishReason.LENGTH
    assert finish.usage.completion_tokens == 64 - (4 + 12 + 5)
    assert rig.collected[2].finishes[0].usage.completion_tokens == 80, "others are shifted as before"


def test_chunks_of_a_chat_with_images_are_not_moved(red: ImageRows) -> None:
    rig = make_engine(n_slots=1, n_cache_reuse=8)
    ask(rig, make_image_request(1, [b"system", b"dropped" * 3, red, TEXT]))
    assert ask(rig, make_image_request(2, [b"system", red, TEXT])) == len("system")


@pytest.mark.parametrize("has_image", [False, True], ids=["text", "image"])
def test_the_next_prompt_of_a_chat_with_images_is_not_predicted(red: ImageRows, has_image: bool) -> None:
    rig = Rig(FakeDecoder(n_slots=3, n_ctx=1024), rules=EngineRules(pre_rolls=True, cache_ram_bytes=1 << 20))
    messages: list[bytes | ImageRows] = [b"Bob: " + bytes([97 + number]) * 40 + b"\n" for number in range(12)]
    shown: bytes | ImageRows = red if has_image else b"no image at all"
    for first in (0, 2, 4):
        ask(
            rig, make_image_request(first, [TEXT, *messages[first : first + 8], shown, b"a?"], max_tokens=2), n_ctx=1024
        )
        for _ in range(50):
            rig.engine.run_idle_maintenance()
    assert rig.engine._lifecycle.pre_roll is not None
    assert (rig.engine._lifecycle.pre_roll.n_computed == 0) == has_image


class EchoDecoder(FakeDecoder):
    """Says again what stood `PERIOD` tokens before, but for rows of images."""

    def logits_after(self, tokens: list[int]) -> Logits:
        row = super().logits_after(tokens)
        if len(tokens) >= PERIOD and tokens[-PERIOD] >= 0:
            row[tokens[-PERIOD]] += 50
        return row


def test_drafts_hold_no_rows_of_images(red: ImageRows) -> None:
    """The text repeats what stands before an image, up to it, and then what stands behind it."""
    request = make_image_request(1, [TEXT, red, TEXT[:20]], max_tokens=120, ignore_eos=True)
    texts = []
    for max_draft in (0, 16):
        rig = Rig(EchoDecoder(n_slots=1), rules=EngineRules(max_draft=max_draft))
        rig.add(request)
        collected = rig.run()[1]
        texts.append(collected.texts[0])
        assert (collected.finishes[0].usage.drafted_tokens > 0) == (max_draft > 0)
        assert collected.finishes[0].usage.accepted_tokens >= max_draft
    assert texts[0] == texts[1]
    assert TEXT[20:].decode() == texts[0][:32]


def test_a_draft_model_drafts_nothing_behind_an_image(red: ImageRows) -> None:
    for parts, is_drafting in (([TEXT, red, TEXT], False), ([TEXT], True)):
        decoder = FakeDecoder(n_slots=1)
        draft = FakeDraft(decoder)
        rig = Rig(decoder, rules=EngineRules(max_draft=16), draft=draft)
        ask(rig, make_image_request(1, parts, max_tokens=60, ignore_eos=True))
        assert bool(draft.computed) == is_drafting


def test_penalties_and_chains_see_tokens_only(red: ImageRows) -> None:
    sampling: dict[str, Any] = {"temperature": 0.9, "seed": 5, "max_tokens": 20, "ignore_eos": True}
    for extra in (
        {"repeat_penalty": 1.5, "repeat_last_n": -1},
        {"repeat_penalty": 1.5, "banned_strings": ("a", "b")},
        {"dry_multiplier": 0.8, "repeat_penalty": 1.3},
    ):
        rig = make_engine(n_slots=1)
        request = make_image_request(1, [b"text", red, b"more"], **sampling, **extra)
        rig.add(request)
        rig.run()
        said(rig, request)
        for chain in rig.decoder.chains:
            assert min(chain.history, default=0) >= 0
        assert len(rig.collected[1].tokens[0]) == 20


# --- anything at once -------------------------------------------------------------------------------------------------

PARTS = st.lists(st.sampled_from(["red", "green", "blue", b"a", b"bc" * 5, TEXT[:20]]), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(PARTS, min_size=1, max_size=6),
    n_batch=st.sampled_from([4, 8, 13, 64]),
    n_slots=st.integers(1, 3),
    can_trim=st.booleans(),
    cache_ram_bytes=st.sampled_from([0, 1 << 20]),
    priorities=st.lists(st.integers(0, 1), min_size=6, max_size=6),
    aborts=st.dictionaries(st.integers(0, 5), st.integers(1, 8), max_size=3),
    pauses=st.lists(st.integers(0, 4), min_size=6, max_size=6),
    max_rows=st.sampled_from([3, 64]),
)
def test_whatever_comes_together_says_what_it_says_alone(
    tmp_path: Path,
    prompts: list[list[Any]],
    n_batch: int,
    n_slots: int,
    can_trim: bool,
    cache_ram_bytes: int,
    priorities: list[int],
    aborts: dict[int, int],
    pauses: list[int],
    max_rows: int,
) -> None:
    images = {name: make_image(tmp_path, name, n) for name, n in (("red", 12), ("green", 3), ("blue", 20))}
    requests = [
        make_image_request(
            number,
            [images.get(part, part) for part in parts],
            max_tokens=6,
            n=1 + number % 2,
            priority=priorities[number],
            account=BACKGROUND if number == 3 else "",
        )
        for number, parts in enumerate(prompts)
    ]
    rig = make_engine(n_slots=n_slots, n_batch=n_batch, can_trim=can_trim, cache_ram_bytes=cache_ram_bytes)
    # Batches of more rows fail, and are computed in halves.
    rig.decoder.max_rows = max_rows
    for request, pause in zip(requests, pauses, strict=False):
        rig.add(request)
        for step in range(pause):
            rig.step()
            if aborts.get(request.request_id) == step + 1:
                rig.abort(request.request_id)
    rig.run()
    check_rows(rig, *requests)
    for request in requests:
        if request.request_id not in rig.aborted:
            said(rig, request)
