"""The router: homes that stay, the load guard's price, bursts between two beats, and what is left out."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.cluster.replicas import Replica, ReplicaLoad
from ggufd.cluster.routing.hints import RouteHint
from ggufd.cluster.routing.leaves import digest
from ggufd.cluster.routing.moved_chats import MovedChats
from ggufd.cluster.routing.rendezvous import Rendezvous
from ggufd.cluster.routing.router import N_NEAR, Router, leaving_s, wait_s

FREE = ReplicaLoad(n_slots=4, prefill_tok_s=1000.0)


def replicas(n: int, load: ReplicaLoad = FREE) -> list[Replica]:
    return [Replica(f"r{index}", f"http://10.0.0.{index}:1", load) for index in range(n)]


def hint(name: object, n_prompt_bytes: int = 4000, head: object = None) -> RouteHint:
    return RouteHint(digest([str(name)]), n_prompt_bytes, b"" if head is None else digest([str(head)]))


def with_load(all_of_them: Sequence[Replica], replica_id: str, **changes: object) -> list[Replica]:
    return [
        dataclasses.replace(one, load=dataclasses.replace(one.load, **changes))  # type: ignore[arg-type]
        if one.id == replica_id
        else one
        for one in all_of_them
    ]


def homes(some: Sequence[Replica], n_chats: int = 2000) -> dict[int, str]:
    router = Router()
    return {chat: router.rank(hint(chat), some)[0].id for chat in range(n_chats)}


# --- homes ------------------------------------------------------------------------------------------------------------


def test_a_conversation_has_one_home_whoever_asks_and_in_whichever_order_replicas_are_known() -> None:
    some = replicas(10)
    first, second = Router(), Router()
    for chat in range(50):
        order = [one.id for one in first.rank(hint(chat), some)]
        assert order == [one.id for one in second.rank(hint(chat), some[::-1])]
        assert sorted(order) == sorted(one.id for one in some)


def test_homes_are_spread_evenly() -> None:
    n_at = Counter(homes(replicas(8), 8000).values())
    assert all(850 < n < 1150 for n in n_at.values()), n_at


def test_a_replica_that_goes_moves_its_own_conversations_only_and_to_all_others() -> None:
    some = replicas(8)
    before, after = homes(some), homes([one for one in some if one.id != "r3"])
    assert all(after[chat] == home for chat, home in before.items() if home != "r3")
    assert len({after[chat] for chat, home in before.items() if home == "r3"}) == 7


def test_a_replica_that_comes_takes_its_share_and_moves_nothing_else() -> None:
    before, after = homes(replicas(8)), homes(replicas(9))
    moved = {chat for chat in before if before[chat] != after[chat]}
    assert {after[chat] for chat in moved} == {"r8"}
    assert len(moved) == pytest.approx(2000 / 9, rel=0.25)


def test_where_a_conversation_goes_when_its_home_drains_is_where_it_is_routed_then() -> None:
    some = replicas(6)
    router = Router()
    for chat in range(40):
        home = router.home(hint(chat).chat, some)
        assert home is not None
        draining = with_load(some, home.id, is_draining=True)
        heir = router.home(hint(chat).chat, draining)
        ranked = router.rank(hint(chat), draining)
        assert heir == ranked[0]
        assert ranked[-1].id == home.id, "tried last: it refuses, but nobody else may be there"


def test_avoided_replicas_are_left_out_and_the_next_of_the_order_comes() -> None:
    some = replicas(5)
    router = Router()
    order = router.rank(hint("a"), some)
    assert router.rank(hint("a"), some, avoid={order[0].id, order[2].id}) == [order[1], *order[3:]]
    assert router.rank(hint("a"), [], avoid={"r1"}) == []
    assert router.rank(hint("a"), some, avoid=[one.id for one in some]) == []


# --- the load guard ---------------------------------------------------------------------------------------------------


def test_the_wait_grows_by_one_place_a_request_and_is_none_with_a_free_slot() -> None:
    assert wait_s(3, 4, 9.0, 3, 5.0) == 0
    assert [wait_s(n, 4, 0.0, 0, 8.0) for n in (4, 5, 6)] == [2.0, 4.0, 6.0]
    assert wait_s(5, 4, 3.0, 5, 99.0) == 3.0, "the replica's own forecast, where it made one"
    assert wait_s(7, 4, 3.0, 5, 99.0) == 6.0, "and the same for each that came since"


@pytest.mark.parametrize(("n_prompt_bytes", "stays"), [(40_000, True), (4_000, False)])
def test_the_home_is_left_only_where_waiting_there_costs_more_than_computing_the_prompt_anew(
    n_prompt_bytes: int, stays: bool
) -> None:
    some = replicas(4)
    router = Router()
    home = router.rank(hint("a"), some)[0]
    # Ten seconds for 40,000 bytes at 1,000 tokens a second, one for 4,000, and that for three.
    busy = with_load(some, home.id, running=4, waiting=1, wait_s=5.0)
    assert leaving_s(40_000, 1000.0) == 30
    assert (router.rank(hint("a", n_prompt_bytes), busy)[0].id == home.id) == stays


def test_a_conversation_leaves_its_home_for_one_other() -> None:
    some = replicas(20)
    router = Router()
    order = router.rank(hint("a"), some)
    busy = with_load(some, order[0].id, running=4, waiting=9, wait_s=60.0)
    assert [router.rank(hint("a"), busy)[0].id for _ in range(5)] == [order[1].id] * 5
    full = with_load(busy, order[1].id, running=4, waiting=9, wait_s=60.0)
    assert router.rank(hint("a"), full)[0].id == order[2].id


def test_a_conversation_that_left_its_home_goes_on_where_it_went() -> None:
    some = replicas(20)
    router = Router()
    home, other, *_ = router.rank(hint("a"), some)
    busy = with_load(some, home.id, running=4, waiting=9, wait_s=60.0)
    assert router.rank(hint("a"), busy)[0].id == other.id
    assert router.rank(hint("a"), some)[0].id == other.id, "the home is free again, and has nothing of it"
    assert Router().rank(hint("a"), some)[0].id == home.id, "an ingress that does not know of it"
    gone = [one for one in some if one.id != other.id]
    assert router.rank(hint("a"), gone)[0].id == home.id
    draining = with_load(some, other.id, is_draining=True)
    assert router.rank(hint("a"), draining)[0].id == home.id


def test_a_conversation_that_left_in_its_first_turn_is_found_by_its_longer_head_in_the_next() -> None:
    some = replicas(20)
    router = Router()
    home, other, *_ = router.rank(hint("a"), some)
    assert router.rank(hint("a"), some, avoid={home.id})[0].id == other.id
    assert router.rank(hint("a", head="a, and more"), some)[0].id == other.id


def test_a_conversation_that_came_home_is_not_sent_where_it_was_in_its_first_turn() -> None:
    some = replicas(20)
    router = Router()
    home, other, *_ = router.rank(hint("a"), some)
    router.rank(hint("a"), some, avoid={home.id})
    router.rank(hint("a", head="a, and more"), some)
    full = with_load(some, other.id, running=4, waiting=9, wait_s=60.0)
    assert router.rank(hint("a", head="a, and more"), full)[0].id == home.id
    assert router.rank(hint("a", head="a, and more"), some)[0].id == home.id


def test_a_retry_is_remembered_as_where_the_conversation_is() -> None:
    some = replicas(5)
    router = Router()
    home, other, *_ = router.rank(hint("a"), some)
    assert router.rank(hint("a"), some, avoid={home.id})[0].id == other.id
    assert router.rank(hint("a"), some)[0].id == other.id


def test_the_new_place_is_the_least_loaded_of_the_first_of_the_order() -> None:
    some = replicas(20)
    order = Router().rank(hint("a"), some)
    loaded = with_load(some, order[0].id, running=4, waiting=9, wait_s=60.0)
    for place in range(1, N_NEAR - 1):
        loaded = with_load(loaded, order[place].id, running=3)
    assert Router().rank(hint("a"), loaded)[0].id == order[N_NEAR - 1].id
    loaded = with_load(loaded, order[N_NEAR - 1].id, running=3)
    assert Router().rank(hint("a"), loaded)[0].id == order[1].id, "the one after has more room, but is further"


def new(name: object) -> RouteHint:
    return dataclasses.replace(hint(name), is_new=True)


def test_a_new_conversation_begins_elsewhere_where_its_home_is_crowded_and_stays_there() -> None:
    some = replicas(20)
    order = Router().rank(hint("a"), some)
    crowded = with_load(some, order[0].id, running=3)
    for place in (1, 2):
        crowded = with_load(crowded, order[place].id, running=1)
    for first in (Router.rank, lambda *given: [Router.best(*given)]):
        router = Router()
        begun = first(router, new("a"), crowded)[0]
        assert begun is not None
        assert begun.id == order[3].id, "the least loaded of the first four, all of which have a free slot"
        assert router.take_moves() == {hint("a").chat: begun.id}
        assert router.rank(hint("a", head="a, and more"), some)[0].id == begun.id
    assert Router().rank(hint("a"), crowded)[0].id == order[0].id, "one that has been answered in"


@pytest.mark.parametrize(("running", "others", "stays"), [(1, 0, True), (2, 0, False), (3, 3, True), (4, 3, False)])
def test_a_home_is_crowded_with_half_of_its_slots_used_and_more_than_the_mean(
    running: int, others: int, stays: bool
) -> None:
    some = replicas(20, dataclasses.replace(FREE, running=others))
    order = Router().rank(hint("a"), some)
    loaded = with_load(some, order[0].id, running=running)
    assert (Router().rank(new("a"), loaded)[0].id == order[0].id) == stays


def test_replicas_that_drain_are_no_part_of_the_mean() -> None:
    some = replicas(4)
    order = Router().rank(hint("a"), some)
    loaded = with_load(some, order[0].id, running=2)
    for one in order[2:]:
        loaded = with_load(loaded, one.id, running=4, is_draining=True)
    assert Router().rank(new("a"), loaded)[0].id == order[1].id


def test_ingresses_tell_each_other_who_is_away() -> None:
    some = replicas(20)
    one, other = Router(), Router()
    home, place, *_ = one.rank(hint("a"), some)
    one.rank(hint("a"), with_load(some, home.id, running=4, waiting=9, wait_s=60.0))
    moves = one.take_moves()
    assert moves == {hint("a").chat: place.id}
    assert one.take_moves() == {}
    other.learn_moves(moves)
    assert other.rank(hint("a"), some)[0].id == place.id
    assert other.take_moves() == {}, "what was learned is no news"
    other.rank(hint("a"), with_load(some, place.id, running=4, waiting=9, wait_s=60.0))
    one.learn_moves(other.take_moves())
    assert one.rank(hint("a"), some)[0].id == home.id


def test_the_memory_of_who_is_away_is_bounded() -> None:
    moved = MovedChats(max_moved=3)
    for number in range(10):
        moved.note(digest([str(number)]), "r1")
        assert moved.find(digest(["0"])) in ("r1", None)
    assert len(moved) == 3
    assert moved.find(digest(["9"])) == "r1"
    moved.note(digest(["9"]), "")
    assert moved.find(digest(["9"])) is None


def test_where_all_are_as_full_the_home_is_kept() -> None:
    some = replicas(6, dataclasses.replace(FREE, running=4, waiting=50, wait_s=200.0))
    router = Router()
    home = router.home(hint("a").chat, some)
    assert home is not None
    assert router.rank(hint("a"), some)[0].id == home.id


def test_a_replica_whose_rate_is_unknown_is_taken_for_the_mean_of_the_others() -> None:
    some = replicas(2)
    router = Router()
    home, other = router.rank(hint("a"), some)
    unknown = with_load(with_load(some, other.id, prefill_tok_s=0.0), home.id, running=4, waiting=1, wait_s=5.0)
    assert router.rank(hint("a", 8_000), unknown)[0].id == home.id, "6 s against 5"
    assert router.rank(hint("a", 6_000), unknown)[0].id == other.id, "4.5 s against 5"


def test_chats_of_one_session_name_do_not_leave_their_home_for_the_same_other() -> None:
    some = replicas(10)
    router = Router()
    home = router.home(hint("user").chat, some)
    assert home is not None
    busy = with_load(some, home.id, running=4, waiting=9, wait_s=60.0)
    firsts = {router.rank(hint("user", head=chat), busy)[0].id for chat in range(60)}
    assert len(firsts) >= 8
    assert {Router().rank(hint("user", head=chat), some)[0].id for chat in range(60)} == {home.id}
    assert {router.rank(hint("user", head=chat), some)[0].id for chat in range(60)} == firsts, "where they are now"


# --- this ingress' own requests ---------------------------------------------------------------------------------------


def send(router: Router, request: RouteHint | None, some: Sequence[Replica]) -> str:
    chosen = router.rank(request, some)[0].id
    router.opened(chosen)
    return chosen


def test_a_burst_between_two_beats_fills_the_home_and_then_goes_elsewhere() -> None:
    some = replicas(3)
    router = Router()
    # Each waiting one is taken for 5 / 4 s, the prompt for 3/4 s.
    sent = Counter(send(router, hint("same", 1000), some) for _ in range(12))
    home = router.home(hint("same").chat, some)
    assert home is not None
    assert sorted(sent.values()) == [4, 4, 4]
    assert sent[home.id] == 4


def test_a_burst_without_a_conversation_is_spread() -> None:
    router, some = Router(), replicas(4)
    assert Counter(send(router, None, some) for _ in range(20)) == dict.fromkeys([one.id for one in some], 5)


def test_requests_that_ended_are_not_counted_and_their_time_is_learned() -> None:
    router, some = Router(), replicas(2)
    for _ in range(100):
        chosen = send(router, hint("same"), some)
        router.closed(chosen, 0.1)
    assert {send(router, hint("same"), some) for _ in range(4)} == {chosen}
    # A place costs 0.1 / 4 s now: many may wait before it is worth to compute the prompt anew.
    assert Counter(send(router, hint("same"), some) for _ in range(20)) == {chosen: 20}


def test_files_of_a_page_and_refusals_do_not_make_a_busy_replica_look_quick() -> None:
    """Where they did, a short prompt waited for a long answer beside a replica with nothing to do."""
    router, some = Router(), replicas(2, ReplicaLoad(n_slots=1))
    for _ in range(40):
        router.closed(send(router, None, some))
    assert len({send(router, hint("same", 20), some) for _ in range(2)}) == 2


def test_what_a_beat_has_told_is_not_counted_twice() -> None:
    router, some = Router(), replicas(2)
    home, *_ = (send(router, hint("same"), some) for _ in range(3))
    told = with_load(some, home, running=3)
    assert send(router, hint("same", 1000), told) == home, "the fourth slot is free"
    assert send(router, hint("same", 1000), told) != home


def test_requests_of_other_ingresses_are_counted_beside_the_own() -> None:
    router, some = Router(), replicas(2)
    home = router.rank(hint("same"), some)[0].id
    told = with_load(some, home, running=2)
    assert [send(router, hint("same", 1000), told) for _ in range(2)] == [home, home]
    assert send(router, hint("same", 1000), told) != home


def test_the_close_of_what_was_never_opened_changes_nothing() -> None:
    router = Router()
    router.closed("unknown")
    assert len(router.rank(hint("a"), replicas(2))) == 2


LOADS = st.builds(
    ReplicaLoad,
    running=st.integers(0, 40),
    waiting=st.integers(0, 40),
    n_slots=st.integers(0, 20),
    wait_s=st.floats(0, 1e6),
    prefill_tok_s=st.floats(0, 1e6),
    kv_used=st.floats(0, 1),
    is_draining=st.booleans(),
)


LIKELY_LOADS = st.builds(
    ReplicaLoad,
    running=st.integers(0, 4),
    waiting=st.sampled_from([0, 0, 0, 3]),
    n_slots=st.just(4),
    wait_s=st.sampled_from([0.0, 0.5, 1.5, 60.0]),
    prefill_tok_s=st.sampled_from([0.0, 1000.0, 4000.0]),
    is_draining=st.sampled_from([False, False, False, True]),
)
"""Free and full replicas of which those that cost the same are not rare."""


@given(
    st.lists(LOADS, max_size=6),
    st.none() | st.builds(hint, st.text(), st.integers(0, 10**9), st.none() | st.text()),
    st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=30),
    st.sets(st.integers(0, 7).map("r{}".format)),
)
def test_every_replica_that_is_not_avoided_is_ranked_once_whatever_was_counted(
    loads: list[ReplicaLoad], request_hint: RouteHint | None, events: list[tuple[bool, int]], avoid: set[str]
) -> None:
    router = Router()
    some = [Replica(f"r{index}", "http://x", load) for index, load in enumerate(loads)]
    for is_opened, index in events:
        (router.opened if is_opened else router.closed)(f"r{index}")
    ranked = router.rank(request_hint, some, avoid)
    assert sorted(one.id for one in ranked) == sorted(one.id for one in some if one.id not in avoid)
    draining = [one.load.is_draining for one in ranked]
    assert draining == sorted(draining)


@given(st.lists(LOADS, min_size=1, max_size=6) | st.lists(LIKELY_LOADS, min_size=6, max_size=12), st.integers(0, 2**32))
def test_the_best_is_the_first_of_all_that_are_ranked(loads: list[ReplicaLoad], seed: int) -> None:
    """Through requests that open, close and are retried, by two routers of which one never ranks more than it must."""
    draw = random.Random(seed)
    one, other = Router(), Router()
    for _ in range(4):
        draw.shuffle(loads)
        some = [Replica(f"r{index}", "http://x", load) for index, load in enumerate(loads)]
        for _ in range(8):
            name = draw.randint(0, 3)
            request = draw.choice([None, hint(name), hint(name, head=1), new(name)])
            avoid = [replica.id for replica in some if draw.random() < 0.2]
            best, ranked = one.best(request, some, avoid), other.rank(request, some, avoid)
            assert best == (ranked[0] if ranked else None)
            if best is not None and draw.random() < 0.8:
                one.opened(best.id)
                other.opened(best.id)
            closed = draw.choice(some).id
            one.closed(closed)
            other.closed(closed)
    assert one.take_moves() == other.take_moves()


@pytest.mark.parametrize("n", [1, 31, 32, 200])
def test_all_weights_at_once_give_the_order_of_each(n: int) -> None:
    rendezvous, names = Rendezvous(), [f"r{index}" for index in range(n)]
    for chat in range(20):
        key = digest([str(chat)])
        by_weight = sorted(range(n), key=lambda index: rendezvous.weight(key, names[index]), reverse=True)
        assert list(rendezvous.order(key, names)) == by_weight
        assert rendezvous.first(key, names) == by_weight[0]
    assert rendezvous.first(digest(["0"]), names[1:] or names) == rendezvous.order(digest(["0"]), names[1:] or names)[0]
