"""API settings, as plain data. Knows nothing of files, flags or the environment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ggufd.chat.advice.repairs import CACHE_REPAIRS
from ggufd.keys.ring import KeyRing, Limits

ReasoningFormat = Literal["auto", "deepseek", "none"]
CacheSharing = Literal["auto", "shared", "per-key"]
MetricsFor = Literal["admin", "user", "everybody", "nobody"]


MAX_SCALE = 100.0
"""Of an adapter: more makes noise of any model, and infinities of some."""


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """Loaded adapter: its name, its file, and its default scale."""

    name: str
    path: str
    scale: float


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """Settings of the HTTP side.

    `sampling` maps our field names (`SamplingParams`) to the values that an unset field gets. Without `keys` everybody
    may ask; `cache_sharing` says who may reuse what another had computed, `cache_repairs` which rules may change a
    prompt for its sake. `max_n` bounds the choices of one prompt, `max_prompts` the prompts of one request. `max_tokens`
    is the limit of a request that names none (None is the end of the context), `template_kwargs` are variables of the
    chat template, `reasoning_budget` is the limit of reasoning in tokens (-1 is none). `limits` hold for every key that
    was granted no other; with `share_by_address` each address without a key is an account. `allowed_hosts` are the names
    that the server goes by, besides its own; None takes any. `responses_path` is the file of stored responses (None is
    memory), bounded by `max_responses` and `max_responses_bytes`. With `logs_cache` the log says what the cache had
    of each prompt. With `ready_when_full` a full queue is no reason to be taken out of a load balancer. Without `ui`
    browsers get no page, without `slots` nobody the slots. Sizes in bytes, times in seconds; `created` is a Unix time.
    """

    model_id: str
    model_aliases: tuple[str, ...] = ()
    adapters: tuple[LoraAdapter, ...] = ()
    keys: KeyRing | None = None
    cache_sharing: CacheSharing = "auto"
    cache_repairs: tuple[str, ...] = tuple(CACHE_REPAIRS)
    metrics_for: MetricsFor = "admin"
    ready_when_full: bool = False
    max_body_bytes: int = 2_000_000
    ping_s: float = 1.0
    sampling: Mapping[str, Any] = field(default_factory=dict)
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
    slot_save_path: Path | None = None
    responses_path: Path | None = None
    max_responses: int = 1000
    max_responses_bytes: int = 64 << 20
    logs_cache: bool = False
    ui: bool = True
    slots: bool = True
    build: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def shares_cache(self) -> bool:
        """Whether all reuse what was computed for one of them: `auto` is until there is a second key."""
        has_others = self.keys is not None and len(self.keys) > 1
        return self.cache_sharing == "shared" or (self.cache_sharing == "auto" and not has_others)
