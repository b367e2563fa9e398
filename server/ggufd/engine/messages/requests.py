"""Commands to the engine: requests, aborts, queries."""

from __future__ import annotations

import enum
from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

from ggufd.engine.messages.images import ImageSpan
from ggufd.engine.messages.sampling import ReasoningBudget, SamplingParams
from ggufd.keys.principal import NOBODY, Principal

Scales = tuple[float, ...]
"""Scale of every LoRA adapter, in the order in which they were loaded; empty for the model alone."""


class CacheScope(NamedTuple):
    """Scope of prefix reuse: computed tokens are worth the same within one namespace and under one mix of adapters.

    What `is_deterministic` was computed in fixed chunks (`engine.sequence.fixed_chunks`), and nothing else is reused
    beside it.
    """

    namespace: str = ""
    adapters: Scales = ()
    is_deterministic: bool = False


EVERYBODYS = CacheScope()
"""Scope of what everybody may reuse, of the model alone."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One prompt, `n` sequences that continue it.

    `prompt` is token ids, at least one, and numbers below zero for the rows of its `images`, which ascend.
    `max_tokens` None means up to the context limit. `stop` are strings that end the text and are cut from it.
    `n_logprobs` None means none are wanted, else how many of the best besides the chosen one (0 is fine),
    `are_logprobs_final` that they are of what the samplers left to draw from. `prompt_logprobs` asks for those of the
    prompt too: no prefix reuse then, and no images.
    `banned_strings` and `banned_regexes` are taken back before they are sent (`engine.sampling.banned`).
    `skip_special_tokens` leaves control tokens out of the text, but not `shown_tokens`. `min_tokens` keeps end tokens
    away until then.
    `principal` is who it is computed for: charged, limited, and sharing its prefixes. `priority` orders the requests of
    its account, lower first. `explain_cache` asks for `Usage.cache`, in which only what the same person had computed is
    told.
    `adapters` are the scales of the LoRA adapters, all of them or none.
    `n_keep` tokens behind the first one stay when the context is shifted.
    `timeout_s` after its arrival what there is of the answer is all of it; a request that could not even begin by then
    is refused. `report_queue` asks for `Queued` while it waits.
    `is_deterministic` asks for a text that depends on request, model, settings and build alone: each of its decodes is
    its own, in chunks whose boundaries are fixed, and what cannot be computed so fails.
    `chat` names the conversation to a cluster; it is kept with what is computed, and means nothing here.
    """

    request_id: int
    prompt: tuple[int, ...]
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    sampling: SamplingParams = field(default_factory=SamplingParams)
    n_logprobs: int | None = None
    prompt_logprobs: bool = False
    skip_special_tokens: bool = True
    shown_tokens: frozenset[int] = frozenset()
    n_keep: int = 0
    reasoning_budget: ReasoningBudget | None = None
    banned_strings: tuple[str, ...] = ()
    banned_regexes: tuple[str, ...] = ()
    bans_case_sensitive: bool = False
    return_progress: bool = False
    explain_cache: bool = False
    principal: Principal = NOBODY
    priority: int = 0
    adapters: Scales = ()
    timeout_s: float | None = None
    report_queue: bool = False
    are_logprobs_final: bool = False
    is_deterministic: bool = False
    images: tuple[ImageSpan, ...] = ()
    chat: str = ""

    @property
    def cache_scope(self) -> CacheScope:
        """Where what this request computes may be reused."""
        return CacheScope(self.principal.cache_namespace, self.adapters, self.is_deterministic)


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Token lists, each at least one token, whose vectors are wanted; answered by an `Embedding` for each.

    A vector is cut to its first `dimensions` numbers and then scaled: `norm` is llama-server's number, 2 is unit length
    and -1 leaves it as it is (`engine.embeddings.pooling.scaled`). Scores of a reranker are never cut or scaled. Its
    principal and adapters are those of an `EngineRequest`.
    """

    request_id: int
    inputs: tuple[tuple[int, ...], ...]
    dimensions: int | None = None
    norm: int = 2
    principal: Principal = NOBODY
    adapters: Scales = ()

    @property
    def n(self) -> int:
        """Number of answers."""
        return len(self.inputs)


@dataclass(frozen=True, slots=True)
class Abort:
    """End this request now; nothing more is sent for it."""

    request_id: int


@dataclass(frozen=True, slots=True)
class FinishSequence:
    """End this sequence now, as if its model had ended it: its last `Output` is still sent."""

    request_id: int
    index: int


@dataclass(frozen=True, slots=True)
class ChargeElsewhere:
    """Charge accounts what the other servers of a cluster served them lately: cost divided by the account's weight."""

    costs: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class HoldElsewhere:
    """Count slots that accounts hold at other servers of a cluster, until told again: they are all that there are."""

    held: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class GetStats:
    """Answer with `Stats`."""


@dataclass(frozen=True, slots=True)
class GetQueue:
    """Answer with `QueueState`."""


@dataclass(frozen=True, slots=True)
class GetLive:
    """Answer with `LiveState`."""


@dataclass(frozen=True, slots=True)
class GetSteps:
    """Answer with `Steps`."""


class SlotAction(enum.Enum):
    """Action on the content of an idle slot."""

    ERASE = "erase"
    SAVE = "save"
    RESTORE = "restore"


@dataclass(frozen=True, slots=True)
class ActOnSlot:
    """Carry out an action on a slot, if it is idle; answer with `SlotDone`. `path` is the file.

    `mark` is the fingerprint of what the slot was computed with.
    """

    slot: int
    action: SlotAction
    path: str = ""
    mark: str = ""


@dataclass(frozen=True, slots=True)
class SaveChats:
    """Begin to write kept states to disk, as many as it takes at once; answer with `ChatsSaved`."""


@dataclass(frozen=True, slots=True)
class AdoptChat:
    """Take up a file that was put into the folder of the disk cache. `used_s` is its last use, in Unix time."""

    path: str
    n_bytes: int
    used_s: float
    tokens: array[int]
    cache_scope: CacheScope


@dataclass(frozen=True, slots=True)
class Ping:
    """Answer with `Pong` between two steps."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Leave the main loop; what still runs is dropped."""


Command = (
    EngineRequest
    | EmbedRequest
    | Abort
    | FinishSequence
    | ChargeElsewhere
    | HoldElsewhere
    | GetStats
    | GetQueue
    | GetSteps
    | GetLive
    | ActOnSlot
    | SaveChats
    | AdoptChat
    | Ping
    | Shutdown
)
