"""`POST /completion`: llama-server's own completion, whole or as a stream; several answers come as an array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BeforeValidator
from starlette.responses import Response

from ggufd.api.answer.explain import CacheExplainer
from ggufd.api.answer.generation import FinishedChoice, Generation, collect, submit, until_disconnect
from ggufd.api.http.body import JsonObject, read_json
from ggufd.api.http.json_response import json_response
from ggufd.api.llamacpp.answer import NativeAnswer, NativeChunks
from ggufd.api.llamacpp.biases import with_token_biases
from ggufd.api.request.chat.schemas import TopCount, read_logprobs
from ggufd.api.request.docs import documented
from ggufd.api.request.fields import LLAMACPP, LLAMACPP_UNSET
from ggufd.api.request.prompts import MixedPrompts, encode_mixed, with_image_data
from ggufd.api.request.requests import GenerationFields, check_n, check_prompts, engine_request, refuse_unavailable
from ggufd.api.request.sampling import Bool
from ggufd.api.request.validation import validate
from ggufd.api.services.caller import Caller
from ggufd.api.services.services import Services, caller_of, services_of
from ggufd.api.streams.response import refuse_resumable, streamed
from ggufd.engine.messages.requests import EngineRequest

router = APIRouter(tags=["llama.cpp"])


class NativeRequest(GenerationFields):
    """`n_probs` is the number of alternatives for each token, 0 is none; with `post_sampling_probs` of those that
    the samplers left, as probabilities.
    """

    prompt: MixedPrompts
    n_probs: Annotated[TopCount | None, BeforeValidator(read_logprobs)] = None
    add_bos_token: Bool = True
    return_tokens: Bool = False
    post_sampling_probs: Bool = False

    @property
    def n_logprobs(self) -> int | None:
        return self.n_probs or None


_EXAMPLES: Mapping[str, Any] = {
    "one prompt": {"prompt": "Once upon a time", "n_predict": 32},
    "streamed": {"prompt": "Once upon a time", "n_predict": 32, "stream": True},
    "several answers": {"prompt": "Once upon a time", "n_predict": 16, "n": 2, "n_probs": 5},
}


@router.post("/completion", **documented(NativeRequest, _EXAMPLES, streams=True))
async def create_native_completion(request: Request) -> Response:
    """Continue a text, in llama-server's shape."""
    return await answer_body(request, await read_json(request, services_of(request).config.max_body_bytes))


async def answer_body(request: Request, body: JsonObject) -> Response:
    """The answer to a request whose body was read, whole or as a stream."""
    refuse_unavailable(body, takes="image_data")
    body = await with_token_biases(services_of(request), body)
    fields = validate(NativeRequest, body, LLAMACPP, unset=LLAMACPP_UNSET)
    if body.get("image_data"):
        fields = fields.model_copy(update={"prompt": with_image_data(fields.prompt, body["image_data"])})
    return await answer_native(request, fields)


async def answer_native(request: Request, fields: NativeRequest) -> Response:
    """The answer to a validated request, whole or as a stream."""
    services = services_of(request)
    work = _LlamacppCompletion(services, fields, caller_of(request))
    if not fields.stream:
        refuse_resumable(fields.resumable)
        return json_response(await until_disconnect(request, work.answer()))
    generation = await until_disconnect(request, work.start())
    return await streamed(request, generation, work.chunks(), fields.resumable)


class _LlamacppCompletion:
    """Native completion: from fields to an answer."""

    def __init__(self, services: Services, fields: NativeRequest, caller: Caller) -> None:
        self._services = services
        self._fields = fields
        self._caller = caller
        self._requests: Sequence[EngineRequest] = ()
        self._texts: Sequence[str] = ()
        self._explainer = CacheExplainer(services.text, is_shown=fields.explain_cache)
        check_n("n", fields.n, services.config.max_n)
        check_prompts(fields.prompt, services.config.max_prompts)

    async def start(self) -> Generation:
        """Submit every prompt. Raises what refuses one of them."""
        fields, services = self._fields, self._services
        principal = self._caller.principal
        prompts = [
            await encode_mixed(services, prompt, principal, add_bos=fields.add_bos_token) for prompt in fields.prompt
        ]
        self._texts = [prompt.text for prompt in prompts]
        for text in self._texts:
            self._explainer.add_prompt(text)
        self._requests = [
            await engine_request(
                services,
                fields,
                prompt.tokens,
                caller=self._caller,
                param="prompt",
                n_logprobs=fields.n_logprobs,
                are_logprobs_final=fields.post_sampling_probs,
                images=prompt.images,
            )
            for prompt in prompts
        ]
        return await submit(
            services,
            self._requests,
            self._caller,
            self._explainer,
            is_scoring=fields.max_tokens == 0,
            keeps_stop=fields.include_stop_str_in_output,
        )

    def _answer(self) -> NativeAnswer:
        return NativeAnswer(self._services, self._fields, self._requests, self._texts, self._explainer)

    def chunks(self) -> NativeChunks:
        """The format of the stream."""
        return NativeChunks(self._answer())

    async def answer(self) -> Any:
        """The whole answer as JSON data: an array when there are several."""
        choices = await collect(await self.start())
        answer = self._answer()
        answers = [self._of(answer, index, choice) for index, choice in enumerate(choices)]
        return answers[0] if len(answers) == 1 else answers

    def _of(self, answer: NativeAnswer, index: int, choice: FinishedChoice) -> dict[str, Any]:
        whole = answer.end(index, choice.ended, choice.text)
        if self._fields.return_tokens:
            whole["tokens"] = choice.tokens
        return whole | answer.probabilities(choice)
