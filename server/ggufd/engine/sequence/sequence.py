"""Sequence state: the tokens of one choice of one request, how many of them are computed, and in which slot.

Data and derived properties only; the engine makes the transitions.
"""

from __future__ import annotations

import enum
from array import array
from dataclasses import dataclass, field

from ggufd.engine.backend.interfaces import CompiledGrammar, Constraint, Sampler
from ggufd.engine.kv_store.disk_cache import Fetch
from ggufd.engine.messages.events import CacheClass, CacheReport, TokenLogprob, Usage
from ggufd.engine.messages.images import tokens_only
from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.sampling.banned import BanGuard, Bans, bans_of
from ggufd.engine.sampling.detokenizer import Detokenizer
from ggufd.engine.sampling.reasoning_budget import ReasoningGuard
from ggufd.engine.sampling.sampling import Bias, FinalLogprobs, Logprobs, logprobs_of
from ggufd.engine.sequence.prompt_images import PromptImages
from ggufd.engine.sequence.trim import Chat
from ggufd.engine.speculation.acceptance import AcceptanceEstimator
from ggufd.engine.speculation.prompt_lookup import PromptLookup
from ggufd.llama.context.batch import State


class Status(enum.Enum):
    """Where a sequence is: in the queue, in a slot, or done."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True)
class OutputToken:
    """A generated token that waits for its text, with its log-probability when that was asked for."""

    token: int
    logprob: TokenLogprob | None


@dataclass(slots=True, eq=False)
class SequenceState:
    """One choice of a request, from the queue to its last token.

        [0, n_prompt)               prompt                 [0, n_past)              computed, in the slot
        [n_prompt, len(tokens))     generated              [n_past, len(tokens))    to be computed

    Times are seconds of `time.perf_counter`. `slot` is set exactly while running; `serial` is the order of arrival.
    While it waits preempted, `state` is the KV state of its slot.
    `draft` are draft tokens: computed with the next step, and no part of the text until they are accepted.
    Numbers below zero among its tokens are rows of its `images`, which are mapped for as long as it lives.
    `dropped` stood at `n_kept` before a context shift; from then on the prompt may end anywhere.
    """

    request: EngineRequest
    index: int
    arrival_s: float
    tokens: array[int]
    n_prompt: int
    detokenizer: Detokenizer[OutputToken]
    images: PromptImages = field(default_factory=PromptImages)
    status: Status = Status.WAITING
    serial: int = 0
    patience_s: float | None = None
    """Seconds of work that may still go before it though it came later; None until the first plan after it came."""
    n_matched: int = 0
    """Tokens of its prompt that the cache had when it came."""

    # Slot and prefix cache.
    slot: int | None = None
    state: State | None = None
    n_past: int = 0
    n_cached: int = 0
    n_moved: int = 0
    checkpoints: list[int] = field(default_factory=list)
    """Lengths of prefixes of its prompt after which its state is saved, ascending; those that are still ahead."""
    cache_report: CacheReport | None = None
    cache_class: CacheClass | None = None
    fetch: Fetch | None = None
    """A longer prefix of it, being read from disk."""
    chat: Chat | None = None
    """The chat that it continues, where its next prompt is predicted."""

    admit_s: float = 0.0
    first_token_s: float = 0.0
    last_token_s: float = 0.0

    # Sampling.
    sampler: Sampler | None = None
    bias: Bias | None = None
    grammar: CompiledGrammar | None = None
    constraint: Constraint | None = None
    """The grammar's state after the tokens of this sequence."""
    logprobs: Logprobs | FinalLogprobs | None = None
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    # Banned phrases, and the limit of a part of the text (reasoning budget).
    bans: Bans | None = None
    guard: BanGuard | None = None
    reasoning: ReasoningGuard | None = None

    # Speculative decoding: prompt lookup or a draft model, and the acceptance rate.
    lookup: PromptLookup | None = None
    acceptance: AcceptanceEstimator = field(default_factory=AcceptanceEstimator)
    draft: tuple[int, ...] = ()
    n_drafted: int = 0
    n_accepted: int = 0

    # Context shift: what was dropped from the slot.
    n_kept: int = 0
    dropped: array[int] = field(default_factory=lambda: array("i"))

    @classmethod
    def of(cls, request: EngineRequest, index: int, now_s: float, images: PromptImages | None = None) -> SequenceState:
        banned = request.banned_strings, request.banned_regexes
        bans = bans_of(*banned, request.bans_case_sensitive) if any(banned) else None
        return cls(
            request=request,
            index=index,
            arrival_s=now_s,
            tokens=array("i", request.prompt),
            n_prompt=len(request.prompt),
            detokenizer=Detokenizer(request.stop, bans),
            images=images or PromptImages(),
            bans=bans,
            guard=None if bans is None else BanGuard(),
            reasoning=None if request.reasoning_budget is None else ReasoningGuard(request.reasoning_budget),
            logprobs=logprobs_of(request.n_logprobs, are_final=request.are_logprobs_final),
        )

    @property
    def is_background(self) -> bool:
        """Whether it is background work, which gives way to all others."""
        return self.request.principal.is_background

    @property
    def is_deterministic(self) -> bool:
        """Whether nothing may change what is computed: not what runs beside it, nor what the cache holds."""
        return self.request.is_deterministic

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def n_generated(self) -> int:
        return len(self.dropped) + len(self.tokens) - self.n_prompt

    @property
    def history(self) -> array[int]:
        """The tokens of the prompt and all generated ones, those that a context shift dropped included."""
        if self.images:
            return array("i", tokens_only(self.tokens))
        return self.tokens[: self.n_kept] + self.dropped + self.tokens[self.n_kept :]

    @property
    def is_reading(self) -> bool:
        """Whether it is in prefill: tokens of the prompt are still to be computed, and none was dropped."""
        return self.n_past < self.n_prompt and not self.dropped

    @property
    def n_uncomputed(self) -> int:
        """Number of tokens that are not in the slot yet: one while decoding, more in prefill."""
        return len(self.tokens) - self.n_past

    @property
    def n_prompt_uncomputed(self) -> int:
        """Number of prompt tokens that were never computed."""
        return 0 if self.n_generated else max(0, self.n_prompt - self.n_past)

    @property
    def is_preempted(self) -> bool:
        """Whether it was preempted and waits for a slot again."""
        return self.status is Status.WAITING and self.state is not None

    def is_overdue(self, now_s: float) -> bool:
        """Whether its request's timeout has passed."""
        timeout_s = self.request.timeout_s
        return timeout_s is not None and now_s - self.arrival_s > timeout_s

    @property
    def is_first(self) -> bool:
        """Whether it is the first choice of a request of which nothing was admitted yet."""
        return self.index == 0 and self.status is Status.WAITING and self.state is None

    @property
    def is_decoding(self) -> bool:
        """Whether only the token generated last is uncomputed."""
        return self.n_generated > 0 and self.n_uncomputed == 1

    @property
    def is_preparing(self) -> bool:
        """Whether it cannot be admitted yet: its grammar, its banned phrases or its state on disk are not ready."""
        return not all(part is None or part.is_ready for part in (self.grammar, self.bans, self.fetch))

    @property
    def is_finished(self) -> bool:
        return self.status is Status.FINISHED

    def drop(self, start: int, n: int) -> None:
        """Context shift: take the `n` tokens from `start` on out of the slot; the text goes on without them."""
        self.dropped.extend(self.tokens[start : start + n])
        del self.tokens[start : start + n]
        self.n_kept = start
        self.n_past -= max(0, min(self.n_past, start + n) - start)

    def usage(self, now_s: float) -> Usage:
        first_token_s = self.first_token_s or now_s
        admit_s = self.admit_s or now_s
        return Usage(
            prompt_tokens=self.n_prompt,
            completion_tokens=self.n_generated,
            cached_tokens=self.n_cached,
            moved_tokens=self.n_moved,
            queue_s=admit_s - self.arrival_s,
            prefill_s=first_token_s - admit_s,
            decode_s=now_s - first_token_s,
            rewinds=0 if self.guard is None else self.guard.n_rewinds,
            cache=self.cache_report,
            cache_class=self.cache_class,
            drafted_tokens=self.n_drafted,
            accepted_tokens=self.n_accepted,
            dropped_tokens=len(self.dropped),
        )
