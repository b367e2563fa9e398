"""Errors as llama-server writes them, on the routes that have its paths. Knows no response."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ggufd.api.http.error_shape import ErrorShape, openai_body

_ROUTES = re.compile(
    r"(?<!/v1)/(completions?|chat/completions|infill|apply-template|props|slots(/\w+)?|lora-adapters|tokenize|"
    r"detokenize|embeddings?|rerank|reranking)/?$"
)

_TYPES: Mapping[str, str] = {
    "context_length_exceeded": "exceed_context_size_error",
    "service_unavailable": "unavailable_error",
}
"""Codes and types of ours that llama-server has another type for."""


def is_llamacpp(path: str) -> bool:
    """Whether a path is one of llama-server's own: those that it shares with OpenAI begin with /v1 there."""
    return _ROUTES.search(path) is not None


def error_body(
    message: str,
    *,
    status: int,
    kind: str,
    param: str | None,
    code: str | None,
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """OpenAI's body with llama-server's types, and with the numbers that its clients read beside the message."""
    kind = _TYPES.get(code or "") or _TYPES.get(kind, kind)
    body = openai_body(message, status=status, kind=kind, param=param, code=code)
    return {"error": {**body["error"], **(details or {})}}


SHAPE = ErrorShape(is_llamacpp, error_body)
"""The shape of this family's errors."""
