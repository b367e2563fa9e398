"""Log-probabilities in OpenAI's two formats and llama-server's. Texts of tokens add up to the text of the answer.

A token that ends within a character has no text of its own: the token that completes it carries the character, and
`bytes` tells what each token really is.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from typing import Any

from ggufd.engine.messages.events import TokenLogprob

_IMPOSSIBLE = -9999.0
_SHOWN_FROM = -50.0
"""Alternatives below this are left out: their probability is zero in any display, and some show that as one."""


class TokenTexts:
    """Texts of successive tokens of one sequence."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def next(self, piece: bytes) -> str:
        """The text that `piece` completes."""
        return self._decoder.decode(piece)


def clamp(logprob: float) -> float:
    """A log-probability that JSON can hold: OpenAI writes -9999 for what cannot happen."""
    return logprob if math.isfinite(logprob) else _IMPOSSIBLE


def _alternatives(entry: TokenLogprob) -> list[tuple[bytes, float]]:
    return [(piece, logprob) for _, piece, logprob in entry.top if logprob >= _SHOWN_FROM]


def chat_entry(entry: TokenLogprob, text: str) -> dict[str, Any]:
    """One item of a chat choice's `logprobs.content`."""
    return {
        "token": text,
        "logprob": clamp(entry.logprob),
        "bytes": list(entry.piece),
        "top_logprobs": [
            {"token": _lone(piece), "logprob": logprob, "bytes": list(piece)} for piece, logprob in _alternatives(entry)
        ],
    }


def native_entry(entry: TokenLogprob, text: str) -> dict[str, Any]:
    """One item of llama-server's `completion_probabilities`, in the words of its versions old and new."""
    shown = [item for item in entry.top if item[2] >= _SHOWN_FROM]
    return {
        **_chosen(entry, text),
        "logprob": clamp(entry.logprob),
        "top_logprobs": [
            {"id": token, "token": _lone(piece), "bytes": list(piece), "logprob": logprob}
            for token, piece, logprob in shown
        ],
        "probs": [{"tok_str": _lone(piece), "prob": _share(logprob)} for _, piece, logprob in shown],
    }


def final_entry(entry: TokenLogprob, text: str) -> dict[str, Any]:
    """The same after samplers, in llama-server's words for that: probabilities, of those tokens only that were left."""
    return {
        **_chosen(entry, text),
        "prob": _share(entry.logprob),
        "top_probs": [
            {"id": token, "token": _lone(piece), "bytes": list(piece), "prob": _share(logprob)}
            for token, piece, logprob in entry.top
        ],
        "probs": [{"tok_str": _lone(piece), "prob": _share(logprob)} for _, piece, logprob in entry.top],
    }


def _chosen(entry: TokenLogprob, text: str) -> dict[str, Any]:
    return {"id": entry.token, "token": text, "content": text, "bytes": list(entry.piece)}


def _share(logprob: float) -> float:
    return math.exp(min(0.0, logprob))


def _lone(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


class LegacyLogprobs:
    """The `logprobs` object of a text completion, in one piece or chunk by chunk; offsets run on."""

    def __init__(self) -> None:
        self._offset = 0
        self._texts = TokenTexts()

    def first_of_prompt(self, piece: bytes, *, is_in_text: bool) -> dict[str, Any]:
        """The prompt's first token, which nothing predicts. One that the text does not show has no width."""
        text = self._texts.next(piece)
        parts = _parts([text], [None], [None], [self._offset])
        self._offset += len(text) if is_in_text else 0
        return parts

    def texts(self, entries: Sequence[TokenLogprob]) -> list[str]:
        """The texts of the next tokens; ask once for each token."""
        return [self._texts.next(entry.piece) for entry in entries]

    def add(self, entries: Sequence[TokenLogprob], texts: Sequence[str]) -> dict[str, Any]:
        """The object for the next tokens."""
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        tops = [_legacy_top(entry, text) for entry, text in zip(entries, texts, strict=True)]
        return _parts(list(texts), [clamp(entry.logprob) for entry in entries], tops, offsets)


def _legacy_top(entry: TokenLogprob, text: str) -> dict[str, float]:
    """The best and the chosen one, which is always among them."""
    top = {_lone(piece): logprob for piece, logprob in _alternatives(entry)}
    if all(token != entry.token for token, _, _ in entry.top):
        top.setdefault(text, clamp(entry.logprob))
    return top


def _parts(texts: Any, logprobs: Any, tops: Any, offsets: Any) -> dict[str, Any]:
    return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two legacy objects, concatenated."""
    return {name: first[name] + second[name] for name in first}
