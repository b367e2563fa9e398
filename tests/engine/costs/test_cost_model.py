"""What steps cost: learned from those that were served, on a machine that does other things too."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.costs.cost_model import CostModel, Weights
from ggufd.engine.costs.step_costs import StepCosts
from ggufd.engine.costs.step_shape import SlotRows, StepShape, shape_of
from tests.support.costs import known_costs

CPU = Weights(12e-3, 2.9e-3, 1.1e-6, 0.5e-6)
"""A small model on two cores, about as measured."""

GPU = Weights(5e-3, 2e-5, 1e-9, 1e-9)
N_UBATCH = 512


def served(seed: int, n_steps: int) -> Iterator[list[SlotRows]]:
    """Steps of a server: some chats of unequal depth, and now and then a chunk of a prompt."""
    rng = random.Random(seed)
    for _ in range(n_steps):
        n, depth = rng.choice((1, 1, 3, 4, 8, 16)), rng.randrange(50, 1500)
        parts = [SlotRows(slot, 1, depth + 10 * slot) for slot in range(n)]
        if rng.random() < 0.2:
            parts.append(SlotRows(n, rng.choice((32, 64, 100, 190)), rng.randrange(2000)))
        yield parts


def learned(true: Weights, *, noise: float = 0.0, known: Weights | None = None, n_steps: int = 400) -> CostModel:
    """Model of a machine on which steps take as long as `true` says, but for its noise."""
    rng, model = random.Random(3), CostModel(known)
    for parts in served(1, n_steps):
        shape = shape_of(parts, N_UBATCH)
        disturbed = 3.0 if noise and rng.random() < 0.03 else 1.0
        model.record(shape, disturbed * rng.lognormvariate(0, noise) * true.seconds(shape))
    return model


def errors(model: CostModel, true: Weights) -> list[float]:
    """Relative errors for steps that the model has not seen."""
    shapes = [shape_of(parts, N_UBATCH) for parts in served(2, 200)]
    return sorted(abs(model.seconds(shape) / true.seconds(shape) - 1) for shape in shapes)


def test_before_anything_was_measured_nothing_takes_any_time() -> None:
    assert CostModel().seconds(StepShape(1, 1, 100)) == 0


@pytest.mark.parametrize("true", [CPU, GPU], ids=["cpu", "gpu"])
def test_what_takes_a_sum_is_learned_as_one(true: Weights) -> None:
    found = errors(learned(true), true)
    assert statistics.median(found) < 0.01
    assert found[-1] < 0.1


def test_a_restless_machine_makes_it_little_worse() -> None:
    found = errors(learned(CPU, noise=0.15), CPU)
    assert statistics.median(found) < 0.1
    assert found[int(0.9 * len(found))] < 0.25


def test_what_was_expected_of_a_step_is_told() -> None:
    model = learned(CPU)
    one = shape_of([SlotRows(0, 1, 300)], N_UBATCH)
    expected_s = model.seconds(one)
    assert model.record(one, 2 * expected_s) == expected_s
    assert CostModel().record(one, 1.0) == 0


def test_one_step_is_a_guess_at_all_others() -> None:
    """From a chunk of 64 rows alone it is known within a factor of two what a token of a small model costs."""
    model = CostModel()
    model.record(shape_of([SlotRows(0, 64, 0)], N_UBATCH), CPU.seconds(shape_of([SlotRows(0, 64, 0)], N_UBATCH)))
    one = shape_of([SlotRows(0, 1, 64)], N_UBATCH)
    assert CPU.seconds(one) / 2 < model.seconds(one) < 2 * CPU.seconds(one)


def test_what_was_learned_before_is_the_beginning() -> None:
    model = CostModel(CPU)
    one = shape_of([SlotRows(0, 1, 64)], N_UBATCH)
    assert model.seconds(one) == pytest.approx(CPU.seconds(one))
    # The machine is twice as slow today: one step tells it of all others.
    model.record(one, 2 * CPU.seconds(one))
    chunk = shape_of([SlotRows(0, 128, 500)], N_UBATCH)
    model = CostModel(CPU)
    for _ in range(8):
        model.record(one, 1.4 * CPU.seconds(one))
    assert model.seconds(chunk) == pytest.approx(1.4 * CPU.seconds(chunk), rel=0.1)


def test_a_weight_that_was_nothing_before_may_be_learned() -> None:
    assert statistics.median(errors(learned(CPU, known=Weights(0.0, 2.9e-3, 0.0, 0.0)), CPU)) < 0.05


def test_hours_of_decoding_leave_what_prompts_cost() -> None:
    model = learned(CPU)
    one = shape_of([SlotRows(0, 1, 300)], N_UBATCH)
    for _ in range(3000):
        model.record(one, CPU.seconds(one))
    chunk = shape_of([SlotRows(0, 128, 500)], N_UBATCH)
    assert model.seconds(chunk) == pytest.approx(CPU.seconds(chunk), rel=0.15)


def test_what_a_kernel_does_at_one_count_is_learned_for_it() -> None:
    """Four rows that take twice what they should: so are they told, and three are not."""
    model = learned(CPU)
    three, four = (shape_of([SlotRows(slot, 1, 300) for slot in range(n)], N_UBATCH) for n in (3, 4))
    before_s = model.seconds(three)
    for _ in range(60):
        model.record(four, 2 * CPU.seconds(four))
    assert model.seconds(four) > 1.5 * CPU.seconds(four)
    assert model.seconds(three) < 1.3 * before_s


def test_a_first_step_that_waits_for_the_disk_is_soon_forgotten() -> None:
    """As seen with weights that were not in memory: 1.4 s for a prompt's 24 tokens, then 35 ms a step."""
    model = CostModel()
    model.record(shape_of([SlotRows(0, 24, 0)], N_UBATCH), 1.4)
    four = shape_of([SlotRows(slot, 1, 40) for slot in range(4)], N_UBATCH)
    for _ in range(12):
        model.record(four, CPU.seconds(four))
    assert model.seconds(four) == pytest.approx(CPU.seconds(four), rel=0.3)
    one = shape_of([SlotRows(0, 1, 40)], N_UBATCH)
    for _ in range(4):
        model.record(one, CPU.seconds(one))
    assert model.seconds(one) == pytest.approx(CPU.seconds(one), rel=0.3)


def test_one_long_step_counts_for_little() -> None:
    model = learned(CPU)
    one = shape_of([SlotRows(0, 1, 300)], N_UBATCH)
    before_s = model.seconds(one)
    model.record(one, 100 * before_s)
    assert model.seconds(one) < 1.2 * before_s


@given(
    st.lists(
        st.tuples(
            st.integers(0, 20), st.integers(0, 2000), st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 10)
        ),
        max_size=150,
    )
)
def test_no_history_makes_a_time_less_than_nothing(history: list[tuple[int, int, int, int, float]]) -> None:
    model = CostModel()
    for n_passes, n_rows, n_attended, n_tiled, seconds in history:
        shape = StepShape(n_passes, n_rows, n_attended, n_tiled)
        model.record(shape, seconds)
        assert model.seconds(shape) >= 0
    assert model.weights is None or min(model.weights) >= 0


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_a_prompt_takes_what_its_chunks_take() -> None:
    costs = known_costs(pass_s=CPU[0], row_s=CPU[1], attended_s=CPU[2], attended_tiled_s=CPU[3])
    chunks = [SlotRows(0, 128, 300 + start) for start in range(0, 640, 128)]
    expected = sum(CPU.seconds(shape_of([chunk], N_UBATCH)) for chunk in chunks)
    assert costs.prefill_s(640, 300) == pytest.approx(expected, rel=0.01)
    assert costs.prefill_s(0) == 0


def test_short_chunks_make_a_prompt_dearer() -> None:
    costs = known_costs(pass_s=0.05, row_s=0.001)
    before_s = costs.prefill_s(640)
    for _ in range(20):
        costs.record([SlotRows(0, 16, 0)], 0.05 + 0.016, n_prefill=16)
    assert costs.prefill_s(640) == pytest.approx(40 * 0.066, rel=0.05)
    assert before_s < 1.0


@pytest.mark.parametrize("n_past", [0, 500, 5000])
@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.5, 2.0])
def test_as_many_tokens_as_are_affordable_take_that_long(n_past: int, seconds: float) -> None:
    costs = known_costs(pass_s=CPU[0], row_s=CPU[1], attended_s=CPU[2], attended_tiled_s=CPU[3], n_ubatch=4096)
    n = costs.n_affordable(seconds, n_past)
    took_s = costs.seconds([SlotRows(0, n, n_past)])
    assert took_s <= 1.15 * seconds
    # In tiles one more would be too long; below them there may be a step up to the first.
    assert costs.seconds([SlotRows(0, n + 2, n_past)]) > 0.9 * seconds or n == 63


def test_less_than_a_pass_affords_nothing() -> None:
    assert known_costs(pass_s=0.1, row_s=0.001).n_affordable(0.09, 0) == 0


def test_the_decode_is_what_decoded_last() -> None:
    costs = StepCosts()
    assert costs.decode_s == 0
    four = [SlotRows(slot, 1, 100) for slot in range(4)]
    for seconds in (0.03, 0.02, 0.04, 0.03):
        costs.record(four, seconds, n_prefill=0)
    assert costs.decode_s == pytest.approx(0.03, rel=0.2)
    # Neither a draft nor a chunk of a prompt is one.
    costs.record([SlotRows(0, 8, 100)], 0.3, n_prefill=0)
    costs.record([SlotRows(0, 64, 100)], 0.3, n_prefill=64)
    assert costs.decode_s == pytest.approx(0.03, rel=0.4)
