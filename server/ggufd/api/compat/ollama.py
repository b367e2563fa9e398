"""Ollama's routes: generate and chat as NDJSON, and its model information. Streams unless told not to."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BeforeValidator, Strict, WithJsonSchema
from starlette.responses import Response

from ggufd.api.answer.conversation import Conversation
from ggufd.api.answer.explain import CacheExplainer
from ggufd.api.answer.generation import Generation, collect, submit, until_disconnect
from ggufd.api.answer.ndjson import LineStream, line_bytes
from ggufd.api.answer.reader import AnswerReader
from ggufd.api.answer.usage import finish_reason
from ggufd.api.http.body import JsonObject, read_json, read_optional_json
from ggufd.api.http.json_response import json_response
from ggufd.api.images.references import ImageList, read_image_list
from ggufd.api.pool.beside import services_for
from ggufd.api.pool.listing import find_other, others
from ggufd.api.request.chat.messages import read_messages
from ggufd.api.request.chat.schemas import ChatRequest
from ggufd.api.request.docs import documented
from ggufd.api.request.fields import OLLAMA, OLLAMA_CHAT
from ggufd.api.request.prompts import EncodedPrompt, encode_mixed
from ggufd.api.request.requests import GenerationFields, check_n, engine_request, refuse_unavailable
from ggufd.api.request.sampling import Bool
from ggufd.api.request.validation import validate
from ggufd.api.services.services import Services, caller_of, services_of
from ggufd.api.streams.response import refuse_resumable
from ggufd.chat.answers.parser import AnswerParser
from ggufd.chat.deltas.answer import (
    Answer,
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolArgumentsDelta,
    ToolCall,
    ToolCallBegin,
)
from ggufd.engine.messages.events import Finish, Output, RequestEvent
from ggufd.engine.messages.reports import Ready
from ggufd.errors import InvalidRequest, Unsupported
from ggufd.model_pool.catalogue import KnownModel

router = APIRouter(prefix="/api", tags=["Ollama"])

_VERSION = "0.12.6"
"""The version of Ollama's API that is spoken here; clients compare it."""

_NS = 1_000_000_000


class GenerateRequest(GenerationFields):
    """`raw` leaves the prompt as it is, a `suffix` asks for what stands before it; else the prompt is a user's message.

    Samplers may stand in `options`, as Ollama's clients send them, or beside it. `think` is that of the chat.
    """

    stream: Bool = True
    prompt: Annotated[str, Strict()] = ""
    system: Annotated[str, Strict()] = ""
    suffix: Annotated[str, Strict()] = ""
    raw: Bool = False
    images: ImageList = ()


def _read_chat(value: Any) -> tuple[dict[str, Any], ...]:
    """OpenAI's messages, or none. Ollama's calls have no ids: results are known by their tool and their order."""
    if value == []:
        return ()
    messages = [_as_openais(*one) for one in enumerate(value)] if isinstance(value, list) else value
    return read_messages(messages, results_in_order=True)


def _as_openais(index: int, message: Any) -> Any:
    """OpenAI's message: images stand before the text, as in Ollama's prompts."""
    if not isinstance(message, Mapping):
        return message
    # Those of /api/generate were read already, under the names that its client knows.
    listed = message.get("images")
    images = listed if isinstance(listed, tuple) else read_image_list(listed, f"messages[{index}].images")
    content = message.get("content")
    whole = {**message, "content": [*images, *([content] if content else [])]} if images else message
    return {"name": message.get("tool_name"), **whole}


class OllamaChatRequest(ChatRequest):
    """OpenAI's, streamed unless told not to. `messages` may be empty; `think` switches reasoning or sets its effort."""

    stream: Bool = True
    messages: Annotated[
        Any, BeforeValidator(_read_chat), WithJsonSchema({"type": "array", "items": {"type": "object"}})
    ]


class OllamaWork(ABC):
    """Ollama generation: from fields to NDJSON lines or a whole answer."""

    def __init__(self, services: Services, fields: GenerationFields, request: Request) -> None:
        self._services = services
        self._fields = fields
        self._caller = caller_of(request)
        self._request = request
        self.explainer = CacheExplainer(services.text, is_shown=fields.explain_cache)
        check_n("n", fields.n, 1)

    async def respond(self) -> Response:
        """The response, streamed or whole. Without a prompt only "it is loaded" is said."""
        refuse_resumable(
            self._fields.resumable, "Ollama's lines have no ids; use /v1/chat/completions, or leave it out"
        )
        if self.is_empty:
            self._services.require_ready()
            return json_response(self.line(Answer(), done=True, done_reason="load"))
        if self._fields.stream:
            return LineStream(await until_disconnect(self._request, self.start()), _Lines(self))
        return json_response(await until_disconnect(self._request, self._whole()))

    async def _whole(self) -> dict[str, Any]:
        """The whole answer, waited for."""
        generation, deltas = await self.start(), list[Delta]()
        reader = self.reader()
        await collect(generation, lambda _, output: deltas.extend(reader.feed(output)))
        return self.end(Answer.of(deltas), reader.finish)

    def line(self, answer: Answer, *, done: bool, **more: Any) -> dict[str, Any]:
        """One line's object, with a part of the answer."""
        head = {"model": self._services.config.model_id, "created_at": _iso(datetime.now(UTC))}
        return {**head, **self.content(answer), "done": done, **more}

    def end(self, answer: Answer, finish: Finish) -> dict[str, Any]:
        """The object that ends the answer; durations in nanoseconds."""
        usage = finish.usage
        return self.line(
            answer,
            done=True,
            done_reason=finish_reason(finish),
            total_duration=round(
                (self._caller.record.waited_s + usage.queue_s + usage.prefill_s + usage.decode_s) * _NS
            ),
            load_duration=round(self._caller.record.waited_s * _NS),
            prompt_eval_count=usage.prompt_tokens,
            prompt_eval_duration=round(usage.prefill_s * _NS),
            eval_count=usage.completion_tokens,
            eval_duration=round(usage.decode_s * _NS),
            **({"banned_rewinds": usage.rewinds} if self._fields.has_bans else {}),
            **self.explainer.of(0),
        )

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """Whether there is nothing to continue."""

    @abstractmethod
    async def start(self) -> Generation:
        """Hand the request to the engine. Where no tokens are wanted the prompt is read, and that is all."""

    @abstractmethod
    def reader(self) -> AnswerReader:
        """Reader that splits the answer into its parts, once it was started."""

    @abstractmethod
    def content(self, answer: Answer) -> dict[str, Any]:
        """Fields that hold a part of the answer."""


class _Continue(OllamaWork):
    """Plain completion or infill before a suffix: no chat template, and nothing but text in the answer."""

    def __init__(self, services: Services, fields: GenerateRequest, request: Request) -> None:
        super().__init__(services, fields, request)
        self._body = fields

    @property
    def is_empty(self) -> bool:
        return not self._body.prompt and not self._body.images

    async def start(self) -> Generation:
        prompt = await self._prompt()
        request = await engine_request(
            self._services, self._fields, prompt.tokens, caller=self._caller, param="prompt", images=prompt.images
        )
        return await submit(
            self._services,
            [request],
            self._caller,
            self.explainer,
            is_scoring=self._fields.max_tokens == 0,
            keeps_stop=self._fields.include_stop_str_in_output,
        )

    async def _prompt(self) -> EncodedPrompt:
        """The prompt behind its images; an infill has none."""
        body = self._body
        if body.suffix:
            self.explainer.add_prompt(body.prompt)
            self._services.require_ready()
            return EncodedPrompt(body.prompt, await self._services.text.encode_infill(body.prompt, body.suffix))
        prompt = await encode_mixed(self._services, (*body.images, body.prompt), self._caller.principal, add_bos=True)
        self.explainer.add_prompt(prompt.text)
        return prompt

    def reader(self) -> AnswerReader:
        return AnswerReader(AnswerParser())

    def content(self, answer: Answer) -> dict[str, Any]:
        return {"response": answer.content}


class _Chat(OllamaWork):
    param = "messages"

    def __init__(self, services: Services, fields: OllamaChatRequest, request: Request) -> None:
        super().__init__(services, fields, request)
        self._messages = fields.messages
        self._conversation = Conversation(services, fields, self._caller, self.param)
        self.explainer = self._conversation.explainer

    @property
    def is_empty(self) -> bool:
        return not self._messages

    async def start(self) -> Generation:
        return await self._conversation.start()

    def reader(self) -> AnswerReader:
        return self._conversation.reader()

    def content(self, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.content}
        if answer.reasoning:
            message["thinking"] = answer.reasoning
        if answer.calls:
            message["tool_calls"] = [_call_json(call) for call in answer.calls]
        return {"message": message}


class _Generate(_Chat):
    """A chat of one message, in the fields of the older route."""

    param = "prompt"

    def content(self, answer: Answer) -> dict[str, Any]:
        return {"response": answer.content, **({"thinking": answer.reasoning} if answer.reasoning else {})}


def _call_json(call: ToolCall) -> dict[str, Any]:
    """Arguments as an object, not as its text; what an answer that was cut left unfinished is no object."""
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        arguments = {}
    return {"function": {"name": call.name, "arguments": arguments}}


class _Lines:
    """Stream format: a line for each piece of text, calls as a whole, one more line that ends it."""

    def __init__(self, work: OllamaWork) -> None:
        self._work = work
        self._reader: AnswerReader | None = None
        self._calls: list[Delta] = []

    def feed(self, first: int, event: RequestEvent) -> bytes:
        """The lines for one event."""
        if not isinstance(event, Output):
            return b""
        if self._reader is None:
            self._reader = self._work.reader()
        data = self._told(self._reader.feed(event))
        if event.finish is None:
            return data
        if self._calls:
            data += line_bytes(self._work.line(Answer.of(self._calls), done=False))
        return data + line_bytes(self._work.end(Answer(), self._reader.finish))

    def _told(self, deltas: Sequence[Delta]) -> bytes:
        self._calls += [delta for delta in deltas if isinstance(delta, (ToolCallBegin, ToolArgumentsDelta))]
        parts = [delta for delta in deltas if isinstance(delta, (ContentDelta, ReasoningDelta))]
        return b"".join(line_bytes(self._work.line(Answer.of([part]), done=False)) for part in parts)


_HELLO = [{"role": "user", "content": "Say hello."}]


@router.post("/generate", **documented(GenerateRequest, {"whole": {"prompt": "Once", "raw": True, "stream": False}}))
async def generate(request: Request) -> Response:
    """Continue a text, or answer it."""
    services, body = services_of(request), await _flat(request)
    fields = validate(GenerateRequest, body, OLLAMA)
    if fields.images and fields.suffix:
        raise Unsupported("'images': what stands before a suffix is written from text alone.", param="images")
    if fields.raw or fields.suffix:
        return await _Continue(services, fields, request).respond()
    chat = validate(OllamaChatRequest, _as_chat(body, fields), OLLAMA_CHAT)
    return await _Generate(services, chat, request).respond()


@router.post("/chat", **documented(OllamaChatRequest, {"whole": {"messages": _HELLO, "stream": False}}))
async def chat(request: Request) -> Response:
    """Answer a conversation."""
    services, body = services_of(request), await _flat(request)
    return await _Chat(services, validate(OllamaChatRequest, body, OLLAMA_CHAT), request).respond()


def _as_chat(body: JsonObject, fields: GenerateRequest) -> JsonObject:
    """The body of the chat that a prompt is; none without one."""
    system = [{"role": "system", "content": fields.system}] if fields.system else []
    user = {"role": "user", "content": fields.prompt, "images": fields.images}
    messages = [*system, user] if fields.prompt or fields.images else []
    foreign = ("prompt", "system", "suffix", "raw", "images", "tools", "tool_choice")
    return {name: value for name, value in body.items() if name not in foreign} | {"messages": messages}


async def _flat(request: Request) -> JsonObject:
    """The body with its `options` laid open beside the rest."""
    body = await read_json(request, services_of(request).config.max_body_bytes)
    options = body.pop("options", None) or {}
    if not isinstance(options, Mapping):
        raise InvalidRequest("'options': expected an object.", param="options")
    flat = {**options, **body}
    refuse_unavailable(flat, takes="images")
    return flat


@router.get("/version")
async def version(request: Request) -> Response:
    """The version of Ollama's API that is spoken."""
    return json_response({"version": _VERSION})


@router.get("/tags")
async def tags(request: Request) -> Response:
    """The models that there are; that which is served as soon as it is loaded."""
    services = services_of(request)
    return json_response({"models": [*_loaded(services), *(_other_json(known) for known in others(services))]})


@router.get("/ps")
async def loaded(request: Request) -> Response:
    """The models that are loaded."""
    return json_response({"models": _loaded(services_of(request))})


def _loaded(services: Services) -> list[dict[str, Any]]:
    return [_model_json(one, one.engine.ready) for one in services.instances if one.engine.ready is not None]


@router.post("/show", include_in_schema=False)
async def show(request: Request) -> Response:
    """The model's template and figures; of one that is not loaded what its header says."""
    body = await read_optional_json(request, services_of(request).config.max_body_bytes)
    asked = body.get("model", body.get("name"))
    services = services_for(services_of(request), asked)
    if (other := find_other(services, asked)) is not None:
        return json_response(_shown(other))
    ready = services.require_ready()
    model, architecture = ready.model, ready.model.architecture
    return json_response(
        {
            "modelfile": "",
            "parameters": f"num_ctx {ready.n_ctx}",
            "template": services.text.info.chat_template,
            "details": _details(ready),
            "model_info": {
                "general.architecture": architecture,
                "general.parameter_count": model.n_params,
                f"{architecture}.context_length": model.n_ctx_train,
                f"{architecture}.embedding_length": model.n_embd,
                f"{architecture}.block_count": model.n_layer,
            },
            "capabilities": _capabilities(services, ready),
        }
    )


def _capabilities(services: Services, ready: Ready) -> list[str]:
    if not ready.writes:
        return ["embedding"]
    return [
        "completion",
        "tools",
        *(["thinking"] if services.text.info.has_thinking else []),
        *(["vision"] if services.images is not None else []),
    ]


def _model_json(services: Services, ready: Ready) -> dict[str, Any]:
    config = services.config
    return {
        "name": config.model_id,
        "model": config.model_id,
        "modified_at": _iso(datetime.fromtimestamp(config.created, UTC)),
        "size": ready.model.size_bytes,
        "digest": hashlib.sha256(f"{config.model_id} {ready.model.size_bytes}".encode()).hexdigest(),
        "details": _details(ready),
        "context_length": ready.n_ctx,
    }


def _other_json(known: KnownModel) -> dict[str, Any]:
    """A model that is not loaded."""
    return {
        "name": known.name,
        "model": known.name,
        "modified_at": _iso(datetime.fromtimestamp(known.created, UTC)),
        "size": known.size_bytes or 0,
        "digest": hashlib.sha256(f"{known.name} {known.size_bytes}".encode()).hexdigest(),
        "details": _other_details(known),
        "context_length": None if known.facts is None else known.facts.n_ctx_train,
    }


def _shown(known: KnownModel) -> dict[str, Any]:
    facts = known.facts
    model_info = (
        {}
        if facts is None
        else {
            "general.architecture": facts.architecture,
            "general.parameter_count": facts.n_params,
            f"{facts.architecture}.context_length": facts.n_ctx_train,
            f"{facts.architecture}.embedding_length": facts.width,
            f"{facts.architecture}.block_count": facts.n_layers,
        }
    )
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": _other_details(known),
        "model_info": model_info,
        "capabilities": ["embedding"] if facts is not None and facts.only_embeds else ["completion", "tools"],
    }


def _other_details(known: KnownModel) -> dict[str, Any]:
    facts = known.facts
    architecture = "" if facts is None else facts.architecture
    return {
        "parent_model": "",
        "format": "gguf",
        "family": architecture,
        "families": [architecture] if architecture else [],
        "parameter_size": "" if facts is None else _size(facts.n_params),
        "quantization_level": "" if facts is None else facts.quantisation,
    }


def _details(ready: Ready) -> dict[str, Any]:
    model = ready.model
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.architecture,
        "families": [model.architecture],
        "parameter_size": _size(model.n_params),
        "quantization_level": model.ftype,
    }


def _size(n_params: int) -> str:
    """`135M`, `7.2B`."""
    return f"{n_params / 1e9:.1f}B" if n_params >= 1e9 else f"{n_params / 1e6:.0f}M"


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")
