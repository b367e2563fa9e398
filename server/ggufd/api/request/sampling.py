"""Sampling fields of every API family: spellings, types and ranges, and the parameters that they become.

Ranges are what llama.cpp's samplers can work with, which is wider than OpenAI's. Knows no route.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, PlainValidator, Strict, WithJsonSchema

from ggufd.api.request.samplers import order_samplers, read_samplers
from ggufd.api.request.validation import Body
from ggufd.engine.messages.sampling import Grammar, GrammarKind, SamplingParams
from ggufd.llama.params import DEFAULT_SAMPLERS

T = TypeVar("T")

_MAX_INT = 2**31 - 1


def _integral(value: Any) -> Any:
    """A float without a fraction is an integer: JavaScript knows no difference."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, Strict(), BeforeValidator(_integral)]
Float = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Bool = Annotated[bool, Strict()]
Share = Annotated[Float, Field(ge=0, le=1)]
Count = Annotated[Int, Field(ge=0, le=_MAX_INT)]
Penalty = Annotated[Float, Field(ge=-100, le=100)]
LastN = Annotated[Int, Field(ge=-1, le=_MAX_INT)]


def read_breakers(value: Any) -> Any:
    """DRY's breakers from a list, a JSON string of one, or strings set between commas."""
    if not isinstance(value, str):
        return value
    for text in (value, f"[{value}]"):
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(parsed, list):
            return parsed
    return [part for part in value.split(",") if part]


def read_token_bans(value: Any) -> Any:
    """Token ids from a list, or from a string with commas between."""
    if isinstance(value, str):
        return [int(part) if part.strip().isdecimal() else part for part in value.split(",") if part.strip()]
    return value


def read_logit_bias(value: Any) -> Any:
    """Biases from `{"id": bias}` or `[[id, bias], ...]`; a bias of `false` bans the token."""
    if isinstance(value, Mapping):
        pairs = [(_token_of_key(key), bias) for key, bias in value.items()]
    elif isinstance(value, list):
        pairs = [_pair(item) for item in value]
    else:
        raise ValueError("expected an object {token id: bias} or an array of pairs [token id, bias]")
    return tuple((_token(token), _bias(bias)) for token, bias in pairs)


def _token_of_key(key: str) -> Any:
    text = key.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else key


def _pair(item: Any) -> tuple[Any, Any]:
    if isinstance(item, list) and len(item) == 2:
        return item[0], item[1]
    if isinstance(item, Mapping) and {"token", "bias"} <= item.keys():
        return item["token"], item["bias"]
    raise ValueError("each pair must be [token id, bias]")


def _token(token: Any) -> int:
    token = _integral(token)
    if isinstance(token, bool) or not isinstance(token, int) or token < 0:
        raise ValueError(f"expected token ids (integers from 0), got {str(token)[:40]!r}")
    return token


def _bias(bias: Any) -> float:
    if bias is False:
        return -math.inf
    if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not abs(bias) <= 1e6:
        raise ValueError(f"expected a number or false as bias, got {str(bias)[:40]!r}")
    return float(bias)


LogitBias = Annotated[
    tuple[tuple[int, float], ...],
    PlainValidator(read_logit_bias),
    WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "array"}], "examples": [{"123": -100}]}),
]
Breakers = Annotated[
    list[Annotated[str, Strict()]],
    BeforeValidator(read_breakers),
    WithJsonSchema({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]}),
]
Names = Annotated[
    list[Any],
    BeforeValidator(read_samplers),
    WithJsonSchema(
        {
            "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}],
            "examples": [list(DEFAULT_SAMPLERS)],
        }
    ),
]
TokenBans = Annotated[
    list[Count],
    BeforeValidator(read_token_bans),
    WithJsonSchema({"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "string"}]}),
]


class SamplingFields(Body):
    """Fields of every sampler, unset by default: then the server's setting, the file's own or "off" holds."""

    temperature: Annotated[Float, Field(ge=0, le=1e6)] | None = None
    dynatemp_range: Annotated[Float, Field(ge=0, le=1e6)] | None = None
    dynatemp_exponent: Annotated[Float, Field(ge=0, le=100)] | None = None
    dynatemp_low: Annotated[Float, Field(ge=0, le=1e6)] | None = None
    dynatemp_high: Annotated[Float, Field(ge=0, le=1e6)] | None = None
    dynamic_temperature: Bool | None = None
    top_k: Annotated[Int, Field(ge=-1, le=_MAX_INT)] | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    typ_p: Share | None = None
    top_n_sigma: Annotated[Float, Field(ge=-1e6, le=1e6)] | None = None
    xtc_probability: Share | None = None
    xtc_threshold: Share | None = None
    dry_multiplier: Annotated[Float, Field(ge=0, le=1e6)] | None = None
    dry_base: Annotated[Float, Field(ge=0, le=1e6)] | None = None
    dry_allowed_length: Count | None = None
    dry_penalty_last_n: LastN | None = None
    dry_sequence_breakers: Breakers | None = None
    repeat_penalty: Annotated[Float, Field(gt=0, le=1e6)] | None = None
    repeat_last_n: LastN | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    mirostat: Annotated[Int, Field(ge=0, le=2)] | None = None
    mirostat_tau: Annotated[Float, Field(ge=0, le=1e6)] | None = None
    mirostat_eta: Annotated[Float, Field(ge=0, le=1e6)] | None = None
    adaptive_target: Annotated[Float, Field(ge=-1e6, le=1)] | None = None
    adaptive_decay: Annotated[Float, Field(ge=0, le=0.99)] | None = None
    min_keep: Count | None = None
    samplers: Names | None = None
    logit_bias: LogitBias | None = None
    token_bans: TokenBans | None = None
    ignore_eos: Bool | None = None
    seed: Int | None = None
    grammar: Annotated[str, Strict()] | None = None

    def to_params(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """Sampling parameters for the engine: the fields that are set, over `defaults`, over "off"."""
        asked = {name: value for name in _PLAIN if (value := getattr(self, name)) is not None}
        values = dict(defaults) | asked
        values |= self._temperature()
        values["top_k"] = max(0, values.get("top_k", 0))
        values["dry_penalty_last_n"] = values.get("dry_penalty_last_n", -1) or -1
        values["logit_bias"] = self._biases(values.get("logit_bias", ()))
        if self.dry_sequence_breakers is not None:
            values["dry_sequence_breakers"] = tuple(self.dry_sequence_breakers)
        if self.seed is not None:
            values["seed"] = fold_seed(self.seed)
        if self.grammar:
            values["grammar"] = Grammar(GrammarKind.GBNF, self.grammar)
        values["samplers"] = order_samplers(self.samplers or values.get("samplers") or (), values)
        return SamplingParams(**values)

    def _temperature(self) -> dict[str, float]:
        """Dynamic temperature given as its two ends, as a midpoint and half a width. Equal ends are the default of
        those who have two (0 and 0, 1 and 1), and set nothing.
        """
        if self.dynamic_temperature is False:
            return {"dynatemp_range": 0.0}
        if self.dynatemp_low is None or self.dynatemp_high is None or self.dynatemp_range is not None:
            return {}
        if self.dynatemp_low == self.dynatemp_high and not self.dynamic_temperature:
            return {}
        low, high = sorted((self.dynatemp_low, self.dynatemp_high))
        return {"temperature": (low + high) / 2, "dynatemp_range": (high - low) / 2}

    def _biases(self, default: LogitBias) -> tuple[tuple[int, float], ...]:
        banned = tuple((token, -math.inf) for token in self.token_bans or ())
        return (*(default if self.logit_bias is None else self.logit_bias), *banned)


_SPECIAL = frozenset({"samplers", "logit_bias", "seed", "grammar", "dry_sequence_breakers"})
_PARAMS = frozenset(field.name for field in dataclasses.fields(SamplingParams))
_PLAIN = tuple(name for name in SamplingFields.model_fields if name in _PARAMS and name not in _SPECIAL)


def fold_seed(seed: int) -> int | None:
    """A negative seed is a random one (None); others into 32 bits, without llama.cpp's mark for "random"."""
    return None if seed < 0 else seed % 0xFFFFFFFF
