"""API settings, as plain data. Knows nothing of files, flags or the environment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ggufd.batches.files import StorageLimits
from ggufd.chat.advice.repairs import CACHE_REPAIRS
from ggufd.keys.ring import KeyRing, Limits

ReasoningFormat = Literal["auto", "deepseek", "none"]
CacheSharing = Literal["auto", "shared", "per-key"]
MetricsFor = Literal["admin", "user", "everybody", "nobody"]
SwapFor = Literal["admin", "everybody", "nobody"]


MAX_SCALE = 100.0
"""Of an adapter: more makes noise of any model, and infinities of some."""


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """Loaded adapter: its name, its file, and its default scale."""

    name: str
    path: str
    scale: float


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Limits of resumable streams, in number, bytes and seconds; `is_default` keeps those that nobody asked to keep.

    An answer without a reader ends after `unread_s`; an ended one is kept for `kept_s`.
    """

    is_default: bool = False
    max_streams: int = 64
    max_streams_per_key: int = 8
    max_bytes: int = 64 << 20
    max_bytes_per_key: int = 16 << 20
    max_bytes_each: int = 4 << 20
    unread_s: float = 600.0
    kept_s: float = 300.0


@dataclass(frozen=True, slots=True)
class OutputDefaults:
    """What holds for requests that do not say: stop strings, tokens that a context shift keeps, special tokens shown,
    an assistant's last message continued, chats' answers parsed, the norm of llama-server's vectors.
    """

    stop: tuple[str, ...] = ()
    n_keep: int = 0
    special: bool = False
    prefill_assistant: bool = True
    chat_parsing: bool = True
    embd_normalize: int = 2


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """Settings of the HTTP side. Sizes in bytes, times in seconds.

    keys             API keys; with None everybody may ask
    cache_sharing    who may reuse what was computed for another
    cache_repairs    rules that may change a prompt for the sake of its cached prefix
    ready_when_full  whether a full queue leaves /ready at 200
    sampling         values that unset fields get, by our names (`SamplingParams`)
    output           what else holds where a request does not say
    max_n            choices of one prompt
    max_prompts      prompts of one request
    max_tokens       limit of a request that names none; None is the end of the context
    template_kwargs  variables of the chat template
    reasoning_budget limit of reasoning in tokens; -1 is none
    share_by_address whether each address without a key is an account
    limits           limits of every key that was granted no other
    allowed_hosts    names that the server goes by, besides its own; None takes any
    responses_path   file of stored responses; None is memory
    logs_cache       whether the log says what the cache had of each prompt
    listens_beyond   whether it is reached from beyond this machine, also by a proxy or another name
    trusts_proxies   whether the word of proxies for an address is taken
    peer_token       token of the cluster, without which nobody is answered; None is no cluster
    streams          bounds of resumable streams
    is_verbose       whether a chat's answer has the prompt that its messages became
    cache_advice     whether the last prompts are remembered to see why their prefixes get lost
    batch_dir        folder of batches; None is no batches
    batch_limits     bounds of the files of batches
    batch_keep_s     how long files and batches are kept
    ui               whether browsers get the web page
    slots            whether GET /slots is answered
    swap_for         whose requests have another model loaded
    swap_models      models that requests of all keys may have loaded, by name; "*" is all
    created          Unix time of the start
    """

    model_id: str
    model_aliases: tuple[str, ...] = ()
    model_tags: tuple[str, ...] = ()
    model_file: str = ""
    adapters: tuple[LoraAdapter, ...] = ()
    keys: KeyRing | None = None
    cache_sharing: CacheSharing = "auto"
    cache_advice: bool = True
    cache_repairs: tuple[str, ...] = tuple(CACHE_REPAIRS)
    metrics_for: MetricsFor = "admin"
    ready_when_full: bool = False
    max_body_bytes: int = 2_000_000
    ping_s: float = 1.0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    output: OutputDefaults = field(default_factory=OutputDefaults)
    max_n: int = 64
    max_prompts: int = 64
    max_tokens: int | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    reasoning_format: ReasoningFormat = "auto"
    reasoning_budget: int = -1
    share_by_address: bool = True
    limits: Limits = field(default_factory=Limits)
    root_path: str = ""
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] | None = None
    listens_beyond: bool = False
    trusts_proxies: bool = False
    peer_token: str | None = field(default=None, repr=False)
    slot_save_path: Path | None = None
    responses_path: Path | None = None
    max_responses: int = 1000
    max_responses_bytes: int = 64 << 20
    streams: StreamLimits = field(default_factory=StreamLimits)
    batch_dir: Path | None = None
    batch_limits: StorageLimits = field(default_factory=StorageLimits)
    batch_keep_s: int = 30 * 24 * 3600
    logs_cache: bool = False
    ui: bool = True
    slots: bool = True
    is_verbose: bool = False
    swap_for: SwapFor = "admin"
    swap_models: tuple[str, ...] = ()
    build: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names that a client may call the model by: its file's too, which is listed only where there is no other."""
        return (self.model_id, *self.model_aliases, self.model_file)

    @property
    def shares_cache(self) -> bool:
        """Whether all reuse what was computed for one of them: `auto` is until there is a second key."""
        has_others = self.keys is not None and len(self.keys) > 1
        return self.cache_sharing == "shared" or (self.cache_sharing == "auto" and not has_others)
