"""Aliases as data: which names on the wire mean which of our fields, per API family, and how one is picked.

Of the names that a field has, the first one listed that is set wins. Null and "" are unset. Names that no
table lists pass through untouched. Knows no types and no ranges: those are the models'.

Constraints apart: to pass one over would let through what it forbids, so two names must say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from server.errors import InvalidRequest

Aliases = Mapping[str, tuple[str, ...]]
"""Our field -> its names on the wire, the strongest first. A name missing here is not one of ours."""

SAMPLING: Aliases = {
    "temperature": ("temperature",),
    "dynatemp_range": ("dynatemp_range",),
    "dynatemp_exponent": ("dynatemp_exponent",),
    "dynatemp_low": ("dynatemp_low", "dynatemp_min", "min_temp"),
    "dynatemp_high": ("dynatemp_high", "dynatemp_max", "max_temp"),
    "dynamic_temperature": ("dynamic_temperature",),
    "top_k": ("top_k",),
    "top_p": ("top_p",),
    "min_p": ("min_p",),
    "typ_p": ("typ_p", "typical_p", "typical"),
    "top_n_sigma": ("top_n_sigma", "nsigma"),
    "xtc_probability": ("xtc_probability",),
    "xtc_threshold": ("xtc_threshold",),
    "dry_multiplier": ("dry_multiplier",),
    "dry_base": ("dry_base",),
    "dry_allowed_length": ("dry_allowed_length",),
    "dry_penalty_last_n": ("dry_penalty_last_n", "dry_range"),
    "dry_sequence_breakers": ("dry_sequence_breakers",),
    "repeat_penalty": ("repeat_penalty", "repetition_penalty", "rep_pen"),
    "repeat_last_n": ("repeat_last_n", "rep_pen_range", "repetition_penalty_range", "penalty_range"),
    "frequency_penalty": ("frequency_penalty",),
    "presence_penalty": ("presence_penalty",),
    "mirostat": ("mirostat", "mirostat_mode"),
    "mirostat_tau": ("mirostat_tau",),
    "mirostat_eta": ("mirostat_eta",),
    "adaptive_target": ("adaptive_target",),
    "adaptive_decay": ("adaptive_decay",),
    "min_keep": ("min_keep",),
    "samplers": ("samplers", "sampler_priority", "sampler_order"),
    "logit_bias": ("logit_bias",),
    "token_bans": ("custom_token_bans",),
    "ignore_eos": ("ignore_eos", "ban_eos_token"),
    "seed": ("seed", "sampler_seed"),
    "grammar": ("grammar", "grammar_string", "guided_grammar"),
}
"""Every sampler under every name that llama.cpp and its frontends give it."""

CONSTRAINTS: Aliases = {
    "json_schema": ("json_schema", "guided_json"),
    "regex": ("guided_regex", "regex_pattern"),
    "choices": ("guided_choice",),
    "response_format": ("response_format",),
    "structured_outputs": ("structured_outputs",),
}
"""What binds the output besides a grammar."""

_SAY_THE_SAME = frozenset(("grammar", *CONSTRAINTS))

BANS: Aliases = {
    "banned_strings": ("banned_strings", "banned_phrases", "anti_slop", "antislop_phrases", "slop_phrases"),
    "banned_regexes": ("banned_regex", "banned_regexes", "banned_regex_case_insensitive"),
    "bans_case_sensitive": ("bans_case_sensitive", "banned_case_sensitive"),
}
"""What may not be said."""

_GENERATION: Aliases = {
    **SAMPLING,
    **CONSTRAINTS,
    **BANS,
    "n": ("n",),
    "stop": ("stop", "stopping_strings", "stop_sequence", "stop_sequences"),
    "min_tokens": ("min_tokens", "min_new_tokens"),
    "skip_special_tokens": ("skip_special_tokens",),
    "n_keep": ("n_keep",),
    "stream": ("stream",),
    "stream_options": ("stream_options",),
    "return_progress": ("return_progress",),
    "explain_cache": ("explain_cache",),
    "priority": ("priority",),
    "timeout_s": ("timeout",),
    "report_queue": ("report_queue",),
}

_LIMIT = ("n_predict", "max_new_tokens", "num_predict", "max_length")

OPENAI_COMPLETION: Aliases = {
    **_GENERATION,
    "max_tokens": ("max_tokens", "max_completion_tokens", *_LIMIT),
    # Frontends of the Kobold and text-generation-webui families send all of these at once, and mean the first.
    "repeat_last_n": ("repetition_penalty_range", "rep_pen_range", "penalty_range", "repeat_last_n"),
    "token_bans": ("custom_token_bans", "banned_tokens"),
    "logprobs": ("logprobs", "n_probs"),
    "best_of": ("best_of",),
    "echo": ("echo",),
    "suffix": ("suffix",),
    "add_bos_token": ("add_bos_token",),
}

OPENAI_CHAT: Aliases = {
    **_GENERATION,
    "max_tokens": ("max_completion_tokens", "max_tokens", *_LIMIT),
    "logprobs": ("logprobs",),
    "top_logprobs": ("top_logprobs", "n_probs"),
    "template_kwargs": ("chat_template_kwargs", "template_vars"),
    "add_generation_prompt": ("add_generation_prompt",),
    "continue_final_message": ("continue_final_message",),
    "tools": ("tools",),
    "tool_choice": ("tool_choice",),
    "parallel_tool_calls": ("parallel_tool_calls",),
    "reasoning_format": ("reasoning_format",),
    "reasoning_effort": ("reasoning_effort",),
    "reasoning_budget": (
        "reasoning_budget",
        "thinking_budget_tokens",
        "thinking_token_budget",
        "thinking_budget",
    ),
}

_CONVERTED = {
    "n",
    "stream",
    "stream_options",
    "return_progress",
    "max_tokens",
    "logprobs",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning_effort",
    "add_generation_prompt",
}
SHARED = frozenset(
    {"model", "lora"} | {name for field, names in OPENAI_CHAT.items() if field not in _CONVERTED for name in names}
)
"""Names that mean the same wherever a request becomes a chat request: every sampler, constraint and ban."""

LLAMACPP: Aliases = {
    **_GENERATION,
    "n": ("n", "n_cmpl"),
    "max_tokens": (*_LIMIT, "max_tokens", "max_completion_tokens"),
    "n_probs": ("n_probs", "logprobs"),
    "add_bos_token": ("add_bos_token",),
}
"""llama-server's own names come first."""

KOBOLD: Aliases = {
    **_GENERATION,
    "max_tokens": ("max_length", "max_tokens", "max_completion_tokens", *_LIMIT[:-1]),
    "stop": ("stop_sequence", "stop_sequences", "stop", "stopping_strings"),
    "seed": ("sampler_seed", "seed"),
    "samplers": ("sampler_order", "samplers", "sampler_priority"),
    "repeat_penalty": ("rep_pen", "repetition_penalty", "repeat_penalty"),
    "repeat_last_n": ("rep_pen_range", "repetition_penalty_range", "penalty_range", "repeat_last_n"),
    "typ_p": ("typical", "typical_p", "typ_p"),
    "ignore_eos": ("ban_eos_token", "bypass_eos", "use_default_badwordsids", "ignore_eos"),
    "banned_strings": (*BANS["banned_strings"], "banned_tokens"),
    "genkey": ("genkey",),
    "memory": ("memory",),
}

OLLAMA: Aliases = {
    **_GENERATION,
    "max_tokens": ("num_predict", "n_predict", "max_tokens"),
    "json_schema": ("format", *CONSTRAINTS["json_schema"]),
}
"""Of the body with its `options` laid open."""

OLLAMA_CHAT: Aliases = {
    **OPENAI_CHAT,
    **OLLAMA,
    "reasoning_effort": ("think",),
}
"""The same for chats, which become OpenAI's."""


def _negative_is_unset(value: Any) -> Any:
    """llama.cpp's limits: -1 is no limit, -2 until the context is full."""
    return None if value in (-1, -2) and not isinstance(value, bool) else value


def _zero_is_whole_context(value: Any) -> Any:
    return -1 if value == 0 and not isinstance(value, bool) else value


_KOBOLD_SAMPLERS: Mapping[int, tuple[str, ...]] = {
    0: ("top_k",),
    2: ("top_p", "min_p"),
    4: ("typ_p",),
    5: ("temperature",),
    6: ("penalties", "top_n_sigma"),
}
"""KoboldAI's numbers of samplers; 1 and 3 are top-a and tail-free sampling, which llama.cpp does not have."""


def _kobold_order(value: Any) -> Any:
    """A list of KoboldAI's numbers as a list of names; names are left alone."""
    if not isinstance(value, list) or any(isinstance(item, str) for item in value):
        return value
    return [name for number in value if _is_int(number) for name in _KOBOLD_SAMPLERS.get(number, ())]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _switch_is_unset(value: Any) -> Any:
    """Some programs have a switch of this name where others have the list."""
    return None if isinstance(value, bool) else value


def _effort_of(value: Any) -> Any:
    """Ollama's switch for thoughts; on is what a model does anyway."""
    return "none" if value is False else None if value is True else value


def _json_is_any_object(value: Any) -> Any:
    return {"type": "object"} if value == "json" else value


READERS: Mapping[str, Callable[[Any], Any]] = {
    "n_predict": _negative_is_unset,
    "num_predict": _negative_is_unset,
    "max_length": _negative_is_unset,
    # llama.cpp's own repeat_last_n keeps llama.cpp's meaning (0 is off); elsewhere 0 means every token.
    "repetition_penalty_range": _zero_is_whole_context,
    "rep_pen_range": _zero_is_whole_context,
    "penalty_range": _zero_is_whole_context,
    "sampler_order": _kobold_order,
    "anti_slop": _switch_is_unset,
    "format": _json_is_any_object,
    "think": _effort_of,
}
"""Names on the wire whose values mean something else than the field's: what to read them as."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """`values` by our field names, and pass-through ones; `wire_names` says which name a field came under."""

    values: dict[str, Any]
    wire_names: dict[str, str]

    def wire_name(self, field: str) -> str:
        """What the client calls `field`."""
        return self.wire_names.get(field, field)


def resolve(body: Mapping[str, Any], aliases: Aliases) -> Resolved:
    """Pick one value for each of our fields. A field that is unset under all its names is left out.

    Raises InvalidRequest where two names of a constraint do not say the same.
    """
    known = {name for names in aliases.values() for name in names} | set(aliases)
    values = {name: value for name, value in body.items() if name not in known}
    wire_names: dict[str, str] = {}
    for field, names in aliases.items():
        for name in names:
            value = _read(name, body.get(name))
            if value is None:
                continue
            if field not in wire_names:
                values[field], wire_names[field] = value, name
            elif value != values[field]:
                raise two_constraints(wire_names[field], name)
            if field not in _SAY_THE_SAME:
                break
    return Resolved(values, wire_names)


def two_constraints(*names: str) -> InvalidRequest:
    """The error of whoever sent all of these."""
    return InvalidRequest(
        f"Only one constraint can hold at a time, but {' and '.join(names)} were sent. Leave out all but one.",
        param=names[-1],
    )


def _read(name: str, value: Any) -> Any:
    if value is None or (isinstance(value, str) and not value):
        return None
    reader = READERS.get(name)
    return value if reader is None else reader(value)
