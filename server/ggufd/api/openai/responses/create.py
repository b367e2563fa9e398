"""`POST /v1/responses`, with storage for `previous_response_id`, and its token count."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ggufd.api.answer.conversation import Conversation
from ggufd.api.answer.generation import Generation, until_disconnect
from ggufd.api.http.body import JsonObject, read_json
from ggufd.api.http.json_response import json_response
from ggufd.api.images.prompts import RequestImages
from ggufd.api.openai.responses.conversion import to_chat
from ggufd.api.openai.responses.items import Item, all_listed
from ggufd.api.openai.responses.response import ResponseObject, ResponseWriter, new_response_id, settings_json
from ggufd.api.openai.responses.schemas import RESPONSES, ResponseRequest, refuse_others
from ggufd.api.openai.responses.stream import ResponseEvents
from ggufd.api.openai.responses.truncation import shortened
from ggufd.api.request.chat.schemas import ChatRequest
from ggufd.api.request.docs import documented
from ggufd.api.request.validation import validate
from ggufd.api.services.caller import Caller
from ggufd.api.services.response_store import StoredResponse
from ggufd.api.services.services import Services, caller_of, services_of
from ggufd.api.streams.response import refuse_resumable, streamed
from ggufd.engine.messages.events import Output
from ggufd.errors import ContextLengthExceeded, NotFound

router = APIRouter(tags=["OpenAI"])

_EXAMPLES: Mapping[str, Any] = {
    "a text": {"input": "Say hello in one sentence.", "max_output_tokens": 64},
    "streamed": {"input": "Say hello in one sentence.", "max_output_tokens": 64, "stream": True},
    "with instructions": {
        "instructions": "You are a pirate.",
        "input": [{"role": "user", "content": "Where do you live?"}],
        "max_output_tokens": 64,
    },
}


@router.post("/responses", **documented(ResponseRequest, _EXAMPLES, streams=True))
async def create_response(request: Request) -> Response:
    """Answer the input. What was said before may be named by `previous_response_id` instead of being sent again."""
    prepared = await _prepared(request)
    if not prepared.fields.stream:
        answer, headers = await until_disconnect(request, prepared.answer())
        return json_response(answer, headers=headers)
    running = await until_disconnect(request, prepared.start())
    return await streamed(request, running.generation, running.events(), running.resumable, running.headers)


@router.post("/responses/input_tokens", **documented(ResponseRequest, {"a text": {"input": "Hello"}}))
async def count_input_tokens(request: Request) -> Response:
    """Number of prompt tokens that the same request to `/v1/responses` would have."""
    count = await (await _prepared(request)).count()
    return json_response({"object": "response.input_tokens", "input_tokens": count})


async def _prepared(request: Request) -> _PreparedResponse:
    services = services_of(request)
    body = await read_json(request, services.config.max_body_bytes)
    refuse_others(body)
    caller = caller_of(request)
    images = RequestImages(services.images, services.text, caller.principal)
    return _PreparedResponse(services, validate(ResponseRequest, body, RESPONSES), body, caller, images)


@dataclass(frozen=True, slots=True)
class _PreparedResponse:
    """Validated request before it is submitted."""

    services: Services
    fields: ResponseRequest
    body: JsonObject
    caller: Caller
    images: RequestImages

    async def count(self) -> int:
        """Tokens of the prompt."""
        chat, origins = to_chat(self.fields, self.body, await self._past(), await self._items())
        self.services.require_ready()
        with origins.in_errors():
            return len((await self._conversation(chat).render()).tokens)

    async def answer(self) -> tuple[ResponseObject, Mapping[str, str]]:
        """The whole response, and its headers."""
        running = await self.start()
        return await running.whole(), running.headers

    async def start(self) -> _RunningResponse:
        """Submit. Raises what refuses it."""
        items = await self._items()
        chat, origins = to_chat(self.fields, self.body, await self._past(), items)
        if not self.fields.stream:
            refuse_resumable(chat.resumable)
        with origins.in_errors():
            conversation, generation = await self._submit(chat)
        head = {
            "id": new_response_id(),
            "object": "response",
            "created_at": int(time.time()),
            "model": self.services.config.model_id,
            "background": False,
            **settings_json(self.fields, generation.requests[0].sampling, conversation.parallel_tool_calls),
        }
        writer = ResponseWriter(head, conversation.reader(), image_tokens=generation.image_tokens)
        return _RunningResponse(self, items, conversation, generation, writer, chat.resumable)

    async def _past(self) -> list[Item]:
        """All that was said up to the response that this one goes on from."""
        previous = self.fields.previous_response_id
        if previous is None:
            return []
        try:
            chain = await self.services.responses.chain(self.caller.key_digest, previous)
        except NotFound as error:
            raise NotFound(f"'previous_response_id': {error.message}", param="previous_response_id") from None
        return [item for kept in chain for item in kept.items]

    async def _items(self) -> list[Item]:
        """The input, with the items themselves where it refers to some."""
        items = []
        for index, item in enumerate(self.fields.items):
            if item["type"] == "item_reference":
                found = await self.services.responses.item(self.caller.key_digest, item["id"])
                if found is None:
                    param = f"input[{index}].id"
                    raise NotFound(f"'{param}': there is no stored item of this id. Send it itself.", param=param)
                item = found
            items.append(item)
        return items

    async def _submit(self, chat: ChatRequest) -> tuple[Conversation, Generation]:
        conversation = self._conversation(chat)
        try:
            return conversation, await conversation.start()
        except ContextLengthExceeded as error:
            if self.fields.truncation == "disabled":
                raise
            chat, n_dropped = await shortened(chat, self._conversation, self.services.require_ready().n_ctx, error)
        conversation = self._conversation(chat)
        conversation.headers["x-ggufd-truncated"] = f"{n_dropped} messages"
        return conversation, await conversation.start()

    def _conversation(self, chat: ChatRequest) -> Conversation:
        return Conversation(self.services, chat, self.caller, "input", self.images)


@dataclass(frozen=True, slots=True)
class _RunningResponse:
    """Response that is generated, sent and stored. `items` are the input."""

    prepared: _PreparedResponse
    items: Sequence[Item]
    conversation: Conversation
    generation: Generation
    writer: ResponseWriter
    resumable: bool | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        return self.conversation.headers

    def events(self) -> ResponseEvents:
        """The format of the stream."""
        return ResponseEvents(self.writer, self._complete)

    async def whole(self) -> ResponseObject:
        """The response, waited for."""
        async with self.generation:
            async for _, events in self.generation.batches():
                for event in events:
                    if isinstance(event, Output):
                        self.writer.feed(event)
        return await self._complete()

    async def _complete(self) -> ResponseObject:
        """The response at its end, stored first where it is to be: a client may continue it at once."""
        response = self.writer.finished() | self.conversation.explainer.of(0)
        fields, services = self.prepared.fields, self.prepared.services
        if fields.store:
            kept = StoredResponse(response, all_listed(self.items), fields.previous_response_id)
            response["store"] = await services.responses.keep(self.prepared.caller.key_digest, kept)
        return response
