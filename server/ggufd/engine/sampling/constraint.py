"""Constrained decoding: grammars compiled in the background, their state along one sequence, and masks on its logits.

The bridge to llguidance is in `llama.grammar.grammar`. A grammar is compiled on a thread of its own, beside the step
loop, and cached: a request that sends it again gets a copy that is ready at once. Masks are computed while the decode
runs whose logits they are for.

Most of an answer that may call tools is free text, where a mask would allow nearly everything. There a token is drawn
first and checked alone, which takes a few microseconds. The distribution is the same either way: a token that is
refused is drawn again from those that are allowed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ggufd.engine.backend.interfaces import Row
from ggufd.engine.messages.sampling import Grammar
from ggufd.errors import EngineFailure, InvalidRequest
from ggufd.llama.grammar.grammar import MaskFiller, Matcher, build_tokenizer, compile_grammar, mask_words
from ggufd.llama.model.vocabulary import ModelVocabulary

_MAX_KEPT = 32
_MAX_KEPT_CHARS = 2 * 1024 * 1024
_NICENESS = 10
_STACK_BYTES = 512 << 20


class Masks:
    """Masks of the next tokens of many constraints, computed together beside a decode.

    A thread of its own computes them, and owns the matchers between `begin` and the first `banned`.
    """

    def __init__(self, n_vocab: int) -> None:
        self._n_vocab = n_vocab
        self._thread = ThreadPoolExecutor(1, "masks")
        self._filler = MaskFiller(max(1, (os.cpu_count() or 1) // 2))
        self._words = np.zeros((0, mask_words(n_vocab)), np.uint32)
        self._word = np.zeros((1, mask_words(n_vocab)), np.uint32)
        self._banned = np.zeros((0, n_vocab), bool)
        self._row_of: dict[int, int] = {}
        self._filling: Future[None] | None = None
        self._matchers: Sequence[Matcher] = ()

    def begin(self, matchers: Sequence[Matcher]) -> None:
        """Start computing the masks of these; earlier ones are dropped."""
        self._wait()
        if len(matchers) > len(self._words):
            self._words = np.zeros((len(matchers), self._words.shape[1]), np.uint32)
        self._row_of = {id(matcher): row for row, matcher in enumerate(matchers)}
        self._matchers = matchers
        self._filling = self._thread.submit(self._fill, matchers)

    def banned(self, matcher: Matcher) -> npt.NDArray[np.bool_]:
        """Tokens that are not allowed next, shape `[n_vocab]`, valid until the next call of this or of `begin`."""
        self._wait()
        # A mask is valid for one token only.
        place = self._row_of.pop(id(matcher), None)
        if place is None:
            self._filler.fill([matcher], self._word)
        banned: npt.NDArray[np.bool_] = self._unpacked(self._word)[0] if place is None else self._banned[place]
        return banned

    def _wait(self) -> None:
        filling, self._filling = self._filling, None
        if filling is None:
            return
        if filling.cancel():
            # The cores were too busy with the decode for the thread to begin: computed here instead.
            self._fill(self._matchers)
        else:
            filling.result()

    def _fill(self, matchers: Sequence[Matcher]) -> None:
        words = self._words[: len(matchers)]
        self._filler.fill(matchers, words)
        self._banned = self._unpacked(words)

    def _unpacked(self, words: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        bits = np.unpackbits(~words.view(np.uint8), axis=1, bitorder="little", count=self._n_vocab)
        return bits.view(bool)


class GrammarConstraint:
    """State of a grammar along one sequence. Raises `EngineFailure` when the matcher fails.

    It is free after a mask that allows half of the vocabulary, until a token is refused or forces the next.
    """

    def __init__(self, compiled: MaskedGrammar, matcher: Matcher, masks: Masks, *, is_free: bool) -> None:
        self._compiled = compiled
        self._masks = masks
        self.matcher = matcher
        self.is_free = is_free

    def mask(self, row: Row) -> None:
        banned = self._masks.banned(self.matcher)
        if self.matcher.is_error:
            raise self._broken("the grammar cannot go on")
        np.copyto(row, -np.inf, where=banned)
        self.is_free = _is_free(len(row) - int(np.count_nonzero(banned)), len(row))

    def take(self, token: int) -> bool:
        if self.matcher.take(token):
            return True
        if self.matcher.is_error:
            raise self._broken("the grammar cannot go on")
        self.is_free = False
        return False

    def accept(self, token: int) -> None:
        if not self.matcher.accept(token):
            raise self._broken(f"token {token} does not fit the grammar")

    def forced(self) -> list[int]:
        tokens = self.matcher.forced_tokens()
        if self.matcher.is_error:
            raise self._broken("the grammar cannot go on")
        if tokens:
            self.is_free = False
        return tokens

    def rewind(self, n: int) -> None:
        self.is_free = False
        if not self.matcher.rollback(n):
            raise self._broken(f"the grammar cannot go {n} tokens back")

    @property
    def is_stopped(self) -> bool:
        return self.matcher.is_stopped

    @property
    def is_accepting(self) -> bool:
        return self.matcher.is_accepting

    def _broken(self, what: str) -> EngineFailure:
        # Copies share what they learn with the compiled grammar, and so may share what broke this one.
        self._compiled.is_broken = True
        return EngineFailure(f"{what}: {self.matcher.error}")


def _is_free(n_allowed: int, n_vocab: int) -> bool:
    return 2 * n_allowed > n_vocab


class _Start(NamedTuple):
    """Matcher at the start of its grammar, and whether nearly any token is allowed first."""

    matcher: Matcher
    is_free: bool


class MaskedGrammar:
    """Grammar that is compiled in the background."""

    def __init__(self, start: Future[_Start], masks: Callable[[], Masks]) -> None:
        self._start = start
        self._masks = masks
        self.is_broken = False

    @property
    def is_ready(self) -> bool:
        """Whether `constraint` returns at once; also when the grammar was refused."""
        return self._start.done()

    def constraint(self) -> GrammarConstraint:
        """New constraint at the grammar's start. Raises `InvalidRequest` when it cannot be enforced."""
        start = self._start.result()
        return GrammarConstraint(self, start.matcher.copy(), self._masks(), is_free=start.is_free)


class GrammarCompiler:
    """Compiler of one model's grammars, with an LRU cache."""

    def __init__(self, vocabulary: ModelVocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokenizer: Any = None
        self._is_hopeless = False
        self._masks: Masks | None = None
        self._thread = _deep_thread()
        self._kept: OrderedDict[Grammar, MaskedGrammar] = OrderedDict()
        self._n_kept_chars = 0

    def prepare(self) -> None:
        """Make the tokenizer that the first grammar needs: llguidance blocks all of Python meanwhile."""
        if self._tokenizer is None and not self._is_hopeless:
            try:
                self._thread.submit(self._have_tokenizer).result()
            except InvalidRequest:
                # Requests with a grammar get the error; all others are served.
                self._is_hopeless = True

    def compile(self, grammar: Grammar) -> MaskedGrammar:
        """Cached grammar, or one that is compiled from now on."""
        compiled = self._kept.pop(grammar, None)
        if compiled is not None:
            self._n_kept_chars -= len(grammar.text)
        if compiled is None or compiled.is_broken:
            compiled = MaskedGrammar(self._thread.submit(self._build, grammar), self._have_masks)
        self._keep(grammar, compiled)
        return compiled

    def begin_masks(self, constraints: Sequence[GrammarConstraint]) -> None:
        """Start computing the next masks of these constraints, beside the decode."""
        self._have_masks().begin([constraint.matcher for constraint in constraints])

    def _have_masks(self) -> Masks:
        if self._masks is None:
            self._masks = Masks(self._vocabulary.n_vocab)
        return self._masks

    def _keep(self, grammar: Grammar, compiled: MaskedGrammar) -> None:
        self._kept[grammar] = compiled
        self._n_kept_chars += len(grammar.text)
        while len(self._kept) > _MAX_KEPT or (self._n_kept_chars > _MAX_KEPT_CHARS and len(self._kept) > 1):
            dropped, _ = self._kept.popitem(last=False)
            self._n_kept_chars -= len(dropped.text)

    def _build(self, grammar: Grammar) -> _Start:
        """Compile on the thread. The first mask costs most, and copies share what it needs: computed here too."""
        kind = grammar.kind.value
        matcher = Matcher(self._have_tokenizer(), compile_grammar(kind, grammar.text, grammar.frame), kind=kind)
        return _Start(matcher, _is_free(matcher.check_start(), self._vocabulary.n_vocab))

    def _have_tokenizer(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = build_tokenizer(self._vocabulary)
        return self._tokenizer


def _deep_thread() -> ThreadPoolExecutor:
    """Thread with as much stack as the one that checked the grammar had: only a new thread can be given it."""
    before = threading.stack_size(_STACK_BYTES)
    try:
        thread = ThreadPoolExecutor(1, "grammar", _be_nice)
        thread.submit(_be_nice).result()
    finally:
        threading.stack_size(before)
    return thread


def _be_nice() -> None:
    """Lower the priority below the compute threads, where that can be set for one thread."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
