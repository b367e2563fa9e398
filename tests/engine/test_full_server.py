"""A full server in virtual time: long new prompts in every slot, again and again, and one chat beside them.

The fake's time is that of SmolLM2-135M on two cores, as measured: 5 ms a pass over the weights, 3.8 ms a row that
decodes, 3 ms a row of prefill, 30 % more in runs of fewer than 64 rows.
"""

from __future__ import annotations

import itertools
import random
import statistics
from dataclasses import dataclass, field

from ggufd.engine.messages.config import EngineRules
from ggufd.engine.messages.events import Output
from ggufd.engine.messages.requests import EngineRequest
from tests.support.fakes.fake_llama import FakeDecoder, Rig, make_request

N_SLOTS = 8
PROMPT, ANSWER = 650, 96
WARM_UP_S, SECONDS = 25.0, 35.0


class TimedDecoder(FakeDecoder):
    """Decoder whose runs of equal length are a pass each, as llama.cpp computes them."""

    def _cost_s(self, runs: list[tuple[int, list[int]]]) -> float:
        lengths = [len(rows) for _, rows in runs]
        return sum(0.005 + n * lengths.count(n) * row_s(n) for n in set(lengths))


def row_s(n_rows: int) -> float:
    return 0.0038 if n_rows == 1 else 0.003 if n_rows >= 64 else 0.0039


@dataclass
class Load:
    """Closed loop of `n_jobs` clients and a chat, whose account is `chat_account`. Measures from `WARM_UP_S` on."""

    rig: Rig
    n_jobs: int = N_SLOTS
    chat_account: str = ""
    random: random.Random = field(default_factory=lambda: random.Random(1))
    ids: itertools.count[int] = field(default_factory=itertools.count)
    sent_s: dict[int, float] = field(default_factory=dict)
    last_s: dict[int, float] = field(default_factory=dict)
    chat: set[int] = field(default_factory=set)
    history: bytes = b""
    written: int = 0
    chat_waits_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    chat_gaps_s: list[float] = field(default_factory=list)

    def text(self, n: int) -> bytes:
        return bytes(self.random.randrange(1, 120) for _ in range(n))

    def send(self, request: EngineRequest) -> None:
        self.sent_s[request.request_id] = self.rig.decoder.clock()
        self.rig.add(request)

    def job(self) -> None:
        self.send(make_request(next(self.ids), self.text(PROMPT), max_tokens=ANSWER, ignore_eos=True))

    def turn(self) -> None:
        self.history += self.text(30)
        request_id = next(self.ids)
        self.chat.add(request_id)
        asked = {"max_tokens": 16, "ignore_eos": True, "account": self.chat_account}
        self.send(make_request(request_id, self.history, **asked))

    def run(self) -> Load:
        clock = self.rig.decoder.clock
        start_s = clock()
        for _ in range(self.n_jobs):
            self.job()
        self.history = self.text(200)
        while clock() < start_s + WARM_UP_S + SECONDS:
            if not self.chat and clock() > start_s + WARM_UP_S / 2:
                self.turn()
            for event in self.rig.engine.step():
                if isinstance(event, Output):
                    self.note(event, is_warm=clock() > start_s + WARM_UP_S)
        return self

    def note(self, event: Output, *, is_warm: bool) -> None:
        self.rig.collected[event.request_id].add(event)
        now_s, request_id = self.rig.decoder.clock(), event.request_id
        if event.tokens and is_warm:
            self.written += len(event.tokens)
            if request_id in self.last_s:
                gaps_s = self.chat_gaps_s if request_id in self.chat else self.gaps_s
                gaps_s.append(now_s - self.last_s[request_id])
        if event.tokens and request_id not in self.last_s and request_id in self.chat:
            self.chat_waits_s.append(now_s - self.sent_s[request_id])
        if event.tokens:
            self.last_s[request_id] = now_s
        if event.finish is None:
            return
        if request_id in self.chat:
            self.history += bytes(token % 120 + 1 for token in self.rig.collected[request_id].tokens[0])
            self.turn()
        else:
            self.job()


def loaded(max_gap_full_ms: float, *, is_fifo: bool = False, chat_account: str = "") -> Load:
    """A run, first come, first served or with the shortest first."""
    decoder = TimedDecoder(n_slots=N_SLOTS, n_ctx=2048, n_batch=512)
    rules = EngineRules(cache_ram_bytes=1 << 30)
    rig = Rig(decoder, max_gap_ms=60.0, max_gap_steps=4, max_gap_full_ms=max_gap_full_ms, rules=rules)
    if is_fifo:
        rig.queue.shortest_first = rig.scheduler.shortest_first = None
    return Load(rig, chat_account=chat_account).run()


def test_a_full_server_writes_more_in_bounded_gaps_and_a_chat_does_not_wait_for_long_prompts() -> None:
    small, grown, shortest = loaded(0, is_fifo=True), loaded(500, is_fifo=True), loaded(500)
    assert small.written / SECONDS < 35
    assert grown.written > 1.08 * small.written
    assert shortest.written > 0.95 * grown.written
    assert max(grown.gaps_s + grown.chat_gaps_s) < 0.5
    assert statistics.median(shortest.chat_waits_s[1:]) < 0.7 < 2 < statistics.median(grown.chat_waits_s[1:])


def test_the_gaps_of_another_account_do_not_grow_with_what_waits_of_a_large_one() -> None:
    shared, own = loaded(500), loaded(500, chat_account="chat")
    assert p95(own.chat_gaps_s) < 0.1 < 0.2 < p95(shared.chat_gaps_s)
    assert own.written > 0.95 * shared.written


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]
