"""llama.cpp's sampler chain of one sequence, with its history of tokens and rewinding.

The order and the meaning of each sampler are llama.cpp's (`common/sampling.cpp`). Grammars are not here: its own
grammar sampler ends the process on input it does not like, so masks come from `llama.grammar.grammar`.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from ggufd.llama.context.batch import Logits
from ggufd.llama.model.vocabulary import ModelVocabulary
from ggufd.llama.params import ChainParams

_TOKEN = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama.cpp's candidate, `llama_token_data`."""

_MIROSTAT_M = 100
"""Tokens that mirostat 1.0 estimates its exponent from, as in its paper's code and in llama.cpp."""


def window(last_n: int, n_ctx: int) -> int:
    """`last_n` in llama.cpp's range: -1 is the whole context, and no ring buffer is larger than that."""
    return n_ctx if last_n < 0 else min(last_n, n_ctx)


class SamplerChain:
    """Samplers of one sequence, with the tokens that they have accepted. `close` frees them.

    `n_ctx` is the context of the slot, in tokens; `prompt` is the history that penalties and DRY see.
    """

    def __init__(
        self,
        vocabulary: ModelVocabulary,
        context: Any,
        params: ChainParams,
        *,
        seed: int,
        n_ctx: int,
        prompt: Sequence[int],
    ) -> None:
        self._context = context
        self._params = params
        self._seed = seed
        self._n_rewinds = 0
        self._history: deque[Any] | None = None
        self._handle = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        for sampler in _Samplers(vocabulary, params, seed, n_ctx, prompt).all():
            llama_cpp.llama_sampler_chain_add(self._handle, sampler)

    def distribution(self, row: Logits) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Candidate tokens of the next draw, and their probabilities.

        Of a copy of the chain: XTC and adaptive-p draw numbers of their own, and must draw the same for the choice.
        """
        tokens = np.zeros(len(row), _TOKEN)
        tokens["id"], tokens["logit"] = np.arange(len(row)), row
        first = tokens.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
        array = llama_cpp.llama_token_data_array(data=first, size=len(row), selected=-1, sorted=False)
        copy = llama_cpp.llama_sampler_clone(self._handle)
        llama_cpp.llama_sampler_apply(copy, ctypes.byref(array))
        llama_cpp.llama_sampler_free(copy)
        # XTC cuts its first tokens off by moving the pointer.
        left = np.ctypeslib.as_array(array.data, (array.size,))
        is_left = left["p"] > 0
        weights = left["p"][is_left].astype(np.float64)
        return left["id"][is_left].astype(np.int64), weights / weights.sum()

    def sample(self, row: Logits, batch_row: int) -> int:
        """Sample a token from batch row `batch_row` and accept it; C reads the logits that `row` is a view of."""
        if self._history is not None:
            self._history.append(llama_cpp.llama_sampler_clone(self._handle))
        return int(llama_cpp.llama_sampler_sample(self._handle, self._context, batch_row))

    def accept(self, token: int) -> None:
        """Accept a token that was not sampled."""
        if self._history is not None:
            self._history.append(llama_cpp.llama_sampler_clone(self._handle))
        llama_cpp.llama_sampler_accept(self._handle, token)

    def keep_history(self) -> None:
        """Keep the state before each token from now on, for `rewind`."""
        self._history = deque()

    def keep(self, n: int) -> None:
        """Drop history: at most the last `n` tokens can be taken back from now on."""
        while self._history is not None and len(self._history) > n:
            llama_cpp.llama_sampler_free(self._history.popleft())

    def rewind(self, n: int, tokens: Sequence[int]) -> None:
        """Take the last `n` tokens back; raises `ValueError` when their states were not kept.

        The final draw goes on with fresh random numbers, as `engine.backend.interfaces.Sampler` asks. Mirostat and
        adaptive-p keep theirs inside and repeat them.
        """
        if self._history is None or len(self._history) < n:
            raise ValueError(f"the last {n} choices were not kept")
        for _ in range(n):
            llama_cpp.llama_sampler_free(self._handle)
            self._handle = self._history.pop()
        self._n_rewinds += 1
        if draws_last(self._params):
            last = llama_cpp.llama_sampler_chain_n(self._handle) - 1
            llama_cpp.llama_sampler_free(llama_cpp.llama_sampler_chain_remove(self._handle, last))
            seed = (self._seed + 0x9E3779B9 * self._n_rewinds) & 0xFFFFFFFF
            llama_cpp.llama_sampler_chain_add(self._handle, llama_cpp.llama_sampler_init_dist(seed))

    def close(self) -> None:
        self.keep(0)
        if self._handle:
            llama_cpp.llama_sampler_free(self._handle)
            self._handle = None


def draws_last(params: ChainParams) -> bool:
    """Whether the chain ends in a plain draw from the candidates that are left."""
    return params.mirostat == 0 and not ("adaptive_p" in params.samplers and params.adaptive_target >= 0)


def _drop_banned() -> Any:
    """Sampler that removes candidates of logit minus infinity, and nothing that could ever be drawn.

    The entropy of typ_p and the exponent of mirostat 1 become NaN over them; then they keep or take any token.
    """
    return llama_cpp.llama_sampler_init_min_p(1e-35, 1)


class _Samplers:
    """Factory of the samplers of one chain, in order. Neutral ones are left out: llama.cpp would sort for nothing."""

    def __init__(
        self, vocabulary: ModelVocabulary, params: ChainParams, seed: int, n_ctx: int, prompt: Sequence[int]
    ) -> None:
        self._vocabulary = vocabulary
        self._p = params
        self._seed = seed & 0xFFFFFFFF
        self._n_ctx = n_ctx
        self._prompt = prompt

    def all(self) -> list[Any]:
        if self._p.mirostat:
            return [_drop_banned(), llama_cpp.llama_sampler_init_temp(self._p.temperature), self._mirostat()]
        makers: dict[str, Callable[[], Any]] = {
            "penalties": self._penalties,
            "dry": self._dry,
            "top_n_sigma": self._top_n_sigma,
            "top_k": self._top_k,
            "typ_p": self._typ_p,
            "top_p": self._top_p,
            "min_p": self._min_p,
            "xtc": self._xtc,
            "temperature": self._temperature,
        }
        made = [makers[name]() for name in self._p.samplers if name in makers]
        drop = [_drop_banned()] if "typ_p" in self._p.samplers and self._p.typ_p < 1 else []
        return [*drop, *(sampler for sampler in made if sampler is not None), self._last()]

    def _last(self) -> Any:
        p = self._p
        if draws_last(p):
            return llama_cpp.llama_sampler_init_dist(self._seed)
        return llama_cpp.llama_sampler_init_adaptive_p(p.adaptive_target, p.adaptive_decay, self._seed)

    def _mirostat(self) -> Any:
        p = self._p
        if p.mirostat == 1:
            return llama_cpp.llama_sampler_init_mirostat(
                self._vocabulary.n_vocab, self._seed, p.mirostat_tau, p.mirostat_eta, _MIROSTAT_M
            )
        return llama_cpp.llama_sampler_init_mirostat_v2(self._seed, p.mirostat_tau, p.mirostat_eta)

    def _penalties(self) -> Any:
        p = self._p
        last_n = window(p.repeat_last_n, self._n_ctx)
        if last_n == 0 or (p.repeat_penalty == 1 and p.frequency_penalty == 0 and p.presence_penalty == 0):
            return None
        sampler = llama_cpp.llama_sampler_init_penalties(
            self._vocabulary.n_vocab, last_n, p.repeat_penalty, p.frequency_penalty, p.presence_penalty
        )
        return self._with_prompt(sampler, last_n)

    def _dry(self) -> Any:
        p = self._p
        last_n = window(p.dry_penalty_last_n, self._n_ctx)
        if last_n == 0 or p.dry_multiplier == 0:
            return None
        breakers = [breaker.encode("utf-8") for breaker in p.dry_sequence_breakers]
        sampler = llama_cpp.llama_sampler_init_dry(
            self._vocabulary.handle,
            p.dry_multiplier,
            p.dry_base,
            p.dry_allowed_length,
            last_n,
            (ctypes.c_char_p * len(breakers))(*breakers),
            len(breakers),
        )
        return self._with_prompt(sampler, last_n)

    def _with_prompt(self, sampler: Any, last_n: int) -> Any:
        for token in self._prompt[-last_n:]:
            llama_cpp.llama_sampler_accept(sampler, token)
        return sampler

    def _top_n_sigma(self) -> Any:
        n = self._p.top_n_sigma
        return llama_cpp.llama_sampler_init_top_n_sigma(n) if n > 0 else None

    def _top_k(self) -> Any:
        k = self._p.top_k
        return llama_cpp.llama_sampler_init_top_k(k) if 0 < k < self._vocabulary.n_vocab else None

    def _typ_p(self) -> Any:
        p = self._p
        return llama_cpp.llama_sampler_init_typical(p.typ_p, p.min_keep) if p.typ_p < 1 else None

    def _top_p(self) -> Any:
        p = self._p
        return llama_cpp.llama_sampler_init_top_p(p.top_p, p.min_keep) if p.top_p < 1 else None

    def _min_p(self) -> Any:
        p = self._p
        return llama_cpp.llama_sampler_init_min_p(p.min_p, p.min_keep) if p.min_p > 0 else None

    def _xtc(self) -> Any:
        p = self._p
        if p.xtc_probability <= 0 or p.xtc_threshold > 0.5:
            return None
        return llama_cpp.llama_sampler_init_xtc(p.xtc_probability, p.xtc_threshold, p.min_keep, self._seed)

    def _temperature(self) -> Any:
        p = self._p
        return llama_cpp.llama_sampler_init_temp_ext(p.temperature, p.dynatemp_range, p.dynatemp_exponent)
