"""Routes that need the model: what generates or computes vectors, and what needs only its vocabulary."""

from __future__ import annotations

import enum


class ModelUse(enum.Enum):
    """What a route needs of the model. Streams of SSE may be begun before the model is there."""

    STREAMS = "streams"
    COMPUTES = "computes"
    COUNTS = "counts"


_BY_PATH: dict[ModelUse, tuple[str, ...]] = {
    ModelUse.STREAMS: (
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/messages",
        "/completion",
        "/infill",
        "/api/extra/generate/stream",
    ),
    ModelUse.COMPUTES: (
        "/v1/embeddings",
        "/embedding",
        "/api/extra/embeddings",
        "/api/embed",
        "/api/embeddings",
        "/v1/rerank",
        "/v1/reranking",
        "/v2/rerank",
        "/api/generate",
        "/api/chat",
        "/api/v1/generate",
        "/api/latest/generate",
    ),
    ModelUse.COUNTS: (
        "/v1/chat/completions/input_tokens",
        "/v1/responses/input_tokens",
        "/v1/messages/count_tokens",
        "/v1/tokenize",
        "/v1/detokenize",
        "/v1/token/encode",
        "/v1/token/decode",
        "/v1/internal/encode",
        "/v1/internal/decode",
        "/v1/internal/token-count",
        "/apply-template",
        "/api/extra/tokencount",
        "/api/extra/detokenize",
    ),
}

_USES = {path: use for use, paths in _BY_PATH.items() for path in paths}


def use_of(path: str) -> ModelUse | None:
    """What a POST to this path needs of the model; None where it needs none. Users forget the prefix /v1."""
    return _USES.get(path) or _USES.get(f"/v1{path}")
