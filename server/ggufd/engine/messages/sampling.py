"""Sampling parameters and constraints of a request."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ggufd.llama.params import DEFAULT_SAMPLERS, ChainParams

SAMPLER_NAMES: frozenset[str] = frozenset((*DEFAULT_SAMPLERS, "adaptive_p"))


class GrammarKind(enum.Enum):
    """What the text of a grammar is written in."""

    GBNF = "gbnf"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class Grammar:
    """A constraint on the output. Checked (`llama.grammar.grammar.check_grammar`) before it comes here.

    `frame` is Lark of the whole output, in which `@body` is what `text` describes; "" when that is the whole.
    """

    kind: GrammarKind
    text: str
    frame: str = ""


@dataclass(frozen=True, slots=True)
class SpanLimit:
    """A bound on a part of the output: from `opening`, or from the start where that is "", to `closing`.

    After `max_tokens` in it (None is no bound), or once it goes round in circles, the tokens `ending` are said, which
    write `closing`. With `reopening` right behind that it goes on, within the same bound; "" where it cannot.
    """

    opening: str
    closing: str
    ending: tuple[int, ...]
    max_tokens: int | None = None
    reopening: str = ""


@dataclass(frozen=True, slots=True)
class SamplingParams(ChainParams):
    """How the next token is chosen; every default is "off".

    `temperature` <= 0 is greedy. `logit_bias` adds to logits; minus infinity bans. `seed` None draws one.
    """

    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    grammar: Grammar | None = None
