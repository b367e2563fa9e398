"""Samplers: choice of the next token of a sequence from its row of logits, and its log-probabilities.

Most requests use temperature, top-k, top-p, min-p and penalties in llama.cpp's order: `VectorSampler` does those in
numpy, on the one view of all rows, at a fraction of the chain's cost. Everything else uses llama.cpp's own chain.
Both are equal in distribution, and equal in greedy output; the tests hold that.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ggufd.engine.backend.interfaces import Distribution, Row, Sampler
from ggufd.engine.messages.events import TokenLogprob
from ggufd.engine.messages.sampling import SamplingParams
from ggufd.errors import EngineFailure
from ggufd.llama.params import DEFAULT_SAMPLERS

NO_NUMBERS = "the model computed NaN in the place of numbers: its weights are damaged, or too large for their types"


class NoNumbers(EngineFailure):
    """Row of logits that is NaN; the state that it was computed from is of no use either."""

    def __init__(self) -> None:
        super().__init__(NO_NUMBERS)


_VECTORISED = frozenset(("penalties", "top_k", "top_p", "min_p", "temperature"))
_NUCLEUS_START = 256
"""Candidates that are sorted first for top-p: a text that is sure of itself has fewer."""

_WEIGHT_BITS = 19
"""Bits of a float below those that make its class: weights of one differ by a sixteenth at most."""

_BLOCK = 256
_TOP_BLOCK = 64
_MASK_64 = (1 << 64) - 1


class Bias:
    """Biases on the logits of a sequence before any sampler; bans are minus infinity.

    `banned` tokens are never chosen; `eog` ones are banned too with `ignore_eos`, or before `min_tokens` are there.
    """

    def __init__(self, params: SamplingParams, *, banned: Iterable[int], eog: Iterable[int], min_tokens: int) -> None:
        biases: dict[int, float] = {}
        for token, value in params.logit_bias:
            biases[token] = biases.get(token, 0.0) + value
        self._ids = np.array(list(biases), np.int64)
        self._values = np.array(list(biases.values()), np.float32)
        self._banned = np.fromiter(banned, np.int64)
        self._never = {*self._banned.tolist(), *(token for token, value in biases.items() if value == -math.inf)}
        self._eog = np.fromiter(eog, np.int64)
        self._eog_until = math.inf if params.ignore_eos else min_tokens

    @property
    def is_banning(self) -> bool:
        """Whether any token is banned, at any position."""
        return bool(self._never) or self._eog_until > 0

    def bans(self, token: int) -> bool:
        """Whether `token` is banned at every position; end tokens are not looked at."""
        return token in self._never

    def apply(self, row: Row, n_generated: int) -> None:
        if len(self._ids):
            row[self._ids] += self._values
        if len(self._banned):
            row[self._banned] = -np.inf
        if n_generated < self._eog_until:
            row[self._eog] = -np.inf


_BOUNDS: dict[str, tuple[float, float]] = {
    "dynatemp_range": (0, 100),
    "dynatemp_exponent": (0.01, 100),
    "repeat_penalty": (0.01, 100),
    "frequency_penalty": (-1000, 1000),
    "presence_penalty": (-1000, 1000),
    "top_n_sigma": (-1, 1000),
    "dry_multiplier": (0, 1000),
    "dry_base": (0, 1000),
    "mirostat_tau": (0, 1000),
    "mirostat_eta": (0, 1),
}
"""Bounds of parameters: beyond them the effect is the same, but single precision overflows and leaves no token."""

_TEMPERATURES = 0.001, 1000
_BIASES = -10_000, 10_000


def bounded(params: SamplingParams) -> SamplingParams:
    """Parameters within the bounds of single precision."""
    changes: dict[str, Any] = {name: _within(getattr(params, name), *bounds) for name, bounds in _BOUNDS.items()}
    if params.temperature > 0:
        changes["temperature"] = _within(params.temperature, *_TEMPERATURES)
    # Minus infinity bans a token.
    changes["logit_bias"] = tuple(
        (token, bias if bias == -math.inf else _within(bias, *_BIASES)) for token, bias in params.logit_bias
    )
    return dataclasses.replace(params, **changes)


def _within(value: float, least: float, most: float) -> float:
    return min(max(value, least), most)


class Penalties:
    """Repetition, frequency and presence penalties over the last `last_n` tokens, by counts.

    A token seen c > 0 times: its logit is divided (or, when negative, multiplied) by `repeat`, then lowered by
    c * `frequency` + `presence`; llama.cpp's rule.
    """

    def __init__(self, params: SamplingParams, last_n: int, n_vocab: int, history: Sequence[int]) -> None:
        self._repeat = params.repeat_penalty
        self._frequency = params.frequency_penalty
        self._presence = params.presence_penalty
        self._window: deque[int] = deque(maxlen=last_n)
        self._counts = np.zeros(n_vocab, np.int32)
        self.restart(history)

    def restart(self, history: Sequence[int]) -> None:
        """Count the tokens of `history` only."""
        self._window.clear()
        self._counts[:] = 0
        recent = history[-(self._window.maxlen or 0) :]
        self._window.extend(recent)
        np.add.at(self._counts, np.asarray(recent, np.int64), 1)

    def accept(self, token: int) -> None:
        if len(self._window) == self._window.maxlen:
            self._counts[self._window[0]] -= 1
        self._window.append(token)
        self._counts[token] += 1

    @contextmanager
    def applied(self, row: Row) -> Iterator[None]:
        """Context in which the row has penalties; they are undone afterwards."""
        seen = np.flatnonzero(self._counts)
        before = row[seen]
        logits = np.where(before <= 0, before * self._repeat, before / self._repeat)
        row[seen] = logits - (self._counts[seen] * self._frequency + self._presence)
        yield
        row[seen] = before


def penalties_of(params: SamplingParams, *, n_ctx: int, n_vocab: int, history: Sequence[int]) -> Penalties | None:
    """Penalties of these parameters, or None when they do nothing. `n_ctx` is a slot's, in tokens."""
    last_n = n_ctx if params.repeat_last_n < 0 else min(params.repeat_last_n, n_ctx)
    neutral = params.repeat_penalty == 1 and params.frequency_penalty == 0 and params.presence_penalty == 0
    if last_n == 0 or neutral or "penalties" not in params.samplers:
        return None
    return Penalties(params, last_n, n_vocab, history)


def active_samplers(params: SamplingParams) -> list[str]:
    """Names of the samplers that do something with these parameters, in their order."""
    does_something = {
        "penalties": params.repeat_last_n != 0
        and (params.repeat_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0),
        "dry": params.dry_multiplier != 0 and params.dry_penalty_last_n != 0,
        "top_n_sigma": params.top_n_sigma > 0,
        "top_k": params.top_k > 0,
        "typ_p": params.typ_p < 1,
        "top_p": params.top_p < 1,
        "min_p": params.min_p > 0,
        "xtc": params.xtc_probability > 0 and params.xtc_threshold <= 0.5,
        "temperature": True,
        "adaptive_p": params.adaptive_target >= 0,
    }
    return [name for name in params.samplers if does_something[name]]


def is_vectorisable(params: SamplingParams) -> bool:
    """Whether `VectorSampler` covers these parameters: its samplers only, once each and in llama.cpp's order."""
    active = active_samplers(params)
    in_order = [name for name in DEFAULT_SAMPLERS if name in active]
    is_plain = params.mirostat == 0 and params.dynatemp_range == 0
    return is_plain and active == in_order and _VECTORISED.issuperset(active) and "temperature" in active


class VectorSampler:
    """Penalties, top-k, top-p, min-p, temperature and the draw, in numpy. Temperature 0 takes the best token."""

    def __init__(self, params: SamplingParams, seed: int, penalties: Penalties | None) -> None:
        active = active_samplers(params)
        self._top_k = params.top_k if "top_k" in active else 0
        self._top_p = params.top_p if "top_p" in active else 1.0
        self._min_p = params.min_p if "min_p" in active else 0.0
        self._min_keep = max(1, params.min_keep)
        self._temperature = params.temperature
        self._penalties = penalties
        self._scratch = Scratch()
        self._seed = seed
        self._n_chosen = 0
        self._tries: dict[int, int] = {}

    def sample(self, row: Row, batch_row: int) -> int:
        with self._penalties.applied(row) if self._penalties is not None else nullcontext():
            token = int(row.argmax()) if self._temperature <= 0 else self._draw(row)
        self.accept(token)
        return token

    def accept(self, token: int) -> None:
        if self._penalties is not None:
            self._penalties.accept(token)
        self._n_chosen += 1

    def rewind(self, n: int, history: Sequence[int]) -> None:
        self._n_chosen -= n
        self._tries = {at: tries for at, tries in self._tries.items() if at <= self._n_chosen}
        self._tries[self._n_chosen] = self._tries.get(self._n_chosen, 0) + 1
        if self._penalties is not None:
            self._penalties.restart(history)

    def keep(self, n: int) -> None:
        """Nothing to do: a rewind needs no memory here."""

    def close(self) -> None:
        """Nothing to do: nothing is held outside Python."""

    def _random(self) -> float:
        """Random number in [0, 1) that depends on the seed, the position and the attempt there only."""
        return uniform(self._seed, self._n_chosen, self._tries.get(self._n_chosen, 0))

    def distribution(self, row: Row) -> Distribution:
        """Distribution that the next token is drawn from."""
        with self._penalties.applied(row) if self._penalties is not None else nullcontext():
            if self._temperature <= 0:
                return np.array([row.argmax()]), np.ones(1)
            ids, logits = self._left(row)
            weights = self._scratch.weights(logits, self._temperature).astype(np.float64)
        return drawable(np.arange(len(row)) if ids is None else ids, weights)

    def _draw(self, row: Row) -> int:
        ids, logits = self._left(row)
        index = self._pick(logits)
        return index if ids is None else int(ids[index])

    def _left(self, row: Row) -> tuple[npt.NDArray[np.int64] | None, Row]:
        """Ids and logits that the samplers leave; the ids are None where they leave all."""
        if self._top_k <= 0 and self._top_p >= 1:
            return self._left_unsorted(row)
        ids, logits = self._best_of(row)
        if self._min_p > 0:
            left = self._above_min_p(logits)
            return ids[left], logits[left]
        return ids, logits

    def _left_unsorted(self, row: Row) -> tuple[npt.NDArray[np.int64] | None, Row]:
        """Candidates without top-k and top-p: nothing has to be sorted, and min-p is one comparison a token."""
        if self._min_p <= 0:
            return None, row
        ids = self._above_min_p(row)
        return ids, row[ids]

    def _above_min_p(self, logits: Row) -> npt.NDArray[np.int64]:
        """Indices of the logits that min-p leaves."""
        left = np.flatnonzero(logits >= logits.max() + math.log(self._min_p))
        return left if len(left) >= self._min_keep else _top(logits, self._min_keep)

    def _best_of(self, row: Row) -> tuple[npt.NDArray[np.int64], Row]:
        """Candidates that top-k and top-p leave, in any order."""
        if self._top_k > 0:
            ids = _top(row, self._top_k)
            logits = row[ids]
            return self._nucleus(ids, logits, float(logits[0]), float(self._scratch.weights(logits).sum()))
        weights = self._scratch.weights(row)
        total = float(weights.sum())
        ids = _top(row, _NUCLEUS_START)
        kept, logits = self._nucleus(ids, row[ids], float(row.max()), total)
        if len(kept) < len(ids) or len(ids) == len(row):
            return kept, logits
        ids = _wide_nucleus(weights, self._top_p * total, self._min_keep)
        return ids, row[ids]

    def _nucleus(
        self, ids: npt.NDArray[np.int64], logits: Row, peak: float, total: float
    ) -> tuple[npt.NDArray[np.int64], Row]:
        """Cut sorted candidates after the one with which their share of `total` reaches top-p.

        `total` is the sum of `exp(logit - peak)` over all tokens that top-p is to look at.
        """
        if self._top_p >= 1:
            return ids, logits
        reached = np.cumsum(np.exp(logits - peak), dtype=np.float64) >= self._top_p * total
        n_keep = int(reached.argmax()) + 1 if reached.any() else len(ids)
        n_keep = min(len(ids), max(n_keep, self._min_keep))
        return ids[:n_keep], logits[:n_keep]

    def _pick(self, logits: Row) -> int:
        """Index drawn by the softmax of `logits` at this temperature: first a block of them, then one inside it."""
        weights = self._scratch.weights(logits, self._temperature)
        blocks = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64)
        total = float(blocks.sum())
        if math.isnan(total):
            raise NoNumbers
        block, rest = _draw(blocks, self._random() * total)
        start = block * _BLOCK
        index, _ = _draw(weights[start : start + _BLOCK], rest)
        return start + index


class Scratch:
    """Reused memory of one row: fresh arrays of that size cost more in page faults than the arithmetic."""

    def __init__(self) -> None:
        self._memory: Row = np.empty(0, np.float32)

    def weights(self, logits: Row, temperature: float = 1.0) -> Row:
        """Probabilities up to their common factor, valid until the next call. Shape as `logits`."""
        out = self._room(len(logits))
        np.subtract(logits, logits.max(), out=out)
        if temperature != 1:
            np.divide(out, np.float32(temperature), out=out)
        return np.exp(out, out=out)

    def copy(self, row: Row) -> Row:
        """The values of `row`, valid until the next call."""
        out = self._room(len(row))
        np.copyto(out, row)
        return out

    def _room(self, n: int) -> Row:
        if len(self._memory) < n:
            self._memory = np.empty(n, np.float32)
        return self._memory[:n]


def uniform(*key: int) -> float:
    """Random number in [0, 1) for a key of integers: SplitMix64's mixing (Steele, Lea and Flood, 2014)."""
    state = 0
    for part in key:
        state = (state ^ part) + 0x9E3779B97F4A7C15 & _MASK_64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK_64
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK_64
        state ^= state >> 31
    return (state >> 11) / (1 << 53)


def _draw(weights: npt.NDArray[Any], target: float) -> tuple[int, float]:
    """Index at which the running sum of `weights` passes `target`, and what of `target` is left there."""
    cumulative = np.cumsum(weights, dtype=np.float64)
    # Rounding may leave the target a hair above the sum: the last weight that is not zero is meant then.
    index = int(np.searchsorted(cumulative, min(target, np.nextafter(cumulative[-1], 0)), side="right"))
    return index, target - (float(cumulative[index - 1]) if index else 0.0)


def drawable(tokens: npt.NDArray[np.int64], weights: npt.NDArray[np.float64]) -> Distribution:
    """Distribution with probabilities proportional to `weights`."""
    is_left = weights > 0
    return tokens[is_left], weights[is_left] / weights.sum()


def _top(row: Row, k: int) -> npt.NDArray[np.int64]:
    """Indices of the k largest, largest first; the lower index first where equal.

    The k-th largest maximum of small blocks is a bound that at least k values reach and few others do: cheaper than
    partitioning the whole row.
    """
    n_blocks = len(row) // _TOP_BLOCK
    if 2 * k < n_blocks:
        maxima = row[: n_blocks * _TOP_BLOCK].reshape(_TOP_BLOCK, n_blocks).max(axis=0)
        ids = np.flatnonzero(row >= np.partition(maxima, n_blocks - k)[n_blocks - k])
    else:
        ids = np.arange(len(row))
    best: npt.NDArray[np.int64] = ids[np.argsort(-row[ids], kind="stable")[:k]]
    return best


def _wide_nucleus(weights: Row, wanted: float, min_keep: int) -> npt.NDArray[np.int64]:
    """Indices of the largest weights that together reach `wanted`, `min_keep` at least; the lower one where equal.

    `weights` has shape `[n_vocab]`, none below zero; all are left where `wanted` is no number. A histogram over the
    leading bits, which order floats as their values do, tells the class of the last of them: only that one is sorted.
    """
    if not math.isfinite(wanted):
        return np.arange(len(weights))
    classes = weights.view(np.int32) >> _WEIGHT_BITS
    sums = np.bincount(classes, weights=weights)[::-1].cumsum()
    last = len(sums) - 1 - min(int(np.searchsorted(sums, wanted)), len(sums) - 1)
    above, at = np.flatnonzero(classes > last), np.flatnonzero(classes == last)
    at = at[np.argsort(-weights[at], kind="stable")]
    missing = wanted - float(weights[above].sum(dtype=np.float64))
    n_more = int(np.searchsorted(np.cumsum(weights[at], dtype=np.float64), missing)) + 1
    left = np.concatenate((above, at[:n_more]))
    return left if len(left) >= min_keep else _top(weights, min_keep)


class PieceTable(Protocol):
    """Bytes of tokens."""

    def piece(self, token: int, *, special: bool) -> bytes: ...


class Logprobs:
    """Log-probabilities of one sequence's tokens in raw rows: before biases, masks and samplers.

    `note` a row before it is changed, then ask `of` the token that was chosen from it.
    """

    def __init__(self, n_top: int) -> None:
        self._n_top = n_top
        self._kept, self._scratch = Scratch(), Scratch()
        self._row: Row = np.empty(0, np.float32)
        self._log_total = 0.0

    def note(self, row: Row) -> None:
        self._row = self._kept.copy(row)
        self._log_total = float(row.max()) + math.log(float(self._scratch.weights(row).sum(dtype=np.float64)))

    def of(self, token: int, pieces: PieceTable) -> TokenLogprob:
        top = _top(self._row, self._n_top) if self._n_top > 0 else ()
        return TokenLogprob(
            token=token,
            piece=pieces.piece(token, special=True),
            logprob=self._logprob(token),
            top=tuple((int(other), pieces.piece(int(other), special=True), self._logprob(other)) for other in top),
        )

    def note_draw(self, sampler: Sampler, row: Row) -> None:
        """Nothing to do: only raw rows count."""

    def _logprob(self, token: int) -> float:
        return float(self._row[token]) - self._log_total


class FinalLogprobs:
    """Log-probabilities of one sequence's tokens in what biases, masks and samplers left to draw from.

    `note_draw` before each draw, then ask `of` the token that was drawn.
    """

    def __init__(self, n_top: int) -> None:
        self._n_top = n_top
        self._tokens: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._logprobs: npt.NDArray[np.float64] = np.empty(0)

    def note(self, row: Row) -> None:
        """Nothing to do: raw rows do not count."""

    def note_draw(self, sampler: Sampler, row: Row) -> None:
        self._tokens, shares = sampler.distribution(row)
        self._logprobs = np.log(shares)

    def of(self, token: int, pieces: PieceTable) -> TokenLogprob:
        places = np.argsort(-self._logprobs, kind="stable")[: self._n_top]
        best = zip(self._tokens[places].tolist(), self._logprobs[places].tolist(), strict=True)
        own = self._logprobs[self._tokens == token]
        return TokenLogprob(
            token=token,
            piece=pieces.piece(token, special=True),
            logprob=float(own[0]) if len(own) else -math.inf,
            top=tuple((other, pieces.piece(other, special=True), logprob) for other, logprob in best),
        )


def logprobs_of(n_top: int | None, *, are_final: bool) -> Logprobs | FinalLogprobs | None:
    """Source of the log-probabilities that a request asks for; None when it asks for none."""
    if n_top is None:
        return None
    return FinalLogprobs(n_top) if are_final else Logprobs(n_top)
