"""A grammar along one sequence: masks on its logits, and where it stands; and the compiling of grammars.

The bridge to llguidance is in `llama.grammar`. A grammar is compiled on a thread of its own, which llguidance lets run
beside the step loop, and kept: whoever sends it again gets a copy that is ready at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from server.engine.messages import Grammar
from server.engine.sampling import Row
from server.errors import EngineFailure
from server.llama.grammar import Matcher, build_tokenizer, compile_grammar
from server.llama.model import Model

_MAX_KEPT = 32
_MAX_KEPT_CHARS = 2 * 1024 * 1024
_NICENESS = 10


class GrammarConstraint:
    """Masks one sequence's rows by `matcher`. Raises `EngineFailure` when the matcher cannot go on."""

    def __init__(self, compiled: CompiledGrammar, matcher: Matcher, n_vocab: int) -> None:
        self._compiled = compiled
        self._matcher = matcher
        self._words = np.zeros(Matcher.mask_words(n_vocab), np.uint32)
        self._n_vocab = n_vocab

    def mask(self, row: Row) -> None:
        self._matcher.fill_mask(self._words)
        if self._matcher.is_error:
            raise self._broken("the grammar cannot go on")
        banned = np.unpackbits(~self._words.view(np.uint8), bitorder="little")[: self._n_vocab]
        np.copyto(row, -np.inf, where=banned.view(bool))

    def accept(self, token: int) -> None:
        if not self._matcher.accept(token):
            raise self._broken(f"token {token} does not fit the grammar")

    def rewind(self, n: int) -> None:
        if not self._matcher.rollback(n):
            raise self._broken(f"the grammar cannot go {n} tokens back")

    @property
    def is_stopped(self) -> bool:
        return self._matcher.is_stopped

    def _broken(self, what: str) -> EngineFailure:
        # Copies share what they learn with the compiled grammar, and so may share what broke this one.
        self._compiled.is_broken = True
        return EngineFailure(f"{what}: {self._matcher.error}")


class CompiledGrammar:
    """A grammar that is being compiled, or is."""

    def __init__(self, matcher: Future[Matcher], n_vocab: int) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab
        self.is_broken = False

    @property
    def is_ready(self) -> bool:
        """Whether `constraint` will not wait; also when the grammar was refused."""
        return self._matcher.done()

    def constraint(self) -> GrammarConstraint:
        """A new constraint at the grammar's start. Raises `InvalidRequest` when it cannot be enforced."""
        return GrammarConstraint(self, self._matcher.result().copy(), self._n_vocab)


class GrammarCompiler:
    """Compiles the grammars of one model, each once as long as it is kept; the one used last is kept longest."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._tokenizer: Any = None
        self._thread = ThreadPoolExecutor(1, "grammar", _be_nice)
        self._kept: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()
        self._n_kept_chars = 0

    def prepare(self) -> None:
        """Have the tokenizer that the first grammar needs: llguidance halts all of Python while it makes it."""
        if self._tokenizer is None:
            self._thread.submit(self._have_tokenizer).result()

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """The grammar, compiled before or from now on."""
        compiled = self._kept.pop(grammar, None)
        if compiled is not None:
            self._n_kept_chars -= len(grammar.text)
        if compiled is None or compiled.is_broken:
            compiled = CompiledGrammar(self._thread.submit(self._build, grammar), self._model.n_vocab)
        self._keep(grammar, compiled)
        return compiled

    def _keep(self, grammar: Grammar, compiled: CompiledGrammar) -> None:
        self._kept[grammar] = compiled
        self._n_kept_chars += len(grammar.text)
        while len(self._kept) > _MAX_KEPT or (self._n_kept_chars > _MAX_KEPT_CHARS and len(self._kept) > 1):
            dropped, _ = self._kept.popitem(last=False)
            self._n_kept_chars -= len(dropped.text)

    def _build(self, grammar: Grammar) -> Matcher:
        """On the thread. The first mask is the dearest, and copies share what it needs: computed here too."""
        kind = grammar.kind.value
        matcher = Matcher(self._have_tokenizer(), compile_grammar(kind, grammar.text, grammar.frame), kind=kind)
        matcher.check_start()
        return matcher

    def _have_tokenizer(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = build_tokenizer(self._model)
        return self._tokenizer


def _be_nice() -> None:
    """Let the compute threads go first, where one thread can be told so."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
