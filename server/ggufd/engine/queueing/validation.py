"""Request validation: prompt, vocabulary, adapters and bans, before a request is queued and anything is computed.

The API calls it first, with the name that the client gave its prompt, so that a refusal is the answer's status. The
engine calls it for whatever reaches its process, since llama.cpp itself does not look.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ggufd.engine.messages.images import ImageSpan, row_tokens
from ggufd.engine.messages.requests import EmbedRequest, EngineRequest, Scales
from ggufd.engine.sampling.banned import check_bans
from ggufd.errors import ContextLengthExceeded, InvalidRequest


class RequestBounds(NamedTuple):
    """Bounds of what a loaded model can compute: cells of a slot or of an embedding, token ids, LoRA adapters."""

    n_ctx: int
    n_vocab: int
    n_adapters: int


def check_request(request: EngineRequest, bounds: RequestBounds, param: str = "prompt") -> None:
    """Raises InvalidRequest for what the engine cannot compute; `param` is what the client calls the prompt."""
    if request.n < 1:
        raise InvalidRequest(f"'n': expected at least one choice, got {request.n}.", param="n")
    if not request.prompt:
        raise InvalidRequest(f"'{param}': the prompt is empty. Expected at least one token.", param=param)
    if len(request.prompt) >= bounds.n_ctx:
        raise ContextLengthExceeded.of_prompt(len(request.prompt), bounds.n_ctx, param=param)
    check_tokens(_check_images(request, param), bounds.n_vocab, param)
    check_tokens([token for token, _ in request.sampling.logit_bias], bounds.n_vocab, "logit_bias")
    check_bans(request.banned_strings, request.banned_regexes)
    _check_adapters(request.adapters, bounds)


def check_embed_request(request: EmbedRequest, bounds: RequestBounds, param: str = "input") -> None:
    """Raises InvalidRequest for what cannot become vectors; `param` is what the client calls its inputs."""
    if not request.inputs:
        raise InvalidRequest(f"'{param}': expected at least one text.", param=param)
    for place, tokens in enumerate(request.inputs):
        name = param if request.n == 1 else f"{param}[{place}]"
        if not tokens:
            raise InvalidRequest(f"'{name}' is empty. Expected at least one token.", param=name)
        if len(tokens) > bounds.n_ctx:
            raise ContextLengthExceeded.of_input(len(tokens), bounds.n_ctx, param=name)
        check_tokens(tokens, bounds.n_vocab, name)
    _check_adapters(request.adapters, bounds)


def check_tokens(tokens: Sequence[int], n_vocab: int, param: str) -> None:
    """Raises InvalidRequest when one of `tokens` is not in the vocabulary."""
    if tokens and not (min(tokens) >= 0 and max(tokens) < n_vocab):
        wrong = next(token for token in tokens if not 0 <= token < n_vocab)
        raise InvalidRequest(
            f"'{param}': token id {wrong} is not in this model's vocabulary (0 to {n_vocab - 1}).", param=param
        )


def _check_images(request: EngineRequest, param: str) -> Sequence[int]:
    """Raises InvalidRequest unless the images stand where their numbers are; returns the rest of the prompt."""
    if not request.images:
        return request.prompt
    if request.prompt_logprobs:
        raise InvalidRequest(
            "'prompt_logprobs': a prompt with images has no log-probabilities. Leave it out.", param="prompt_logprobs"
        )
    tokens: list[int] = []
    end = 0
    for span in request.images:
        if span.start < end or not _is_in(span, request.prompt):
            raise InvalidRequest(f"'{param}': the image at token {span.start} is not in the prompt there.", param=param)
        tokens += request.prompt[end : span.start]
        end = span.end
    return [*tokens, *request.prompt[end:]]


def _is_in(span: ImageSpan, prompt: tuple[int, ...]) -> bool:
    """Whether a prompt has the numbers of an image's rows where it should stand."""
    try:
        numbers = row_tokens(span.rows.digest, span.rows.n_rows)
    except (ValueError, AssertionError):
        return False
    return len(numbers) > 0 and prompt[span.start : span.end] == numbers


def _check_adapters(scales: Scales, bounds: RequestBounds) -> None:
    if len(scales) not in (0, bounds.n_adapters):
        raise InvalidRequest(
            f"'lora': expected a scale for each of {bounds.n_adapters} adapters, got {len(scales)}.", param="lora"
        )
