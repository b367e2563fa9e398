"""`POST /v1/chat/completions`: a conversation goes on, in the words of the model's own template."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.activity import Owner, owner_of
from server.api.body import read_json
from server.api.docs import documented
from server.api.explain import CacheExplainer
from server.api.fields import OPENAI_CHAT
from server.api.generation import Choice, Generation, collect, submit, unless_gone
from server.api.logprobs import TokenTexts, chat_entry
from server.api.openai.chunks import ChatChunks
from server.api.openai.head import head
from server.api.openai.schemas import ChatRequest
from server.api.ports import Services, services_of
from server.api.requests import check_n, engine_request, refuse_unavailable
from server.api.responses import json_response
from server.api.sse import EventStream
from server.api.usage import finish_reason, timings_json, usage_json
from server.api.validation import validate
from server.chat.prompt import ChatPrompt
from server.errors import InvalidRequest

logger = logging.getLogger(__name__)

router = APIRouter(tags=["OpenAI"])

_HELLO = [{"role": "user", "content": "Say hello in one sentence."}]
_EXAMPLES: Mapping[str, Any] = {
    "one message": {"messages": _HELLO, "max_tokens": 64},
    "streamed": {"messages": _HELLO, "max_tokens": 64, "stream": True, "stream_options": {"include_usage": True}},
    "continue the answer": {"messages": [*_HELLO, {"role": "assistant", "content": "Hello, and"}], "max_tokens": 32},
}


@router.post("/chat/completions", **documented(ChatRequest, _EXAMPLES, streams=True))
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation, or go on with its last message when that is the assistant's."""
    services = services_of(request)
    body = await read_json(request, services.config.max_body_bytes)
    refuse_unavailable(body)
    fields = validate(ChatRequest, body, OPENAI_CHAT)
    work = _Chat(services, fields, owner_of(request))
    if not fields.stream:
        answer = await unless_gone(request, work.answer())
        return json_response(answer, headers=work.headers)
    generation = await work.start()
    return EventStream(generation, work.chunks(generation), ping_s=services.config.ping_s, headers=work.headers)


class _Chat:
    """One request on its way from fields to an answer."""

    def __init__(self, services: Services, fields: ChatRequest, owner: Owner) -> None:
        self._services = services
        self._fields = fields
        self._owner = owner
        self._explainer = CacheExplainer(services.text, is_shown=fields.explain_cache)
        self._n_logprobs = _n_logprobs(fields)
        self.headers: dict[str, str] = {}
        check_n("n", fields.n, services.config.max_n)

    async def start(self) -> Generation:
        """Render and submit. Raises what refuses it."""
        fields, services = self._fields, self._services
        services.require_ready()
        rendered = await services.text.render(
            ChatPrompt(
                fields.messages,
                add_generation_prompt=fields.add_generation_prompt,
                continue_final_message=fields.continue_final_message,
                template_kwargs=fields.template_kwargs,
            )
        )
        self._report(rendered.repairs)
        self._explainer.add_prompt(rendered.text, fields.messages)
        request = await engine_request(
            services,
            self._without_foreign_biases(services.require_ready().model.n_vocab),
            rendered.tokens,
            owner=self._owner,
            param="messages",
            n_logprobs=self._n_logprobs,
        )
        return await submit(services, [request], self._owner, self._explainer)

    def _report(self, repairs: tuple[str, ...]) -> None:
        if repairs:
            logger.info("the chat template needed repairs of the conversation: %s", ", ".join(repairs))
            self.headers["x-ggufd-repairs"] = ", ".join(repairs).encode("ascii", "replace").decode()

    def _without_foreign_biases(self, n_vocab: int) -> ChatRequest:
        """The fields without biases of tokens that this vocabulary does not have, which the response then says.

        Clients of this route know no tokenizer but the one they guess from the model's name: that is no reason to
        refuse them.
        """
        biases = self._fields.logit_bias or ()
        own = tuple((token, bias) for token, bias in biases if token < n_vocab)
        if len(own) == len(biases):
            return self._fields
        logger.debug("%d of %d biases are of tokens out of the vocabulary", len(biases) - len(own), len(biases))
        self.headers["x-ggufd-ignored"] = "logit_bias"
        return self._fields.model_copy(update={"logit_bias": own})

    def chunks(self, generation: Generation) -> ChatChunks:
        """The format of the stream."""
        return ChatChunks(
            head(self._services, "chatcmpl", "chat.completion.chunk"),
            generation.total,
            generation.n,
            explainer=self._explainer,
            includes_usage=self._fields.includes_usage,
            has_bans=self._fields.has_bans,
            has_logprobs=self._n_logprobs is not None,
        )

    async def answer(self) -> dict[str, Any]:
        """The whole answer as JSON data."""
        choices = await collect(await self.start())
        usages = [choice.ended.usage for choice in choices]
        return {
            **head(self._services, "chatcmpl", "chat.completion"),
            "choices": [self._choice(index, choice) for index, choice in enumerate(choices)],
            "usage": usage_json(usages, len(choices), has_bans=self._fields.has_bans),
            "timings": timings_json(usages[0]),
            **self._explainer.of(0),
        }

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": None if self._n_logprobs is None else _logprobs(choice),
            "finish_reason": finish_reason(choice.ended),
        }


def _n_logprobs(fields: ChatRequest) -> int | None:
    """How many alternatives are wanted, None when no log-probabilities are."""
    if fields.logprobs:
        return fields.top_logprobs or 0
    if fields.top_logprobs:
        raise InvalidRequest("'top_logprobs': only together with logprobs set to true.", param="top_logprobs")
    return None


def _logprobs(choice: Choice) -> dict[str, Any]:
    texts = TokenTexts()
    return {
        "content": [chat_entry(entry, texts.next(entry.piece)) for entry in choice.logprobs],
        "refusal": None,
    }
