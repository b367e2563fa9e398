"""KoboldCpp's routes and KoboldAI's classic ones: generate, check, abort, count tokens, performance.

`abort` and `check` name no request: they mean what the same key and address started, and of that what has the same
`genkey` if one is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Strict, WithJsonSchema
from starlette.responses import Response

from ggufd import __version__
from ggufd.api.answer.counting import chat_tokens, shown_tokens
from ggufd.api.answer.explain import CacheExplainer
from ggufd.api.answer.generation import FinishedChoice, Generation, collect, submit, until_disconnect
from ggufd.api.answer.sse import ChunkFormat
from ggufd.api.answer.usage import finish_reason
from ggufd.api.http.body import JsonObject, read_json, read_optional_json
from ggufd.api.http.json_response import dumps, json_response, list_response
from ggufd.api.images.references import ImageList
from ggufd.api.request.docs import documented
from ggufd.api.request.fields import KOBOLD
from ggufd.api.request.prompts import encode_mixed
from ggufd.api.request.requests import GenerationFields, check_n, engine_request, refuse_unavailable
from ggufd.api.request.sampling import Bool, Int
from ggufd.api.request.validation import Body, validate
from ggufd.api.services.caller import Caller
from ggufd.api.services.services import Services, caller_of, services_of
from ggufd.api.streams.response import refuse_resumable, streamed
from ggufd.engine.messages.events import Finish, FinishReason, Output, RequestEvent
from ggufd.engine.queueing.validation import check_tokens
from ggufd.errors import InvalidRequest

classic = APIRouter(tags=["KoboldCpp"])
"""Under `/api/v1`."""

extra = APIRouter(tags=["KoboldCpp"])
"""Under `/api/extra`."""

_CLASSIC_VERSION = "1.2.5"
_KOBOLDCPP_VERSION = "1.100"
"""The versions of the two APIs that are spoken here; clients compare them."""

_STOP_REASONS: Mapping[FinishReason, int] = {FinishReason.LENGTH: 0, FinishReason.STOP: 1}
_STOPPED_BY_TEXT = 2
_NEVER_STOPPED = -1


class KoboldRequest(GenerationFields):
    """`memory` goes before the prompt, and `images` between the two.

    `genkey` is a name of the client's choice for `check` and `abort`.
    """

    prompt: Annotated[str, Strict()]
    memory: Annotated[str, Strict()] = ""
    genkey: Annotated[str, Strict()] = ""
    images: ImageList = ()


_EXAMPLES: Mapping[str, Any] = {
    "one prompt": {"prompt": "Once upon a time", "max_length": 32},
    "samplers": {
        "prompt": "Once upon a time",
        "max_length": 32,
        "rep_pen": 1.1,
        "sampler_order": [6, 0, 1, 3, 4, 2, 5],
    },
}


@classic.post("/generate", **documented(KoboldRequest, _EXAMPLES))
async def generate(request: Request) -> Response:
    """Continue a text.

    KoboldAI cuts the head off a prompt that is longer than `max_context_length - max_length`. Here that field is not
    used and nothing is cut: the head holds the character's card, and without it every later token stands elsewhere, so
    that nothing of the cache fits any more. An answer ends where the context does; a prompt that does not fit by itself
    is a 400 with both numbers.
    """
    services, fields, caller = await _read(request)
    refuse_resumable(fields.resumable, "Use /api/extra/generate/stream, or leave it out")
    check_n("n", fields.n, services.config.max_n)
    explainer = CacheExplainer(services.text, is_shown=fields.explain_cache)
    choices = await until_disconnect(request, _collect(services, fields, caller, explainer))
    results = [_result(choice, has_bans=fields.has_bans) | explainer.of(i) for i, choice in enumerate(choices)]
    return json_response({"results": results})


@extra.post("/generate/stream", **documented(KoboldRequest, {"one prompt": _EXAMPLES["one prompt"]}, streams=True))
async def generate_stream(request: Request) -> Response:
    """Continue a text, token by token."""
    services, fields, caller = await _read(request)
    check_n("n", fields.n, 1)
    explainer = CacheExplainer(services.text, is_shown=fields.explain_cache)
    generation = await until_disconnect(request, _start(services, fields, caller, explainer))
    return await streamed(request, generation, _Tokens(explainer), fields.resumable)


async def _read(request: Request) -> tuple[Services, KoboldRequest, Caller]:
    services = services_of(request)
    body = await read_json(request, services.config.max_body_bytes)
    refuse_unavailable(body, takes="images")
    fields = validate(KoboldRequest, body, KOBOLD)
    return services, fields, caller_of(request, fields.genkey)


async def _start(services: Services, fields: KoboldRequest, caller: Caller, explainer: CacheExplainer) -> Generation:
    texts = (fields.memory, *fields.images, fields.prompt) if fields.images else (fields.memory + fields.prompt,)
    prompt = await encode_mixed(services, texts, caller.principal, add_bos=True)
    explainer.add_prompt(prompt.text)
    request = await engine_request(services, fields, prompt.tokens, caller=caller, param="prompt", images=prompt.images)
    return await submit(
        services,
        [request],
        caller,
        explainer,
        is_scoring=fields.max_tokens == 0,
        keeps_stop=fields.include_stop_str_in_output,
    )


async def _collect(
    services: Services, fields: KoboldRequest, caller: Caller, explainer: CacheExplainer
) -> list[FinishedChoice]:
    return await collect(await _start(services, fields, caller, explainer))


def _result(choice: FinishedChoice, *, has_bans: bool) -> dict[str, Any]:
    usage = choice.ended.usage
    return {
        "text": choice.text,
        "finish_reason": finish_reason(choice.ended),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        **({"banned_rewinds": usage.rewinds} if has_bans else {}),
    }


class _Tokens(ChunkFormat):
    """Stream format: an event for each piece of text, the last one says why it ended."""

    def __init__(self, explainer: CacheExplainer) -> None:
        self._explainer = explainer

    def feed(self, first: int, event: RequestEvent) -> bytes:
        """The event for one output."""
        if not isinstance(event, Output):
            return b""
        reason = None if event.finish is None else finish_reason(event.finish)
        if not event.text and reason is None:
            return b""
        more = {} if event.finish is None else self._explainer.of(first + event.index)
        return b"event: message\ndata: " + dumps({"token": event.text, "finish_reason": reason, **more}) + b"\n\n"


async def _named(request: Request) -> Caller:
    """Who asks, by the `genkey` in the body if there is one."""
    body: JsonObject = await read_optional_json(request, services_of(request).config.max_body_bytes)
    genkey = body.get("genkey") or ""
    if not isinstance(genkey, str):
        raise InvalidRequest("'genkey': expected a string.", param="genkey")
    return caller_of(request, genkey)


@extra.get("/generate/check")
@extra.post("/generate/check", include_in_schema=False)
async def check(request: Request) -> Response:
    """The text so far of what the caller has under way, empty when that is nothing."""
    work = services_of(request).activity.of(await _named(request))
    return json_response({"results": [{"text": work[-1].text if work else ""}]})


@extra.post("/abort", include_in_schema=False)
async def abort(request: Request) -> Response:
    """End what the caller has under way."""
    work = services_of(request).activity.of(await _named(request))
    for one in work:
        one.abort()
    return json_response({"success": bool(work), "n_aborted": len(work)})


class CountRequest(Body):
    """A text to be counted, or messages; `special` counts a text's BOS too."""

    prompt: Annotated[str, Strict()] | None = None
    messages: Annotated[list[Any], WithJsonSchema({"type": "array", "items": {"type": "object"}})] | None = None
    special: Bool = True


@extra.post("/tokencount", **documented(CountRequest, {"text": {"prompt": "Hello world", "special": False}}))
async def token_count(request: Request) -> Response:
    """Tokens of a text, or of a conversation in the model's template, and their number; of each row of an image -1."""
    services = services_of(request)
    fields = validate(CountRequest, await read_json(request, services.config.max_body_bytes), {})
    services.require_ready()
    if fields.messages is not None:
        ids = shown_tokens(await chat_tokens(services, fields.messages, caller_of(request).principal))
        return await list_response("ids", ids, {"value": len(ids)})
    if fields.prompt is None:
        raise InvalidRequest("'prompt': is required but missing.", param="prompt")
    tokens = await services.text.encode(fields.prompt, add_special=fields.special)
    return await list_response("ids", tokens, {"value": len(tokens)})


class IdsRequest(Body):
    """Token ids to turn into text."""

    ids: list[Int]


@extra.post("/detokenize", **documented(IdsRequest, {"tokens": {"ids": [1, 2]}}))
async def detokenize(request: Request) -> Response:
    """The text of tokens."""
    services = services_of(request)
    fields = validate(IdsRequest, await read_json(request, services.config.max_body_bytes), {})
    check_tokens(fields.ids, services.require_ready().model.n_vocab, "ids")
    return json_response({"result": await services.text.decode(fields.ids), "success": True})


@classic.get("/model")
async def model(request: Request) -> Response:
    """The model's name."""
    return json_response({"result": services_of(request).config.model_id})


@classic.get("/info/version")
async def classic_version(request: Request) -> Response:
    """The version of KoboldAI's API."""
    return json_response({"result": _CLASSIC_VERSION})


@classic.get("/config/max_context_length")
@extra.get("/true_max_context_length")
async def max_context_length(request: Request) -> Response:
    """Tokens of a slot's context."""
    return json_response({"value": services_of(request).require_ready().n_ctx})


@classic.get("/config/max_length")
async def max_length(request: Request) -> Response:
    """Tokens of an answer when a request names no limit."""
    services = services_of(request)
    return json_response({"value": services.config.max_tokens or services.require_ready().n_ctx})


@extra.get("/version")
async def koboldcpp_version(request: Request) -> Response:
    """The version of KoboldCpp's API, and what of it there is."""
    services = services_of(request)
    ready = services.engine.ready
    absent = ("txt2img", "audio", "transcribe", "multiplayer", "websearch", "tts", "admin")
    return json_response(
        {
            "result": "KoboldCpp",
            "version": _KOBOLDCPP_VERSION,
            "protected": services.config.keys is not None,
            "server": "ggufd",
            "server_version": __version__,
            **dict.fromkeys(absent, False),
            "vision": services.images is not None,
            "embeddings": ready is not None and ready.embedding.pooling not in ("none", "rank"),
        }
    )


@extra.get("/perf")
async def perf(request: Request) -> Response:
    """Performance of the last answer, and the current load. Seconds, tokens, and tokens a second."""
    services = services_of(request)
    activity, engine = services.activity, services.engine
    return json_response(
        {
            **_last(activity.last),
            "total_gens": activity.n_finished,
            "total_img_gens": 0,
            "queue": engine.n_waiting,
            "idle": int(engine.n_running + engine.n_waiting == 0),
            "hordeexitcounter": _NEVER_STOPPED,
            "uptime": round(activity.uptime_s, 3),
            "idletime": round(activity.idle_s, 3),
            "quiet": True,
        }
    )


def _last(finish: Finish | None) -> dict[str, Any]:
    if finish is None:
        names = ("process", "eval", "token_count", "input_count", "process_speed", "eval_speed")
        return {**{f"last_{name}": 0 for name in names}, "stop_reason": _NEVER_STOPPED}
    usage = finish.usage
    computed = usage.prompt_tokens - usage.cached_tokens
    return {
        "last_process": round(usage.prefill_s, 6),
        "last_eval": round(usage.decode_s, 6),
        "last_token_count": usage.completion_tokens,
        "last_input_count": usage.prompt_tokens,
        "last_process_speed": round(computed / usage.prefill_s, 3) if usage.prefill_s > 0 else 0.0,
        "last_eval_speed": round(usage.tokens_per_s, 3),
        "stop_reason": _STOPPED_BY_TEXT if finish.stop else _STOP_REASONS.get(finish.reason, _NEVER_STOPPED),
    }
