"""Sampling parameters and constraints of a request."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from ggufd.llama.params import DEFAULT_SAMPLERS, ChainParams

SAMPLER_NAMES: frozenset[str] = frozenset((*DEFAULT_SAMPLERS, "adaptive_p"))

SAMPLER_LETTERS: Mapping[str, str] = {
    "e": "penalties",
    "d": "dry",
    "s": "top_n_sigma",
    "k": "top_k",
    "y": "typ_p",
    "p": "top_p",
    "m": "min_p",
    "x": "xtc",
    "t": "temperature",
    "a": "adaptive_p",
    "i": "infill",
}
"""llama.cpp's one-letter names; infill is a sampler of its own that is not built here."""


class GrammarKind(enum.Enum):
    """Language of a grammar."""

    GBNF = "gbnf"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class Grammar:
    """Constraint on the output. Checked (`llama.grammar.grammar.check_grammar`) before it comes here.

    `frame` is Lark of the whole output, in which `@body` is what `text` describes; "" when that is the whole.
    """

    kind: GrammarKind
    text: str
    frame: str = ""


@dataclass(frozen=True, slots=True)
class ReasoningBudget:
    """Bound on the reasoning in an output: from the tag `opening`, or from the start where that is "", to `closing`.

    After `max_tokens` (None is no bound), or once it loops, the tokens `ending` are forced, which write `closing`. With
    `reopening` right behind that the reasoning goes on, within the same bound; "" where it cannot.
    """

    opening: str
    closing: str
    ending: tuple[int, ...]
    max_tokens: int | None = None
    reopening: str = ""


@dataclass(frozen=True, slots=True)
class SamplingParams(ChainParams):
    """Parameters of sampling; every default is "off".

    `temperature` <= 0 is greedy. `logit_bias` adds to logits; minus infinity bans. `seed` None draws one.
    """

    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    grammar: Grammar | None = None
