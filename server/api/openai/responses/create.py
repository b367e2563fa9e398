"""`POST /v1/responses`: items in, items out, and the answer is kept for who goes on from it. With its token count."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.activity import Owner, owner_of
from server.api.body import JsonObject, read_json
from server.api.conversation import Conversation
from server.api.docs import documented
from server.api.generation import Generation, unless_gone
from server.api.openai.responses.conversion import to_chat
from server.api.openai.responses.items import Item, listed
from server.api.openai.responses.response import ResponseObject, ResponseWriter, new_response_id, settings_json
from server.api.openai.responses.schemas import RESPONSES, ResponseRequest, refuse_others
from server.api.openai.responses.store import Kept
from server.api.openai.responses.stream import ResponseEvents
from server.api.openai.responses.truncation import shortened
from server.api.openai.schemas import ChatRequest
from server.api.ports import Services, services_of
from server.api.reader import AnswerReader
from server.api.responses import json_response
from server.api.sse import EventStream
from server.api.validation import validate
from server.engine.messages import Output
from server.errors import ContextLengthExceeded, NotFound

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
    work = await _work_of(request)
    if not work.fields.stream:
        answer = await unless_gone(request, work.answer())
        return json_response(answer, headers=work.headers)
    generation = await work.start()
    return EventStream(generation, work.events(), ping_s=services_of(request).config.ping_s, headers=work.headers)


@router.post("/responses/input_tokens", **documented(ResponseRequest, {"a text": {"input": "Hello"}}))
async def count_input_tokens(request: Request) -> Response:
    """How many tokens of prompt the same request to `/v1/responses` would have."""
    count = await (await _work_of(request)).count()
    return json_response({"object": "response.input_tokens", "input_tokens": count})


async def _work_of(request: Request) -> _Work:
    services = services_of(request)
    body = await read_json(request, services.config.max_body_bytes)
    refuse_others(body)
    return _Work(services, validate(ResponseRequest, body, RESPONSES), body, owner_of(request))


class _Work:
    """One request on its way from fields to a response."""

    def __init__(self, services: Services, fields: ResponseRequest, body: JsonObject, owner: Owner) -> None:
        self.fields = fields
        self.headers: dict[str, str] = {}
        self._services = services
        self._body = body
        self._owner = owner
        self._items: list[Item] = []

    async def count(self) -> int:
        """Tokens of the prompt."""
        chat = await self._convert()
        with self._origins.in_errors():
            return len((await self._conversation(chat).render()).tokens)

    async def start(self) -> Generation:
        """Submit. Raises what refuses it."""
        chat = await self._convert()
        with self._origins.in_errors():
            self._chat, generation = await self._submit(chat)
        self.headers |= self._chat.headers
        head = {
            "id": new_response_id(),
            "object": "response",
            "created_at": int(time.time()),
            "model": self._services.config.model_id,
            "background": False,
            **settings_json(self.fields, generation.requests[0].sampling),
        }
        self._writer = ResponseWriter(head, AnswerReader(self._chat.parser(0)))
        return generation

    async def answer(self) -> ResponseObject:
        """The whole response."""
        generation = await self.start()
        async with generation:
            async for _, events in generation.batches():
                for event in events:
                    if isinstance(event, Output):
                        self._writer.feed(event)
        return await self._complete()

    def events(self) -> ResponseEvents:
        """The format of the stream, once started."""
        return ResponseEvents(self._writer, self._complete)

    async def _complete(self) -> ResponseObject:
        """The response at its end, kept if it is to be: who is told of it may go on from it at once."""
        response = self._writer.finished() | self._chat.explainer.of(0)
        if self.fields.store:
            kept = Kept(response, [listed(item) for item in self._items], self.fields.previous_response_id)
            response["store"] = await self._services.responses.keep(self._owner.key, kept)
        return response

    async def _convert(self) -> ChatRequest:
        past = await self._past()
        self._items = await self._resolved()
        chat, self._origins = to_chat(self.fields, self._body, past, self._items)
        return chat

    async def _past(self) -> list[Item]:
        """All that was said up to the response that this one goes on from."""
        previous = self.fields.previous_response_id
        if previous is None:
            return []
        try:
            chain = await self._services.responses.chain(self._owner.key, previous)
        except NotFound as error:
            raise NotFound(f"'previous_response_id': {error.message}", param="previous_response_id") from None
        return [item for kept in chain for item in kept.items]

    async def _resolved(self) -> list[Item]:
        """The input, with the items themselves where it refers to some."""
        items = []
        for index, item in enumerate(self.fields.items):
            if item["type"] == "item_reference":
                found = await self._services.responses.item(self._owner.key, item["id"])
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
            chat, n_dropped = await shortened(chat, self._conversation, error)
        conversation = self._conversation(chat)
        self.headers["x-ggufd-truncated"] = f"{n_dropped} messages"
        return conversation, await conversation.start()

    def _conversation(self, chat: ChatRequest) -> Conversation:
        return Conversation(self._services, chat, self._owner, "input")
