"""The simulation: its twins of the router's code, its workload, and what it must show at a small size."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest

from ggufd.cluster.replicas import Replica, ReplicaLoad
from ggufd.cluster.routing.hints import HEAD_CHARACTERS, RouteHint
from ggufd.cluster.routing.rendezvous import mixed, mixed_all
from ggufd.cluster.routing.router import Router
from ggufd.cluster.simulation.comparison import OURS, POLICIES, lost, run_one_machine, run_policy
from ggufd.cluster.simulation.flood import Flood, flooded
from ggufd.cluster.simulation.heads import SIZES, head_figures
from ggufd.cluster.simulation.machine import N_SLOTS, PREFILL_TOK_S, SimulatedRequest, SimulatedServer
from ggufd.cluster.simulation.orders import Orders, digest_of_conversation
from ggufd.cluster.simulation.policies import AffinePolicy, LoadView, PrefixTreePolicy
from ggufd.cluster.simulation.report import ReportLine, Simulation, policy_row
from ggufd.cluster.simulation.run import RunFigures, Scale, Tell, decode_tok_s_for, tell_nobody
from ggufd.cluster.simulation.workload import GOES_ON, PROMPT_TOKENS, ChatWorkload, SimulatedChat

SMALL = Scale(n_replicas=30, n_chats=3000, warm_s=300.0, ends_s=700.0, decode_tok_s=5.0)


def request(conversation: int, n_tokens: int = 700, arrival_s: float = 0.0, n_turns: int = 1) -> SimulatedRequest:
    return SimulatedRequest(0, conversation, n_turns, n_tokens - 100, 100, 200, arrival_s, 0)


# --- twins ------------------------------------------------------------------------------------------------------------


def test_numpy_computes_the_same_orders_as_the_router() -> None:
    values = [0, 1, 2**63, 2**64 - 1, 0x123456789ABCDEF]
    assert [int(one) for one in mixed_all(np.array(values, dtype=np.uint64))] == [mixed(value) for value in values]
    names = [f"r{index}" for index in range(40)]
    orders, some = Orders(names), [Replica(name, "", ReplicaLoad(n_slots=N_SLOTS)) for name in names]
    for conversation in range(30):
        ranked = Router().rank(RouteHint(digest_of_conversation(conversation), 4000), some)
        assert [names[index] for index in orders.all(conversation)] == [one.id for one in ranked]
        assert orders.first(conversation) == orders.all(conversation)[:16]


def test_the_simulated_policy_chooses_as_the_router_does() -> None:
    """Through requests that open and close, conversations that move, and beats with any load."""
    draw, now_s, n_replicas = random.Random(7), 0.0, 24
    router = Router()
    names = [str(index) for index in range(n_replicas)]
    policy, view = AffinePolicy(Orders(names), 1), LoadView(n_replicas)
    opened: list[deque[float]] = [deque() for _ in names]
    told, told_wait_s = np.zeros(n_replicas, dtype=np.int64), np.zeros(n_replicas)
    n_away = n_begun_elsewhere = 0
    for step in range(600):
        now_s += draw.random()
        if step % 10 == 0:
            told = np.array([draw.randint(0, draw.choice([6, 24])) for _ in names])
            told_wait_s = np.where(told >= N_SLOTS, [draw.choice([0.0, 1.0, 20.0]) for _ in names], 0.0)
            view.beat(told, told_wait_s)
        one = request(draw.randint(0, 60), draw.choice([200, 1000, 8000]), n_turns=draw.choice([0, 1]))
        loads = [
            ReplicaLoad(min(int(n), N_SLOTS), max(0, int(n) - N_SLOTS), N_SLOTS, float(wait_s), PREFILL_TOK_S)
            for n, wait_s in zip(told, told_wait_s, strict=True)
        ]
        some = [Replica(name, "", load) for name, load in zip(names, loads, strict=True)]
        is_new = not one.n_turns
        n_bytes = 4 * (one.history + one.n_new)
        hint = RouteHint(digest_of_conversation(one.conversation), n_bytes, is_new=is_new)
        best = router.rank(hint, some)[0].id
        found = policy._moved[0].find(digest_of_conversation(one.conversation))
        place = Orders(names).first(one.conversation)[0] if found is None else int(found)
        chosen = policy.choose(one, view, [True] * n_replicas)
        assert names[chosen] == best, step
        n_away += chosen != Orders(names).first(one.conversation)[0]
        n_begun_elsewhere += is_new and chosen != place and not view.wait_s(place)
        view.own[chosen] += 1
        router.opened(best)
        opened[chosen].append(now_s)
        for index, times in enumerate(opened):
            if times and draw.random() < 0.03:
                took_s = now_s - times.popleft()
                router.closed(names[index], took_s)
                view.ended(index, took_s)
    assert 50 < n_away < 550, "both answers were asked for"
    assert n_begun_elsewhere > 20


# --- workload and machines --------------------------------------------------------------------------------------------


def test_the_workload_is_distributed_as_the_papers_print_it() -> None:
    workload = ChatWorkload(10, seed=1)
    pauses = [workload.pause_s() for _ in range(20_000)]
    assert sum(pause < 600 for pause in pauses) / 20_000 == pytest.approx(0.8, abs=0.01)
    prompts = [workload.prompt_tokens() for _ in range(50_000)]
    assert np.mean(prompts) == pytest.approx(PROMPT_TOKENS, rel=0.05)
    chat, n_turns, conversations = SimulatedChat(0), [], 0
    for _ in range(30_000):
        n_before = chat.n_turns
        workload.end_turn(chat, 10)
        if chat.n_turns == 0:
            n_turns.append(n_before + 1)
            conversations += 1
    assert sum(n > 1 for n in n_turns) / conversations == pytest.approx(GOES_ON, abs=0.02)


def test_a_machine_keeps_what_was_used_last_and_computes_the_rest() -> None:
    machine = SimulatedServer(n_slots=1, n_kept=2)
    for conversation in (1, 2, 1, 3):
        machine.keep(conversation, 500)
    assert list(machine.kept) == [1, 3]
    known, unknown = request(1), request(2)
    assert machine.begin(known, 0.0) == 200 / PREFILL_TOK_S + 200 / machine.decode_tok_s
    assert known.n_cached == 500
    assert machine.begin(unknown, 0.0) == 700 / PREFILL_TOK_S + 200 / machine.decode_tok_s


def test_the_prefix_tree_goes_back_to_where_it_sent_and_else_to_the_smallest_tree() -> None:
    view, alive = LoadView(3), [True] * 3
    tree = PrefixTreePolicy(ChatWorkload(1, 1), 3, float("inf"), 1000)
    tree.sent(request(1), 0)
    tree.sent(request(2, 300), 1)
    assert tree.choose(request(1), view, alive) == 0
    assert tree.choose(request(3), view, alive) == 2
    tree.sent(request(4, 600), 0)
    assert tree.choose(request(1), view, alive) == 2, "its tree is full, and it was sent first"


# --- results at a small size ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> dict[str, RunFigures]:
    return {"one machine": run_one_machine(SMALL)} | {name: run_policy(SMALL, name) for name in POLICIES}


def test_nearly_as_much_is_cached_as_on_one_machine_and_the_load_is_even(measured: dict[str, RunFigures]) -> None:
    ours, one = measured["ggufd"], measured["one machine"]
    assert ours.cached_share >= 0.9 * one.cached_share
    assert ours.busiest <= 1.3
    assert 0.4 < ours.use < 0.7
    assert ours.n_requests > 2000


def test_the_others_lose_the_cache_or_let_clients_wait(measured: dict[str, RunFigures]) -> None:
    ours = measured["ggufd"]
    assert measured["power of two"].cached_share < 0.2
    assert measured["prefix tree, guarded"].cached_share < 0.5 * ours.cached_share
    assert measured["consistent hashing"].wait_s(99) > 2 * ours.wait_s(99)
    assert measured["prefix tree"].wait_s(99) > 2 * ours.wait_s(99)


@pytest.mark.parametrize("is_drained", [False, True])
def test_a_tenth_of_the_replicas_lost_is_made_up_for_within_three_turns(is_drained: bool) -> None:
    after = lost(SMALL, is_drained=is_drained)
    assert after.after[0][1] > 10_000, "chats that came again"
    assert max(after.cached_share_after(turn) for turn in range(3)) >= 0.9 * after.cached_share


def test_a_flood_has_its_share_of_all_with_the_ledger_only() -> None:
    flood = Flood(n_replicas=57)
    with_ledger, without = flooded(flood, has_ledger=True), flooded(flood, has_ledger=False)
    assert with_ledger.share < 0.06
    assert with_ledger.worst <= with_ledger.bound
    assert without.share == pytest.approx(0.5, abs=0.01)
    assert without.worst > without.bound


def test_the_head_of_a_text_is_short_enough_to_stay_at_home_in_role_play() -> None:
    figures = {size: head_figures(size, n_chats=1000) for size in SIZES}
    stays = [one.stays_in_role_play for one in figures.values()]
    assert stays == sorted(stays, reverse=True)
    apart = [one.told_apart for one in figures.values()]
    assert apart == sorted(apart)
    chosen = figures[HEAD_CHARACTERS[0]]
    assert chosen.stays_in_role_play > 0.9
    assert figures[8192].stays_in_role_play < chosen.stays_in_role_play - 0.1


# --- report -----------------------------------------------------------------------------------------------------------


T = TypeVar("T")


class Runner:
    """Does the runs, and keeps what they were called and told."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.told: list[float] = []

    def __call__(self, label: str, run: Callable[[Tell], T]) -> T:
        self.labels.append(label)
        return run(self.told.append)


def reported(simulation: Simulation) -> tuple[list[ReportLine], Runner]:
    runner = Runner()
    return list(simulation.report(runner)), runner


def test_the_report_has_a_row_of_each_policy_and_says_of_each_aim_whether_it_was_held() -> None:
    scale = Scale(n_replicas=20, n_chats=400, warm_s=30.0, ends_s=150.0, decode_tok_s=5.0)
    simulation = Simulation(scale, [OURS, "power of two"])
    lines, runner = reported(simulation)
    text = "\n".join(line.text for line in lines)
    assert len(runner.labels) == simulation.n_runs
    for label in runner.labels:
        assert sum(line.text.startswith(label) for line in lines) == 1, label
    assert "nan" not in text
    assert max(runner.told) <= 1.0 < max(runner.told) + 0.02
    aims = lines[-4:]
    assert {line.text.split()[-1] for line in aims} <= {"held", "missed"}
    assert {(line.text.endswith("held"), line.style) for line in aims} <= {(True, "green"), (False, "red")}
    assert max(len(line.text) for line in lines) <= 80


def test_without_this_projects_policy_or_a_loss_there_are_fewer_aims() -> None:
    scale = Scale(n_replicas=3, n_chats=30, warm_s=10.0, ends_s=40.0)
    lines, runner = reported(Simulation(scale, ["consistent hashing"], lost_share=0))
    assert runner.labels == ["one machine", "consistent hashing", "with the ledger", "without the ledger"]
    assert sum(line.text.endswith(("held", "missed")) for line in lines) == 1


def test_a_row_says_its_figures() -> None:
    one = RunFigures(n_requests=10, history=100, cached=80, waits_s=[1.0], busy_s=[0.5, 0.5])
    ours = RunFigures(n_requests=10, history=100, cached=60, waits_s=[1.0, 3.0], busy_s=[0.25, 0.75])
    assert " ".join(policy_row("name", ours, one).split()) == "name 0.600 0.750 1.50 50% 2.00 s 3.0 s 10"
    assert " ".join(policy_row("one", one, one).split()) == "one 0.800 50% 1.00 s 1.0 s 10"


def test_the_pace_of_answers_is_that_of_the_asked_share_of_slots() -> None:
    for use in (0.3, 0.6):
        scale = Scale(20, 2000, warm_s=300.0, ends_s=900.0, decode_tok_s=decode_tok_s_for(use, 20, 2000))
        assert run_one_machine(scale).use == pytest.approx(use, abs=0.03)


@pytest.mark.parametrize(("use", "n_chats"), [(0.9, 100), (0.001, 1000)])
def test_a_share_of_slots_that_chats_cannot_use_is_none(use: float, n_chats: int) -> None:
    with pytest.raises(ValueError, match="chats"):
        decode_tok_s_for(use, 10, n_chats)


def test_slot_time_of_what_still_runs_at_the_end_counts() -> None:
    """Answers that take longer than what is measured: every slot is used all the time."""
    scale = Scale(n_replicas=2, n_chats=3000, warm_s=300.0, ends_s=400.0, decode_tok_s=0.01)
    assert run_policy(scale, OURS, None, tell_nobody).use == pytest.approx(1.0, abs=0.01)
