"""`POST /v1/chat/completions`, and its token count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ggufd.api.answer.conversation import Answered, Conversation
from ggufd.api.answer.generation import Generation, until_disconnect
from ggufd.api.answer.usage import finish_reason, timings_json, usage_json
from ggufd.api.http.body import read_json
from ggufd.api.http.json_response import json_response
from ggufd.api.openai.chunks import ChatChunks
from ggufd.api.openai.head import head
from ggufd.api.request.chat.schemas import ChatRequest
from ggufd.api.request.docs import documented
from ggufd.api.request.fields import OPENAI_CHAT
from ggufd.api.request.requests import refuse_unavailable
from ggufd.api.request.validation import validate
from ggufd.api.services.services import Services, caller_of, services_of
from ggufd.api.streams.response import refuse_resumable, streamed
from ggufd.chat.deltas.answer import Answer, ToolCall

router = APIRouter(tags=["OpenAI"])

_HELLO = [{"role": "user", "content": "Say hello in one sentence."}]
_PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_EXAMPLES: Mapping[str, Any] = {
    "one message": {"messages": _HELLO, "max_tokens": 64},
    "streamed": {"messages": _HELLO, "max_tokens": 64, "stream": True, "stream_options": {"include_usage": True}},
    "with a tool": {
        "messages": [{"role": "user", "content": "What time is it in Oslo?"}],
        "tools": [{"type": "function", "function": {"name": "clock", "parameters": _PLACE}}],
        "tool_choice": "required",
    },
    "continue the answer": {"messages": [*_HELLO, {"role": "assistant", "content": "Hello, and"}], "max_tokens": 32},
}


@router.post("/chat/completions", **documented(ChatRequest, _EXAMPLES, streams=True))
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation, or go on with its last message when that is the assistant's."""
    services = services_of(request)
    body = await read_json(request, services.config.max_body_bytes)
    refuse_unavailable(body)
    fields = validate(ChatRequest, body, OPENAI_CHAT)
    work = Conversation(services, fields, caller_of(request))
    if not fields.stream:
        refuse_resumable(fields.resumable)
        answer = await until_disconnect(request, _answer(services, fields, work))
        return json_response(answer, headers=work.headers)
    generation = await until_disconnect(request, work.start())
    chunks = _chunks(services, fields, work, generation)
    return await streamed(request, generation, chunks, fields.resumable, work.headers)


@router.post("/chat/completions/input_tokens", **documented(ChatRequest, {"one message": {"messages": _HELLO}}))
async def count_input_tokens(request: Request) -> Response:
    """Number of prompt tokens of a chat request, tools and template included; nothing is generated."""
    services = services_of(request)
    body = await read_json(request, services.config.max_body_bytes)
    refuse_unavailable(body)
    fields = validate(ChatRequest, body, OPENAI_CHAT)
    services.require_ready()
    rendered = await Conversation(services, fields, caller_of(request)).render()
    return json_response({"object": "response.input_tokens", "input_tokens": len(rendered.tokens)})


def _chunks(services: Services, fields: ChatRequest, work: Conversation, generation: Generation) -> ChatChunks:
    """The format of the stream."""
    return ChatChunks(
        head(services, "chatcmpl", "chat.completion.chunk"),
        generation.total,
        generation.n,
        new_reader=work.reader,
        explainer=work.explainer,
        includes_usage=fields.includes_usage,
        has_bans=fields.has_bans,
        has_logprobs=work.n_logprobs is not None,
        tells_progress=fields.return_progress,
        times_tokens=fields.timings_per_token,
        image_tokens=generation.image_tokens,
    )


async def _answer(services: Services, fields: ChatRequest, work: Conversation) -> dict[str, Any]:
    """The whole answer as JSON data."""
    answers = await work.answers()
    usages = [one.finish.usage for one in answers]
    reasoning_tokens = sum(one.reasoning_tokens for one in answers)
    return {
        **head(services, "chatcmpl", "chat.completion"),
        "choices": [_choice(index, one, has_logprobs=work.n_logprobs is not None) for index, one in enumerate(answers)],
        "usage": usage_json(
            usages,
            len(answers),
            reasoning_tokens=reasoning_tokens,
            has_bans=fields.has_bans,
            image_tokens=work.image_tokens,
        ),
        "timings": timings_json(usages[0]),
        **work.explainer.of(0),
        **({"__verbose": _verbose(work, answers[0])} if fields.verbose or services.config.is_verbose else {}),
    }


def _verbose(work: Conversation, first: Answered) -> dict[str, Any]:
    """llama-server's `__verbose`: the prompt that the messages became, and what was said, unread."""
    usage = first.finish.usage
    return {
        "prompt": work.prompt,
        "content": first.answer.content,
        "tokens_evaluated": usage.prompt_tokens,
        "tokens_predicted": usage.completion_tokens,
        "tokens_cached": usage.cached_tokens,
    }


def _choice(index: int, one: Answered, *, has_logprobs: bool) -> dict[str, Any]:
    return {
        "index": index,
        "message": message_json(one.answer),
        "logprobs": {"content": one.logprobs, "refusal": None} if has_logprobs else None,
        "finish_reason": finish_reason(one.finish, has_calls=one.answer.has_whole_calls),
    }


def message_json(answer: Answer) -> dict[str, Any]:
    """The assistant's message. What is not there is left out, as OpenAI does; only `content` may be null."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["content"] = answer.content or None
        message["tool_calls"] = [_call_json(call) for call in answer.calls]
    return message


def _call_json(call: ToolCall) -> dict[str, Any]:
    return {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
