"""Both samplers against slow references: the numpy one, and llama.cpp's chain on the same logits."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggufd.engine.messages.sampling import SamplingParams
from ggufd.engine.sampling.sampling import (
    Bias,
    Logprobs,
    Penalties,
    VectorSampler,
    active_samplers,
    bounded,
    is_vectorisable,
    penalties_of,
    uniform,
)
from ggufd.llama.context.context import Context
from ggufd.llama.context.sampler import SamplerChain, window
from ggufd.llama.model.model import Model
from ggufd.llama.params import DEFAULT_SAMPLERS, ContextParams, ModelParams
from tests.support.examples import examples
from tests.support.fakes.fake_llama import FakeVocabulary
from tests.support.models.tiny_model import N_VOCAB

Row = Any


@pytest.fixture(scope="module")
def context(tiny_model: Path) -> Iterator[Context]:
    model = Model(ModelParams(str(tiny_model)))
    made = Context(model, ContextParams(n_ctx=256, n_slots=2, n_batch=64, n_ubatch=64, n_threads=1, flash_attn="off"))
    yield made
    made.close()
    model.close()


def some_logits(seed: int = 1, n: int = N_VOCAB, scale: float = 2.0) -> Row:
    return np.random.default_rng(seed).normal(0, scale, n).astype(np.float32)


def softmax(logits: Row) -> Row:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def reference(params: SamplingParams, logits: Row, said: list[int]) -> dict[int, float]:
    """Probabilities by penalties, top-k, top-p, min-p and temperature, written down without any haste."""
    values = {token: float(logit) for token, logit in enumerate(logits)}
    last_n = len(said) if params.repeat_last_n < 0 else params.repeat_last_n
    for token, count in Counter(said[len(said) - min(last_n, len(said)) :]).items():
        value = values[token]
        value = value * params.repeat_penalty if value <= 0 else value / params.repeat_penalty
        values[token] = value - count * params.frequency_penalty - params.presence_penalty
    order = sorted(values, key=lambda token: -values[token])
    if params.temperature <= 0:
        return {order[0]: 1.0}
    if params.top_k > 0:
        order = order[: params.top_k]
    if params.top_p < 1:
        shares = softmax(np.array([values[token] for token in order]))
        n_keep = next(n for n in range(1, len(order) + 1) if n == len(order) or shares[:n].sum() >= params.top_p)
        order = order[: max(n_keep, params.min_keep)]
    if params.min_p > 0:
        least = values[order[0]] + math.log(params.min_p)
        order = [token for n, token in enumerate(order) if values[token] >= least or n < params.min_keep]
    shares = softmax(np.array([values[token] for token in order]) / params.temperature)
    return dict(zip(order, shares, strict=True))


def distribution(
    context: Context, params: SamplingParams, logits: Row, said: list[int] | None = None
) -> dict[int, float]:
    """What llama.cpp's chain leaves of `logits`, with the probability of each token."""
    chain = context.new_chain(params, 1, said or [], can_rewind=False)
    result = apply(chain, logits)
    chain.close()
    return result


def apply(chain: SamplerChain, logits: Row) -> dict[int, float]:
    data = (llama_cpp.llama_token_data * len(logits))()
    for token, logit in enumerate(logits):
        data[token] = llama_cpp.llama_token_data(token, float(logit), 0.0)
    array = llama_cpp.llama_token_data_array(
        ctypes.cast(data, ctypes.POINTER(llama_cpp.llama_token_data)), len(logits), -1, False
    )
    llama_cpp.llama_sampler_apply(chain._handle, ctypes.byref(array))
    left = {array.data[i].id: array.data[i].p for i in range(array.size)}
    return {token: share for token, share in left.items() if share > 0}


def vector_sampler(params: SamplingParams, said: list[int], seed: int = 0, n_vocab: int = N_VOCAB) -> VectorSampler:
    return VectorSampler(params, seed, penalties_of(params, n_ctx=256, n_vocab=n_vocab, history=said))


def is_close(found: dict[int, float], expected: dict[int, float]) -> bool:
    tokens = found.keys() | expected.keys()
    return all(abs(found.get(token, 0.0) - expected.get(token, 0.0)) < 2e-5 for token in tokens)


def chi_square(counts: Counter[int], shares: dict[int, float]) -> tuple[float, int]:
    """The statistic and its degrees of freedom; rare tokens are taken together."""
    n = sum(counts.values())
    rare = [token for token, share in shares.items() if n * share < 8]
    bins = [(counts[token], n * share) for token, share in shares.items() if n * share >= 8]
    if rare:
        bins.append((sum(counts[token] for token in rare), n * sum(shares[token] for token in rare)))
    return sum((seen - wanted) ** 2 / wanted for seen, wanted in bins if wanted > 0), max(1, len(bins) - 1)


def assert_drawn_from(counts: Counter[int], shares: dict[int, float]) -> None:
    assert not counts.keys() - shares.keys(), "a token that may not come"
    statistic, freedom = chi_square(counts, shares)
    # Five standard deviations above the mean; the seeds are fixed, so it is the same number every time.
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


MIXES = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"top_k": 30, "top_p": 0.7, "temperature": 0.8},
    {"top_p": 0.9, "min_p": 0.05, "temperature": 1.3},
    {"top_k": 5, "top_p": 0.2, "min_keep": 3},
    {"min_p": 0.9, "min_keep": 4},
    {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8, "repeat_penalty": 1.3},
    {"repeat_penalty": 1.5, "frequency_penalty": 0.3, "presence_penalty": 0.7, "repeat_last_n": 5},
    {"frequency_penalty": -0.5, "top_k": 20},
]
SAID = [3, 5, 3, 7, 9, 3, 11, 200, 5]


# --- the two are one --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", MIXES, ids=str)
def test_the_chain_is_the_reference(context: Context, changes: dict[str, Any]) -> None:
    params = SamplingParams(**changes)
    logits = some_logits()
    assert is_close(distribution(context, params, logits, SAID), reference(params, logits, SAID))


@pytest.mark.parametrize("changes", MIXES, ids=str)
def test_draws_in_numpy_follow_the_reference(changes: dict[str, Any]) -> None:
    params = SamplingParams(**changes)
    assert is_vectorisable(params)
    logits = some_logits()
    counts = Counter(vector_sampler(params, SAID, seed).sample(logits.copy(), 0) for seed in range(3000))
    assert_drawn_from(counts, reference(params, logits, SAID))


@pytest.mark.parametrize("changes", [MIXES[0], MIXES[6], MIXES[10]], ids=str)
def test_draws_of_the_chain_follow_the_reference(context: Context, changes: dict[str, Any]) -> None:
    params = SamplingParams(**changes)
    logits = some_logits()
    write_row(context, logits)
    counts: Counter[int] = Counter()
    for seed in range(3000):
        chain = context.new_chain(params, seed, SAID, can_rewind=False)
        counts[chain.sample(context.logits()[0], 0)] += 1
        chain.close()
    assert_drawn_from(counts, reference(params, logits, SAID))


def as_shares(distribution: tuple[Row, Row]) -> dict[int, float]:
    return dict(zip(*(part.tolist() for part in distribution), strict=True))


@pytest.mark.parametrize("changes", [*MIXES, {"temperature": 0.0, "repeat_penalty": 1.5}], ids=str)
def test_both_tell_what_they_draw_from(context: Context, changes: dict[str, Any]) -> None:
    params, logits = SamplingParams(**changes), some_logits()
    logits[5] = -np.inf
    expected = {token: share for token, share in reference(params, logits, SAID).items() if share > 0}
    before = logits.copy()
    assert is_close(as_shares(vector_sampler(params, SAID).distribution(logits)), expected)
    chain = context.new_chain(params, 1, SAID, can_rewind=False)
    assert is_close(as_shares(chain.distribution(logits)), expected)
    chain.close()
    assert np.array_equal(logits, before)


OWN_DRAWS = [
    {"xtc_probability": 0.5, "xtc_threshold": 0.05},
    {"mirostat": 1},
    {"mirostat": 2},
    {"adaptive_target": 0.3},
    {"typ_p": 0.5, "dynatemp_range": 0.5},
]


@pytest.mark.parametrize("changes", OWN_DRAWS, ids=str)
def test_what_the_chain_tells_is_what_it_then_draws_from(context: Context, changes: dict[str, Any]) -> None:
    """Whatever the samplers drew for it: and asking changes nothing about the text."""
    asked, silent = (context.new_chain(SamplingParams(**changes), 3, SAID, can_rewind=False) for _ in range(2))
    for step in range(40):
        write_row(context, some_logits(step, scale=4.0))
        shares = as_shares(asked.distribution(context.logits()[0]))
        assert sum(shares.values()) == pytest.approx(1)
        token = asked.sample(context.logits()[0], 0)
        assert token in shares
        assert token == silent.sample(context.logits()[0], 0)
    asked.close()
    silent.close()


def write_row(context: Context, logits: Row) -> None:
    """Compute one row, then put other logits in its place, where C reads them."""
    context.trim(0, 0)
    context.batch.clear()
    context.batch.add(0, [1], 0, 1)
    context.decode()
    context.logits()[0] = logits


@pytest.mark.parametrize("changes", [{}, {"repeat_penalty": 1.5, "repeat_last_n": 8}, {"frequency_penalty": 1.0}])
def test_greedy_is_the_same_in_both(context: Context, changes: dict[str, Any]) -> None:
    params = SamplingParams(temperature=0.0, **changes)
    vector = vector_sampler(params, SAID)
    chain = context.new_chain(params, 1, SAID, can_rewind=False)
    for step in range(50):
        # The same few tokens are best again and again, so penalties have something to do.
        logits = some_logits(step % 3)
        write_row(context, logits)
        assert vector.sample(logits.copy(), 0) == chain.sample(context.logits()[0], 0)
    chain.close()


class EvenSampler(VectorSampler):
    """Draws with a given number instead of a random one."""

    number = 0.0

    def _random(self) -> float:
        return self.number


mixes = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 50, 2000]),
    top_p=st.sampled_from([1.0, 0.0, 0.3, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    min_keep=st.sampled_from([0, 1, 3]),
)


@given(mixes, st.integers(0, 50), st.sampled_from([300, 1500]), st.sampled_from([0.5, 4.0]))
def test_evenly_spaced_numbers_draw_every_token_by_its_share(
    params: SamplingParams, seed: int, n_vocab: int, scale: float
) -> None:
    logits = some_logits(seed, n_vocab, scale)
    sampler = EvenSampler(params, 0, None)
    counts: Counter[int] = Counter()
    n = 200
    for i in range(n):
        sampler.number = (i + 0.5) / n
        counts[sampler.sample(logits.copy(), 0)] += 1
    shares = reference(params, logits, [])
    assert not counts.keys() - shares.keys()
    for token, share in shares.items():
        assert abs(counts[token] - n * share) <= 1.01


def test_banned_tokens_are_never_drawn_even_by_extreme_numbers() -> None:
    logits = some_logits()
    logits[[0, 100, N_VOCAB - 1]] = -np.inf
    for changes in ({}, {"top_k": N_VOCAB}, {"top_p": 0.9999}, {"min_p": 1e-9}, {"min_keep": N_VOCAB, "min_p": 0.5}):
        sampler = EvenSampler(SamplingParams(**changes), 0, None)
        for sampler.number in (0.0, 1e-300, 0.5, 1 - 2**-53):
            assert sampler.sample(logits.copy(), 0) not in (0, 100, N_VOCAB - 1)


def test_the_same_seed_draws_the_same_and_others_differ(context: Context) -> None:
    for params in (SamplingParams(), SamplingParams(xtc_probability=0.5)):
        texts = {seed: draw_text(context, params, seed) for seed in (1, 2, 3)}
        assert texts == {seed: draw_text(context, params, seed) for seed in (1, 2, 3)}
        assert len({tuple(text) for text in texts.values()}) == 3


def draw_text(context: Context, params: SamplingParams, seed: int) -> list[int]:
    logits = some_logits()
    write_row(context, logits)
    is_fast = is_vectorisable(params)
    sampler: Any = (
        vector_sampler(params, [], seed) if is_fast else context.new_chain(params, seed, [], can_rewind=False)
    )
    tokens = [sampler.sample(context.logits()[0], 0) for _ in range(20)]
    sampler.close()
    return tokens


def test_uniform_numbers_are_uniform() -> None:
    numbers = [uniform(seed, place, tries) for seed in range(20) for place in range(100) for tries in range(2)]
    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) == len(numbers)
    counts = Counter(int(10 * number) for number in numbers)
    assert_drawn_from(counts, dict.fromkeys(range(10), 0.1))
    assert uniform(1, 2) != uniform(2, 1)


# --- what is vectorised -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"temperature": 0.0}, True),
        ({"top_k": 40, "top_p": 0.9, "min_p": 0.1, "repeat_penalty": 1.1}, True),
        ({"samplers": ("top_k", "temperature")}, True),
        ({"samplers": ("min_p", "top_p", "temperature")}, True),
        ({"samplers": ("min_p", "top_p", "temperature"), "min_p": 0.1, "top_p": 0.9}, False),
        ({"samplers": ("temperature", "top_p"), "top_p": 0.9}, False),
        ({"samplers": ("top_k", "top_k", "temperature"), "top_k": 5}, False),
        ({"samplers": ("top_k",), "top_k": 5}, False),
        ({"samplers": ()}, False),
        ({"typ_p": 0.9}, False),
        ({"top_n_sigma": 1.0}, False),
        ({"dry_multiplier": 0.8}, False),
        ({"dry_multiplier": 0.8, "dry_penalty_last_n": 0}, True),
        ({"xtc_probability": 0.5}, False),
        ({"xtc_probability": 0.5, "xtc_threshold": 0.6}, True),
        ({"mirostat": 1}, False),
        ({"mirostat": 2}, False),
        ({"dynatemp_range": 0.5}, False),
        ({"adaptive_target": 0.3}, True),
        ({"adaptive_target": 0.3, "samplers": (*DEFAULT_SAMPLERS, "adaptive_p")}, False),
    ],
)
def test_what_numpy_does_and_what_the_chain(changes: dict[str, Any], expected: bool) -> None:
    assert is_vectorisable(SamplingParams(**changes)) is expected


def test_nothing_is_active_by_default_but_the_temperature() -> None:
    assert active_samplers(SamplingParams()) == ["temperature"]


# --- penalties and biases ---------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 9), max_size=40),
    st.lists(st.integers(0, 9), max_size=20),
    st.integers(1, 25),
    st.sampled_from([1.0, 1.3, 0.8]),
    st.sampled_from([0.0, 0.4, -0.4]),
    st.sampled_from([0.0, 0.6]),
)
def test_penalties_are_those_counted_by_hand(
    said: list[int], more: list[int], last_n: int, repeat: float, frequency: float, presence: float
) -> None:
    params = SamplingParams(repeat_penalty=repeat, frequency_penalty=frequency, presence_penalty=presence)
    penalties = Penalties(params, last_n, 10, said)
    for token in more:
        penalties.accept(token)
    logits = some_logits(2, 10)
    logits[4] = -np.inf
    found = logits.copy()
    with penalties.applied(found):
        for token in range(10):
            count = (said + more)[-last_n:].count(token)
            expected = float(logits[token])
            if count:
                expected = expected * repeat if expected <= 0 else expected / repeat
                expected -= count * frequency + presence
            assert found[token] == pytest.approx(expected, rel=1e-5)
    assert (found == logits).all()


@pytest.mark.parametrize("last_n", [2**31 - 1, -1])
def test_a_window_is_never_larger_than_the_context(context: Context, last_n: int) -> None:
    assert window(last_n, 256) == 256
    params = SamplingParams(repeat_penalty=1.1, repeat_last_n=last_n, dry_multiplier=0.5, dry_penalty_last_n=last_n)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    context.new_chain(params, 1, SAID, can_rewind=False).close()
    vector_sampler(params, SAID)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("changes", [{"repeat_last_n": 0, "repeat_penalty": 2.0}, {}, {"samplers": ("temperature",)}])
def test_penalties_that_do_nothing_are_none(changes: dict[str, Any]) -> None:
    assert penalties_of(SamplingParams(**changes), n_ctx=256, n_vocab=10, history=SAID) is None


def test_a_rewind_takes_the_penalty_back_and_draws_anew(context: Context) -> None:
    params = SamplingParams(presence_penalty=5.0, temperature=2.0)
    logits = some_logits()
    vector = vector_sampler(params, SAID)
    tries = []
    for _ in range(8):
        tries.append(vector.sample(logits.copy(), 0))
        vector.rewind(1, SAID)
    assert len(set(tries)) > 3
    fresh, rewound = logits.copy(), logits.copy()
    with vector_sampler(params, SAID)._penalties.applied(fresh), vector._penalties.applied(rewound):  # type: ignore[union-attr]
        assert (fresh == rewound).all()

    write_row(context, logits)
    chain = context.new_chain(dataclasses.replace(params, xtc_probability=0.01), 1, SAID, can_rewind=True)
    before = apply(chain, logits)
    tries = []
    for _ in range(8):
        tries.append(chain.sample(context.logits()[0], 0))
        chain.rewind(1, SAID)
    assert len(set(tries)) > 3
    assert is_close(apply(chain, logits), before)
    chain.close()


def test_a_chain_without_history_cannot_rewind(context: Context) -> None:
    chain = context.new_chain(SamplingParams(), 1, [], can_rewind=False)
    with pytest.raises(ValueError, match="not kept"):
        chain.rewind(1, [])
    chain.close()


def test_biases_add_ban_and_keep_the_end_away() -> None:
    params = SamplingParams(logit_bias=((1, 2.5), (2, -math.inf)))
    row = np.zeros(8, np.float32)
    bias = Bias(params, banned=(5,), eog=(6, 7), min_tokens=3)
    bias.apply(row, 2)
    assert row.tolist() == [0, 2.5, -math.inf, 0, 0, -math.inf, -math.inf, -math.inf]
    row[:] = 0
    bias.apply(row, 3)
    assert row[6] == row[7] == 0
    Bias(SamplingParams(ignore_eos=True), banned=(), eog=(6, 7), min_tokens=0).apply(row, 1000)
    assert row[6] == row[7] == -math.inf


@pytest.mark.parametrize("n_top", [0, 1, 5, 400])
def test_logprobs_are_the_log_of_the_softmax(n_top: int) -> None:
    row = some_logits(3, 264)
    row[9] = -np.inf
    logprobs = Logprobs(n_top)
    logprobs.note(row)
    expected = np.log(np.maximum(softmax(row), 1e-300))
    row[:] = 0
    entry = logprobs.of(77, FakeVocabulary())
    assert entry.logprob == pytest.approx(expected[77], abs=1e-4)
    assert entry.piece == b"M"
    assert len(entry.top) == min(n_top, 264)
    assert [token for token, _, _ in entry.top][:5] == np.argsort(-expected)[: min(n_top, 5)].tolist()
    assert all(found == pytest.approx(expected[token], abs=1e-4) for token, _, found in entry.top if token != 9)


# --- every sampler of the chain does its own --------------------------------------------------------------------------


def test_temperature_zero_leaves_the_best(context: Context) -> None:
    logits = some_logits()
    assert distribution(context, SamplingParams(temperature=0.0, typ_p=0.99), logits) == {int(logits.argmax()): 1.0}


def test_typ_p_keeps_what_is_nearest_to_the_entropy(context: Context) -> None:
    logits = some_logits()
    shares = softmax(logits)
    entropy = -(shares * np.log(shares)).sum()
    order = np.argsort(np.abs(-np.log(shares) - entropy))
    n_keep = int((np.cumsum(shares[order]) > 0.4).argmax()) + 1
    assert distribution(context, SamplingParams(typ_p=0.4), logits).keys() == set(order[:n_keep].tolist())


@pytest.mark.parametrize("changes", [{"typ_p": 0.4}, {"top_n_sigma": 1.0}, {"dynatemp_range": 0.5}, {"mirostat": 1}])
def test_banned_tokens_change_nothing_for_the_others(context: Context, changes: dict[str, Any]) -> None:
    """A ban is minus infinity; what it leaves must be treated as if the banned were not there."""
    logits = some_logits(5, 60)
    with_bans = np.full(N_VOCAB, -np.inf, np.float32)
    with_bans[:60] = logits
    params = SamplingParams(**changes)
    if "mirostat" in changes:
        assert len(apply_mirostat(context, params, with_bans)) == len(apply_mirostat(context, params, logits))
    elif "dynatemp_range" in changes:
        # Its largest possible entropy is that of as many tokens as there are, banned or not.
        assert distribution(context, params, with_bans).keys() == set(range(60))
    else:
        assert is_close(distribution(context, params, with_bans), distribution(context, params, logits))


def apply_mirostat(context: Context, params: SamplingParams, logits: Row) -> dict[int, float]:
    chain = context.new_chain(params, 1, [], can_rewind=False)
    left = apply(chain, logits)
    chain.close()
    return left


def test_top_n_sigma_keeps_what_is_within_deviations_of_the_best(context: Context) -> None:
    logits = some_logits()
    kept = distribution(context, SamplingParams(top_n_sigma=1.5), logits).keys()
    assert kept == set(np.flatnonzero(logits >= logits.max() - 1.5 * logits.std()).tolist())


def test_xtc_takes_the_best_away(context: Context) -> None:
    logits = some_logits(4, scale=4.0)
    shares = softmax(logits)
    above = [token for token in np.argsort(-shares).tolist() if shares[token] >= 0.05]
    assert len(above) > 2
    kept = distribution(context, SamplingParams(xtc_probability=1.0, xtc_threshold=0.05), logits).keys()
    assert not set(above[:-1]) & kept
    assert above[-1] in kept


def test_xtc_acts_as_often_as_its_probability(context: Context) -> None:
    logits = some_logits(4, scale=4.0)
    params = SamplingParams(xtc_probability=0.3, xtc_threshold=0.05)
    acted = 0
    for seed in range(400):
        chain = context.new_chain(params, seed, [], can_rewind=False)
        acted += int(logits.argmax()) not in apply(chain, logits)
        chain.close()
    assert 80 < acted < 160


def test_dry_penalises_what_would_repeat_a_phrase(context: Context) -> None:
    logits = np.zeros(N_VOCAB, np.float32)
    said = [*b"abcdeXabcde"]
    params = SamplingParams(dry_multiplier=2.0, dry_base=1.5, dry_allowed_length=2)
    shares = distribution(context, params, logits, said)
    ratio = shares[ord("X")] / shares[ord("Z")]
    assert ratio == pytest.approx(math.exp(-2.0 * 1.5 ** (5 - 2)), rel=1e-3)


def test_dry_stops_at_its_breakers_and_its_window(context: Context) -> None:
    logits = np.zeros(N_VOCAB, np.float32)
    said = [*b"abcd:X" + b"abcd:"]
    even = 1 / N_VOCAB
    for changes in ({"dry_sequence_breakers": (":",)}, {"dry_penalty_last_n": 4}, {"dry_allowed_length": 9}):
        params = SamplingParams(dry_multiplier=2.0, **({"dry_sequence_breakers": ()} | changes))
        assert distribution(context, params, logits, said)[ord("X")] == pytest.approx(even, rel=1e-3)
    params = SamplingParams(dry_multiplier=2.0, dry_sequence_breakers=())
    assert distribution(context, params, logits, said)[ord("X")] < even / 10


def test_dynatemp_follows_the_entropy(context: Context) -> None:
    logits = some_logits()
    shares = softmax(logits)
    entropy = -(shares * np.log(shares)).sum() / math.log(N_VOCAB)
    temperature = 0.5 + (1.5 - 0.5) * entropy**2
    params = SamplingParams(temperature=1.0, dynatemp_range=0.5, dynatemp_exponent=2.0)
    expected = dict(enumerate(softmax(logits / np.float32(temperature)).tolist()))
    assert is_close(distribution(context, params, logits), expected)


def surprises(context: Context, params: SamplingParams, n: int = 400) -> list[float]:
    """Bits of surprise of `n` draws, each from other logits."""
    chain = context.new_chain(params, 1, [], can_rewind=False)
    found = []
    for step in range(n):
        logits = some_logits(step)
        write_row(context, logits)
        token = chain.sample(context.logits()[0], 0)
        found.append(-math.log2(softmax(logits)[token]))
    chain.close()
    return found


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_steers_the_surprise(context: Context, version: int) -> None:
    means = []
    for changes in ({"mirostat_tau": 1.0}, {"mirostat_tau": 3.0}, {"mirostat": 0, "typ_p": 0.9999}):
        found = surprises(context, SamplingParams(**({"mirostat": version} | changes)))[100:]
        means.append(sum(found) / len(found))
    assert means[0] < means[1] - 0.5 < means[2] - 1.0


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_learns_as_fast_as_its_rate(context: Context, version: int) -> None:
    params = SamplingParams(mirostat=version, mirostat_tau=1.0, mirostat_eta=0.0)
    learning = surprises(context, dataclasses.replace(params, mirostat_eta=0.5))[50:]
    # It starts with a cut at twice the target, below which little surprise is left: learning lets more in.
    assert sum(learning) > 1.05 * sum(surprises(context, params)[50:])


def test_adaptive_p_prefers_tokens_near_its_target(context: Context) -> None:
    names = (*DEFAULT_SAMPLERS, "adaptive_p")
    means = []
    for target in (0.1, 0.9):
        params = SamplingParams(adaptive_target=target, adaptive_decay=0.5, samplers=names, temperature=0.4)
        found = [2**-bits for bits in surprises(context, params)]
        means.append(sum(found) / len(found))
    assert means[1] > 1.5 * means[0]


def test_adaptive_p_needs_to_be_listed(context: Context) -> None:
    logits = some_logits()
    with_target = distribution(context, SamplingParams(adaptive_target=0.3, typ_p=0.9), logits)
    assert is_close(with_target, distribution(context, SamplingParams(typ_p=0.9), logits))


def test_the_order_of_samplers_matters(context: Context) -> None:
    logits = some_logits()
    orders = [("temperature", "top_p"), ("top_p", "temperature")]
    kept = [
        len(distribution(context, SamplingParams(temperature=2.0, top_p=0.5, samplers=order), logits))
        for order in orders
    ]
    assert kept[0] > kept[1]


def test_samplers_that_are_not_listed_do_nothing(context: Context) -> None:
    logits = some_logits()
    params = SamplingParams(top_k=3, temperature=0.5, samplers=("min_p",))
    assert is_close(distribution(context, params, logits), dict(enumerate(softmax(logits).tolist())))


@pytest.mark.parametrize("min_keep", [1, 6])
@pytest.mark.parametrize("changes", [{"top_p": 0.01}, {"min_p": 0.99}, {"typ_p": 0.01}], ids=str)
def test_min_keep_holds_in_the_chain(context: Context, changes: dict[str, Any], min_keep: int) -> None:
    params = SamplingParams(min_keep=min_keep, samplers=("top_p", "min_p", "typ_p"), **changes)
    assert len(distribution(context, params, some_logits())) == min_keep


def test_every_sampler_has_a_maker_in_the_chain(context: Context) -> None:
    """Each name alone, with parameters under which it acts, changes what comes out."""
    logits = some_logits(4, scale=1.0)
    acting: dict[str, dict[str, Any]] = {
        "penalties": {"repeat_penalty": 2.0},
        "dry": {"dry_multiplier": 5.0},
        "top_n_sigma": {"top_n_sigma": 1.0},
        "top_k": {"top_k": 2},
        "typ_p": {"typ_p": 0.3},
        "top_p": {"top_p": 0.3},
        "min_p": {"min_p": 0.5},
        "xtc": {"xtc_probability": 1.0, "xtc_threshold": 0.01},
        "temperature": {"temperature": 0.5},
    }
    assert acting.keys() == set(DEFAULT_SAMPLERS)
    said = [*b"abcdeXabcde"]
    neutral = distribution(context, SamplingParams(samplers=()), logits, said)
    for name, changes in acting.items():
        found = distribution(context, SamplingParams(samplers=(name,), **changes), logits, said)
        assert not is_close(found, neutral), name


ANY_NUMBER = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [5e-324, 1e-45, 1e-38, 3.5e38, 1.7e308, -5e-324, -1.7e308, 0.0, 1.0]
)
ANY_SHARE = st.floats(0, 1) | st.sampled_from([5e-324, 1e-45, 1 - 1e-16])
ANYTHING = st.fixed_dictionaries(
    {},
    optional={
        "temperature": ANY_NUMBER,
        "dynatemp_range": ANY_NUMBER.map(abs),
        "dynatemp_exponent": ANY_NUMBER,
        "top_k": st.sampled_from([0, 1, 7, 2**31 - 1]),
        "top_p": ANY_SHARE,
        "min_p": ANY_SHARE,
        "typ_p": ANY_SHARE,
        "top_n_sigma": ANY_NUMBER,
        "xtc_probability": ANY_SHARE,
        "xtc_threshold": ANY_SHARE,
        "dry_multiplier": ANY_NUMBER.map(abs),
        "dry_base": ANY_NUMBER.map(abs),
        "dry_allowed_length": st.sampled_from([0, 1, 2, 2**31 - 1]),
        "repeat_penalty": ANY_NUMBER,
        "frequency_penalty": ANY_NUMBER,
        "presence_penalty": ANY_NUMBER,
        "mirostat": st.sampled_from([0, 0, 1, 2]),
        "mirostat_tau": ANY_NUMBER.map(abs),
        "mirostat_eta": ANY_SHARE,
        "adaptive_target": st.floats(-1, 1),
        "adaptive_decay": st.floats(0, 0.99),
        "min_keep": st.sampled_from([0, 1, 2**31 - 1]),
        "samplers": st.permutations([*DEFAULT_SAMPLERS, "adaptive_p"]).map(tuple),
        "logit_bias": st.lists(st.tuples(st.integers(0, N_VOCAB - 1), ANY_NUMBER), max_size=3).map(tuple),
    },
)


@settings(deadline=None, max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANYTHING, st.integers(0, 2**32 - 2))
def test_whatever_the_numbers_a_token_comes_of_them(context: Context, changes: dict[str, Any], seed: int) -> None:
    """In numpy, where a warning is an error, and in C, where an assertion would end this process."""
    params = bounded(SamplingParams(**changes))
    logits = some_logits(seed % 1000, scale=10.0)
    Bias(params, banned=(), eog=frozenset(), min_tokens=0).apply(logits, 0)
    write_row(context, logits)
    chain = context.new_chain(params, seed, SAID, can_rewind=False)
    for _ in range(3):
        assert 0 <= chain.sample(logits, 0) < N_VOCAB
    chain.close()
    if is_vectorisable(params):
        sampler = vector_sampler(params, SAID, seed)
        for _ in range(3):
            assert 0 <= sampler.sample(logits.copy(), 0) < N_VOCAB


def test_sane_numbers_are_left_as_they_are() -> None:
    params = SamplingParams(temperature=0.7, repeat_penalty=1.1, logit_bias=((3, -math.inf), (4, 2.5)), dry_base=1.75)
    assert bounded(params) == params
    assert bounded(SamplingParams()) == SamplingParams()
