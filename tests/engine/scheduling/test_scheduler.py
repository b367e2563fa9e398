"""The plan of a step: decode first, prefill by arrival within a budget, never more than the batch holds."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.costs.cost_model import Weights
from ggufd.engine.costs.step_costs import StepCosts
from ggufd.engine.costs.step_shape import SlotRows
from ggufd.engine.scheduling.scheduler import Chunk, Scheduler
from ggufd.engine.scheduling.token_budget import GapLimit
from ggufd.engine.sequence.sequence import SequenceState
from tests.support.costs import known_costs
from tests.support.fakes.fake_llama import make_request


def sequence(
    slot: int,
    n_prompt: int,
    *,
    n_past: int = 0,
    n_generated: int = 0,
    admit_s: float = 0.0,
    prompt_logprobs: bool = False,
) -> SequenceState:
    made = SequenceState.of(make_request(slot, bytes(n_prompt), prompt_logprobs=prompt_logprobs), 0, 0.0)
    made.tokens.extend([1] * n_generated)
    made.slot, made.n_past, made.admit_s = slot, n_past, admit_s
    return made


def decoding(slot: int, n_prompt: int = 10) -> SequenceState:
    return sequence(slot, n_prompt, n_past=n_prompt, n_generated=1)


def scheduler(
    *,
    n_batch: int = 64,
    n_ubatch: int = 64,
    n_outputs_max: int = 64,
    max_gap_ms: float = 100.0,
    max_gap_steps: int = 0,
    max_gap_full_ms: float = 0.0,
    costs: StepCosts | None = None,
) -> Scheduler:
    return Scheduler(
        n_batch=n_batch,
        n_ubatch=n_ubatch,
        n_outputs_max=n_outputs_max,
        max_gap_ms=max_gap_ms,
        max_gap_steps=max_gap_steps,
        max_gap_full_ms=max_gap_full_ms,
        costs=costs,
    )


def decode(costs: StepCosts, *seconds: float) -> None:
    """Four sequences decode, in steps that take so long."""
    for step_s in seconds:
        costs.record([SlotRows(slot, 1, 10) for slot in range(4)], step_s, n_prefill=0)


def shape(plan: list[Chunk]) -> list[tuple[int | None, int, int]]:
    return [(chunk.sequence.slot, chunk.n_tokens, chunk.n_outputs) for chunk in plan]


def test_nobody_runs_nothing_is_planned() -> None:
    assert scheduler().schedule([]) == []


def test_decoding_sequences_get_one_row_each_by_ascending_slot() -> None:
    assert shape(scheduler().schedule([decoding(2), decoding(0), decoding(5)])) == [(0, 1, 1), (2, 1, 1), (5, 1, 1)]


def test_a_prompt_goes_in_chunks_and_asks_for_logits_at_its_end_only() -> None:
    one = sequence(0, 150)
    plans = []
    while one.n_uncomputed:
        (chunk,) = scheduler().schedule([one])
        one.n_past += chunk.n_tokens
        plans.append((chunk.n_tokens, chunk.n_outputs))
    assert plans == [(64, 0), (64, 0), (22, 1)]


def test_the_oldest_prompt_goes_first() -> None:
    young, old = sequence(0, 50, admit_s=2.0), sequence(1, 50, admit_s=1.0)
    assert shape(scheduler().schedule([young, old])) == [(1, 50, 1)]


@pytest.mark.parametrize(("young", "rows"), [(14, 14), (15, 0), (16, 0), (50, 0)])
def test_of_what_the_first_prompt_leaves_another_has_all_it_needs_or_a_tile(young: int, rows: int) -> None:
    """One more count of rows in a batch is one more pass over the weights."""
    plan = scheduler().schedule([sequence(0, young, admit_s=2.0), sequence(1, 50, admit_s=1.0)])
    assert sum(chunk.n_tokens for chunk in plan) == 50 + rows


@pytest.mark.parametrize(("n_left", "rows"), [(16, 16), (31, 31), (32, 16)])
def test_of_a_prompt_no_crumb_is_left(n_left: int, rows: int) -> None:
    planner = scheduler(max_gap_ms=20.0, costs=known_costs(row_s=0.03))
    assert shape(planner.schedule([decoding(0), sequence(1, n_left)]))[1][1] == rows


def test_what_the_step_has_spent_is_not_left_for_prompts() -> None:
    planner = scheduler(n_batch=512, n_ubatch=512, costs=known_costs(pass_s=0.04, row_s=0.0006))
    assert planner.budget.prefill(n_decode=4) == pytest.approx(100, abs=1)
    assert planner.budget.prefill(n_decode=4, spent_s=0.036) == pytest.approx(40, abs=1)
    assert planner.budget.prefill(n_decode=4, spent_s=1.0) == 16


def test_decode_comes_before_prefill_however_old_that_is() -> None:
    plan = scheduler(n_batch=40, n_ubatch=40).schedule([sequence(0, 500), *(decoding(i) for i in range(1, 17))])
    assert len(plan) == 17
    assert shape(plan)[1:] == [(i, 1, 1) for i in range(1, 17)]


@pytest.mark.parametrize(("pass_s", "row_s", "slot", "n_tokens"), [(0.02, 5e-4, 5, 116), (6e-3, 1e-3, 5, 64)])
def test_a_step_with_running_streams_stays_under_the_gap(pass_s: float, row_s: float, slot: int, n_tokens: int) -> None:
    """A pass for the four rows, another for the prompt: 58 ms are left, or 84, of which whole tiles take 64."""
    planner = scheduler(n_batch=2048, n_ubatch=512, max_gap_ms=100.0, costs=known_costs(pass_s=pass_s, row_s=row_s))
    *_, chunk = planner.schedule([*(decoding(slot) for slot in range(4)), sequence(slot, 1000)])
    assert chunk.n_tokens == pytest.approx(n_tokens, abs=1)


def test_the_token_that_shares_a_pass_with_decode_rows_is_no_part_of_a_tile() -> None:
    planner = scheduler(n_batch=2048, n_ubatch=512, max_gap_ms=100.0, costs=known_costs(pass_s=0.006, row_s=0.001))
    streams = [decoding(slot) for slot in range(2, 6)]
    for slot, n_tokens in ((0, 64), (1, 65), (6, 65), (7, 64)):
        (chunk,) = [one for one in planner.schedule([*streams, sequence(slot, 1000)]) if not one.is_decode]
        assert chunk.n_tokens == n_tokens


@pytest.mark.parametrize(("n_past", "n_tokens"), [(0, 100), (1000, 83), (10_000, 20), (20_000, 16)])
def test_chunks_become_shorter_the_more_is_before_them(n_past: int, n_tokens: int) -> None:
    """50 ms are left: each thousand tokens before a token cost it 0.1 ms in tiles, else 0.2 ms."""
    costs = known_costs(pass_s=0.05, row_s=0.0005, attended_s=2e-7, attended_tiled_s=1e-7)
    planner = scheduler(n_batch=2048, n_ubatch=512, max_gap_ms=100.0, costs=costs)
    assert planner.budget.prefill(n_decode=1, n_past=n_past) == pytest.approx(n_tokens, abs=1)


@pytest.mark.parametrize(("decode_s", "budget"), [(0.01, 100), (0.0125, 93), (0.03, 320)])
def test_beside_slow_steps_the_gap_is_counted_in_them(decode_s: float, budget: int) -> None:
    """What is left of 100 ms, or of eight steps if that is more: a pass of 50 ms, and 0.4 ms a token."""
    costs = known_costs(pass_s=0.05, row_s=0.0004)
    planner = scheduler(n_batch=2048, n_ubatch=512, max_gap_ms=100.0, max_gap_steps=8, costs=costs)
    assert planner.budget.prefill(n_decode=4, decode_s=decode_s) == pytest.approx(budget, abs=1)


@pytest.mark.parametrize(
    ("pass_s", "row_s", "budget"),
    [(0.013, 2.9e-3, 64), (0.02, 5e-4, 256), (0.1, 5e-4, 384), (0.005, 5e-5, 512), (0.005, 4.5e-4, 192)],
)
def test_a_chunk_is_no_longer_than_pays_but_where_its_gap_is_short(pass_s: float, row_s: float, budget: int) -> None:
    """Passes worth 4, 40 and 200 rows, and of two faster devices, on which 512 and 211 tokens take 100 ms."""
    costs = known_costs(pass_s=pass_s, row_s=row_s)
    planner = scheduler(n_batch=2048, n_ubatch=512, max_gap_ms=1000.0, costs=costs)
    assert planner.budget.prefill(n_decode=4) == budget


@pytest.mark.parametrize(
    ("waiting", "decode_s", "max_gap_full_ms", "budget"),
    [
        (0.0, 0.02, 1000.0, 64),
        (0.5, 0.02, 1000.0, 320),
        (0.5, 0.005, 1000.0, 90),
        (0.5, 0.02, 150.0, 128),
        (0.5, 0.02, 50.0, 64),
        (0.5, 0.02, 0.0, 64),
        (0.0, 0.05, 1000.0, 192),
        (0.5, 0.04, 1000.0, 512),
    ],
)
def test_where_many_requests_wait_the_gap_may_be_three_times_as_many_steps(
    waiting: float, decode_s: float, max_gap_full_ms: float, budget: int
) -> None:
    """50 ms a pass and 0.5 ms a token, beside rows that take 20 ms by themselves, and so on."""
    costs = known_costs(pass_s=0.05, row_s=0.0005)
    gaps = {"max_gap_ms": 100.0, "max_gap_steps": 4, "max_gap_full_ms": max_gap_full_ms}
    planner = scheduler(n_batch=2048, n_ubatch=512, costs=costs, **gaps)
    assert planner.budget.prefill(n_decode=4, waiting=waiting, decode_s=decode_s) == pytest.approx(budget, abs=1)


@pytest.mark.parametrize(("waiting", "budget"), [(0.0, 64), (0.2, 64), (0.25, 128), (0.3, 192), (0.4, 448), (9, 448)])
def test_the_more_requests_wait_the_longer_the_gap_may_be(waiting: float, budget: int) -> None:
    """Beside 14 rows that take 25 ms: 4 steps, and 1.5, 2 and 3 times as many."""
    costs = known_costs(pass_s=0.05, row_s=0.0005)
    gaps = {"max_gap_ms": 100.0, "max_gap_steps": 4, "max_gap_full_ms": 1000.0}
    planner = scheduler(n_batch=2048, n_ubatch=512, costs=costs, **gaps)
    assert planner.budget.prefill(n_decode=14, waiting=waiting, decode_s=0.025) == pytest.approx(budget, abs=1)


@pytest.mark.parametrize(
    ("waiting", "decode_s", "max_gap_ms", "budget"),
    [
        (0.4, 0.02, 100.0, 704),
        (0.3, 0.02, 100.0, 384),
        (0.4, 0.05, 100.0, 1088),
        (0.25, 0.002, 300.0, 576),
        (0.25, 0.002, 30.0, 45),
    ],
)
def test_on_a_crowded_server_the_gap_may_be_five_times_as_many_steps_and_is_no_shorter_than_its_limit(
    waiting: float, decode_s: float, max_gap_ms: float, budget: int
) -> None:
    """5 ms a pass and 0.5 ms a token, so that 18 steps of a lone stream would be 100 ms.

    400 and 240 ms less the 20 of the rows that decode, 600 less 50, the limit less 2.
    """
    costs = known_costs(pass_s=0.005, row_s=0.0005)
    gaps = {"max_gap_ms": max_gap_ms, "max_gap_steps": 4, "max_gap_full_ms": 600.0}
    planner = scheduler(n_batch=2048, n_ubatch=2048, costs=costs, **gaps)
    crowded = {"waiting": waiting, "decode_s": decode_s, "gap": GapLimit.CROWDED}
    assert planner.budget.prefill(n_decode=4, **crowded) == pytest.approx(budget, abs=1)


def test_without_a_gap_for_full_servers_none_grows_on_a_crowded_one() -> None:
    costs = known_costs(pass_s=0.005, row_s=0.0005)
    gaps = {"max_gap_ms": 300.0, "max_gap_steps": 2}
    budgets = []
    for max_gap_full_ms in (0.0, 600.0):
        budget = scheduler(n_batch=2048, n_ubatch=2048, costs=costs, max_gap_full_ms=max_gap_full_ms, **gaps).budget
        budgets.append(budget.prefill(n_decode=4, waiting=1.0, decode_s=0.01, gap=GapLimit.CROWDED))
    assert budgets == [128, 512]


def test_a_short_gap_is_one_that_is_hardly_noticed_on_any_machine() -> None:
    planner = scheduler(n_batch=2048, n_ubatch=512, max_gap_ms=200.0, costs=known_costs(pass_s=0.01, row_s=0.002))
    usual, short = (planner.budget.prefill(n_decode=4, gap=gap) for gap in (GapLimit.USUAL, GapLimit.SHORT))
    assert (usual, short) == (64, 45)


def test_what_a_chunk_would_leave_of_a_prompt_is_in_it_where_there_is_time() -> None:
    """100 ms are 90 rows: a tile is as many as pay."""
    budget = scheduler(n_batch=2048, n_ubatch=512, costs=known_costs(pass_s=0.01, row_s=0.001)).budget
    assert [budget.prefill(n_decode=4, n_left=n) for n in (0, 64, 65, 89, 90, 91, 500)] == [64, 64, 65, 89, 90, 64, 64]


@pytest.mark.parametrize(("n_prompts", "n_waiting", "rows"), [(1, 0, 192), (1, 9, 448), (3, 0, 448), (3, 1, 448)])
def test_what_waits_for_slots_or_for_prefill_counts_where_it_is_no_burst(
    n_prompts: int, n_waiting: int, rows: int
) -> None:
    costs = known_costs(pass_s=0.05, row_s=0.0005)
    gaps = {"max_gap_ms": 150.0, "max_gap_steps": 4, "max_gap_full_ms": 350.0}
    planner = scheduler(n_batch=2048, n_ubatch=512, costs=costs, **gaps)
    readers = [sequence(slot, 2000, admit_s=slot) for slot in range(2, 2 + n_prompts)]
    running = [decoding(0), *readers]
    for now_s, expected in ((100.0, 192), (105.9, 192), (106.1, rows)):
        *_, chunk = planner.schedule(running, n_waiting=n_waiting, now_s=now_s)
        assert chunk.n_tokens == pytest.approx(expected, abs=1)
    planner.schedule(running[:1], now_s=107.0)
    *_, chunk = planner.schedule(running, n_waiting=n_waiting, now_s=120.0)
    assert chunk.n_tokens == 192, "another burst"


@pytest.mark.parametrize(("pass_s", "row_s", "budget"), [(0.013, 0.004, 46), (0.0042, 0.0025, 46), (0.0018, 2e-4, 448)])
def test_where_a_lone_stream_is_quick_a_gap_is_shorter_but_not_below_what_is_noticed(
    pass_s: float, row_s: float, budget: int
) -> None:
    """Steps of 17 ms, of which 200 are fewer than 18; of 6.7 ms, 18 of which are 120; of 2 ms, 18 of which are 36."""
    planner = scheduler(n_batch=2048, n_ubatch=512, max_gap_ms=200.0, costs=known_costs(pass_s=pass_s, row_s=row_s))
    assert planner.budget.prefill(n_decode=4) == pytest.approx(budget, abs=1)


@pytest.mark.parametrize(("n_past", "max_gap_ms", "budget"), [(300, 190, 50), (1300, 300, 64), (1300, 150, 24)])
def test_nearly_a_tile_of_prefill_is_a_whole_one_where_that_takes_hardly_longer(
    n_past: int, max_gap_ms: float, budget: int
) -> None:
    """Rows cost 3.4 ms behind 300 tokens, in tiles 3.1; behind 1,300 it is 5.9 and 4.6; a pass costs 16."""
    costs = known_costs(pass_s=0.016, row_s=0.00267, attended_s=2.47e-6, attended_tiled_s=1.5e-6)
    planner = scheduler(n_batch=2048, n_ubatch=512, max_gap_ms=max_gap_ms, costs=costs)
    assert planner.budget.prefill(n_decode=4, n_past=n_past) == pytest.approx(budget, abs=2)
    joined = planner.budget.prefill(n_decode=4, n_past=n_past, n_joined=1)
    assert joined == 65 if budget == 64 else joined < 64


@pytest.mark.parametrize(("ms_per_token", "budget"), [(0.0, 32), (0.1, 512), (0.7, 142), (2.0, 50), (20.0, 16)])
def test_what_nobody_waits_for_takes_as_long_as_a_gap_may(ms_per_token: float, budget: int) -> None:
    costs = known_costs(row_s=ms_per_token / 1000) if ms_per_token else None
    planner = scheduler(n_batch=2048, n_ubatch=512, max_gap_ms=100.0, costs=costs)
    assert planner.budget.background() == budget


def test_a_slow_machine_still_goes_on_with_prefill() -> None:
    planner = scheduler(max_gap_ms=100.0, costs=known_costs(pass_s=0.4, row_s=0.03))
    assert planner.budget.prefill(n_decode=4) == 16
    assert planner.budget.prefill(n_decode=0) == 64


def test_prefill_alone_is_bounded_in_time_too() -> None:
    planner = scheduler(n_batch=2048, n_ubatch=512, max_gap_ms=200.0, costs=known_costs(row_s=0.0025))
    # 0.6 s at 2.5 ms a token is 240, and 192 is whole tiles of 64.
    assert planner.budget.prefill(n_decode=0) == 192


def test_prefill_never_exceeds_a_ubatch() -> None:
    planner = scheduler(n_batch=2048, n_ubatch=512, costs=known_costs(row_s=1e-5))
    assert planner.budget.prefill(n_decode=0) == 512
    assert planner.budget.prefill(n_decode=3) == 512


def test_prompt_logprobs_ask_for_every_row_within_the_outputs() -> None:
    plan = scheduler(n_outputs_max=20).schedule([decoding(0), sequence(1, 50, prompt_logprobs=True)])
    assert shape(plan) == [(0, 1, 1), (1, 19, 19)]


def test_a_prompt_whose_last_row_finds_no_output_waits_with_that_row() -> None:
    plan = scheduler(n_outputs_max=2).schedule([sequence(0, 10), sequence(1, 10), sequence(2, 10)])
    assert shape(plan) == [(0, 10, 1), (1, 10, 1), (2, 9, 0)]


runs = st.lists(
    st.builds(
        lambda n_prompt, progress, is_decoding, logprobs: (
            n_prompt,
            min(progress, n_prompt - 1),
            is_decoding,
            logprobs,
        ),
        st.integers(1, 300),
        st.integers(0, 300),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=16,
)


@given(
    runs,
    st.integers(16, 128),
    st.integers(16, 64),
    st.none() | st.builds(Weights, st.floats(0, 0.5), st.floats(0, 0.01), st.floats(0, 1e-5), st.floats(0, 1e-5)),
)
def test_every_plan_fits_and_lets_somebody_go_on(
    made: list[tuple[int, int, bool, bool]], n_batch: int, n_outputs_max: int, weights: Weights | None
) -> None:
    planner = scheduler(n_batch=n_batch, n_ubatch=64, n_outputs_max=n_outputs_max)
    planner.costs.model.weights = weights
    running = [
        decoding(slot, n_prompt) if is_decoding else sequence(slot, n_prompt, n_past=n_past, prompt_logprobs=logprobs)
        for slot, (n_prompt, n_past, is_decoding, logprobs) in enumerate(made)
    ]
    plan = planner.schedule(running)
    assert 0 < sum(chunk.n_tokens for chunk in plan) <= n_batch
    assert sum(chunk.n_outputs for chunk in plan) <= n_outputs_max
    slots = [chunk.sequence.slot for chunk in plan]
    assert slots == sorted(set(slots))
    for chunk in plan:
        assert 0 < chunk.n_tokens <= chunk.sequence.n_uncomputed
        is_last = chunk.n_tokens == chunk.sequence.n_uncomputed
        assert chunk.n_outputs >= is_last
    assert {chunk.sequence.slot for chunk in plan} >= {one.slot for one in running if one.is_decoding}


@given(runs)
def test_every_prompt_gets_computed(made: list[tuple[int, int, bool, bool]]) -> None:
    planner = scheduler(n_batch=32, n_ubatch=32, n_outputs_max=16)
    running = [
        sequence(slot, n_prompt, n_past=n_past, prompt_logprobs=logprobs, admit_s=float(slot))
        for slot, (n_prompt, n_past, _, logprobs) in enumerate(made)
    ]
    n_steps = 0
    while waiting := [one for one in running if one.n_uncomputed]:
        for chunk in planner.schedule(waiting):
            chunk.sequence.n_past += chunk.n_tokens
        n_steps += 1
        assert n_steps <= 16 * 300 / 16 + 20


def test_whose_account_was_served_least_reads_first_and_the_more_urgent_within_it() -> None:
    served = {0: 500.0, 1: 20.0, 2: 20.0}
    reading = [sequence(slot, 40, admit_s=float(slot)) for slot in served]
    reading[2].request = dataclasses.replace(reading[2].request, priority=-1)
    for slot in (2, 1, 0):
        plan = scheduler(n_batch=64).schedule(reading, served=lambda one: served[one.slot or 0])
        assert shape(plan) == [(slot, 40, 1)]
        reading.remove(plan[0].sequence)


def forced(slot: int, n_forced: int, *, admit_s: float = 0.0) -> SequenceState:
    return sequence(slot, 10, n_past=10, n_generated=1 + n_forced, admit_s=admit_s)


@pytest.mark.parametrize(
    ("n_others", "n_forced", "rows"),
    [(0, 1, 2), (0, 5, 6), (2, 1, 1), (2, 2, 3), (4, 1, 1), (4, 15, 1), (4, 16, 17)],
)
def test_forced_tokens_go_at_once_or_one_a_step_whichever_costs_less(n_others: int, n_forced: int, rows: int) -> None:
    plan = scheduler().schedule([forced(0, n_forced), *(decoding(slot) for slot in range(1, n_others + 1))])
    assert shape(plan)[0] == (0, rows, 0 if rows == 1 else 1)
    assert plan[0].is_decode == (rows == 1)


def test_forced_tokens_wait_for_no_prompt() -> None:
    older = sequence(0, 500, admit_s=-5.0)
    assert shape(scheduler().schedule([older, forced(1, 20)])) == [(0, 43, 0), (1, 21, 1)]


def test_the_first_prompt_of_all_begins_with_little() -> None:
    planner = scheduler(n_batch=2048, n_ubatch=512)
    assert planner.budget.prefill(n_decode=0) == 64
    assert planner.budget.prefill(n_decode=1) == 32


# --- deterministic requests -------------------------------------------------------------------------------------------


def deterministic(made: SequenceState) -> SequenceState:
    made.request = dataclasses.replace(made.request, is_deterministic=True)
    return made


@pytest.mark.parametrize(("n_past", "n_tokens"), [(0, 64), (64, 64), (10, 54), (128, 22)])
def test_a_fixed_chunk_ends_at_a_multiple_of_its_length_whatever_the_budget(n_past: int, n_tokens: int) -> None:
    plan = scheduler(max_gap_ms=1.0).schedule([decoding(1), deterministic(sequence(0, 150, n_past=n_past))])
    assert shape(plan) == [(0, n_tokens, int(n_past == 128)), (1, 1, 1)]


def test_a_step_reads_one_fixed_chunk_and_nothing_beside_it() -> None:
    first, second = deterministic(sequence(0, 150, admit_s=1.0)), deterministic(sequence(1, 150, admit_s=2.0))
    other = sequence(2, 150, admit_s=3.0)
    assert shape(scheduler().schedule([other, second, first])) == [(0, 64, 0)]
    first.admit_s = 4.0
    assert shape(scheduler().schedule([other, second, first])) == [(1, 64, 0)]
    second.admit_s = 5.0
    assert [slot for slot, _, _ in shape(scheduler().schedule([other, second, first]))] == [2]


def test_behind_a_deterministic_prompt_every_token_is_a_chunk() -> None:
    forced = deterministic(sequence(0, 10, n_past=10, n_generated=3))
    assert shape(scheduler().schedule([forced])) == [(0, 1, 0)]
    forced.n_past = 12
    assert shape(scheduler().schedule([forced])) == [(0, 1, 1)]


def test_fixed_chunks_have_logits_for_all_of_a_prompt_that_wants_them() -> None:
    asked = deterministic(sequence(0, 100, prompt_logprobs=True))
    assert shape(scheduler(n_outputs_max=16).schedule([asked])) == [(0, 16, 16)]


def test_tokens_that_are_computed_alone_take_of_the_time_for_prompts() -> None:
    one = scheduler(costs=known_costs(pass_s=0.019, row_s=0.001))
    alone = [deterministic(decoding(slot)) for slot in (1, 2)]
    n_without = one.schedule([decoding(3), sequence(0, 150)])[0].n_tokens
    n_beside = one.schedule([decoding(3), *alone, sequence(0, 150)])[0].n_tokens
    assert n_beside < n_without
    assert one.decode_s(alone) == pytest.approx(0.04)
