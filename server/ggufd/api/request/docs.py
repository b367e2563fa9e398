"""OpenAPI document and /docs. Bodies are parsed by us, so their schemas are told to FastAPI here, with examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from ggufd import __version__
from ggufd.api.request.fields import documented_name
from ggufd.api.request.validation import Body

_ERROR_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}

_ERRORS = {
    "400": "The request is wrong; `param` names the field.",
    "401": "No key, or a wrong one.",
    "403": "The key's role may not do this.",
    "413": "The body is too large.",
    "503": "Not now: `Retry-After` says when.",
}


def documented(model: type[Body], examples: Mapping[str, Any], *, streams: bool = False) -> dict[str, Any]:
    """Arguments of a route whose body is `model`, for FastAPI's decorators. The schema must refer to no other.

    It is named here, and made when somebody wants to read it (`_body_schemas`): the start does not wait for it.
    """
    body = {
        "schema": {"$ref": f"#/components/schemas/{model.__name__}"},
        "examples": {name: {"value": value} for name, value in examples.items()},
    }
    extra = {"requestBody": {"required": True, "content": {"application/json": body}}}
    content: dict[str, Any] = {"application/json": {}}
    if streams:
        content["text/event-stream"] = {}
    return {
        "openapi_extra": extra,
        "responses": {200: {"description": "The answer.", "content": content}, **error_responses()},
    }


def error_responses() -> dict[int | str, dict[str, Any]]:
    """Error responses that every route may give, for FastAPI's decorators."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": what, "content": content} for status, what in _ERRORS.items()}


class Documentation:
    """OpenAPI document of one application, made once."""

    def __init__(self, app: FastAPI, *, has_keys: bool) -> None:
        self._app = app
        self._has_keys = has_keys
        self._document: dict[str, Any] | None = None

    def __call__(self) -> dict[str, Any]:
        if self._document is None:
            self._document = self._make()
        return self._document

    def _make(self) -> dict[str, Any]:
        document = get_openapi(title="ggufd", version=__version__, description=_ABOUT, routes=self._app.routes)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas |= {"Error": _ERROR_SCHEMA, **_body_schemas(Body)}
        document["tags"] = _ordered_tags(document)
        _drop_foreign_errors(document)
        if self._has_keys:
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}]
        return document


def _body_schemas(model: type[Body]) -> dict[str, Any]:
    """Of the model and all that are made from it, by their names."""
    schemas = {} if model is Body else {model.__name__: _body_schema(model)}
    for one in model.__subclasses__():
        schemas |= _body_schemas(one)
    return schemas


def _body_schema(model: type[Body]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    properties = schema.get("properties", {})
    return schema | {"properties": {documented_name(field): value for field, value in properties.items()}}


_ABOUT = "One GGUF model over the OpenAI API. Every sampler of llama.cpp is taken on every generating route."


def _ordered_tags(document: Mapping[str, Any]) -> list[dict[str, str]]:
    """What most people look for first, what only the one who runs the server needs last."""
    names = dict.fromkeys(
        tag for methods in document["paths"].values() for one in methods.values() for tag in one.get("tags", ())
    )
    return [{"name": name} for name in sorted(names, key=lambda name: (name == "operations", name != "OpenAI"))]


def _drop_foreign_errors(document: dict[str, Any]) -> None:
    """FastAPI tells of a 422 in a shape of its own, which no route here answers."""
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
