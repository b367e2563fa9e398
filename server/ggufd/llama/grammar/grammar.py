"""Constrained decoding with llguidance: grammars in, masks of the next token out.

`compile_grammar` and `check_grammar` refuse with InvalidRequest everything that cannot be enforced, before a token
is computed. llguidance is imported on first use, so that a process without grammars does not pay for it. Knows
nothing of where a grammar came from.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ggufd.errors import InvalidRequest, Unsupported
from ggufd.llama.grammar import schema
from ggufd.llama.grammar.gbnf import MAX_DEPTH, plain_gbnf

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ggufd.llama.model.vocabulary import ModelVocabulary

MAX_CHARS = 256 * 1024
_MAX_BRACKETS = MAX_DEPTH

_WRITTEN_IN = {
    "gbnf": "GBNF grammar",
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "lark": "Lark grammar",
}

_PLAINLY = {
    "Unimplemented keys": "this keyword is not supported. Leave it out, and check it yourself",
    "oneOf constraints": "only alternatives told apart by type, 'const' or 'enum' are supported. Use 'anyOf'",
    "Unknown format": "this format is not supported. Leave it out, or use 'pattern'",
}
"""llguidance's messages about schemas, reworded for users, who cannot set its options."""

# llguidance's fuel is roughly CPU time: 50,000 units a millisecond at the start, 14,000 in a step. Its own defaults
# allow masks of 15 ms, which everybody in the batch would wait for; grammars of ten times this size were seen to take
# seconds to compile and half a second a mask.
_LIMITS = {
    "initial_lexer_fuel": 300_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 50_000,
    "verbose_errors": False,
}


def compile_grammar(kind: str, text: str, frame: str = "") -> str:
    """Compile a grammar to llguidance's form; `kind` is "gbnf", "json_schema", "regex" or "lark".

    `frame` is Lark of the whole output, in which `@body` is what `text` describes. Raises InvalidRequest that names
    what is wrong or cannot be translated.
    """
    compiled = _compile(kind, text)
    if not frame:
        return compiled
    # Of Lark llguidance makes no JSON: it stays as it is, and a GBNF grammar has become Lark.
    is_lark = kind in ("gbnf", "lark")
    grammars = [{"lark_grammar": compiled}] if is_lark else json.loads(compiled)["grammars"]
    grammars[0]["name"] = "body"
    return json.dumps({"grammars": [{"lark_grammar": frame}, *grammars]})


def _compile(kind: str, text: str) -> str:
    _check_bounds(kind, text)
    from llguidance import LLMatcher

    match kind:
        case "gbnf":
            return str(LLMatcher.grammar_from_lark(_lark_of_gbnf(text)))
        case "json_schema":
            return str(LLMatcher.grammar_from_json_schema(schema.prepared(text)))
        case "regex":
            return str(LLMatcher.grammar_from_regex(text))
        case "lark":
            return str(LLMatcher.grammar_from_lark(text))
    raise InvalidRequest(f"Unknown kind of grammar {kind!r}.", param="grammar")


def check_grammar(kind: str, text: str, build: Callable[[], Any] | None = None, *, frame: str = "") -> None:
    """Check a grammar. Raises InvalidRequest unless it can be enforced and allows at least one first token.

    Only Lark can name tokens of the vocabulary; for that, `build` is asked for the model's tokenizer. All else is
    checked against bytes, which costs no vocabulary.
    """
    tokenizer = build() if (frame or kind == "lark") and build is not None else _byte_tokenizer()
    grammar = compile_grammar(kind, text, frame)
    try:
        Matcher(tokenizer, grammar, kind=kind).check_start()
    except InvalidRequest as error:
        if kind != "json_schema":
            raise
        raise InvalidRequest(_with_place(text, error.message), param="grammar") from None


def _with_place(text: str, message: str) -> str:
    """Message about a refused schema, with a JSON pointer to the keyword at fault."""

    def refusal(part: str) -> str | None:
        try:
            Matcher(_byte_tokenizer(), compile_grammar("json_schema", part), kind="json_schema").check_start()
        except InvalidRequest as error:
            return error.message
        return None

    pointer = schema.locate(text, message, refusal)
    reason = message.removeprefix(_refusal("json_schema"))
    reason = next((ours for theirs, ours in _PLAINLY.items() if reason.startswith(theirs)), reason)
    return f"{_refusal('json_schema')}'{pointer}': {reason}."


def build_tokenizer(vocabulary: ModelVocabulary) -> Any:
    """llguidance's tokenizer over the vocabulary: 0.2 s and 20 MB at 49k tokens. The vocabulary must outlive it.

    Raises Unsupported for a vocabulary that it cannot read: WordPiece, Unigram, one without an end token.
    """
    from llguidance.llamacpp import lltokenizer_from_vocab

    with warnings.catch_warnings():
        # llguidance asks llama.cpp by a name that the binding calls deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Its default is EOS alone; a model that ends its turns with another token could then never end.
        try:
            return lltokenizer_from_vocab(vocabulary.handle, eos_token=sorted(vocabulary.eog_tokens) or None)
        except ValueError as error:
            raise Unsupported(f"Nothing can be enforced with this model's vocabulary ({error}).") from None


class Matcher:
    """Grammar state of one sequence.

    `tokenizer` comes from `build_tokenizer`, `grammar` from `compile_grammar`. Raises InvalidRequest when
    llguidance cannot start it.
    """

    def __init__(self, tokenizer: Any, grammar: str, *, kind: str = "gbnf") -> None:
        from llguidance import LLMatcher, LLParserLimits

        self._kind = kind
        self._matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**_LIMITS))
        if self._matcher.is_error():
            raise _refused(kind, self._matcher.get_error())

    def copy(self) -> Matcher:
        """Independent copy in the same state; takes a microsecond.

        They share what the lexer has worked out so far, and its limits.
        """
        twin = object.__new__(Matcher)
        twin._kind = self._kind
        twin._matcher = self._matcher.deep_copy()
        return twin

    def check_start(self) -> int:
        """Number of tokens that may come first. Raises InvalidRequest when there is none, or none can be followed."""
        try:
            mask = int.from_bytes(self._matcher.compute_bitmask(), "little")
        except ValueError as error:
            raise _refused(self._kind, str(error)) from None
        if self.is_error or not mask:
            raise _refused(self._kind, "no text can satisfy it")
        second = self.copy()
        if not second.accept((mask & -mask).bit_length() - 1):
            raise _refused(self._kind, second.error)
        return mask.bit_count()

    def accept(self, token: int) -> bool:
        """Step over `token`; False, and stuck in an error, when the grammar does not allow it."""
        return bool(self._matcher.consume_token(token))

    def take(self, token: int) -> bool:
        """Step over `token` if the grammar allows it; else, or in an error, nothing changes."""
        return bool(self._matcher.try_consume_tokens([token]))

    def rollback(self, n_tokens: int) -> bool:
        """Take back the last `n_tokens` accepted tokens."""
        return bool(self._matcher.rollback(n_tokens))

    def forced_tokens(self) -> list[int]:
        """The tokens that must come next, because the grammar leaves no choice; often none."""
        return list(self._matcher.compute_ff_tokens())

    @property
    def is_stopped(self) -> bool:
        """Whether nothing but the end can follow."""
        return bool(self._matcher.is_stopped())

    @property
    def is_accepting(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_accepting())

    @property
    def is_error(self) -> bool:
        return bool(self._matcher.is_error())

    @property
    def error(self) -> str:
        return _first_lines(self._matcher.get_error())


class MaskFiller:
    """Token masks of several matchers at once, on up to `n_threads` threads, without the GIL."""

    def __init__(self, n_threads: int) -> None:
        from llguidance import LLExecutor

        # Its threads are others than the caller's, which must be woken: nothing is gained by a single one.
        self._executor = LLExecutor(n_threads) if n_threads > 1 else None

    def fill(self, matchers: Sequence[Matcher], masks: npt.NDArray[np.uint32]) -> None:
        """Write one bit a token, lowest first, into `masks`: contiguous, a row of `mask_words` for each matcher.

        Nothing else may use the matchers meanwhile. Where a grammar has stopped only tokens that end generation are
        allowed; one that fails is in error afterwards.
        """
        assert masks.flags.c_contiguous
        assert len(matchers) <= len(masks)
        start, n_bytes = masks.ctypes.data, masks.strides[0]
        if self._executor is not None and len(matchers) > 1:
            rows = [(matcher._matcher, row) for row, matcher in enumerate(matchers)]
            self._executor.unsafe_compute_mask_ptr(rows, start, n_bytes, len(masks))
            return
        for row, matcher in enumerate(matchers):
            matcher._matcher.unsafe_compute_mask_ptr(start + row * n_bytes, n_bytes)


def mask_words(n_vocab: int) -> int:
    """Number of 32-bit words of a mask over `n_vocab` tokens."""
    return (n_vocab + 31) // 32


@lru_cache(maxsize=1)
def _byte_tokenizer() -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def _lark_of_gbnf(text: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    plain = plain_gbnf(text)
    try:
        return str(gbnf_to_lark(plain))
    except Exception as error:
        # The translator raises bare exceptions.
        raise _refused("gbnf", str(error)) from None


def _check_bounds(kind: str, text: str) -> None:
    name = _WRITTEN_IN.get(kind, "grammar")
    if len(text) > MAX_CHARS:
        raise InvalidRequest(f"The {name} is longer than {MAX_CHARS} characters.", param="grammar")
    if not text.strip():
        raise InvalidRequest(f"The {name} is empty.", param="grammar")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise InvalidRequest(f"The {name} is no valid Unicode: it has a lone surrogate.", param="grammar")
    if kind != "gbnf" and _depth(text) > _MAX_BRACKETS:
        raise InvalidRequest(f"The {name} is nested deeper than {_MAX_BRACKETS}.", param="grammar")


def _depth(text: str) -> int:
    """Depth of brackets outside of quotes: a bound, not a parse."""
    depth = deepest = 0
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|\\.|[(\[{]|[)\]}]', text, re.DOTALL):
        bracket = token.group()
        if bracket in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif bracket in ")]}":
            depth = max(0, depth - 1)
    return deepest


def _refused(kind: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{_refusal(kind)}{_first_lines(reason)}", param="grammar")


def _refusal(kind: str) -> str:
    return f"The {_WRITTEN_IN.get(kind, 'grammar')} cannot be enforced: "


def _first_lines(reason: str) -> str:
    """Message of llguidance without the source that it shows below."""
    lines = [line.strip() for line in reason.strip().splitlines() if line.strip()]
    kept = [line for line in lines if not re.match(r"\d+ \||\^+$", line)]
    return " ".join(kept)[:400] or "unknown error"
