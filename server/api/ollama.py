"""Ollama's routes: generate and chat as lines of JSON, and what it tells of models. Streams unless told not to."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field, Strict, WithJsonSchema
from starlette.responses import Response

from server.api.activity import owner_of
from server.api.body import JsonObject, read_json, read_optional_json
from server.api.docs import documented
from server.api.explain import CacheExplainer
from server.api.fields import OLLAMA
from server.api.generation import Choice, Generation, collect, submit, unless_gone
from server.api.ndjson import LineStream, line_bytes
from server.api.openai.messages import read_messages
from server.api.ports import Services, services_of
from server.api.prompts import encode_text
from server.api.requests import GenerationFields, check_n, engine_request, refuse_unavailable
from server.api.responses import json_response
from server.api.sampling import Bool
from server.api.usage import finish_reason
from server.api.validation import validate
from server.chat.prompt import ChatPrompt
from server.engine.messages import Finish, Output, Ready, RequestEvent
from server.errors import InvalidRequest

router = APIRouter(prefix="/api", tags=["Ollama"])

_VERSION = "0.12.6"
"""The version of Ollama's API that is spoken here; clients compare it."""

_NS = 1_000_000_000


class OllamaRequest(GenerationFields):
    """What both routes take. Samplers may stand in `options`, as Ollama's clients send them, or beside it."""

    stream: Bool = True
    template_kwargs: Annotated[Mapping[str, Any], WithJsonSchema({"type": "object"})] = Field(default_factory=dict)


class GenerateRequest(OllamaRequest):
    """`raw` leaves the prompt as it is; else it becomes a user's message in the model's template."""

    prompt: Annotated[str, Strict()] = ""
    system: Annotated[str, Strict()] = ""
    raw: Bool = False


class ChatRequest(OllamaRequest):
    """`messages` as OpenAI's, with texts."""

    messages: Annotated[list[Any], WithJsonSchema({"type": "array", "items": {"type": "object"}})]


class Work(ABC):
    """One request on its way from fields to lines or a whole answer."""

    def __init__(self, services: Services, fields: OllamaRequest, request: Request) -> None:
        self._services = services
        self._fields = fields
        self._owner = owner_of(request)
        self._request = request
        self._explainer = CacheExplainer(services.text, is_shown=fields.explain_cache)
        check_n("n", fields.n, 1)

    async def respond(self) -> Response:
        """The response, streamed or whole. Without a prompt only "it is loaded" is said."""
        if self.is_empty:
            self._services.require_ready()
            return json_response(self.line("", done=True, done_reason="load"))
        if self._fields.stream:
            return LineStream(await self._start(), _Lines(self))
        (choice,) = await unless_gone(self._request, self._collect())
        return json_response(self.end(choice.text, choice.ended))

    async def _collect(self) -> list[Choice]:
        return await collect(await self._start())

    async def _start(self) -> Generation:
        tokens = await self.tokens()
        request = await engine_request(self._services, self._fields, tokens, owner=self._owner, param=self.prompt_name)
        is_scoring = self._fields.max_tokens == 0
        return await submit(self._services, [request], self._owner, self._explainer, is_scoring=is_scoring)

    async def _rendered(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[int]:
        self._services.require_ready()
        chat = ChatPrompt(tuple(messages), template_kwargs=self._fields.template_kwargs)
        rendered = await self._services.text.render(chat)
        self._explainer.add_prompt(rendered.text, messages)
        return rendered.tokens

    def line(self, text: str, *, done: bool, **more: Any) -> dict[str, Any]:
        """One line's object."""
        head = {"model": self._services.config.model_id, "created_at": _iso(datetime.now(UTC))}
        return {**head, **self.content(text), "done": done, **more}

    def end(self, text: str, finish: Finish) -> dict[str, Any]:
        """The object that ends the answer; durations in nanoseconds."""
        usage = finish.usage
        return self.line(
            text,
            done=True,
            done_reason=finish_reason(finish),
            total_duration=round((usage.queue_s + usage.prefill_s + usage.decode_s) * _NS),
            load_duration=0,
            prompt_eval_count=usage.prompt_tokens,
            prompt_eval_duration=round(usage.prefill_s * _NS),
            eval_count=usage.completion_tokens,
            eval_duration=round(usage.decode_s * _NS),
            **({"banned_rewinds": usage.rewinds} if self._fields.has_bans else {}),
            **self._explainer.of(0),
        )

    prompt_name: str

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """Whether there is nothing to continue."""

    @abstractmethod
    async def tokens(self) -> Sequence[int]:
        """The prompt."""

    @abstractmethod
    def content(self, text: str) -> dict[str, Any]:
        """What holds the text."""


class _Generate(Work):
    prompt_name = "prompt"

    def __init__(self, services: Services, fields: GenerateRequest, request: Request) -> None:
        super().__init__(services, fields, request)
        self._body = fields

    @property
    def is_empty(self) -> bool:
        return not self._body.prompt

    async def tokens(self) -> Sequence[int]:
        body = self._body
        if body.raw:
            self._explainer.add_prompt(body.prompt)
            return await encode_text(self._services, body.prompt, add_bos=True)
        system = [{"role": "system", "content": body.system}] if body.system else []
        return await self._rendered([*system, {"role": "user", "content": body.prompt}])

    def content(self, text: str) -> dict[str, Any]:
        return {"response": text}


class _Chat(Work):
    prompt_name = "messages"

    def __init__(self, services: Services, fields: ChatRequest, request: Request) -> None:
        super().__init__(services, fields, request)
        self._messages = fields.messages

    @property
    def is_empty(self) -> bool:
        return not self._messages

    async def tokens(self) -> Sequence[int]:
        for message in self._messages:
            if isinstance(message, Mapping):
                refuse_unavailable({"images": message.get("images")})
        return await self._rendered(read_messages(self._messages))

    def content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}


class _Lines:
    """The stream: a line for each piece of text, one more that ends it."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def feed(self, first: int, event: RequestEvent) -> bytes:
        """The lines for one event."""
        if not isinstance(event, Output):
            return b""
        data = line_bytes(self._work.line(event.text, done=False)) if event.text else b""
        return data if event.finish is None else data + line_bytes(self._work.end("", event.finish))


_HELLO = [{"role": "user", "content": "Say hello."}]


@router.post("/generate", **documented(GenerateRequest, {"whole": {"prompt": "Once", "raw": True, "stream": False}}))
async def generate(request: Request) -> Response:
    """Continue a text, or answer it."""
    services, body = services_of(request), await _flat(request)
    return await _Generate(services, validate(GenerateRequest, body, OLLAMA), request).respond()


@router.post("/chat", **documented(ChatRequest, {"whole": {"messages": _HELLO, "stream": False}}))
async def chat(request: Request) -> Response:
    """Answer a conversation."""
    services, body = services_of(request), await _flat(request)
    return await _Chat(services, validate(ChatRequest, body, OLLAMA), request).respond()


async def _flat(request: Request) -> JsonObject:
    """The body with its `options` laid open beside the rest."""
    body = await read_json(request, services_of(request).config.max_body_bytes)
    options = body.pop("options", None) or {}
    if not isinstance(options, Mapping):
        raise InvalidRequest("'options': expected an object.", param="options")
    flat = {**options, **body}
    refuse_unavailable(flat)
    return flat


@router.get("/version")
async def version(request: Request) -> Response:
    """The version of Ollama's API that is spoken."""
    return json_response({"version": _VERSION})


@router.get("/tags")
@router.get("/ps")
async def tags(request: Request) -> Response:
    """The models that there are: one, as soon as it is loaded."""
    services = services_of(request)
    ready = services.engine.ready
    return json_response({"models": [_model_json(services, ready)] if ready is not None else []})


@router.post("/show", include_in_schema=False)
async def show(request: Request) -> Response:
    """The model's template and figures."""
    services = services_of(request)
    await read_optional_json(request, services.config.max_body_bytes)
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
            "capabilities": ["completion" if ready.writes else "embedding"],
        }
    )


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
