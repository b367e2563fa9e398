"""Settings of an engine, as its process receives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ggufd.llama.params import ContextParams, ModelParams, Pooling
from ggufd.placement.projector_plan import ProjectorUse

if TYPE_CHECKING:
    from ggufd.llama.gguf.shape import Shape


@dataclass(frozen=True, slots=True)
class DiskPlace:
    """Disk cache of computed prefixes, at most `max_bytes`; `fingerprint` names the model and its settings."""

    folder: str
    max_bytes: int
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class EngineRules:
    """Rules of slots, caches and speculation.

    `n_cache_reuse` is the fewest tokens worth moving within a slot when a history was trimmed; 0 moves none.
    `shifts_context` lets an answer go on in a full slot, without the older half of what stands there.
    `cache_ram_bytes` of host RAM keep the computed tokens of chats that lost their slot; 0 keeps none.
    `disk` keeps those that left host RAM too; None keeps none.
    `max_draft` is the most draft tokens of a step; 0 turns speculative decoding off.
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
    """Draft model; it drafts no token to which it gives less probability than `p_min`.

    `shape` is what its header says, where that has been read.
    """

    model: ModelParams
    p_min: float = 0.0
    shape: Shape | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Configuration of an engine. Times in seconds, `max_gap_ms` and `text_interval_ms` in milliseconds.

    `max_gap_ms` bounds the gap that prefill may put between two tokens of a running sequence; so do `max_gap_steps`
    steps that only decode, where they take longer. Text of steps that come quicker than `text_interval_ms` is sent
    together.
    `prompt_cost` is what a computed token of a prompt counts beside a generated one; `priority_aging_s` of waiting make
    up for one step of priority.
    Where the loader chooses what goes to GPUs, it takes `vram_limit` bytes there at most; None is all that is free.
    With `require_gpu` no load ends on the CPU alone: neither the first, nor one after a sleep or a crash.
    `numa` is llama.cpp's strategy for several nodes, "" is none. `cpus` are those to compute on; empty is all.
    `cache_ram_bytes` of host RAM keep chats that lost their slot; None leaves it to what is left beside the model.
    `beside` is what the encoder of images takes of the machine.
    `cache_dir` keeps calibration results; None keeps none. `pooling` None leaves it to the model; the context for
    `embeddings` of a model that writes is made at start when that is set, else when they are first asked for.
    After `sleep_idle_s` without a request the client ends the process until the next one; None never does.
    `shape` is what the model's header says, where that has been read: of a large vocabulary it takes half a second.
    `carried` are the counters of accounts that waited for this model while another one was served.
    """

    model: ModelParams
    context: ContextParams
    shape: Shape | None = field(default=None, repr=False)
    max_queue: int = 64
    max_queue_wait_s: float = 600.0
    max_gap_ms: float = 200.0
    max_gap_steps: int = 2
    max_gap_full_ms: float = 600.0
    text_interval_ms: float = 0.0
    prompt_cost: float = 0.25
    carried: tuple[tuple[str, float], ...] = ()
    priority_aging_s: float = 30.0
    step_timeout_s: float = 0.0
    rules: EngineRules = field(default_factory=EngineRules)
    draft: DraftConfig | None = None
    vram_limit: int | None = None
    beside: ProjectorUse = field(default_factory=ProjectorUse)
    require_gpu: bool = False
    numa: str = ""
    cpus: frozenset[int] = frozenset()
    cache_ram_bytes: int | None = 0
    cache_dir: str | None = None
    sleep_idle_s: float | None = None
    pooling: Pooling | None = None
    embeddings: bool = False
    log_level: int = 30
