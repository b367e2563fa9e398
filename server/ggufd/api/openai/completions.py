"""`POST /v1/completions`: text completion with several prompts and choices, echo, infill, best_of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ggufd.api.answer.explain import CacheExplainer
from ggufd.api.answer.generation import FinishedChoice, Generation, collect, submit, until_disconnect
from ggufd.api.answer.logprobs import LegacyLogprobs, joined
from ggufd.api.answer.usage import finish_reason, timings_json, usage_json
from ggufd.api.http.body import JsonObject, read_json
from ggufd.api.http.json_response import json_response
from ggufd.api.openai.chunks import CompletionChunks
from ggufd.api.openai.echo import Echo
from ggufd.api.openai.head import head
from ggufd.api.request.chat.schemas import CompletionRequest, Prompt
from ggufd.api.request.docs import documented
from ggufd.api.request.fields import OPENAI_COMPLETION
from ggufd.api.request.prompts import encode_text
from ggufd.api.request.requests import check_n, check_prompts, engine_request, refuse_unavailable
from ggufd.api.request.validation import validate
from ggufd.api.services.caller import Caller
from ggufd.api.services.services import Services, caller_of, services_of
from ggufd.api.streams.response import refuse_resumable, streamed
from ggufd.engine.queueing.validation import check_tokens
from ggufd.errors import InvalidRequest, Unsupported

router = APIRouter(tags=["OpenAI"])

_EXAMPLES: Mapping[str, Any] = {
    "one prompt": {"prompt": "Once upon a time", "max_tokens": 32},
    "streamed": {"prompt": "Once upon a time", "max_tokens": 32, "stream": True},
    "samplers": {"prompt": "The", "max_tokens": 16, "min_p": 0.05, "dry_multiplier": 0.8, "seed": 7},
}


@router.post("/completions", **documented(CompletionRequest, _EXAMPLES, streams=True))
async def create_completion(request: Request) -> Response:
    """Continue a text."""
    return await answer_completion(request, await read_json(request, services_of(request).config.max_body_bytes))


async def answer_completion(request: Request, body: JsonObject) -> Response:
    """The answer to a request whose body was read, whole or as a stream."""
    services = services_of(request)
    refuse_unavailable(body)
    fields = validate(CompletionRequest, body, OPENAI_COMPLETION)
    work = _Completion(services, fields, caller_of(request))
    if not fields.stream:
        refuse_resumable(fields.resumable)
        return json_response(await until_disconnect(request, work.answer()))
    generation = await work.start()
    return await streamed(request, generation, work.chunks(generation), fields.resumable)


class _Completion:
    """Text completion: from fields to an answer."""

    def __init__(self, services: Services, fields: CompletionRequest, caller: Caller) -> None:
        self._services = services
        self._fields = fields
        self._caller = caller
        self._n = fields.best_of or fields.n
        self._echoes: list[Echo] = []
        self._explainer = CacheExplainer(services.text, is_shown=fields.explain_cache)
        self._check()

    def _check(self) -> None:
        fields, config = self._fields, self._services.config
        check_n("best_of" if fields.best_of else "n", self._n, config.max_n)
        check_prompts(fields.prompt, config.max_prompts)
        if self._n < fields.n:
            raise InvalidRequest(f"'best_of': expected at least n ({fields.n}), got {self._n}.", param="best_of")
        if self._n > fields.n and fields.stream:
            raise InvalidRequest(
                "'best_of': answers can only be ranked once they are whole. Set stream to false, or best_of to n.",
                param="best_of",
            )

    async def start(self) -> Generation:
        """Submit every prompt. Raises what refuses one of them."""
        fields = self._fields
        prompts = [await self._tokens(prompt) for prompt in fields.prompt]
        for prompt in fields.prompt:
            self._explainer.add_prompt(prompt if isinstance(prompt, str) and fields.suffix is None else None)
        if fields.echo:
            pairs = zip(fields.prompt, prompts, strict=True)
            self._echoes = [await self._echo(prompt, tokens) for prompt, tokens in pairs]
        ranks = self._n > fields.n
        requests = [
            await engine_request(
                self._services,
                fields,
                tokens,
                caller=self._caller,
                param="prompt",
                n=self._n,
                n_logprobs=0 if ranks and fields.logprobs is None else fields.logprobs,
                prompt_logprobs=fields.echo and fields.logprobs is not None,
            )
            for tokens in prompts
        ]
        return await submit(
            self._services,
            requests,
            self._caller,
            self._explainer,
            is_scoring=fields.max_tokens == 0,
            keeps_stop=fields.include_stop_str_in_output,
        )

    async def _tokens(self, prompt: Prompt) -> Sequence[int]:
        if not isinstance(prompt, str):
            check_tokens(prompt, self._services.require_ready().model.n_vocab, "prompt")
        if self._fields.suffix is not None:
            return await self._infill_tokens(prompt, self._fields.suffix)
        if not isinstance(prompt, str):
            return prompt
        return await encode_text(self._services, prompt, add_bos=self._fields.add_bos_token)

    async def _infill_tokens(self, prompt: Prompt, suffix: str) -> Sequence[int]:
        self._services.require_ready()
        if not isinstance(prompt, str):
            raise InvalidRequest("'suffix': the prompt must be a string when a suffix is given.", param="suffix")
        if not self._services.text.info.has_infill:
            raise Unsupported(
                "'suffix': this model has no infill tokens, so it cannot write between two texts.", param="suffix"
            )
        return await self._services.text.encode_infill(prompt, suffix)

    async def _echo(self, prompt: Prompt, tokens: Sequence[int]) -> Echo:
        text = prompt if isinstance(prompt, str) else await self._services.text.decode(prompt)
        if self._fields.logprobs is None or not tokens:
            return Echo(text)
        return Echo(text, (await self._services.text.pieces(tokens[:1]))[0])

    def chunks(self, generation: Generation) -> CompletionChunks:
        """The format of the stream."""
        return CompletionChunks(
            head(self._services, "cmpl", "text_completion"),
            generation.total,
            generation.n,
            explainer=self._explainer,
            includes_usage=self._fields.includes_usage,
            has_bans=self._fields.has_bans,
            has_logprobs=self._fields.logprobs is not None,
            tells_progress=self._fields.return_progress,
            times_tokens=self._fields.timings_per_token,
            echoes=self._echoes,
        )

    async def answer(self) -> dict[str, Any]:
        """The whole answer as JSON data."""
        generation = await self.start()
        choices = await collect(generation)
        usages = [choice.ended.usage for choice in choices]
        groups = [choices[first : first + self._n] for first in range(0, len(choices), self._n)]
        kept = [(prompt, choice) for prompt, group in enumerate(groups) for choice in self._best(group)]
        return {
            **head(self._services, "cmpl", "text_completion"),
            "choices": [self._choice(index, *item) for index, item in enumerate(kept)],
            "usage": usage_json(usages, self._n, has_bans=self._fields.has_bans),
            "timings": timings_json(usages[0]),
            **self._explainer.of(0),
        }

    def _best(self, group: list[FinishedChoice]) -> list[FinishedChoice]:
        if self._n == self._fields.n:
            return group
        return sorted(group, key=lambda choice: choice.mean_logprob, reverse=True)[: self._fields.n]

    def _choice(self, index: int, prompt: int, choice: FinishedChoice) -> dict[str, Any]:
        echo = self._echoes[prompt] if self._echoes else None
        return {
            "index": index,
            "text": (echo.text if echo else "") + choice.text,
            "logprobs": None if self._fields.logprobs is None else _logprobs(choice, echo),
            "finish_reason": finish_reason(choice.ended),
        }


def _logprobs(choice: FinishedChoice, echo: Echo | None) -> dict[str, Any]:
    legacy = LegacyLogprobs()
    before = echo.logprobs(legacy, choice.prompt_logprobs) if echo else None
    entries = choice.logprobs
    if echo and choice.ended.end is not None:
        # Who scores a prompt leaves out the last entry, as what was generated: there must be one.
        entries = [*entries, choice.ended.end]
    own = legacy.add(entries, legacy.texts(entries))
    return joined(before, own) if before else own
