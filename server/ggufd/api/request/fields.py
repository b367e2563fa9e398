"""Field aliases as data: which names on the wire mean which of our fields, per API family, and how one is picked.

Of the names that a field has, the first one listed that is set wins. Null, "" and what `UNSET` lists are unset.
Names that no table lists pass through untouched. Knows no types and no ranges: those are the models'.

Constraints apart: to pass one over would let through what it forbids, so two names must say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ggufd.api.http.ignored import NEUTRAL
from ggufd.errors import InvalidRequest

Aliases = Mapping[str, tuple[str, ...]]
"""Our field -> its names on the wire, the strongest first. A name missing here is not one of ours."""

SAMPLING: Aliases = {
    "temperature": ("temperature",),
    "dynatemp_range": ("dynatemp_range",),
    "dynatemp_exponent": ("dynatemp_exponent", "temp_exponent"),
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
    "repeat_last_n": (
        "repeat_last_n",
        "rep_pen_range",
        "repetition_penalty_range",
        "repetition_range",
        "penalty_range",
    ),
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
    "banned_strings": (
        "banned_strings",
        "banned_phrases",
        "anti_slop",
        "antislop_phrases",
        "slop_phrases",
        "bad_words",
    ),
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
    "include_stop_str_in_output": ("include_stop_str_in_output", "trim_stop"),
    "min_tokens": ("min_tokens", "min_new_tokens", "min_length"),
    "skip_special_tokens": ("skip_special_tokens", "render_special"),
    "n_keep": ("n_keep", "num_keep"),
    "stream": ("stream",),
    "stream_options": ("stream_options",),
    "return_progress": ("return_progress",),
    "explain_cache": ("explain_cache",),
    "priority": ("priority",),
    "timeout_s": ("timeout",),
    "report_queue": ("report_queue",),
    "resumable": ("resumable",),
    "deterministic": ("deterministic",),
}

_LIMIT = ("n_predict", "max_new_tokens", "num_predict", "max_length")

_TIMED: Aliases = {**_GENERATION, "timings_per_token": ("timings_per_token",)}

OPENAI_COMPLETION: Aliases = {
    **_TIMED,
    "max_tokens": ("max_tokens", "max_completion_tokens", *_LIMIT),
    # Frontends of the Kobold and text-generation-webui families send all of these at once, and mean the first.
    "repeat_last_n": (
        "repetition_penalty_range",
        "rep_pen_range",
        "repetition_range",
        "penalty_range",
        "repeat_last_n",
    ),
    "token_bans": ("custom_token_bans", "banned_tokens"),
    "logprobs": ("logprobs", "n_probs"),
    "best_of": ("best_of",),
    "echo": ("echo",),
    "suffix": ("suffix",),
    "add_bos_token": ("add_bos_token", "add_special_tokens"),
}

OPENAI_CHAT: Aliases = {
    **_TIMED,
    "verbose": ("verbose",),
    "max_tokens": ("max_completion_tokens", "max_tokens", *_LIMIT),
    "logprobs": ("logprobs",),
    "top_logprobs": ("top_logprobs", "n_probs"),
    "template_kwargs": ("chat_template_kwargs", "template_vars"),
    "add_generation_prompt": ("add_generation_prompt",),
    "continue_final_message": ("continue_final_message", "continue_"),
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
    "timings_per_token",
    "verbose",
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


_NEVER_DONE = NEUTRAL.keys() - {name for names in OPENAI_CHAT.values() for name in names}


def shared(body: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """What the chat request takes from the body of another API, whose `own` fields are converted: what means the same,
    and what is not done here, to be told so.
    """
    return {name: value for name, value in body.items() if name in SHARED or (name in _NEVER_DONE and name not in own)}


LLAMACPP: Aliases = {
    **_TIMED,
    "n": ("n", "n_cmpl"),
    "max_tokens": (*_LIMIT, "max_tokens", "max_completion_tokens"),
    "n_probs": ("n_probs", "logprobs"),
    "add_bos_token": ("add_bos_token", "add_special_tokens"),
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
    "reasoning_effort": ("think", "reasoning_effort"),
}
"""The same for chats, which become OpenAI's."""


def documented_name(field: str) -> str:
    """What /docs calls a field of ours: a name that clients may send, which some of ours are not."""
    names = next((table[field] for table in (OPENAI_CHAT, OPENAI_COMPLETION, KOBOLD) if field in table), (field,))
    return field if field in names else names[0]


def _zero_is_whole_context(value: Any) -> Any:
    return -1 if value == 0 and not isinstance(value, bool) else value


_KOBOLD_SAMPLERS: Mapping[int, tuple[str, ...]] = {
    0: ("top_k",),
    1: ("top_a",),
    2: ("top_p", "min_p"),
    3: ("tfs",),
    4: ("typ_p",),
    5: ("temperature",),
    6: ("penalties", "top_n_sigma"),
}
"""KoboldAI's numbers of samplers."""


def _kobold_order(value: Any) -> Any:
    """A list of KoboldAI's numbers as a list of names; what is no such number is left alone."""
    if not isinstance(value, list):
        return value
    return [name for item in value for name in (_KOBOLD_SAMPLERS.get(item, (item,)) if _is_int(item) else (item,))]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _opposite(value: Any) -> Any:
    """A switch that says the contrary of the field's."""
    return not value if isinstance(value, bool) else value


def _switch_is_unset(value: Any) -> Any:
    """Some programs have a switch of this name where others have the list."""
    return None if isinstance(value, bool) else value


def _effort_of(value: Any) -> Any:
    """Ollama's switch for reasoning; on is the default of a model."""
    return "none" if value is False else None if value is True else value


def _json_is_any_object(value: Any) -> Any:
    return {"type": "object"} if value == "json" else value


READERS: Mapping[str, Callable[[Any], Any]] = {
    # llama.cpp's own repeat_last_n keeps llama.cpp's meaning (0 is off); elsewhere 0 means every token.
    "repetition_penalty_range": _zero_is_whole_context,
    "rep_pen_range": _zero_is_whole_context,
    "repetition_range": _zero_is_whole_context,
    "penalty_range": _zero_is_whole_context,
    "sampler_order": _kobold_order,
    "anti_slop": _switch_is_unset,
    "format": _json_is_any_object,
    "think": _effort_of,
    "trim_stop": _opposite,
    "render_special": _opposite,
}
"""Names on the wire whose values mean something else than the field's: what to read them as."""

Unset = Mapping[str, tuple[Any, ...]]
"""A name on the wire -> the values that set nothing there, besides null and ""."""

_ANY_JSON: tuple[Any, ...] = ({}, "{}")
_NO_LIMIT = (-1, -2)

UNSET: Unset = {
    # SillyTavern 1.12.6 sends the first of these (TabbyAPI) or the second (Aphrodite) with every request.
    "json_schema": _ANY_JSON,
    "guided_json": _ANY_JSON,
    "response_format": ({},),
    **dict.fromkeys(SAMPLING["samplers"], ([],)),
    "n_probs": (0,),
    # llama.cpp's limits: -1 is no limit, -2 until the context is full.
    **dict.fromkeys(("n_predict", "num_predict", "max_length"), _NO_LIMIT),
    # What text-generation-webui calls so only ever asks for it: without it a chat goes on as it does anyway.
    "continue_": (False,),
}
"""What clients send whose users have set nothing.

An empty list of choices is not here: no client sends one unasked, and nothing could be chosen from it.
"""

LLAMACPP_UNSET: Unset = {name: values for name, values in UNSET.items() if name != "json_schema"}
"""The same on llama-server's own routes, whose documentation has `{}` for any JSON, and whose clients mean that."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """`values` by our field names, and `unlisted` ones; `wire_names` says which name a field came under."""

    values: dict[str, Any] = field(default_factory=dict)
    wire_names: dict[str, str] = field(default_factory=dict)
    unlisted: dict[str, Any] = field(default_factory=dict)

    def wire_name(self, field: str) -> str:
        """What the client calls `field`."""
        return self.wire_names.get(field, field)


def resolve(body: Mapping[str, Any], aliases: Aliases, unset: Unset = UNSET) -> Resolved:
    """Pick one value for each of our fields. A field that is unset under all its names is left out.

    Raises InvalidRequest where two names of a constraint do not say the same.
    """
    known = {name for names in aliases.values() for name in names} | set(aliases)
    unlisted = {name: value for name, value in body.items() if name not in known}
    values = dict(unlisted)
    wire_names: dict[str, str] = {}
    for ours, names in aliases.items():
        for name in names:
            value = _read(name, body.get(name))
            if is_unset(name, value, unset):
                continue
            if ours not in wire_names:
                values[ours], wire_names[ours] = value, name
            elif value != values[ours]:
                raise two_constraints(wire_names[ours], name)
            if ours not in _SAY_THE_SAME:
                break
    return Resolved(values, wire_names, unlisted)


def two_constraints(*names: str) -> InvalidRequest:
    """Error for constraints that exclude each other."""
    return InvalidRequest(
        f"Only one constraint can hold at a time, but {' and '.join(names)} were sent. Leave out all but one.",
        param=names[-1],
    )


def is_unset(name: str, value: Any, unset: Unset = UNSET) -> bool:
    """Whether a client that sends `value` as `name` has set nothing."""
    return value is None or value == "" or value in unset.get(name, ())


def _read(name: str, value: Any) -> Any:
    reader = READERS.get(name)
    return value if reader is None or value is None or value == "" else reader(value)
