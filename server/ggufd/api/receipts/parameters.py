"""Parameters of a request in its receipt: what held for it, defaults of the server included."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.messages.sampling import Grammar, SamplingParams

_APART = frozenset(("seed", "grammar", "logit_bias"))


def parameters_json(request: EngineRequest) -> dict[str, Any]:
    """All of a request besides its prompt that changes its text. Another server may have other defaults."""
    budget = request.reasoning_budget
    return {
        "max_tokens": request.max_tokens,
        "min_tokens": request.min_tokens,
        "stop": list(request.stop),
        **_sampling(request.sampling),
        "logprobs": request.n_logprobs is not None,
        "prompt_logprobs": request.prompt_logprobs,
        "skip_special_tokens": request.skip_special_tokens,
        "reasoning_budget": None if budget is None else budget.max_tokens,
        "banned_strings": list(request.banned_strings),
        "banned_regexes": list(request.banned_regexes),
        "bans_case_sensitive": request.bans_case_sensitive,
    }


def _sampling(params: SamplingParams) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(params) if field.name not in _APART]
    # JSON has no number for minus infinity, which bans a token: null.
    biases = [[token, bias if math.isfinite(bias) else None] for token, bias in params.logit_bias]
    return {**{name: _plain(getattr(params, name)) for name in names}, "logit_bias": biases, **_grammar(params.grammar)}


def _grammar(grammar: Grammar | None) -> dict[str, Any]:
    if grammar is None:
        return {"grammar": None}
    return {"grammar": {"kind": grammar.kind.value, "text": grammar.text, "frame": grammar.frame}}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
