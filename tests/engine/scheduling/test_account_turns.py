"""Turns of an account's prompts and streams beside one with far fewer slots, which decodes in every step."""

from __future__ import annotations

import pytest

from ggufd.engine.scheduling.account_turns import AccountTurn, AccountTurns, account_of
from ggufd.engine.scheduling.scheduler import Chunk, Scheduler, rows_of
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.keys.principal import BACKGROUND
from tests.support.costs import known_costs
from tests.support.fakes.fake_llama import make_request

LIMIT_S = 0.1


def sequence(account: str, slot: int, *, is_decoding: bool, n_forced: int = 0) -> SequenceState:
    made = SequenceState.of(make_request(slot, bytes(10 if is_decoding else 2000), account=account), 0, 0.0)
    made.slot = slot
    if is_decoding:
        made.n_past = 10
        made.tokens.extend([1] * (1 + n_forced))
    return made


def accounts(streams: str, prompts: str) -> list[SequenceState]:
    """Sequences of these accounts, a letter each, by ascending slot."""
    made = [sequence(one, slot, is_decoding=True) for slot, one in enumerate(streams)]
    return made + [sequence(one, slot, is_decoding=False) for slot, one in enumerate(prompts, len(streams))]


def planned(planner: Scheduler, running: list[SequenceState]) -> tuple[str, str]:
    """The accounts whose sequences decode in the next step, and those of whose prompts it computes some."""
    plan = planner.schedule(running)
    return letters(plan, is_decode=True), letters(plan, is_decode=False)


def letters(plan: list[Chunk], *, is_decode: bool) -> str:
    chosen = (chunk.sequence for chunk in plan if chunk.is_decode == is_decode)
    return "".join(one.request.principal.account for one in chosen)


def scheduler() -> Scheduler:
    costs = known_costs(pass_s=0.02, row_s=0.0005)
    gaps = {"max_gap_ms": 1000 * LIMIT_S, "max_gap_steps": 2, "max_gap_full_ms": 3000 * LIMIT_S}
    return Scheduler(n_batch=2048, n_ubatch=512, n_outputs_max=64, costs=costs, **gaps)


@pytest.mark.parametrize(
    ("streams", "prompts", "steps"),
    [
        ("aab", "a", [("b", "a"), ("aab", ""), ("b", "a"), ("aab", "")]),
        ("ab", "aa", [("b", "a"), ("ab", "")]),
        ("b", "aa", [("b", "a"), ("b", "a")]),
        ("aabb", "a", [("aabb", "a"), ("aabb", "a")]),
        ("aab", "b", [("aab", "b"), ("aab", "b")]),
        ("aaa", "a", [("aaa", "a"), ("aaa", "a")]),
        ("aac", "bb", [("c", "b"), ("aac", "")]),
        ("aabc", "bb", [("c", "b"), ("aabc", "")]),
        ("aabbc", "a", [("c", "a"), ("aabbc", ""), ("c", "a")]),
        ("aaabbc", "bbb", [("c", "b"), ("aaabbc", "")]),
    ],
)
def test_larger_accounts_read_and_decode_in_turns(streams: str, prompts: str, steps: list[tuple[str, str]]) -> None:
    """Accounts by letter: those that decode, those that read, and both in each step."""
    planner, running = scheduler(), accounts(streams, prompts)
    assert [planned(planner, running) for _ in steps] == steps


@pytest.mark.parametrize(
    ("chats", "turns"),
    [(3, [AccountTurn.PROMPTS, AccountTurn.STREAMS, AccountTurn.PROMPTS]), (0, [AccountTurn.ALL] * 3)],
)
def test_background_work_is_larger_than_anybody(chats: int, turns: list[AccountTurn]) -> None:
    job, reading = sequence(BACKGROUND, 0, is_decoding=True), sequence(BACKGROUND, 1, is_decoding=False)
    decoding = [job, *(sequence("a", 2 + slot, is_decoding=True) for slot in range(chats))]
    alternation = AccountTurns()
    assert [alternation.next(reading, decoding, [reading]) for _ in turns] == turns


def test_forced_tokens_of_a_larger_account_wait_for_no_turn() -> None:
    forced = sequence("a", 0, is_decoding=True, n_forced=30)
    running = [forced, sequence("a", 1, is_decoding=True), sequence("b", 2, is_decoding=True)]
    assert {chunk.sequence.slot for chunk in scheduler().schedule(running)} == {0, 1, 2}


@pytest.mark.parametrize("prompts", ["aaaaaa", "aaaaaab"])
def test_where_many_wait_of_a_larger_account_the_gap_of_a_smaller_one_does_not_grow(prompts: str) -> None:
    """Neither while a prompt of the larger one is computed, nor one of the smaller one's own."""
    planner, alone = scheduler(), scheduler()
    served = {"a": 100.0, "b": 1.0}
    running = accounts("aaaaaab", prompts)
    steps = [
        planner.schedule(running, n_waiting=20, now_s=10.0 * step, served=lambda one: served[account_of(one)])
        for step in range(4)
    ]
    assert {chunk.sequence for chunk in steps[0] if not chunk.is_decode} == {running[7 if "b" not in prompts else -1]}
    assert max(planner.costs.seconds(rows_of(step)) for step in steps) <= LIMIT_S
    _, of_one = [alone.schedule(accounts("aaaaaaa", "aaaaaa"), n_waiting=20, now_s=now_s) for now_s in (0.0, 10.0)]
    assert alone.costs.seconds(rows_of(of_one)) > 1.5 * LIMIT_S
