"""Events of one request, from the queue to the last token."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ggufd.errors import GgufdError, TryLater


class FinishReason(enum.Enum):
    """Reason of a sequence's end: OpenAI's names, and two internal ones."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its natural-log probability before samplers or after them, and the `n_logprobs` best at its place.

    `piece` is the token's bytes, perhaps a part of a character. `top` is `(token, piece, logprob)`, best first.
    """

    token: int
    piece: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


class CacheSource(enum.Enum):
    """Where reused tokens were when their request was admitted.

    In the slot that it got, in another one and copied, further on in the slot and moved to where they belong now, or in
    host RAM.
    """

    SAME_SLOT = "same_slot"
    COPIED = "copied"
    MOVED = "moved"
    RESTORED = "restored"


@dataclass(frozen=True, slots=True)
class CacheDifference:
    """Token `token` of a prompt is the first that the best matching slot held otherwise.

    `held` are the tokens that it held from there on, the first few; None when they were another person's. Of an image
    they are the numbers of its rows, below zero.
    """

    token: int
    held: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class CacheReport:
    """What the cache had for a prompt. `source` None means that nothing was reused.

    `difference` None means that the prompt went on where a slot ended, ended within it, or that nothing was kept.
    """

    source: CacheSource | None = None
    difference: CacheDifference | None = None


class CacheClass(enum.Enum):
    """Class of what the cache had for a prompt: all that another request had left, up to a difference, or nothing."""

    CONTINUED = "continued"
    PARTED = "parted"
    NEW = "new"


@dataclass(frozen=True, slots=True)
class Usage:
    """Cost of a sequence. Tokens; times in seconds. `cached_tokens` of the prompt were not computed again;
    `moved_tokens` of those were moved from another place (`cache_reuse`), so the text may differ a little.
    `rewinds` counts banned phrases that were taken back. `cache` is there when it was asked for, `cache_class`
    once it had a slot.
    `accepted_tokens` of the completion were draft tokens, out of `drafted_tokens` (speculative decoding).
    `dropped_tokens` had to leave the slot before the end (`context_shift`).
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float
    rewinds: int = 0
    moved_tokens: int = 0
    cache: CacheReport | None = None
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    dropped_tokens: int = 0
    cache_class: CacheClass | None = None

    @property
    def decoded_tokens(self) -> int:
        """Tokens that `decode_s` was spent on: the first one came with the prefill."""
        return max(0, self.completion_tokens - 1)

    @property
    def tokens_per_s(self) -> float:
        """Decoding rate; 0 when the text is too short to tell."""
        return self.decoded_tokens / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Finish:
    """End of a sequence. `stop` is the stop string that matched, if one did.

    `end` is the token that ended it, which is no part of the text, when log-probabilities are wanted.
    """

    reason: FinishReason
    usage: Usage
    stop: str | None = None
    end: TokenLogprob | None = None


class Turn(NamedTuple):
    """Place of a waiting request, 1 is the next, and the expected seconds until it has a slot."""

    position: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class Queued:
    """Notice that the request waits, and its place."""

    request_id: int
    turn: Turn


@dataclass(frozen=True, slots=True)
class Admitted:
    """Admission of a sequence: it left the queue for a slot."""

    request_id: int
    index: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a prefill, when asked for: tokens, and seconds since admission."""

    request_id: int
    index: int
    total: int
    cached: int
    processed: int
    time_s: float


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of the prompt's tokens from the second on (the first has none)."""

    request_id: int
    index: int
    entries: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """New text of one sequence: at most one a step and sequence. The last has `finish`.

    `tokens` are those whose text is complete in what was sent so far; `logprobs` stand beside them one to one,
    and only when asked for. `text` may be empty. `parts` are how many characters and tokens came at a time, where a
    step chose several tokens.
    """

    request_id: int
    index: int
    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    parts: tuple[tuple[int, int], ...] = ()

    def pieces(self) -> Iterator[tuple[str, int]]:
        """Pieces of the text as it came, each with the number of tokens that it completes."""
        end = 0
        for n_characters, n_tokens in self.parts or ((len(self.text), len(self.tokens)),):
            start, end = end, end + n_characters
            yield self.text[start:end], n_tokens

    def __reduce__(self) -> tuple[type[Output], tuple[Any, ...]]:
        # Made for every token: what dataclass would do to cross the boundary takes twice the time.
        return Output, (self.request_id, self.index, self.text, self.tokens, self.logprobs, self.finish, self.parts)


@dataclass(frozen=True, slots=True)
class Embedding:
    """Embedding of one input: little-endian floats of 32 bits, `width` of them for each vector.

    One vector, or one for each token where nothing is pooled; of a reranker, its scores. `n_tokens` are the input's.
    """

    request_id: int
    index: int
    data: bytes
    width: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """Failure of a whole request: see `errors.from_code`. `param` is the field at fault."""

    request_id: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None

    @classmethod
    def by(cls, request_id: int, error: GgufdError) -> Failed:
        """The error, flattened to cross the process boundary."""
        retry_after_s = error.retry_after_s if isinstance(error, TryLater) else None
        return cls(request_id, error.code, error.message, error.param, retry_after_s)


RequestEvent = Queued | Admitted | Progress | PromptLogprobs | Output | Embedding | Failed
