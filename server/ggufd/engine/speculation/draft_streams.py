"""Streams of a draft model's context: which text each holds, and what computing more of it takes.

A sequence has a stream for as long as it may have drafts. A new one gets that which holds most of its text: a chat's
next turn finds the last one there.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Collection, Sequence

from ggufd.engine.backend.interfaces import DraftDecoder
from ggufd.engine.backend.tokens import common_prefix
from ggufd.llama.context.batch import Logits

logger = logging.getLogger(__name__)

CHUNK = 32
"""Least tokens of a prefill chunk."""

_FEW_ROWS = 8
"""Most rows of a decode that tells what a draft token takes."""

_SMOOTHING = 0.3


class DraftStream:
    """Stream `number` of the context, the tokens that it holds, and whose they are."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.tokens = array("i")
        self.owner: object = None


class DraftStreams:
    """All streams of `decoder`, a context over the draft model."""

    def __init__(self, decoder: DraftDecoder) -> None:
        self._decoder = decoder
        self._streams = [DraftStream(number) for number in range(decoder.n_slots)]
        self._token_s = [0.0] * (1 + len(self._streams))
        self.most_missing = min(CHUNK, decoder.n_batch // len(self._streams))
        """Tokens that a stream may lack where a draft can begin: one batch has those of all streams."""
        self.prefill_s_per_token = 0.0
        self.computed_s = 0.0
        """Seconds of all decodes."""
        self.n_dropped = 0
        """Times that what a stream held was of no use and dropped."""

    def stream_of(self, owner: object, tokens: array[int], owners: Collection[object]) -> DraftStream | None:
        """Stream of `owner`, cut back to the beginning of `tokens`; None where all are those of other `owners`.

        At least the last of the tokens is not in it.
        """
        stream = next((one for one in self._streams if one.owner is owner), None)
        if stream is None:
            free = [one for one in self._streams if one.owner not in owners]
            stream = max(free, key=lambda one: (common_prefix(one.tokens, tokens), -len(one.tokens)), default=None)
        if stream is not None:
            stream.owner = owner
            self._keep(stream, min(common_prefix(stream.tokens, tokens), len(tokens) - 1))
        return stream

    def _keep(self, stream: DraftStream, n_keep: int) -> None:
        """Keep the first `n_keep` tokens; none where the stream holds others than it should, or cannot be cut back."""
        n_held = len(stream.tokens)
        if self._holds_all(stream) and (n_keep == n_held or self._decoder.trim(stream.number, n_keep)):
            del stream.tokens[n_keep:]
            if self._holds_all(stream):
                return
        logger.warning("the draft model's cache is dropped, and computed anew")
        self.n_dropped += 1
        self._decoder.trim(stream.number, 0)
        del stream.tokens[:]

    def _holds_all(self, stream: DraftStream) -> bool:
        """Whether the stream holds as many tokens as it is taken to hold, by llama.cpp's own account."""
        return self._decoder.n_past(stream.number) == len(stream.tokens)

    def token_s(self, n_streams: int) -> float:
        """Seconds of a draft token for each of so many streams; 0 when not known."""
        return self._token_s[n_streams] or max(self._token_s)

    def compute(self, parts: Sequence[tuple[DraftStream, Sequence[int]]], *, n_outputs: int) -> None:
        """Compute tokens behind those of each stream, in ascending order of these; `n_outputs` of each with logits.

        Raises `NoRoomError` and `EngineFailure`.
        """
        batch = self._decoder.batch
        batch.clear()
        for stream, tokens in parts:
            batch.add(stream.number, tokens, len(stream.tokens), n_outputs)
        seconds, n_rows = self._decoder.decode(), batch.n_rows
        self.computed_s += seconds
        for stream, tokens in parts:
            stream.tokens.extend(tokens)
        if n_rows <= _FEW_ROWS:
            self._token_s[len(parts)] = _smooth(self._token_s[len(parts)], seconds)
        if n_rows >= CHUNK:
            self.prefill_s_per_token = _smooth(self.prefill_s_per_token, seconds / n_rows)

    def logits(self) -> Logits:
        """Logits of the last decode, shape `[n_outputs, n_vocab]`."""
        return self._decoder.logits()


def _smooth(old: float, new: float) -> float:
    return new if old == 0 else old + _SMOOTHING * (new - old)
