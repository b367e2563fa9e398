"""Generation fields that every route shares, and the engine request that is made of them.

What can be refused without the engine is refused here, before anything is sent. Knows no route and no wire format.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, Strict, WithJsonSchema

from ggufd.api.images.encoding import encode_images
from ggufd.api.images.prompts import ImagePrompt
from ggufd.api.request.constraints import ConstraintFields
from ggufd.api.request.deterministic import check_deterministic, with_seed
from ggufd.api.request.lora import AdapterScale
from ggufd.api.request.recommended import recommended
from ggufd.api.request.sampling import Bool, Count, Float, Int
from ggufd.api.request.validation import Body
from ggufd.api.services.caller import Caller
from ggufd.api.services.services import Services
from ggufd.chat.prompt import RenderedChat
from ggufd.chat.tools.grammar import BODY
from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.messages.sampling import Grammar, GrammarKind, ReasoningBudget, SamplingParams
from ggufd.engine.queueing.validation import check_request, check_tokens
from ggufd.engine.sampling.banned import check_bans
from ggufd.errors import InvalidRequest, Unsupported

MAX_LOGPROBS = 128
_MAX_PRIORITY = 1_000_000
_MAX_TIMEOUT_S = 1e6
_MAX_SCALES = 1000


def read_stop(value: Any) -> Any:
    """One stop string or a list of them; empty ones never match anything and are dropped."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list):
        raise ValueError("expected a string or an array of strings")
    return [item for item in values if item != ""]


Stop = Annotated[
    tuple[Annotated[str, Strict()], ...],
    BeforeValidator(lambda value: _as_tuple(read_stop(value))),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def read_phrases(value: Any) -> Any:
    """Phrases from a list, a JSON string of one, or lines; on lines they may stand in double quotes."""
    if isinstance(value, str):
        value = _list_in(value) or [_unquoted(line) for line in value.splitlines()]
    return tuple(item for item in value if item != "") if isinstance(value, list) else value


def _list_in(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _unquoted(line: str) -> str:
    text = line.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


Phrases = Annotated[
    tuple[Annotated[str, Strict()], ...],
    BeforeValidator(read_phrases),
    WithJsonSchema({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]}),
]


class StreamOptions(Body):
    """`include_usage` asks for one more chunk, with the usage of the whole request."""

    include_usage: Bool | None = None


_STREAM_OPTIONS = {"type": "object", "properties": {"include_usage": {"type": "boolean"}}}


_LORA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"id": {"type": "integer"}, "scale": {"type": "number"}},
        "required": ["id", "scale"],
    },
}


def _read_scales(value: Any) -> Any:
    if isinstance(value, list) and len(value) > _MAX_SCALES:
        raise ValueError(f"expected at most {_MAX_SCALES} adapters, got {len(value)}")
    return _as_tuple(value)


Lora = Annotated[tuple[AdapterScale, ...], Field(fail_fast=True), BeforeValidator(_read_scales), WithJsonSchema(_LORA)]
ModelName = Annotated[
    str | None,
    # There is one model, so whatever a client calls it is meant; but with an adapter's name behind it is told apart.
    BeforeValidator(lambda value: value if isinstance(value, str) else None),
    WithJsonSchema({"type": "string"}),
]


class GenerationFields(ConstraintFields):
    """Samplers, constraints, limits and bans of a request that generates."""

    n: Annotated[Int, Field(ge=1)] = 1
    max_tokens: Count | None = None
    min_tokens: Count = 0
    stop: Stop = ()
    include_stop_str_in_output: Bool = False
    skip_special_tokens: Bool | None = None
    n_keep: Annotated[Int, Field(ge=-1)] | None = None
    stream: Bool = False
    stream_options: Annotated[StreamOptions, WithJsonSchema(_STREAM_OPTIONS)] | None = None
    banned_strings: Phrases = ()
    banned_regexes: Phrases = ()
    bans_case_sensitive: Bool = False
    return_progress: Bool = False
    timings_per_token: Bool = False
    explain_cache: Bool = False
    lora: Lora | None = None
    model: ModelName = None
    priority: Annotated[Int, Field(ge=-_MAX_PRIORITY, le=_MAX_PRIORITY)] = 0
    timeout_s: Annotated[Float, Field(gt=0, le=_MAX_TIMEOUT_S)] | None = None
    report_queue: Bool = False
    resumable: Bool | None = None
    deterministic: Bool = False

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def has_bans(self) -> bool:
        """Whether phrases are banned: then the answer counts how often one was taken back."""
        return bool(self.banned_strings or self.banned_regexes)


def check_n(name: str, n: int, max_n: int) -> None:
    """Raises InvalidRequest when one prompt would become too many sequences."""
    if n > max_n:
        raise InvalidRequest(f"'{name}': expected at most {max_n} choices of one prompt, got {n}.", param=name)


def check_prompts(prompts: Sequence[object], max_prompts: int) -> None:
    """Raises InvalidRequest when one HTTP request has too many prompts."""
    if len(prompts) > max_prompts:
        raise InvalidRequest(f"'prompt': expected at most {max_prompts} prompts, got {len(prompts)}.", param="prompt")


async def engine_request(
    services: Services,
    fields: GenerationFields,
    prompt: Sequence[int],
    *,
    caller: Caller,
    param: str,
    n: int | None = None,
    n_logprobs: int | None = None,
    are_logprobs_final: bool = False,
    prompt_logprobs: bool = False,
    rendered: RenderedChat | None = None,
    reasoning_budget: ReasoningBudget | None = None,
    images: ImagePrompt | None = None,
) -> EngineRequest:
    """The engine request for one prompt of tokens; `param` is what the client calls the prompt.

    `images` are those of the prompt, which are encoded last of all: what is refused costs nothing.

    Raises InvalidRequest for all that is wrong with it: an empty prompt, foreign token ids, a prompt that does not
    fit, a grammar that cannot be used, a phrase that cannot be banned, a priority that its caller may not ask for.
    """
    ready = services.require_ready()
    if not ready.writes:
        raise Unsupported("This is an embedding model: it generates no text. Use /v1/embeddings or /v1/rerank.")
    sampling, constraint_param = _sampling(services, fields, rendered)
    if fields.deterministic:
        check_deterministic(services, prompt)
        sampling = with_seed(sampling, caller.record)
    limit = services.config.max_tokens if fields.max_tokens is None else fields.max_tokens
    defaults = services.config.output
    n_keep = defaults.n_keep if fields.n_keep is None else fields.n_keep
    request = EngineRequest(
        request_id=services.engine.new_request_id(),
        prompt=tuple(prompt),
        n=n or fields.n,
        max_tokens=None if limit is None else max(1, limit),
        min_tokens=fields.min_tokens,
        stop=fields.stop or defaults.stop,
        sampling=sampling,
        n_logprobs=n_logprobs,
        are_logprobs_final=are_logprobs_final,
        prompt_logprobs=prompt_logprobs,
        skip_special_tokens=not defaults.special if fields.skip_special_tokens is None else fields.skip_special_tokens,
        n_keep=len(prompt) if n_keep < 0 else n_keep,
        shown_tokens=frozenset(rendered.shown if rendered is not None else ()),
        reasoning_budget=reasoning_budget,
        banned_strings=fields.banned_strings,
        banned_regexes=fields.banned_regexes,
        bans_case_sensitive=fields.bans_case_sensitive,
        return_progress=fields.return_progress or fields.timings_per_token,
        explain_cache=fields.explain_cache or services.config.logs_cache,
        principal=caller.principal,
        priority=fields.priority,
        timeout_s=caller.left_of(fields.timeout_s),
        report_queue=fields.report_queue,
        is_deterministic=fields.deterministic,
        adapters=services.adapters.of_request(fields.lora, fields.model),
        images=() if images is None else images.spans,
        chat=caller.record.chat,
    )
    check_tokens(fields.token_bans or (), ready.model.n_vocab, "custom_token_bans")
    check_request(request, services.bounds(ready.n_ctx), param)
    caller.check_priority(fields.priority)
    caller.record.ignored += fields.ignored
    if sampling.grammar is not None:
        await _check_grammar(services, sampling.grammar, constraint_param)
    if images is None:
        return request
    return dataclasses.replace(request, images=await encode_images(services, caller, images))


async def check_fields(services: Services, fields: GenerationFields, rendered: RenderedChat) -> None:
    """Raises InvalidRequest for all that `engine_request` would refuse about a chat besides its prompt."""
    sampling, constraint_param = _sampling(services, fields, rendered)
    check_tokens(fields.token_bans or (), services.require_ready().model.n_vocab, "custom_token_bans")
    check_bans(fields.banned_strings, fields.banned_regexes)
    services.adapters.of_request(fields.lora, fields.model)
    if sampling.grammar is not None:
        await _check_grammar(services, sampling.grammar, constraint_param)


def _sampling(
    services: Services, fields: GenerationFields, rendered: RenderedChat | None
) -> tuple[SamplingParams, str]:
    """Sampling parameters with the grammar of the whole answer, and the field that a fault of the grammar is due to."""
    metadata = services.require_ready().model.metadata
    sampling = fields.to_params({**recommended(metadata), **services.config.sampling})
    param = "tools" if sampling.grammar is None else fields.constraint_param
    if rendered is None:
        return sampling, param
    return dataclasses.replace(sampling, grammar=_whole_answer(sampling.grammar, rendered)), param


def _whole_answer(content: Grammar | None, rendered: RenderedChat) -> Grammar | None:
    """Grammar of a whole answer whose content `content` constrains: reasoning and calls have grammars of their own."""
    lark = rendered.grammar if content is None else rendered.frame
    if lark is None:
        return content
    if content is None or BODY not in lark:
        return Grammar(GrammarKind.LARK, lark)
    return dataclasses.replace(content, frame=lark)


async def _check_grammar(services: Services, grammar: Grammar, param: str) -> None:
    try:
        await services.text.check_grammar(grammar)
    except InvalidRequest as error:
        error.param = param
        if param == "tools":
            error.message = f"'tools': one grammar cannot hold them all. Send fewer, or simpler schemas. {error}"
        raise


_ELSEWHERE = "Images are not taken here. Send them in messages to /v1/chat/completions"
_NEVER: Mapping[str, str] = {
    "image_data": _ELSEWHERE,
    "images": _ELSEWHERE,
    "structural_tag": "Structural tags are not available in this version of the server yet",
}


_OLDER: Mapping[str, str] = {"functions": "tools", "function_call": "tool_choice"}


def refuse_unavailable(body: Mapping[str, Any], *, takes: str = "") -> None:
    """Raises Unsupported for fields that are known and asked for, and that this server, or this route, cannot honour.

    `takes` is the one of them that the route reads after all.
    """
    if body.get("modalities") not in (None, [], ["text"]):
        raise Unsupported(
            "'modalities': answers are text only here. Leave it out, or send ['text'].", param="modalities"
        )
    for name, why in _NEVER.items():
        if body.get(name) and name != takes:
            raise Unsupported(f"'{name}': {why}.", param=name)
    for name, newer in _OLDER.items():
        if body.get(name) is not None:
            raise Unsupported(f"'{name}': this is the older form of '{newer}'. Send that instead.", param=name)
