"""The bench against a server of known speed: what it says must be what the server did."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from ggufd.api.request.chat.tools import read_tools
from ggufd.bench.command import bench, sizes
from ggufd.bench.measure.client import Address, BenchError, Client, Stream, TimedAnswer
from ggufd.bench.measure.discovery import discover
from ggufd.bench.measure.figures import (
    Better,
    Comparison,
    Metric,
    Ratio,
    Summary,
    common_prefix,
    longest_gap,
    percentile,
    throughput,
)
from ggufd.bench.measure.report import BenchReport
from ggufd.bench.measure.rows import Sample
from ggufd.bench.measure.site import Figure, MeasuredServer, Site, Sizes
from ggufd.bench.measure.sse import SseReader
from ggufd.bench.measure.table import number, ratio_cell
from ggufd.bench.measure.words import Words, calibrate
from ggufd.bench.run import Options, choose, run
from ggufd.bench.scenarios import SCENARIOS, beside
from ggufd.bench.scenarios.chat import ChatLine, History
from ggufd.bench.scenarios.compiling import N_NEW, PARTS
from ggufd.bench.scenarios.images import drawn_image
from ggufd.llama.grammar.grammar import check_grammar
from tests.support.fakes.bench_server import FakeServer, serving, serving_here
from tests.support.virtual_time import virtual_time


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggufd.bench.scenarios.fairness.PAUSE_S", 0.01)
    monkeypatch.setattr("ggufd.bench.scenarios.crowd.HEAD_START_S", 0.1)


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    found = FakeServer()
    with virtual_time():
        async with serving_here(found):
            yield found


SMALL = Sizes(
    rounds=2,
    streams=(3,),
    decode_tokens=12,
    depth=60,
    deep_streams=(2,),
    prefill=(100,),
    prefix=100,
    users=3,
    new_prompt=100,
    chat_turns=8,
    chat_context=400,
    answer=8,
    chats=3,
    chat_tokens=50,
    at_once=(1, 2),
    jobs=2,
    seconds=0.3,
)


async def measure(fake: FakeServer, scenario: str) -> dict[tuple[str, str], float]:
    """One repetition of a scenario: `{(case, quantity): value}`."""
    options = Options(fake.url, seed=7, scenarios=(scenario,), sizes=SMALL)
    found = {}
    for case in choose(options):
        site = Site(MeasuredServer(Client(fake.url), n_slots=4), Words(1.0, scenario, case.label), SMALL)
        for figure in await case.measure(site):
            found[figure.metric.case, figure.metric.quantity] = figure.value
    return found


def empty_report() -> BenchReport:
    date, machine = "2026-01-01T00:00:00+00:00", {"cpu": "a CPU", "cores": 2}
    return BenchReport(1, date=date, machine=machine, warnings=[])


# --- events --------------------------------------------------------------------------------------------------------

LINES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=8)
EVENTS = st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=5)


@given(EVENTS, st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.lists(st.integers(0, 300), max_size=9))
def test_events_are_the_same_wherever_the_bytes_are_cut(
    events: list[list[str]], end: str, comments: bool, cuts: list[int]
) -> None:
    comment = f": ping{end}" if comments else ""
    text = "".join(comment + "".join(f"data: {line}{end}" for line in event) + end for event in events).encode()
    reader = SseReader()
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    found = [data for a, b in itertools.pairwise(bounds) for data in reader.feed(text[a:b])]
    assert found == ["\n".join(event).encode() for event in events]


@given(st.lists(st.sampled_from([b"data:", b"data: x", b"\r", b"\n", b"\r\n", b"\n\n", b":"]) | st.binary(max_size=4)))
def test_whatever_bytes_come_the_events_are_the_same_wherever_they_are_cut(pieces: list[bytes]) -> None:
    cut, whole = SseReader(), SseReader()
    found = [event for piece in pieces for event in cut.feed(piece)]
    assert found == whole.feed(b"".join(pieces))


def test_event_fields_besides_data_are_passed_over_and_unfinished_events_kept_back() -> None:
    reader = SseReader()
    assert reader.feed(b"event: x\nid: 1\ndata:no space\n\nretry: 3\n\ndata\n\ndata: half") == [b"no space", b""]
    assert reader.feed(b"\n") == []
    assert reader.feed(b"\n") == [b"half"]


# --- figures -------------------------------------------------------------------------------------------------------


def test_a_summary_is_median_and_range() -> None:
    assert Summary.of([3.0, 1.0, 10.0]) == Summary(3.0, 1.0, 10.0)


def test_a_ratio_is_of_medians_and_its_spread_of_pairs() -> None:
    assert Ratio.of([2.0, 4.0, 9.0], [1.0, 4.0, 3.0]) == Ratio(4 / 3, 1.0, 3.0)
    assert Ratio.of([1.0], [0.0]) is None
    assert Ratio.of([], []) is None


@pytest.mark.parametrize(
    ("ratio", "better", "verdict"),
    [
        (Ratio(1.2, 1.1, 1.3), Better.HIGHER, Comparison.BETTER),
        (Ratio(1.2, 1.1, 1.3), Better.LOWER, Comparison.WORSE),
        (Ratio(0.8, 0.7, 0.9), Better.HIGHER, Comparison.WORSE),
        (Ratio(0.8, 0.7, 0.9), Better.LOWER, Comparison.BETTER),
        (Ratio(1.2, 0.9, 1.3), Better.HIGHER, Comparison.EVEN),
    ],
)
def test_a_verdict_needs_every_pair_and_knows_the_direction(ratio: Ratio, better: Better, verdict: Comparison) -> None:
    assert ratio.verdict(better) is verdict
    assert (verdict.value in ratio_cell(ratio, better)) == (verdict is not Comparison.EVEN)


def test_throughput_counts_while_all_streams_run() -> None:
    slow = [10.0, 11.0, 12.0, 13.0, 14.0]
    late = [11.0, 12.0, 13.0, 14.0, 20.0]
    assert throughput([(slow, 1.0), (late, 1.0)]) == pytest.approx(6 / 3)
    assert throughput([(slow, 2.0)]) == pytest.approx(2.0)


def test_throughput_of_streams_that_ran_one_after_the_other_is_over_the_whole_time() -> None:
    assert throughput([([0.0, 1.0, 2.0], 1.0), ([3.0, 4.0, 5.0], 1.0)]) == pytest.approx(5 / 5)
    assert throughput([([1.0, 1.0], 1.0)]) is None


def test_the_longest_gap_sees_pauses_across_the_edges() -> None:
    assert longest_gap([0.0, 1.0, 5.0, 6.0], 2.0, 4.0) == 4.0
    assert longest_gap([0.0, 1.0, 2.0, 3.0], 1.0, 3.0) == 1.0
    assert longest_gap([0.0, 1.0], 1.0, 9.0) == 8.0


def test_the_common_prefix_is_counted() -> None:
    assert common_prefix("abcd", "abxd") == 2
    assert common_prefix("ab", "abc") == 2


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.01234, "0.0123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1,234")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


# --- words ---------------------------------------------------------------------------------------------------------


def test_texts_depend_on_seed_and_place_only() -> None:
    assert Words(1.0, 1, "decode", 0).text(50) == Words(1.0, 1, "decode", 0).text(50)
    texts = {Words(1.0, *parts).text(50) for parts in [(1, "decode", 0), (1, "decode", 1), (2, "decode", 0)]}
    assert len(texts) == 3


def test_texts_of_one_repetition_share_no_beginning() -> None:
    words = Words(1.0, 3)
    texts = [words.text(100).split() for _ in range(50)]
    assert max(common_prefix(a, b) for a, b in itertools.combinations(texts, 2)) <= 5


def test_lengths_follow_the_calibrated_rate() -> None:
    assert len(Words(1.0, 3).text(500).split()) == 500
    assert len(Words(2.0, 3).text(500).split()) == 250
    assert len(Words(2.0, 3).text(0).split()) == 1


@pytest.mark.parametrize("has_tokenize", [True, False])
async def test_calibration_asks_tokenize_or_reads_usage(fake: FakeServer, has_tokenize: bool) -> None:
    fake.has_tokenize = has_tokenize
    assert await calibrate(Client(fake.url), 1) == 1.0
    assert len(fake.bodies) == (0 if has_tokenize else 1)


async def test_calibration_needs_a_server_that_counts(fake: FakeServer) -> None:
    fake.has_tokenize = fake.has_usage = False
    with pytest.raises(BenchError, match="counts no tokens"):
        await calibrate(Client(fake.url), 1)


# --- client --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "url", "base"),
    [
        ("127.0.0.1:5001", "http://127.0.0.1:5001", ""),
        ("http://host/v1/", "http://host", ""),
        ("https://host:444/llm/v1", "https://host:444/llm", "/llm"),
        ("http://[::1]:80", "http://[::1]:80", ""),
    ],
)
def test_addresses_are_read_as_users_type_them(typed: str, url: str, base: str) -> None:
    assert (Address.parse(typed).url, Address.parse(typed).base) == (url, base)


@pytest.mark.parametrize("typed", ["ftp://host", "http://", "http://host:99999999"])
def test_what_is_no_address_is_refused(typed: str) -> None:
    with pytest.raises(BenchError):
        Address.parse(typed)


async def test_an_answer_has_the_servers_times_and_counts(fake: FakeServer) -> None:
    fake.token_s, fake.step_s = 0.02, 0.02
    answer = await Client(fake.url, model="m").complete("one two three four five", 6)
    assert (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens) == (5, 6, 0)
    assert answer.text.split() == [f"w1x{i}" for i in range(6)]
    assert 0.1 <= answer.wait < 0.3
    assert answer.rate is not None
    assert 15 <= answer.rate <= 50.5
    assert (fake.bodies[0]["model"], fake.bodies[0]["ignore_eos"], fake.bodies[0]["temperature"]) == ("m", True, 0)


async def test_without_usage_pieces_are_counted(fake: FakeServer) -> None:
    fake.has_usage = False
    answer = await Client(fake.url).complete("one", 4)
    assert (answer.completion_tokens, answer.cached_tokens, answer.tokens) == (None, None, 4)


def test_a_piece_of_several_tokens_counts_as_several() -> None:
    answer = TimedAnswer(0.0, (1.0, 2.0, 3.0), "abc", 1, 6, 0)
    assert answer.per_piece == 2.0
    assert answer.rate == 2.0


async def test_the_first_text_is_known_while_the_stream_runs(fake: FakeServer) -> None:
    fake.step_s = 0.1
    stream = await Client(fake.url).start("one", 50)
    first = await stream.first()
    assert time.perf_counter() - first < 0.1
    await asyncio.sleep(0.25)
    assert 2 <= len(stream.times) <= 4
    stream.close()


async def test_hanging_up_closes_the_connection(fake: FakeServer) -> None:
    fake.step_s = 0.01
    stream = await Client(fake.url).start("one", 500)
    await stream.first()
    stream.close()
    for _ in range(200):
        if fake.hung_up:
            break
        await asyncio.sleep(0.01)
    assert fake.hung_up == 1


async def test_a_wrong_key_is_said_in_one_line(fake: FakeServer) -> None:
    fake.key = "secret"
    with pytest.raises(BenchError, match=r"wants another key \(401: Invalid API Key\); give it with --api-key"):
        await Client(fake.url).complete("one", 1)
    assert (await Client(fake.url, api_key="secret").complete("one", 1)).tokens == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"error": {"message": "too\\nlong"}}', "too long"),
        ('{"detail": "nothing here"}', "nothing here"),
        ('{"error": "plain"}', "plain"),
        ("<html>oops</html>", "<html>oops</html>"),
        ("", "no explanation"),
    ],
)
async def test_a_refusal_is_said_in_one_line(fake: FakeServer, body: str, said: str) -> None:
    fake.refuse = (400, body)
    with pytest.raises(BenchError) as caught:
        await Client(fake.url).complete("one", 1)
    assert str(caught.value) == f"{fake.url} refused the request (400: {said})"


async def test_a_stream_that_breaks_off_or_fails_midway_is_an_error(fake: FakeServer) -> None:
    fake.break_after = 2
    with pytest.raises(BenchError, match="broke off"):
        await Client(fake.url).complete("one", 5)
    fake.break_after, fake.error_after = None, 2
    with pytest.raises(BenchError, match=r"failed midway.*out of memory"):
        await Client(fake.url).complete("one", 5)
    fake.error_after = 0
    with pytest.raises(BenchError, match="out of memory"):
        await (await Client(fake.url).start("one", 5)).first()


async def test_a_server_that_takes_too_long_is_given_up(fake: FakeServer) -> None:
    fake.token_s = 5.0
    client = Client(fake.url, timeout_s=0.1)
    with pytest.raises(BenchError, match="did not finish"):
        await client.complete("one", 1)
    stream = await client.start("two", 1)
    with pytest.raises(BenchError, match="sent no text"):
        await stream.first()
    stream.close()


async def test_nobody_there_is_said() -> None:
    with pytest.raises(BenchError, match=r"cannot be reached.*is the server running"):
        await Client("127.0.0.1:1").complete("one", 1)


# --- scenarios -----------------------------------------------------------------------------------------------------


async def test_decode_finds_the_step(fake: FakeServer) -> None:
    fake.step_s = 0.02
    found = await measure(fake, "decode")
    assert 50 < found["3 streams", "all streams"] <= 155
    assert 17 < found["3 streams", "one stream"] <= 51


async def test_deep_waits_for_the_new_message_only(fake: FakeServer) -> None:
    fake.token_s, fake.step_s = 0.003, 0.005
    found = await measure(fake, "deep")
    assert 40 * 0.003 <= found["2 streams", "TTFT of a short message"] < 60 * 0.003 + 0.3
    assert found["2 streams", "one stream"] > 40


async def test_copy_finds_the_step_of_a_lone_stream(fake: FakeServer) -> None:
    fake.step_s = 0.02
    found = await measure(fake, "copy")
    assert list(found) == [("1 stream", "one stream")]
    assert 17 < found["1 stream", "one stream"] <= 51


async def test_schema_holds_half_of_the_answers_and_compares(fake: FakeServer) -> None:
    fake.step_s = 0.02
    found = await measure(fake, "schema")
    assert set(found) == {("1 stream", "one stream"), ("1 stream", "over free text")} | {
        ("3 streams", "all streams"),
        ("3 streams", "over free text"),
    }
    assert 0.3 < found["3 streams", "over free text"] < 3
    held = [body for body in fake.bodies if "json_schema" in body]
    assert len(held) == len(fake.bodies) / 2 == 4
    assert not any(body["ignore_eos"] for body in held)
    drawn = [json.dumps(body["json_schema"]) for body in held]
    assert len(set(drawn)) == 4
    for text in drawn:
        check_grammar("json_schema", text)


async def test_tools_compares_chats_with_and_without_and_waits_for_a_call(fake: FakeServer) -> None:
    fake.step_s = 0.005
    found = await measure(fake, "tools")
    assert {quantity for _, quantity in found} == {
        "one stream",
        "all streams",
        "over as long a chat",
        "a required call",
    }
    assert 0.3 < found["3 streams", "over as long a chat"] < 3
    assert found["1 stream", "a required call"] >= 199 * 0.005
    offered = [body["tools"] for body in fake.bodies if "tools" in body]
    assert len(offered) == 4 * len(fake.bodies) / 6 == 16
    plain = [body["messages"][0]["content"] for body in fake.bodies if "tools" not in body]
    told = 24 + statistics.mean(len(json.dumps(tools).split()) for tools in offered)
    assert statistics.mean(len(text.split()) for text in plain) == pytest.approx(told, rel=0.05), "about as long"
    assert all("prompt" not in body for body in fake.bodies)
    assert len({json.dumps(read_tools(tools)) for tools in offered}) == 4


async def test_prefill_finds_the_rate(fake: FakeServer) -> None:
    fake.token_s = 0.003
    found = await measure(fake, "prefill")
    assert 0.3 <= found["100 tokens", "TTFT"] < 0.9
    assert 110 < found["100 tokens", "rate"] <= 334


async def test_a_shared_prefix_is_known_and_a_bursts_is_not(fake: FakeServer) -> None:
    fake.token_s = 0.002
    shared = await measure(fake, "shared")
    burst = await measure(fake, "burst")
    case = "3 users, 100 tokens"
    # Tails of 25 words are read one after the other: the second of three waits for two of them.
    assert 2 * 25 * 0.002 <= shared[case, "median TTFT"] < 0.29
    assert shared[case, "longest TTFT"] >= 3 * 25 * 0.002
    assert burst[case, "median TTFT"] >= (100 + 2 * 25) * 0.002


async def test_interference_sees_the_others_stand_still(fake: FakeServer) -> None:
    fake.token_s, fake.step_s = 0.004, 0.01
    found = await measure(fake, "interference")
    case = "100 tokens arrive"
    assert 0.01 <= found[case, "median ITL of running streams"] < 0.05
    assert 0.39 <= found[case, "longest ITL of running streams"] < 1.0
    assert 0.4 <= found[case, "TTFT of the new request"] < 1.0
    assert 0.4 < found[case, "TTFT over that alone"] < 2.5


async def test_images_are_new_seen_before_or_of_the_turn_before(fake: FakeServer) -> None:
    fake.image_s, fake.token_s, fake.step_s = 0.3, 0.001, 0.01
    found = await measure(fake, "images")
    new = found["one at a time", "TTFT of a new image"]
    assert new >= 0.3
    assert 0.01 <= found["one at a time", "TTFT of an image seen in another chat"] < new
    assert 0.01 <= found["one at a time", "TTFT of the next turn"] < new
    assert 0 < found["one at a time", "TTFT of the next turn over that of a text"] < 10
    assert 0.29 <= found["3 images arrive", "longest ITL of running streams"] < 3
    assert 0.3 <= found["3 images arrive", "longest TTFT"] < 3
    images = [
        part["image_url"]["url"]
        for body in fake.bodies
        for message in body.get("messages", ())
        for part in message["content"]
        if isinstance(part, dict) and part["type"] == "image_url"
    ]
    # One is asked about three times, the first turn being part of the second; three arrive.
    assert [images.count(image) for image in dict.fromkeys(images)] == [3, 1, 1, 1]


async def test_streams_that_end_before_the_images_are_followed_by_others(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggufd.bench.scenarios.images.RUNNING_TOKENS", 16)
    fake.image_s, fake.step_s = 0.3, 0.01
    found = await measure(fake, "images")
    assert 0.29 <= found["3 images arrive", "longest ITL of running streams"] < 3


async def test_a_stream_that_fails_beside_images_is_an_error(fake: FakeServer) -> None:
    fake.break_after = 6  # answers about images are shorter
    with pytest.raises(BenchError, match="broke off"):
        await measure(fake, "images")


def test_a_drawn_image_is_a_png_of_plain_squares() -> None:
    source = random.Random(1)
    first, second = drawn_image(source), drawn_image(source)
    assert first != second
    head, _, data = first.partition(",")
    assert head == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (image.size, image.mode) == ((256, 256), "RGB")
    colors = {image.getpixel((x, y)) for x in range(32, 256, 64) for y in range(32, 256, 64)}
    assert len(colors) > 3
    assert {color for _, color in image.getcolors()} == colors


async def test_compile_sees_the_others_stand_still_for_new_schemas(fake: FakeServer) -> None:
    fake.step_s = 0.005
    quiet = await measure(fake, "compile")
    schemas = [body["json_schema"] for body in fake.bodies if "json_schema" in body]
    assert len({json.dumps(schema) for schema in schemas}) == len(schemas) == N_NEW
    check_grammar("json_schema", json.dumps(schemas[0]))
    assert len(json.dumps(schemas[0])) > 10_000
    fake.schema_s = 0.2
    found = await measure(fake, "compile")
    case = f"{PARTS} objects arrive"
    assert quiet[case, "longest ITL of running streams"] < 0.15
    assert 0.19 <= found[case, "longest ITL of running streams"] < 1.0
    assert found[case, "longest ITL over that beside free requests"] > 1.5
    assert found[case, "TTFT of the new request"] >= 0.2


async def test_a_chat_has_every_kind_of_wait_and_a_perfect_cache_computes_the_least(fake: FakeServer) -> None:
    fake.token_s = 0.001
    found = await measure(fake, "chat")
    turn, regenerated = found["a turn", "median TTFT"], found["a regenerated answer", "median TTFT"]
    assert regenerated < turn < found["a turn of a trimmed history", "median TTFT"]
    assert found["an edit", "median TTFT"] < found["a turn of a trimmed history", "median TTFT"]
    assert found["8 turns", "computed over least prompt tokens"] == pytest.approx(1.0)
    assert max(len(body["prompt"].split()) for body in fake.bodies) + SMALL.answer <= SMALL.chat_context


async def test_computed_tokens_are_left_out_when_the_server_does_not_tell(fake: FakeServer) -> None:
    fake.has_usage = fake.has_tokenize = False
    assert not any("computed" in quantity for _, quantity in await measure(fake, "chat"))


async def test_computed_tokens_show_a_server_that_caches_nothing(fake: FakeServer) -> None:
    fake._seen = type("Forgetful", (list,), {"append": lambda *_: None})()
    assert (await measure(fake, "chat"))["8 turns", "computed over least prompt tokens"] > 2


def test_a_history_drops_its_oldest_messages_and_keeps_card_and_last() -> None:
    history = History(ChatLine("card", 10), budget=30)
    history.messages += [ChatLine(f"m{i}", 8) for i in range(4)]
    assert history.prompt() == "card\nm2\nm3\nAlice:"
    history.messages.append(ChatLine("long", 100))
    assert history.prompt() == "card\nlong\nAlice:"


async def test_a_carousel_goes_on_with_every_chat(fake: FakeServer) -> None:
    fake.token_s = 0.002
    found = await measure(fake, "carousel")
    assert 25 * 0.002 <= found["3 chats, 1 at once", "median TTFT"] < 0.15
    prompts = [body["prompt"] for body in fake.bodies]
    assert len(prompts) == 3 * 3
    assert all(any(later.startswith(first) for later in prompts[6:]) for first in prompts[:3])


async def test_a_chat_beside_jobs_is_measured_and_the_jobs_are_hung_up(fake: FakeServer) -> None:
    fake.token_s, fake.step_s = 0.0005, 0.01
    found = await measure(fake, "background")
    case = "a chat beside 2 jobs, one key"
    assert 25 * 0.0005 <= found[case, "median TTFT"] < 0.2
    assert 0.01 <= found[case, "longest ITL"] < 0.3
    assert 50 < found[case, "jobs"] < 205
    assert len([body for body in fake.bodies if body["max_tokens"] == 24]) >= 4


async def test_a_full_server_has_a_client_for_each_slot(fake: FakeServer) -> None:
    fake.token_s, fake.step_s = 0.0001, 0.002
    found = await measure(fake, "full")
    case = "a chat beside 4 clients on 4 slots"
    quantities = {"median TTFT", "longest ITL", "jobs", "jobs and chat", "longest ITL of the jobs"}
    assert {quantity for _, quantity in found} == quantities
    assert found[case, "jobs and chat"] > found[case, "jobs"]
    assert 0.002 <= found[case, "longest ITL of the jobs"] < 0.3
    prompts = {body["prompt"] for body in fake.bodies if body["max_tokens"] == 96}
    assert len(prompts) >= 2 * 4


@pytest.mark.parametrize("late", [0.0, 3.0, 9.5])
def test_jobs_in_step_are_counted_whole_wherever_the_window_lies(late: float) -> None:
    client = beside._JobClient()
    # Eight seconds of reading, then 40 tokens in two: 4 a second, of which a window of 12 s may see 40 or 80.
    for i in range(5):
        stream = types.SimpleNamespace(times=[10 * i + 8 + 0.05 * n for n in range(40)])
        client.jobs.append((10.0 * i, cast(Stream, stream)))
    assert client.rate(late, late + 21) == pytest.approx(4.0)


def test_a_window_without_a_whole_job_counts_what_was_written_in_it() -> None:
    client = beside._JobClient()
    client.jobs.append((0.0, cast(Stream, types.SimpleNamespace(times=[1.0, 2.0, 3.0, 4.0]))))
    assert client.rate(1.5, 3.5) == 1.0


async def test_jobs_have_the_other_key_where_there_is_one_and_the_row_says_so(fake: FakeServer) -> None:
    fake.step_s = 0.002
    report = empty_report()
    one = dataclasses.replace(SMALL, rounds=1)
    options = Options(fake.url, seed=7, scenarios=("background",), api_key="first", other_api_key="second", sizes=one)
    await run(options, report, lambda line: None)
    assert {row.metric.case for row in report.rows()} == {"a chat beside 2 jobs, two keys"}
    asked = {(key, body["max_tokens"]) for key, body in zip(fake.keys, fake.bodies, strict=True)}
    assert asked == {("bearer first", 16), ("bearer first", 24), ("bearer second", 160)}


async def test_a_crowd_is_compared_with_as_many_clients_as_slots(fake: FakeServer) -> None:
    fake.step_s = 0.02
    found = await measure(fake, "crowd")
    assert {case for case, _ in found} == {f"{n} clients on 4 slots" for n in (4, 8, 16)}
    # The fake serves all at once, so that four times the clients are four times as fast.
    assert 1.5 < found["16 clients on 4 slots", "over as many clients as slots"] < 6
    assert 0.02 <= found["4 clients on 4 slots", "ITL, median"] < 0.5
    assert found["4 clients on 4 slots", "ITL, p99"] >= 0.02


async def test_a_failing_client_fails_the_crowd(fake: FakeServer) -> None:
    fake.error_after = 3
    with pytest.raises(BenchError, match="out of memory"):
        await measure(fake, "crowd")


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([float(value) for value in range(1, 101)], 0.99) == 99.0
    assert percentile([3.0], 0.99) == 3.0


async def test_a_failing_job_fails_the_scenario(fake: FakeServer) -> None:
    fake.error_after = 30  # the chat's answers are shorter
    with pytest.raises(BenchError, match="out of memory"):
        await measure(fake, "background")


async def test_questions_beside_jobs_are_asked_with_the_other_key(fake: FakeServer) -> None:
    fake.step_s = 0.002
    options = Options(fake.url, seed=7, scenarios=("fairness",), other_api_key="second", sizes=SMALL)
    report = empty_report()
    await run(dataclasses.replace(options, sizes=dataclasses.replace(SMALL, rounds=1)), report, lambda line: None)
    figures = {(row.metric.case, row.metric.quantity): row for row in report.rows()}
    assert len(figures) == 4
    questions = [key for key, body in zip(fake.keys, fake.bodies, strict=True) if body["max_tokens"] == 8]
    jobs = [key for key, body in zip(fake.keys, fake.bodies, strict=True) if body["max_tokens"] == 160]
    assert jobs == [None] * 40
    assert questions.count("bearer second") == questions.count(None) == 5 + 8


async def test_old_chats_go_on(fake: FakeServer) -> None:
    fake.step_s = 0.01
    assert 100 < (await measure(fake, "old-chats"))["4 streams", "all streams"] < 405


async def test_a_fresh_server_is_measured_once(fake: FakeServer) -> None:
    fake.token_s = 0.001
    (case,) = SCENARIOS["fresh-short"](SMALL)
    site = Site(MeasuredServer(Client(fake.url), n_slots=4), Words(1.0, 7), SMALL)
    first, second = await case.measure(site), await case.measure(site)
    assert [figure.metric.quantity for figure in first] == [
        "fresh",
        "beside cached chats",
        "beside cached over fresh",
    ]
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert 0.03 <= first[0].value < 0.2
    assert 0.2 < first[2].value < 5


# --- runs and reports ----------------------------------------------------------------------------------------------


async def test_two_servers_are_measured_in_turn_with_the_same_texts() -> None:
    log: list[str] = []
    fast, slow = FakeServer(token_s=0.001, name="a", log=log), FakeServer(token_s=0.003, name="b", log=log)
    report = empty_report()
    with virtual_time():
        async with serving_here(fast, slow):
            options = Options(fast.url, seed=1, against=slow.url, scenarios=("prefill",), sizes=SMALL)
            await run(options, report, lambda line: None)
    assert log == ["a", "b"] + ["a", "b"] * 2  # the warm-up, then two repetitions
    assert [body["prompt"] for body in fast.bodies] == [body["prompt"] for body in slow.bodies]
    assert len({body["prompt"] for body in fast.bodies}) == 3
    wait, rate = report.rows()
    assert wait.ratio is not None
    assert rate.ratio is not None
    assert wait.ratio.low <= wait.ratio.of_medians <= wait.ratio.high < 0.85
    assert wait.ratio.verdict(Better.LOWER) is rate.ratio.verdict(Better.HIGHER) is Comparison.BETTER


async def test_a_run_of_everything_fills_the_report(fake: FakeServer) -> None:
    fake.step_s = 0.01
    report = empty_report()
    tiny = Sizes(**{**{name: getattr(SMALL, name) for name in Sizes.__slots__}, "rounds": 1})
    await run(Options(fake.url, seed=1, sizes=tiny), report, lambda line: None)
    assert {row.metric.scenario for row in report.rows()} == set(SCENARIOS)
    assert 0 < report.client_share < 1


async def test_a_case_too_long_for_the_context_is_left_out_and_said(fake: FakeServer) -> None:
    fake.n_ctx = 50
    report = empty_report()
    options = Options(fake.url, seed=1, scenarios=("prefill",), sizes=SMALL)
    await run(options, report, lambda line: None)
    assert report.records == []
    assert report.warnings == [
        f"prefill, 100 tokens: left out; it needs 113 tokens of context, {fake.url} has 50 a slot"
    ]


async def test_a_failing_case_is_noted_and_the_others_go_on(fake: FakeServer) -> None:
    fake.break_after = 20  # the warm-up passes, a decode of 30 does not, a prefill does
    report = empty_report()
    longer = Sizes(**{**{name: getattr(SMALL, name) for name in Sizes.__slots__}, "decode_tokens": 30})
    options = Options(fake.url, seed=1, scenarios=("decode", "prefill"), sizes=longer)
    await run(options, report, lambda line: None)
    assert {row.metric.scenario for row in report.rows()} == {"prefill"}
    assert any("decode, 3 streams: failed" in warning for warning in report.warnings)


async def test_one_server_twice_and_unknown_scenarios_are_refused(fake: FakeServer) -> None:
    with pytest.raises(BenchError, match="given twice"):
        await run(Options(fake.url, seed=1, against=f"{fake.url}/v1"), empty_report(), lambda line: None)
    with pytest.raises(BenchError, match=r"no scenario is named 'decod'.*decode"):
        choose(Options("x", seed=1, scenarios=("decod",)))


async def test_servers_are_asked_who_they_are(fake: FakeServer) -> None:
    client = Client(fake.url)
    server = await discover(client)
    assert (server.n_ctx, server.n_slots, server.model, server.build) == (4096, 4, "fake", "b1")
    assert client.model == "fake"


def _figure(value: float) -> Figure:
    return Figure(Metric("s", "c", "q", "tok/s", Better.HIGHER), value, (value, 0.5))


def test_the_ratio_takes_whole_pairs_only() -> None:
    report = empty_report()
    report.servers = [MeasuredServer(Client("a:1")), MeasuredServer(Client("b:1"))]
    report.records = [Sample(0, 0, _figure(3.0)), Sample(0, 1, _figure(2.0)), Sample(1, 0, _figure(100.0))]
    (row,) = report.rows()
    assert row.ratio == Ratio(1.5, 1.5, 1.5)


def test_the_json_holds_every_sample() -> None:
    report = empty_report()
    report.servers = [MeasuredServer(Client("a:1"), model="m"), MeasuredServer(Client("b:1"))]
    report.records = [Sample(0, 0, _figure(3.0)), Sample(0, 1, _figure(2.0))]
    found = json.loads(json.dumps(report.as_json()))
    assert found["servers"][0] == {"url": "http://a:1", "model": "m", "build": None, "n_ctx": None, "n_slots": None}
    assert found["results"][0]["ratio"] == {"of_medians": 1.5, "low": 1.5, "high": 1.5}
    assert [sample["raw"] for sample in found["results"][0]["samples"]] == [[3.0, 0.5], [2.0, 0.5]]
    assert {"date", "seed", "machine", "ggufd", "warnings"} <= found.keys()


# --- command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def app() -> typer.Typer:
    found = typer.Typer()
    found.command()(bench)
    return found


@pytest.mark.timed
def test_the_command_prints_a_table_and_writes_json(app: typer.Typer, tmp_path: Path) -> None:
    one, two = FakeServer(step_s=0.001), FakeServer(step_s=0.004)
    out = tmp_path / "out.json"
    with serving(one, two):
        flags = ["--scenario", "decode", "--quick", "--streams", "2", "--tokens", "10", "--rounds", "2", "--seed", "5"]
        result = CliRunner().invoke(app, [one.url, "--against", two.url, *flags, "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert "A / B" in result.output
    assert "seed 5" in result.output
    assert "better" in result.output
    assert json.loads(out.read_text())["seed"] == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["127.0.0.1:1"], "http://127.0.0.1:1 cannot be reached"),
        (["127.0.0.1:1", "--streams", "1,x"], "expected positive numbers"),
        (["127.0.0.1:1", "--scenario", "x"], "no scenario is named 'x'"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_exit_1(app: typer.Typer, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert said in result.output
    assert "Traceback" not in result.output


def test_given_sizes_replace_the_usual_ones() -> None:
    assert sizes(False) == Sizes()
    assert (sizes(True).rounds, sizes(True, rounds=5).rounds) == (1, 5)
    assert sizes(False, streams="2, 3").streams == (2, 3)


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.skipif(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="in the background nobody hears SIGINT")
def test_ctrl_c_prints_what_is_there() -> None:
    fake = FakeServer(step_s=0.002)
    with serving(fake):
        command = [sys.executable, "-m", "ggufd.bench", fake.url, "--scenario", "decode", "--rounds", "1000"]
        process = subprocess.Popen(
            [*command, "--tokens", "10"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        for line in process.stderr:
            if "1 stream: 2 of" in line:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "decode" in out
    assert "interrupted" in out
    assert "Traceback" not in err
