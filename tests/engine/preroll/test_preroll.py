"""Cuts of a chat's history: seen, foretold, and computed before they are asked for, while nobody waits."""

from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.messages.config import EngineRules
from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.sequence.trim import find_trim, predict
from ggufd.errors import EngineFailure
from ggufd.llama.context.batch import NoRoomError
from tests.support.fakes.fake_llama import EOT, FakeDecoder, Rig, make_request, run_alone

CARD = b"[Alice is a ship's cook who talks too much and knows every port between here and the cape.]\n"
ROOMY = {"n_ctx": 1024, "n_batch": 64, "n_outputs_max": 8}
IDS = iter(range(1, 10**6))


def ids(text: bytes) -> array[int]:
    return array("i", list(text))


def message(source: random.Random, who: str) -> bytes:
    words = source.choices(
        ("sun", "sea", "wind", "rope", "tar", "salt", "gull", "oar", "keel"), k=source.randint(8, 14)
    )
    return f"{who}: {' '.join(words)}\n".encode()


class Client:
    """Sends its whole history each turn, and drops the oldest messages as long as it is over `budget` tokens."""

    def __init__(self, rig: Rig, budget: int = 600, seed: int = 1, card: bytes = CARD) -> None:
        self.rig = rig
        self.budget = budget
        self.card = card
        self.source = random.Random(seed)
        self.messages: list[bytes] = []
        self.n_dropped = 0

    def prompt(self) -> bytes:
        while len(self._text()) > self.budget:
            self.messages.pop(0)
            self.n_dropped += 1
        return self._text()

    def _text(self) -> bytes:
        return self.card + b"".join(self.messages) + b"Alice:"

    def request(self) -> EngineRequest:
        self.messages.append(message(self.source, "Bob"))
        return make_request(next(IDS), self.prompt(), max_tokens=60, logit_bias=((EOT, -90.0),), stop=("\n",))

    def turn(self) -> int:
        """One turn; how many tokens of its prompt were computed."""
        request = self.request()
        self.rig.add(request)
        collected = self.rig.run()[request.request_id]
        self.messages.append(b"Alice:" + collected.texts[0].encode("utf-8", "ignore") + b"\n")
        assert collected.texts == run_alone(request, **ROOMY).texts
        usage = collected.finishes[0].usage
        return usage.prompt_tokens - usage.cached_tokens


def rig_of(cache_ram_bytes: int = 1 << 24) -> Rig:
    return Rig(
        FakeDecoder(**ROOMY), max_gap_ms=50.0, rules=EngineRules(pre_rolls=True, cache_ram_bytes=cache_ram_bytes)
    )


def pause(rig: Rig, n_steps: int = 1000) -> None:
    """A person reads: the engine has nothing to do but its house."""
    for _ in range(n_steps):
        if rig.engine.has_work or not rig.engine.run_idle_maintenance():
            return
        rig.engine.check_integrity()


# --- cuts -------------------------------------------------------------------------------------------------------------


def test_a_cut_is_seen_with_what_stayed_and_what_came_new() -> None:
    chat = CARD + b"Bob: one two three\nAlice: four five six seven eight nine ten eleven\nBob: twelve\n"
    prompt = CARD + chat[chat.index(b"Alice: four") :] + b"Alice: new"
    trim = find_trim(ids(chat), ids(prompt))
    assert trim is not None
    assert chat[: trim.n_kept].rstrip(b"\n") == CARD.rstrip(b"\n")
    assert trim.n_added == len(b"Alice: new")


@pytest.mark.parametrize(
    "prompt",
    [CARD + b"Bob: something else, quite another chat with the same card, and long enough", b"Other", CARD],
    ids=["another chat", "nothing in common", "the card alone"],
)
def test_what_was_not_cut_out_of_the_chat_is_no_cut(prompt: bytes) -> None:
    chat = CARD + b"Bob: one two three\nAlice: four five six seven eight nine ten eleven\n"
    assert find_trim(ids(chat), ids(prompt)) is None


def test_a_chat_that_still_fits_is_not_foretold_to_be_cut() -> None:
    chat = CARD + b"Bob: one two three four five six seven\nAlice: eight nine ten eleven twelve thirteen\n" * 2
    trim = find_trim(ids(chat), ids(CARD + chat[chat.index(b"Alice: ") :]))
    assert trim is not None
    assert predict(ids(chat), trim, longest=10_000) == []


@given(st.integers(0, 10**6), st.integers(2, 6))
def test_what_is_foretold_keeps_the_card_and_begins_with_a_whole_message(seed: int, n_messages: int) -> None:
    source = random.Random(seed)
    messages = [message(source, "Bob" if at % 2 else "Alice") for at in range(n_messages + 4)]
    chat = ids(CARD + b"".join(messages))
    trim = find_trim(chat, ids(CARD + b"".join(messages[1:]) + b"Bob: new\n"))
    assert trim is not None
    for tokens in predict(chat, trim, longest=len(chat) - 20):
        text = bytes(list(tokens))
        assert any(text == CARD + b"".join(messages[at:]) for at in range(len(messages)))


# --- in the engine ----------------------------------------------------------------------------------------------------


def test_a_turn_of_a_cut_chat_computes_little_more_than_its_new_message() -> None:
    rig = rig_of()
    client = Client(rig)
    computed = []
    while client.n_dropped < 12:
        dropped = client.n_dropped
        n_computed = client.turn()
        pause(rig)
        if client.n_dropped > dropped:
            computed.append(n_computed)
    # The first cut cannot be foretold.
    foretold = [n for n in computed[1:] if n < 150]
    assert computed[0] > 300
    assert len(foretold) >= 0.7 * len(computed[1:])


def test_without_the_rule_every_cut_is_computed_again() -> None:
    rig = Rig(FakeDecoder(**ROOMY))
    client = Client(rig)
    computed = []
    while client.n_dropped < 6:
        dropped = client.n_dropped
        n_computed = client.turn()
        assert not rig.engine.run_idle_maintenance()
        if client.n_dropped > dropped:
            computed.append(n_computed)
    assert min(computed) > 300


def until_foretold(client: Client) -> None:
    """Play until there is something to be computed ahead."""
    while client.n_dropped < 2 or not client.rig.engine.run_idle_maintenance():
        client.turn()


def test_who_comes_amid_it_is_served_with_the_next_step() -> None:
    rig = rig_of()
    client = Client(rig)
    until_foretold(client)
    rig.engine.run_idle_maintenance()
    stranger = make_request(next(IDS), b"Somebody else", max_tokens=3)
    rig.add(stranger)
    rig.step()
    assert rig.engine.stats().running == 1
    assert rig.run()[stranger.request_id].texts == run_alone(stranger).texts
    pause(rig)
    client.turn()


def test_the_chat_itself_keeps_its_slot_for_a_swipe() -> None:
    rig = rig_of()
    client = Client(rig)
    until_foretold(client)
    pause(rig)
    client.messages.pop()
    swipe = make_request(next(IDS), client.prompt(), max_tokens=5)
    rig.add(swipe)
    usage = rig.run()[swipe.request_id].finishes[0].usage
    assert usage.prompt_tokens - usage.cached_tokens <= len(b"Alice:")


def test_no_guess_takes_the_slot_of_what_is_kept_nowhere_else() -> None:
    rig = rig_of(cache_ram_bytes=0)
    others = [make_request(next(IDS), bytes([65 + at]) * 100, max_tokens=2) for at in range(3)]
    rig.add(*others)
    rig.run()
    client = Client(rig)
    while client.n_dropped < 6:
        client.turn()
        n_computed = rig.n_computed
        pause(rig)
        assert rig.n_computed == n_computed


@pytest.mark.parametrize("error", [NoRoomError(), EngineFailure("no")])
def test_a_guess_that_cannot_be_computed_is_given_up(error: Exception) -> None:
    rig = rig_of()
    client = Client(rig)
    until_foretold(client)
    rig.decoder.failures.append(error)
    pause(rig)
    assert not rig.decoder.failures
    client.turn()


def test_a_lone_slot_is_the_chats_own() -> None:
    rig = Rig(FakeDecoder(n_slots=1, **ROOMY), rules=EngineRules(pre_rolls=True, cache_ram_bytes=1 << 20))
    client = Client(rig)
    while client.n_dropped < 4:
        client.turn()
        n_past = rig.decoder.n_past(0)
        pause(rig)
        assert rig.decoder.n_past(0) == n_past
