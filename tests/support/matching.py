"""What a grammar allows, asked without changing its matcher."""

from __future__ import annotations

from collections.abc import Sequence

from ggufd.llama.grammar.grammar import Matcher


def allows(matcher: Matcher, tokens: Sequence[int]) -> bool:
    """Whether all of `tokens` could come next, in order."""
    twin = matcher.copy()
    return all(twin.take(token) for token in tokens)
