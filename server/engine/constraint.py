"""A grammar along one sequence: masks on its logits, and where it stands.

The bridge to llguidance is in `llama.grammar`; its tokenizer is built on the first grammar, not at start.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from server.engine.messages import Grammar
from server.engine.sampling import Row
from server.errors import EngineFailure
from server.llama.grammar import Matcher, build_tokenizer, compile_grammar
from server.llama.model import Model


class GrammarConstraint:
    """Masks one sequence's rows by `matcher`. Raises `EngineFailure` when the matcher cannot go on."""

    def __init__(self, matcher: Matcher, n_vocab: int) -> None:
        self._matcher = matcher
        self._words = np.zeros(Matcher.mask_words(n_vocab), np.uint32)
        self._n_vocab = n_vocab

    def mask(self, row: Row) -> None:
        self._matcher.fill_mask(self._words)
        if self._matcher.is_error:
            raise EngineFailure(f"the grammar cannot go on: {self._matcher.error}")
        allowed = np.unpackbits(self._words.view(np.uint8), bitorder="little")[: self._n_vocab]
        row[allowed == 0] = -np.inf

    def accept(self, token: int) -> None:
        if not self._matcher.accept(token):
            raise EngineFailure(f"token {token} does not fit the grammar: {self._matcher.error}")

    def rewind(self, n: int) -> None:
        if not self._matcher.rollback(n):
            raise EngineFailure(f"the grammar cannot go {n} tokens back: {self._matcher.error}")

    @property
    def is_stopped(self) -> bool:
        return self._matcher.is_stopped


class GrammarCompiler:
    """Makes the constraints of one model's sequences."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._tokenizer: Any = None

    def matcher(self, grammar: Grammar) -> GrammarConstraint:
        """Raises `InvalidRequest` for a grammar that cannot be enforced."""
        if self._tokenizer is None:
            self._tokenizer = build_tokenizer(self._model)
        kind = grammar.kind.value
        return GrammarConstraint(
            Matcher(self._tokenizer, compile_grammar(kind, grammar.text), kind=kind), self._model.n_vocab
        )
