"""Unsupported fields of other servers, with their neutral values; any other value is reported as ignored.

The header `x-ggufd-ignored` is made from it. What only says how or where to compute (threads, batches, drafts, keeping
a model loaded), and what describes the client itself, asks for nothing of the answer and is not listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

HEADER = "x-ggufd-ignored"

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    # Samplers and searches that llama.cpp does not have.
    "tfs": (1,),
    "tfs_z": (1,),
    "top_a": (0,),
    "skew": (0,),
    "smoothing_factor": (0,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "penalty_alpha": (0,),
    "repetition_decay": (0,),
    "rep_pen_slope": (0, 1),
    "temperature_last": (True,),
    "do_sample": (True,),
    "num_beams": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "guidance_scale": (1,),
    "cfg_scale": (1,),
    "negative_prompt": (),
    "logits_processors": (),
    "vllm_xargs": (),
    "penalize_newline": (True,),
    "sampler_full_determinism": (False,),
    # What may be said, and where it ends.
    "allowed_tokens": (),
    "allowed_token_ids": (),
    "stop_token_ids": (),
    "token_healing": (False,),
    "grammar_retain_state": (False,),
    "guided_whitespace_pattern": (),
    "singleline": (False,),
    "frmttriminc": (False,),
    "frmtrmblln": (False,),
    "frmtrmspch": (False,),
    "frmtadsnsp": (False,),
    "n_indent": (0,),
    "n_discard": (0,),
    "t_max_predict_ms": (0, -1),
    "max_tokens_second": (0,),
    "auto_max_new_tokens": (False,),
    "verbosity": ("medium",),
    # What the prompt is made of.
    "add_bos_token": (True,),
    "add_special_tokens": (False,),
    "prompt_embeds": (),
    "truncate_prompt_tokens": (-1,),
    "truncate": (False,),
    "shift": (False,),
    "mode": ("instruct",),
    "replace_instruct_placeholders": (False,),
    "chat_template": (),
    "chat_template_str": (),
    "instruction_template": ("None",),
    "instruction_template_str": (),
    "prompt_template": (),
    "template": (),
    "context": (),
    "response_prefix": (),
    "preset": ("None",),
    "character": ("None",),
    "documents": (),
    "use_story": (False,),
    "use_memory": (False,),
    "use_authors_note": (False,),
    "use_world_info": (False,),
    "soft_prompt": (),
    "context_management": (),
    # What the answer shows.
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "n_probs": (0,),
    "prompt_logprobs": (False,),
    "post_sampling_probs": (False,),
    "return_tokens": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "timings_per_token": (False,),
    "response_fields": (),
    "spaces_between_special_tokens": (True,),
    "include_reasoning": (True,),
    "parse_tool_calls": (True,),
    "reasoning_in_content": (False,),
    "thinking_forced_open": (False,),
    "audio": (),
    # Where it is computed and what is kept of it, where that is a promise.
    "id_slot": (-1,),
    "cache_prompt": (True,),
    "cache_salt": (),
    "store": (False,),
    "service_tier": ("auto", "default", "standard_only"),
    "web_search_options": (),
}
"""A name on the wire -> the values that ask for nothing, besides null, "", [] and {}."""

_EMPTY: tuple[Any, ...] = (None, "", [], {})
_MAX_NAME = 40
_MAX_NAMES = 20


def is_ignored(name: str, value: Any) -> bool:
    """Whether `value` asks for something that is not done."""
    return name in NEUTRAL and value not in _EMPTY and value not in NEUTRAL[name]


def header_of(names: Iterable[str]) -> str:
    """The header's value for these, in which the client's own words are made harmless."""
    harmless = (re.sub(r"[^\w.=-]", "?", name[:_MAX_NAME], flags=re.ASCII) for name in names)
    return ", ".join(list(dict.fromkeys(harmless))[:_MAX_NAMES])
