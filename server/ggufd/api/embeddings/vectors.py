"""Embedding requests of every API family: tokenize, submit, decode the vectors. Knows no route and no wire format."""

from __future__ import annotations

import array
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ggufd.api.embeddings.matryoshka import is_matryoshka
from ggufd.api.request.requests import Lora, ModelName
from ggufd.api.request.validation import Body
from ggufd.api.services.caller import Caller
from ggufd.api.services.services import Services
from ggufd.engine.messages.events import Embedding, FinishReason
from ggufd.engine.messages.requests import EmbedRequest, Scales
from ggufd.engine.queueing.validation import check_embed_request
from ggufd.errors import EngineFailure, InvalidRequest, Unsupported

MAX_INPUTS = 2048
"""As many as OpenAI takes."""

_TEXTS_A_CALL = 32
"""So few texts are tokenized at a time that others get their turn."""

Encode = Callable[[Sequence[str]], Awaitable[list[list[int]]]]

Input = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class VectorOptions:
    """Options of an embedding request; `param` is the name of its inputs on the wire.

    `truncates` cuts what is too long instead of refusing it. `norm` is llama-server's number
    (`engine.embeddings.pooling.scaled`). `adapters` are the scales of the LoRA adapters.
    """

    param: str = "input"
    dimensions: int | None = None
    norm: int = 2
    truncates: bool = False
    adapters: Scales = ()


class AdaptedFields(Body):
    """LoRA fields of embedding and rerank requests, as a generation request has them."""

    lora: Lora | None = None
    model: ModelName = None

    def adapters_of(self, services: Services) -> Scales:
        """Raises InvalidRequest for an adapter that is not there, NotFound for a name."""
        return services.adapters.of_request(self.lora, self.model)


async def vectors_of(
    services: Services, inputs: Sequence[Input], caller: Caller, options: VectorOptions
) -> list[Embedding]:
    """The vectors of texts and token lists, in their order. Raises InvalidRequest for what is wrong with one."""
    info = services.require_ready().embedding
    if info.pooling == "rank":
        raise Unsupported("This model ranks documents and makes no vectors of texts. Ask /v1/rerank.")
    check_count(inputs, options.param)
    _check_dimensions(services, options.dimensions)
    tokens = await _encode(services, inputs, options)
    return await compute(services, tokens, caller, options)


async def encode_in_turns(texts: Sequence[str], encode: Encode) -> list[list[int]]:
    """The tokens of many texts, some of them at a time."""
    found: list[list[int]] = []
    for first in range(0, len(texts), _TEXTS_A_CALL):
        found += await encode(texts[first : first + _TEXTS_A_CALL])
    return found


async def compute(
    services: Services, inputs: Sequence[Sequence[int]], caller: Caller, options: VectorOptions
) -> list[Embedding]:
    """Vectors or scores of token lists, in their order."""
    request = EmbedRequest(
        request_id=services.engine.new_request_id(),
        inputs=tuple(map(tuple, inputs)),
        dimensions=options.dimensions,
        norm=options.norm,
        principal=caller.principal,
        adapters=options.adapters,
    )
    check_embed_request(request, services.bounds(services.require_ready().embedding.n_ctx), options.param)
    record, found = caller.record, dict[int, Embedding]()
    record.is_work, record.model = True, services.config.model_id
    record.prompt_tokens += sum(map(len, inputs))
    async with services.engine.submit(request) as stream:
        with services.revocations.during(caller, stream.refuse):
            while events := await stream.take():
                found |= {event.index: event for event in events if isinstance(event, Embedding)}
    if len(found) != len(inputs):
        raise EngineFailure.without_answer()
    record.reason = FinishReason.STOP.value
    return [found[index] for index in range(len(inputs))]


def numbers_of(embedding: Embedding) -> list[list[float]]:
    """The vectors as numbers: one, or one for each token where nothing is pooled."""
    numbers = array.array("f", embedding.data)
    if sys.byteorder == "big":
        numbers.byteswap()
    # Nine digits are all that a float of 32 bits has.
    short = [float(f"{number:.9g}") for number in numbers]
    return [short[first : first + embedding.width] for first in range(0, len(short), embedding.width)]


def check_count(inputs: Sequence[object], param: str) -> None:
    """Raises InvalidRequest when there are too many, or none."""
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise InvalidRequest(f"'{param}': expected 1 to {MAX_INPUTS} texts, got {len(inputs)}.", param=param)


def _check_dimensions(services: Services, dimensions: int | None) -> None:
    ready = services.require_ready()
    width = ready.embedding.width
    if dimensions is None or dimensions == width:
        return
    if dimensions > width:
        raise InvalidRequest(f"'dimensions': vectors have {width} here, got {dimensions}.", param="dimensions")
    if not is_matryoshka(ready.model.architecture, ready.model.metadata):
        raise Unsupported(
            f"'dimensions': this model is not known to make vectors that may be cut; they have {width}. "
            f"Leave it out, or cut and scale them yourself.",
            param="dimensions",
        )


async def _encode(services: Services, inputs: Sequence[Input], options: VectorOptions) -> list[Sequence[int]]:
    ready = services.require_ready()
    limit = ready.embedding.n_ctx if options.truncates else None
    texts = [one for one in inputs if isinstance(one, str)]
    encoded = iter(await encode_in_turns(texts, lambda some: services.text.encode_inputs(some, limit)))
    return [next(encoded) if isinstance(one, str) else one[:limit] for one in inputs]
