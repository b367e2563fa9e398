"""`POST /v1/messages` and its token count, as Anthropic's clients call them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ggufd.api.answer.conversation import Conversation
from ggufd.api.answer.generation import Generation, until_disconnect
from ggufd.api.anthropic.conversion import to_chat
from ggufd.api.anthropic.message import Message, MessageWriter
from ggufd.api.anthropic.schemas import MESSAGES, MessagesRequest, PromptRequest, refuse_others
from ggufd.api.anthropic.stream import MessageEvents
from ggufd.api.http.body import JsonObject, read_json
from ggufd.api.http.json_response import json_response
from ggufd.api.request.docs import documented
from ggufd.api.request.validation import validate
from ggufd.api.services.services import caller_of, services_of
from ggufd.api.streams.response import refuse_resumable, streamed
from ggufd.engine.messages.events import Output

router = APIRouter(tags=["Anthropic"])

_HELLO = [{"role": "user", "content": "Say hello in one sentence."}]
_EXAMPLES: Mapping[str, Any] = {
    "one message": {"max_tokens": 64, "messages": _HELLO},
    "streamed": {"max_tokens": 64, "messages": _HELLO, "stream": True},
    "with a system text": {"max_tokens": 64, "system": "You are a pirate.", "messages": _HELLO},
}


@router.post("/messages", **documented(MessagesRequest, _EXAMPLES, streams=True))
async def create_message(request: Request) -> Response:
    """Answer a conversation, or go on with its last message when that is the assistant's."""
    services = services_of(request)
    body = await _body_of(request)
    fields = validate(MessagesRequest, body, MESSAGES)
    chat, origins = to_chat(fields, body)
    if not fields.stream:
        refuse_resumable(chat.resumable)
    with origins.in_errors():
        conversation = Conversation(services, chat, caller_of(request))
        generation = await until_disconnect(request, conversation.start())
    writer = MessageWriter(
        services.config.model_id,
        conversation.reader(),
        conversation.explainer,
        prompt_tokens=len(generation.requests[0].prompt),
        max_tokens=fields.max_tokens,
        stop=chat.stop,
    )
    headers = conversation.headers
    if fields.stream:
        return await streamed(request, generation, MessageEvents(writer), chat.resumable, headers)
    return json_response(await until_disconnect(request, _collect(generation, writer)), headers=headers)


@router.post("/messages/count_tokens", **documented(PromptRequest, {"one message": {"messages": _HELLO}}))
async def count_tokens(request: Request) -> Response:
    """Number of prompt tokens that the same request to `/v1/messages` would have."""
    services = services_of(request)
    body = await _body_of(request)
    chat, origins = to_chat(validate(PromptRequest, body, MESSAGES), body)
    services.require_ready()
    with origins.in_errors():
        rendered = await Conversation(services, chat, caller_of(request)).render()
    return json_response({"input_tokens": len(rendered.tokens)})


async def _body_of(request: Request) -> JsonObject:
    body = await read_json(request, services_of(request).config.max_body_bytes)
    refuse_others(body)
    return body


async def _collect(generation: Generation, writer: MessageWriter) -> Message:
    """The whole message."""
    async with generation:
        async for _, events in generation.batches():
            for event in events:
                if isinstance(event, Output):
                    writer.feed(event)
    return writer.finished()
