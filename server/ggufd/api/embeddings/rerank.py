"""Reranking: documents by relevance to a query, in Jina's and Cohere's format and in TEI's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BeforeValidator, Field, Strict, WithJsonSchema
from starlette.responses import Response

from ggufd.api.answer.generation import until_disconnect
from ggufd.api.embeddings.vectors import AdaptedFields, VectorOptions, check_count, compute, encode_in_turns, numbers_of
from ggufd.api.http.body import read_json
from ggufd.api.http.json_response import json_response
from ggufd.api.request.docs import documented
from ggufd.api.request.fields import Aliases
from ggufd.api.request.sampling import Bool, Int
from ggufd.api.request.validation import validate
from ggufd.api.services.services import caller_of, services_of
from ggufd.engine.messages.events import Embedding
from ggufd.errors import Unsupported

router = APIRouter(tags=["embeddings"])


def _read_document(value: Any) -> Any:
    """A text, or an object that holds one."""
    return value.get("text") if isinstance(value, Mapping) else value


_DOCUMENT = {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"text": {"type": "string"}}}]}
Document = Annotated[str, Strict(), BeforeValidator(_read_document), WithJsonSchema(_DOCUMENT)]


class RerankRequest(AdaptedFields):
    """`top_n` keeps the best. With `return_documents` each result carries its text."""

    query: Annotated[str, Strict()]
    documents: list[Document]
    top_n: Annotated[Int, Field(ge=1)] | None = None
    return_documents: Bool = False


_NAMES: Aliases = {"documents": ("documents", "texts"), "return_documents": ("return_documents", "return_text")}
_EXAMPLE = {"query": "Who lives in the sea?", "documents": ["The cat sleeps.", "The whale dives."]}


@router.post("/v1/rerank", **documented(RerankRequest, {"two documents": _EXAMPLE}))
@router.post("/rerank", include_in_schema=False)
@router.post("/reranking", include_in_schema=False)
@router.post("/v1/reranking", include_in_schema=False)
@router.post("/v2/rerank", include_in_schema=False)
async def rerank(request: Request) -> Response:
    """Documents by their score, the best first. Scores are the model's own: higher is better, and no share of one."""
    services = services_of(request)
    body = await read_json(request, services.config.max_body_bytes)
    fields = validate(RerankRequest, body, _NAMES)
    name = "documents" if body.get("documents") is not None else "texts"
    if services.require_ready().embedding.pooling != "rank":
        raise Unsupported(
            "This model is no reranker. Start the server with one, with --pooling rank if its file does not say so."
        )
    check_count(fields.documents, name)
    options = VectorOptions(name, adapters=fields.adapters_of(services))
    pairs = await encode_in_turns(fields.documents, lambda some: services.text.encode_pairs(fields.query, some))
    found = await until_disconnect(request, compute(services, pairs, caller_of(request), options))
    results = _results(fields, found, score="score" if name == "texts" else "relevance_score", text=name == "texts")
    if name == "texts":
        return json_response(results)
    n_tokens = sum(one.n_tokens for one in found)
    return json_response(
        {
            "object": "list",
            "model": services.config.model_id,
            "results": results,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }
    )


def _results(fields: RerankRequest, found: Sequence[Embedding], *, score: str, text: bool) -> list[dict[str, Any]]:
    """The best first. A document comes back as a text in TEI's shape, else as an object."""
    results: list[dict[str, Any]] = [{"index": place, score: numbers_of(one)[0][0]} for place, one in enumerate(found)]
    results.sort(key=lambda result: -result[score])
    if fields.return_documents:
        for result in results:
            document = fields.documents[int(result["index"])]
            result |= {"text": document} if text else {"document": {"text": document}}
    return results[: fields.top_n]
