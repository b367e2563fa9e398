"""Everything that crosses the boundary of the engine process, in both directions: plain frozen data.

To the engine: a `Command`. From the engine: one list of `Event` a step.
Knows no HTTP, no JSON and no llama_cpp.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ggufd.errors import GgufdError, TryLater
from ggufd.keys.ring import Limits
from ggufd.llama.params import DEFAULT_SAMPLERS, ChainParams, ContextParams, ModelParams, Pooling

if TYPE_CHECKING:
    from ggufd.llama.gguf.shape import Shape

SAMPLER_NAMES: frozenset[str] = frozenset((*DEFAULT_SAMPLERS, "adaptive_p"))


class FinishReason(enum.Enum):
    """Why a sequence ended: OpenAI's words, and two internal ones."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class GrammarKind(enum.Enum):
    """What the text of a grammar is written in."""

    GBNF = "gbnf"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class Grammar:
    """A constraint on the output. Checked (`llama.grammar.grammar.check_grammar`) before it comes here.

    `frame` is Lark of the whole output, in which `@body` is what `text` describes; "" when that is the whole.
    """

    kind: GrammarKind
    text: str
    frame: str = ""


@dataclass(frozen=True, slots=True)
class SpanLimit:
    """A bound on a part of the output: from `opening`, or from the start where that is "", to `closing`.

    After `max_tokens` in it (None is no bound), or once it goes round in circles, the tokens `ending` are said, which
    write `closing`. With `reopening` right behind that it goes on, within the same bound; "" where it cannot.
    """

    opening: str
    closing: str
    ending: tuple[int, ...]
    max_tokens: int | None = None
    reopening: str = ""


@dataclass(frozen=True, slots=True)
class SamplingParams(ChainParams):
    """How the next token is chosen; every default is "off".

    `temperature` <= 0 is greedy. `logit_bias` adds to logits; minus infinity bans. `seed` None draws one.
    """

    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    grammar: Grammar | None = None


Scales = tuple[float, ...]
"""How much of every LoRA adapter is added, in the order in which they were loaded; empty for the model alone."""


Realm = tuple[str, Scales]
"""Within which computed tokens are worth the same: whose they may be, and under which adapters they were computed."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One prompt, `n` sequences that continue it.

    `prompt` is token ids, at least one. `max_tokens` None means up to the context limit. `stop` are strings that
    end the text and are cut from it. `n_logprobs` None means none are wanted, else how many of the best besides
    the chosen one (0 is fine), `are_logprobs_final` that they are of what the samplers left to draw from.
    `prompt_logprobs` asks for those of the prompt too (no prefix reuse then).
    `banned_strings` and `banned_regexes` are taken back before they are sent (`engine.sampling.banned`).
    `skip_special_tokens` leaves control tokens out of the text, but not `shown_tokens`. `min_tokens` keeps end tokens
    away until then.
    `key` names who asked; `account` is who is charged, for fairness, within `limits`. `priority` orders an account's
    own requests, lower first. What was computed is reused within one `namespace` only. `explain_cache` asks for
    `Usage.cache`, in which only what the same `asker` had computed is told: a person, as well as the API can tell them
    apart.
    `adapters` are the scales of the LoRA adapters, all of them or none.
    `n_keep` tokens behind the first one stay when the context is shifted.
    `timeout_s` after its arrival what there is of the answer is all of it; a request that could not even begin by then
    is refused. `report_queue` asks for `Queued` while it waits.
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
    span_limit: SpanLimit | None = None
    banned_strings: tuple[str, ...] = ()
    banned_regexes: tuple[str, ...] = ()
    bans_case_sensitive: bool = False
    return_progress: bool = False
    explain_cache: bool = False
    key: str = ""
    asker: str = ""
    namespace: str = ""
    account: str = ""
    limits: Limits = field(default_factory=Limits)
    priority: int = 0
    adapters: Scales = ()
    timeout_s: float | None = None
    report_queue: bool = False
    are_logprobs_final: bool = False

    @property
    def realm(self) -> Realm:
        """Where what this request computes may be reused."""
        return self.namespace, self.adapters


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Token lists, each at least one token, whose vectors are wanted; answered by an `Embedding` for each.

    A vector is cut to its first `dimensions` numbers and then scaled: `norm` is llama-server's number, 2 is unit length
    and -1 leaves it as it is (`engine.embeddings.pooling.scaled`). Scores of a reranker are never cut or scaled. Who asks, within
    what limits and under which adapters, is told as in `EngineRequest`.
    """

    request_id: int
    inputs: tuple[tuple[int, ...], ...]
    dimensions: int | None = None
    norm: int = 2
    key: str = ""
    asker: str = ""
    account: str = ""
    limits: Limits = field(default_factory=Limits)
    adapters: Scales = ()

    @property
    def n(self) -> int:
        """How many answers it gets."""
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
class GetStats:
    """Answer with `Stats`."""


@dataclass(frozen=True, slots=True)
class GetQueue:
    """Answer with `QueueState`."""


@dataclass(frozen=True, slots=True)
class GetSteps:
    """Answer with `Steps`."""


class SlotAction(enum.Enum):
    """What may be done with what an idle slot keeps."""

    ERASE = "erase"
    SAVE = "save"
    RESTORE = "restore"


@dataclass(frozen=True, slots=True)
class ActOnSlot:
    """Do that with this slot, if it is idle; answer with `SlotDone`. `path` is the file.

    `mark` is the fingerprint of what the slot was computed with.
    """

    slot: int
    action: SlotAction
    path: str = ""
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Ping:
    """Answer with `Pong` between two steps."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Leave the main loop; what still runs is dropped."""


Command = (
    EngineRequest | EmbedRequest | Abort | FinishSequence | GetStats | GetQueue | GetSteps | ActOnSlot | Ping | Shutdown
)


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

    `held` are the tokens that it held from there on, the first few; None when they were another asker's.
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


@dataclass(frozen=True, slots=True)
class Usage:
    """What a sequence cost. Tokens; times in seconds. `cached_tokens` of the prompt were not computed again;
    `moved_tokens` of those were moved from another place (`cache_reuse`), so the text may differ a little.
    `rewinds` counts banned phrases that were taken back. `cache` is there when it was asked for.
    `accepted_tokens` of the completion were guessed before they were sampled, out of `drafted_tokens` guesses.
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

    @property
    def decoded_tokens(self) -> int:
        """The tokens that `decode_s` was spent on: the first one came of the prompt."""
        return max(0, self.completion_tokens - 1)

    @property
    def tokens_per_s(self) -> float:
        """How fast the text was written; 0 when it is too short to tell."""
        return self.decoded_tokens / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a sequence. `stop` is the stop string that matched, if one did.

    `end` is the token that ended it, which is no part of the text, when log-probabilities are wanted.
    """

    reason: FinishReason
    usage: Usage
    stop: str | None = None
    end: TokenLogprob | None = None


class Turn(NamedTuple):
    """A waiting request's place, 1 is the next, and seconds until it has a slot, as far as measured rates can tell."""

    position: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits for its turn."""

    request_id: int
    turn: Turn


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request left the queue for a slot."""

    request_id: int
    index: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Prefill so far, when asked for: tokens, and seconds since admission."""

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
        """The text as it came: in pieces, each with the number of tokens that it completes."""
        end = 0
        for n_characters, n_tokens in self.parts or ((len(self.text), len(self.tokens)),):
            start, end = end, end + n_characters
            yield self.text[start:end], n_tokens

    def __reduce__(self) -> tuple[type[Output], tuple[Any, ...]]:
        # Made for every token: what dataclass would do to cross the boundary takes twice the time.
        return Output, (self.request_id, self.index, self.text, self.tokens, self.logprobs, self.finish, self.parts)


@dataclass(frozen=True, slots=True)
class Embedding:
    """What an input became: little-endian floats of 32 bits, `width` of them for each vector.

    One vector, or one for each token where nothing is pooled; of a reranker, its scores. `n_tokens` are the input's.
    """

    request_id: int
    index: int
    data: bytes
    width: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The whole request ended in an error: see `errors.from_code`. `param` is the field at fault."""

    request_id: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None

    @classmethod
    def by(cls, request_id: int, error: GgufdError) -> Failed:
        """Flattened, so that it crosses the boundary."""
        retry_after_s = error.retry_after_s if isinstance(error, TryLater) else None
        return cls(request_id, error.code, error.message, error.param, retry_after_s)


RequestEvent = Queued | Admitted | Progress | PromptLogprobs | Output | Embedding | Failed


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
    """Something that the person who runs the server should know, in one line."""

    message: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What was loaded. Sizes in bytes; `n_ctx_train` in tokens; `ftype` as llama.cpp writes it ("Q4_0").

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
        """A whole number of the architecture's own metadata; 0 where it has none."""
        text = self.metadata.get(f"{self.architecture}.{key}", "")
        return int(text) if text.isdecimal() else 0


@dataclass(frozen=True, slots=True)
class EmbeddingInfo:
    """How vectors are made: pooled how, `width` numbers of at most `n_ctx` tokens.

    `is_asked_for` says that somebody set this up: a file that names a pooling, or a setting.
    """

    pooling: Pooling
    width: int
    n_ctx: int
    is_asked_for: bool


@dataclass(frozen=True, slots=True)
class DraftInfo:
    """The draft model that guesses. `n_ctx` tokens of one chat are all that it sees."""

    name: str
    path: str
    ftype: str
    n_params: int
    size_bytes: int
    n_ctx: int
    n_gpu_layers: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine serves. `n_ctx` is cells of one slot. A model that does not write (`writes`) makes vectors only.

    `reuse` says which prefixes can be reused: "any" of what a slot or a copy of it holds, or of copies only the
    "whole", or that and the "snapshots" that were made on the way.
    `memory_bytes` is the sum of llama.cpp's own `buffers`, a line each; `host_cache_bytes` of RAM more may be taken by
    chats that lost their slot. `buffer_types` and `has_rpc` say what this build and machine have for other models.
    `fingerprint` names what slots are computed with (`engine.kv_store.fingerprint`); empty where they keep nothing.
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
    system_info: str
    build: str
    embedding: EmbeddingInfo
    offload_why: str = ""
    writes: bool = True
    draft: DraftInfo | None = None
    host_cache_bytes: int = 0
    buffer_types: tuple[str, ...] = ("CPU",)
    has_rpc: bool = False
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Placing:
    """The loader chose itself what goes to GPUs, and is about to take so many bytes there, by its estimate."""

    vram_bytes: int


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The engine cannot serve this model; `message` is one line for the user. `is_too_large`: for want of memory."""

    message: str
    is_too_large: bool = False


@dataclass(frozen=True, slots=True)
class SlotState:
    """A slot as seen from outside: token counts. `request_id` None means idle, its tokens kept as cache."""

    slot: int
    request_id: int | None
    n_tokens: int
    n_past: int


@dataclass(frozen=True, slots=True)
class Spread:
    """How values spread: `counts[i]` were at most `bounds[i]` and above the bound before it, the last above all."""

    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = (0,)
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot of the engine. Counters count from its start; times in seconds, rates in tokens a second.

    Of the `drafted_tokens` guessed and the `accepted_tokens` that came true, those named `model_` were a draft model's.
    `busy_slots` sums the sequences of all batches, `longest` is the longest sequence. `evictions` are chats that lost
    their slot, `restores` those that came back from host RAM, `host_evictions` those that left it too,
    `failed_restores` kept states of any kind that were of no use and dropped.
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


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A request under way; `turn` None means that it runs. `age_s` is seconds since it arrived.

    Generated tokens are counted over all its choices.
    """

    request_id: int
    key: str
    asker: str
    priority: int
    age_s: float
    prompt_tokens: int
    generated_tokens: int
    turn: Turn | None


@dataclass(frozen=True, slots=True)
class QueueState:
    """All requests under way: those that write, then those that want vectors, whose places are of a line of their own.

    Of both first those that run, the oldest first of those that write, then those that wait in the foreseen order.
    """

    entries: tuple[QueueEntry, ...]


class StepRecord(NamedTuple):
    """One step: seconds of the engine's clock, and rows of its batch.

    `draft_s` and `plan_s` passed before the batch was made, the former on guesses, `decode_s` in llama.cpp; of the rest
    `sample_s` went to masks, samplers and log-probabilities, `detokenize_s` to text. `send_s` came after the step.
    `n_draft` of the `n_decode` rows were guesses.
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


@dataclass(frozen=True, slots=True)
class Steps:
    """The last steps, oldest first."""

    records: tuple[StepRecord, ...]


@dataclass(frozen=True, slots=True)
class SlotDone:
    """So many tokens were erased, saved or restored, and so many bytes written or read.

    `n_tokens` None means that the slot is running and keeps them; a `failure` that nothing was done.
    """

    slot: int
    n_tokens: int | None
    n_bytes: int = 0
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Pong:
    """The engine lives."""


Loading = LoadProgress | Placing | LogLine | Notice
"""What is said while a model loads."""

Event = RequestEvent | Loading | Ready | LoadFailed | Stats | Steps | QueueState | SlotDone | Pong


@dataclass(frozen=True, slots=True)
class DiskPlace:
    """Where computed prefixes are kept on disk, `max_bytes` of them; `fingerprint` names the model and its settings."""

    folder: str
    max_bytes: int
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """How slots are given and what is kept of what they held.

    `n_cache_reuse` is the fewest tokens worth moving within a slot when a history was trimmed; 0 moves none.
    `shifts_context` lets an answer go on in a full slot, without the older half of what stands there.
    `cache_ram_bytes` of host RAM keep the computed tokens of chats that lost their slot; 0 keeps none.
    `disk` keeps those that left host RAM too; None keeps none.
    `max_draft` is the most tokens that are guessed ahead from a sequence's own text; 0 guesses none.
    `pre_rolls` lets an idle engine compute what trimmed chats will begin with.
    `n_reserved` slots are kept for requests that have at most `short_tokens` to compute and to generate.
    `preempts` lets a running sequence wait in host RAM while one that has a better claim uses its slot.
    """

    n_cache_reuse: int = 0
    shifts_context: bool = False
    cache_ram_bytes: int = 0
    disk: DiskPlace | None = None
    max_draft: int = 0
    pre_rolls: bool = False
    n_reserved: int = 0
    short_tokens: int = 0
    preempts: bool = False


@dataclass(frozen=True, slots=True)
class DraftConfig:
    """A draft model that guesses; never a token to which it gives less probability than `p_min`.

    `shape` is what its header says, where that has been read.
    """

    model: ModelParams
    p_min: float = 0.0
    shape: Shape | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """All the engine needs to know. Times in seconds, `max_gap_ms` and `text_interval_ms` in milliseconds.

    `max_gap_ms` bounds the gap that prefill may put between two tokens of a running sequence; so do `max_gap_steps`
    steps that only decode, where they take longer. Text of steps that come quicker than `text_interval_ms` is sent
    together.
    `prompt_cost` is what a computed token of a prompt counts beside a generated one; `priority_aging_s` of waiting make
    up for one step of priority.
    Where the loader chooses what goes to GPUs, it takes `vram_limit` bytes there at most; None is all that is free.
    With `require_gpu` no load ends on the CPU alone: neither the first, nor one after a sleep or a crash.
    `cache_ram_bytes` of host RAM keep chats that lost their slot; None leaves it to what is left beside the model.
    `cache_dir` keeps calibration results; None keeps none. `pooling` None leaves it to the model; the context for
    `embeddings` of a model that writes is made at start when that is set, else when they are first asked for.
    After `sleep_idle_s` without a request the client ends the process until the next one; None never does.
    `shape` is what the model's header says, where that has been read: of a large vocabulary it takes half a second.
    """

    model: ModelParams
    context: ContextParams
    shape: Shape | None = field(default=None, repr=False)
    max_queue: int = 64
    max_queue_wait_s: float = 600.0
    max_gap_ms: float = 100.0
    max_gap_steps: int = 8
    text_interval_ms: float = 0.0
    prompt_cost: float = 0.25
    priority_aging_s: float = 30.0
    step_timeout_s: float = 0.0
    rules: Rules = field(default_factory=Rules)
    draft: DraftConfig | None = None
    vram_limit: int | None = None
    require_gpu: bool = False
    cache_ram_bytes: int | None = 0
    cache_dir: str | None = None
    sleep_idle_s: float | None = None
    pooling: Pooling | None = None
    embeddings: bool = False
    log_level: int = 30
