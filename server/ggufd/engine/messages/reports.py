"""Reports of the engine on itself: loading, readiness, statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ggufd.engine.messages.config import DiskPlace
from ggufd.engine.messages.events import RequestEvent, Turn
from ggufd.engine.messages.provenance import Provenance
from ggufd.keys.principal import Principal
from ggufd.llama.params import Pooling


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """Share of the model that is loaded, 0 to 1."""

    fraction: float


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of llama.cpp's or of the engine's log; `level` and `logger` are `logging`'s."""

    level: int
    message: str
    logger: str = "llama.cpp"


@dataclass(frozen=True, slots=True)
class Notice:
    """Notice for the person who runs the server, in one line."""

    message: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Loaded model. Sizes in bytes; `n_ctx_train` in tokens; `ftype` as llama.cpp writes it ("Q4_0").

    `vocab_type` is llama.cpp's number: 1 SentencePiece, 2 BPE, 3 WordPiece and so on, 0 none.
    """

    name: str
    path: str
    architecture: str
    description: str
    ftype: str
    n_params: int
    size_bytes: int
    n_vocab: int
    n_ctx_train: int
    n_embd: int
    n_layer: int
    chat_template: str | None
    bos_piece: str
    eos_piece: str
    metadata: dict[str, str]
    vocab_type: int = 0

    def number(self, key: str) -> int:
        """Integer of the architecture's own metadata; 0 where it has none."""
        text = self.metadata.get(f"{self.architecture}.{key}", "")
        return int(text) if text.isdecimal() else 0


@dataclass(frozen=True, slots=True)
class EmbeddingInfo:
    """Parameters of embeddings: pooling, `width` numbers for each input of at most `n_ctx` tokens.

    `is_asked_for` by a setting, or by a file that names a pooling.
    """

    pooling: Pooling
    width: int
    n_ctx: int
    is_asked_for: bool


@dataclass(frozen=True, slots=True)
class DraftInfo:
    """Draft model of speculative decoding; it sees up to `n_ctx` tokens of one sequence."""

    name: str
    path: str
    ftype: str
    n_params: int
    size_bytes: int
    n_ctx: int
    n_gpu_layers: int


@dataclass(frozen=True, slots=True)
class Ready:
    """Readiness of an engine. `n_ctx` is cells of one slot. A model that does not generate (`writes`) embeds only.

    `reuse` says which prefixes can be reused: "any" of what a slot or a copy of it holds, or of copies only the
    "whole", or that and the "snapshots" that were made on the way.
    `memory_bytes` is the sum of llama.cpp's own `buffers`, a line each; `host_cache_bytes` of RAM more may be taken by
    chats that lost their slot. `buffer_types` and `has_rpc` say what this build and machine have for other models.
    `fingerprint` names what slots are computed with (`engine.kv_store.fingerprint`); empty where they keep nothing.
    `disk` is where chats are kept on disk; None where none are.
    `provenance` is what a deterministic text comes of; None where the cache is such that there are none.
    """

    model: ModelInfo
    n_ctx: int
    n_slots: int
    n_batch: int
    n_threads: int
    n_gpu_layers: int
    devices: tuple[str, ...]
    flash_attn: bool
    flash_attn_why: str
    reuse: str
    memory_bytes: int
    buffers: tuple[str, ...]
    build: str
    embedding: EmbeddingInfo
    offload_why: str = ""
    writes: bool = True
    draft: DraftInfo | None = None
    host_cache_bytes: int = 0
    buffer_types: tuple[str, ...] = ("CPU",)
    has_rpc: bool = False
    fingerprint: str = ""
    disk: DiskPlace | None = None
    provenance: Provenance | None = None


@dataclass(frozen=True, slots=True)
class Placing:
    """Placement that the loader chose itself: it is about to allocate so many bytes on GPUs, by its estimate."""

    vram_bytes: int


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """Failure of a load; `message` is one line for the user. `is_too_large` for out-of-memory."""

    message: str
    is_too_large: bool = False


@dataclass(frozen=True, slots=True)
class SlotState:
    """State of a slot, in tokens. `request_id` None means idle, its tokens kept as cache."""

    slot: int
    request_id: int | None
    n_tokens: int
    n_past: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Histogram: `counts[i]` were at most `bounds[i]` and above the bound before it, the last above all."""

    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = (0,)
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Stats:
    """Statistics of an engine. Counters count from its start; times in seconds, rates in tokens a second.

    Of `drafted_tokens` and `accepted_tokens` (speculative decoding) those named `model_` were a draft model's.
    `rejected_draft_s` is the time of all steps that, by the cost model, rejected draft tokens took.
    `busy_slots` sums the sequences of all batches, `longest` is the longest sequence. `evictions` are chats that lost
    their slot, `restores` those that came back from host RAM, `host_evictions` those that left it too,
    `failed_restores` kept states of any kind that were of no use and dropped.
    `cost_errors` are relative errors of the time that was expected of a batch.
    `resident_bytes` is the memory of the engine's process, 0 where it has none of its own.
    """

    waiting: int
    running: int
    steps: int
    computed_tokens: int
    cached_tokens: int
    generated_tokens: int
    step_s: float
    step_gap_s: float
    slots: tuple[SlotState, ...]
    preemptions: int = 0
    busy_slots: int = 0
    longest: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    rejected_draft_s: float = 0.0
    model_drafted_tokens: int = 0
    model_accepted_tokens: int = 0
    evictions: int = 0
    restores: int = 0
    host_evictions: int = 0
    failed_restores: int = 0
    host_bytes: int = 0
    resident_bytes: int = 0
    embedded_tokens: int = 0
    step_seconds: Spread = Spread()
    step_gap_seconds: Spread = Spread()
    token_gap_seconds: Spread = Spread()
    batch_rows: Spread = Spread()
    cost_errors: Spread = Spread()


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """Request under way; `turn` None means that it runs. `age_s` is seconds since it arrived.

    Generated tokens are counted over all its choices. Shorter requests that came later may still take `patience_s`
    seconds of work before a waiting one.
    """

    request_id: int
    principal: Principal
    priority: int
    age_s: float
    prompt_tokens: int
    generated_tokens: int
    turn: Turn | None
    patience_s: float = 0.0


@dataclass(frozen=True, slots=True)
class QueueState:
    """All requests under way: for text, then for embeddings, which have places of their own.

    Of both first the running ones, for text the oldest first, then the waiting ones in the expected order.
    """

    entries: tuple[QueueEntry, ...]


class StepRecord(NamedTuple):
    """Timings of one step, in seconds of the engine's clock, and rows of its batch.

    `draft_s` and `plan_s` passed before the batch was made, the former on drafts, `decode_s` in llama.cpp; of the rest
    `sample_s` went to masks, samplers and log-probabilities, `detokenize_s` to text. `send_s` came after the step.
    `n_draft` of the `n_decode` rows were draft tokens. `expected_s` is what the cost model expected of `decode_s`, 0
    where it had nothing to go by, and `rejected_s` the part of it that was for draft tokens that were rejected.
    """

    start_s: float
    seconds: float
    plan_s: float
    decode_s: float
    sample_s: float
    detokenize_s: float
    n_sequences: int
    n_decode: int
    n_prefill: int
    n_draft: int
    send_s: float = 0.0
    draft_s: float = 0.0
    expected_s: float = 0.0
    rejected_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Steps:
    """Timings of the last steps, oldest first."""

    records: tuple[StepRecord, ...]


@dataclass(frozen=True, slots=True)
class SlotDone:
    """Result of a slot action: tokens erased, saved or restored, and bytes written or read.

    `n_tokens` None means that the slot is running and keeps them; a `failure` that nothing was done.
    """

    slot: int
    n_tokens: int | None
    n_bytes: int = 0
    failure: str = ""


@dataclass(frozen=True, slots=True)
class ChatsSaved:
    """Kept states that have no file yet; those that are being written count."""

    n_left: int


class LiveSlot(NamedTuple):
    """Slot with its sequence, or with what it keeps. Numbers of tokens; no text.

    `owner` is a principal's `person`. `n_past` tokens are computed, of the `n_prompt` of the prompt and `n_generated`;
    an idle slot keeps `n_past` of a `request_id` None. `phase_s` is how long it has been reading, writing or idle.
    """

    slot: int
    owner: str
    request_id: int | None
    n_prompt: int
    n_cached: int
    n_past: int
    n_generated: int
    phase_s: float


@dataclass(frozen=True, slots=True)
class LiveState:
    """State of an engine for the live view.

    `queue` has requests under way as `QueueState`; `served` is what each of the last accounts has cost, in generated
    tokens, since the start. `standing` has the running and the waiting entries of each account. `disk_reads` are states
    that came back from disk. `wait_s` is the expected wait of one more request, `prefill_tok_s` the rate at which
    prompts are computed, 0 before that was measured.
    """

    stats: Stats
    slots: tuple[LiveSlot, ...]
    queue: tuple[QueueEntry, ...]
    served: tuple[tuple[str, float], ...] = ()
    standing: tuple[tuple[str, int, int], ...] = ()
    prefill_tokens: int = 0
    disk_bytes: int = 0
    disk_limit_bytes: int = 0
    disk_reads: int = 0
    wait_s: float = 0.0
    prefill_tok_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LimitUse:
    """What an account uses of its limits at one server.

    `used_s` is what it took of its tokens a minute since the start, as the time in which its bucket fills by that;
    `waiting` are requests that no slot is free for. `max_running` is its limit, None where it has none or nothing open.
    """

    account: str
    used_s: float
    waiting: int
    max_running: int | None


@dataclass(frozen=True, slots=True)
class UseElsewhere:
    """What an account uses of its limits at the other servers: `used_s` since the last word, the rest as it is now."""

    account: str
    used_s: float
    waiting: int
    running: int


@dataclass(frozen=True, slots=True)
class Pong:
    """Answer to a ping."""


Loading = LoadProgress | Placing | LogLine | Notice
"""Reports while a model loads."""


Event = (
    RequestEvent | Loading | Ready | LoadFailed | Stats | Steps | QueueState | LiveState | SlotDone | ChatsSaved | Pong
)
