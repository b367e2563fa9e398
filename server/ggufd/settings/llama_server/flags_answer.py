"""Flags about answers: samplers, constraints, chat templates, reasoning."""

from __future__ import annotations

from typing import Any

from ggufd.settings.llama_server import readings
from ggufd.settings.llama_server.flag import Flag, Part, Taken, fixed, plain, sets, switch, valued
from ggufd.settings.llama_server.readings import on_off_auto, unless

_KWARGS = ("chat_template_kwargs",)
_BREAKERS = ("dry_sequence_breakers",)


def _grammar(value: str) -> dict[str, Any]:
    return {"grammar": value, "json_schema": ""}


def _schema(value: str) -> dict[str, Any]:
    return {"grammar": "", "json_schema": value}


def _grammar_file(value: str) -> dict[str, Any]:
    return _grammar(readings.file_text(value))


def _schema_file(value: str) -> dict[str, Any]:
    return _schema(readings.file_text(value))


def _template(value: str) -> dict[str, Any]:
    return {"chat_template": value, "chat_template_file": ""}


def _template_file(value: str) -> dict[str, Any]:
    return {"chat_template": "", "chat_template_file": value}


def _thinking(value: str) -> dict[str, Any]:
    word = on_off_auto(value)
    return {"enable_thinking": None if word == "auto" else word == "on"}


def _effort(value: str) -> dict[str, Any]:
    return {"reasoning_effort": None if value == "default" else value}


SAMPLING: tuple[Flag, ...] = (
    valued("-n --predict --n-predict", sets("max_tokens", read=unless({"-2": "-1"})), "LLAMA_ARG_N_PREDICT"),
    valued("--keep", sets("n_keep")),
    valued("--samplers", sets("samplers", read=readings.sampler_names)),
    valued("--sampler-seq --sampling-seq", sets("samplers", read=readings.sampler_letters)),
    valued("-s --seed", sets("seed", read=unless({"4294967295": "-1"}))),
    plain("--ignore-eos", fixed(ignore_eos=True)),
    valued("--temp --temperature", sets("temperature"), "LLAMA_ARG_TEMPERATURE"),
    valued("--top-k", sets("top_k"), "LLAMA_ARG_TOP_K"),
    valued("--top-p", sets("top_p"), "LLAMA_ARG_TOP_P"),
    valued("--min-p", sets("min_p"), "LLAMA_ARG_MIN_P"),
    valued("--top-nsigma --top-n-sigma", sets("top_n_sigma")),
    valued("--xtc-probability", sets("xtc_probability")),
    valued("--xtc-threshold", sets("xtc_threshold")),
    valued("--typical --typical-p", sets("typ_p")),
    valued("--repeat-last-n", sets("repeat_last_n")),
    valued("--repeat-penalty", sets("repeat_penalty"), "LLAMA_ARG_REPEAT_PENALTY"),
    valued("--presence-penalty", sets("presence_penalty"), "LLAMA_ARG_PRESENCE_PENALTY"),
    valued("--frequency-penalty", sets("frequency_penalty"), "LLAMA_ARG_FREQUENCY_PENALTY"),
    valued("--dry-multiplier", sets("dry_multiplier")),
    valued("--dry-base", sets("dry_base")),
    valued("--dry-allowed-length", sets("dry_allowed_length")),
    valued("--dry-penalty-last-n", sets("dry_penalty_last_n")),
    valued("--dry-sequence-breaker", Part("strings", "breaker", _BREAKERS), repeats=True),
    valued("--adaptive-target", sets("adaptive_target")),
    valued("--adaptive-decay", sets("adaptive_decay")),
    valued("--dynatemp-range", sets("dynatemp_range")),
    valued("--dynatemp-exp", sets("dynatemp_exponent")),
    valued("--mirostat", sets("mirostat")),
    valued("--mirostat-lr", sets("mirostat_eta")),
    valued("--mirostat-ent", sets("mirostat_tau")),
    valued("-l --logit-bias", sets("logit_bias", read=readings.bias), repeats=True),
    plain("-bs --backend-sampling", Taken("tokens are sampled on the CPU"), "LLAMA_ARG_BACKEND_SAMPLING"),
)

OUTPUT: tuple[Flag, ...] = (
    valued("--grammar", sets("grammar", "json_schema", read=_grammar)),
    valued("--grammar-file", sets("grammar", "json_schema", read=_grammar_file)),
    valued("-j --json-schema", sets("grammar", "json_schema", read=_schema)),
    valued("-jf --json-schema-file", sets("grammar", "json_schema", read=_schema_file)),
    valued("-r --reverse-prompt", Part("strings", "stop", ("stop",)), repeats=True),
    switch(
        "-e --escape",
        "--no-escape",
        Part("strings", "escape", (*_BREAKERS, "stop"), True),
        Part("strings", "escape", (*_BREAKERS, "stop"), False),
    ),
    plain("-sp --special", fixed(special=True)),
    plain("--spm-infill", fixed(spm_infill=True)),
)

CHAT: tuple[Flag, ...] = (
    switch(
        "--jinja",
        "--no-jinja",
        Taken("chat templates are always Jinja"),
        Taken("chat templates are always rendered by Jinja; there is no other engine"),
        "LLAMA_ARG_JINJA",
    ),
    valued("--chat-template", sets("chat_template", "chat_template_file", read=_template), "LLAMA_ARG_CHAT_TEMPLATE"),
    valued(
        "--chat-template-file",
        sets("chat_template", "chat_template_file", read=_template_file),
        "LLAMA_ARG_CHAT_TEMPLATE_FILE",
    ),
    valued(
        "--chat-template-kwargs",
        Part("template", "kwargs", _KWARGS, readings.json_object),
        "LLAMA_ARG_CHAT_TEMPLATE_KWARGS",
        repeats=True,
    ),
    valued("--reasoning-format", sets("reasoning_format"), "LLAMA_ARG_THINK"),
    valued("-rea --reasoning", Part("template", "reasoning", _KWARGS, _thinking), "LLAMA_ARG_REASONING"),
    valued("--reasoning-effort", Part("template", "effort", _KWARGS, _effort), "LLAMA_ARG_REASONING_EFFORT"),
    valued("--reasoning-budget", sets("reasoning_budget"), "LLAMA_ARG_THINK_BUDGET"),
    valued(
        "--reasoning-budget-message",
        sets("reasoning_budget_message"),
        "LLAMA_ARG_THINK_BUDGET_MESSAGE",
    ),
    switch(
        "--reasoning-preserve",
        "--no-reasoning-preserve",
        Part("template", "preserve", _KWARGS, {"preserve_reasoning": True}),
        Part("template", "preserve", _KWARGS, {"preserve_reasoning": False}),
        "LLAMA_ARG_REASONING_PRESERVE",
    ),
    switch(
        "--skip-chat-parsing",
        "--no-skip-chat-parsing",
        fixed(chat_parsing=False),
        fixed(chat_parsing=True),
        "LLAMA_ARG_SKIP_CHAT_PARSING",
    ),
    switch(
        "--prefill-assistant",
        "--no-prefill-assistant",
        fixed(prefill_assistant=True),
        fixed(prefill_assistant=False),
        "LLAMA_ARG_PREFILL_ASSISTANT",
    ),
)
