"""Constraints on the output under all their names: a grammar, a JSON schema, a regular expression, a choice.

At most one of them can hold; what they become is a `Grammar`, which the text process checks. Knows no route.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, Strict, WithJsonSchema

from server.api.sampling import SamplingFields
from server.engine.messages import Grammar, GrammarKind, SamplingParams
from server.errors import InvalidRequest

_ANY_OBJECT = {"type": "object"}


def read_schema(value: Any) -> Any:
    """A JSON schema, also as JSON in a string. `{}` allows any JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("expected a JSON schema, but the string is not valid JSON") from None
    if not isinstance(value, (Mapping, bool)):
        raise ValueError("expected a JSON schema, which is an object")
    return value


def read_choices(value: Any) -> Any:
    """Texts, one of which the answer must be."""
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
        raise ValueError("expected a non-empty array of non-empty strings")
    return tuple(value)


Schema = Annotated[
    Any,
    BeforeValidator(read_schema),
    WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "string"}], "examples": [_ANY_OBJECT]}),
]
Choices = Annotated[Any, BeforeValidator(read_choices), WithJsonSchema({"type": "array", "items": {"type": "string"}})]
Format = Annotated[Mapping[str, Any], WithJsonSchema({"type": "object", "examples": [{"type": "json_object"}]})]


class ConstraintFields(SamplingFields):
    """Samplers, and at most one constraint. `response_format` is OpenAI's, `structured_outputs` vLLM's."""

    json_schema: Schema | None = None
    regex: Annotated[str, Strict()] | None = None
    choices: Choices | None = None
    response_format: Format | None = None
    structured_outputs: Annotated[Mapping[str, Any], WithJsonSchema(_ANY_OBJECT)] = Field(default_factory=dict)

    def to_params(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """As `SamplingFields.to_params`, with the constraint. Raises InvalidRequest when there are two."""
        params = super().to_params(defaults)
        found = self._constraints()
        if params.grammar is not None:
            found = {"grammar": params.grammar, **found}
        if len(found) > 1:
            raise InvalidRequest(
                f"Only one constraint can hold at a time, but {' and '.join(found)} were sent. Leave out all but one.",
                param=next(reversed(found)),
            )
        return dataclasses.replace(params, grammar=next(iter(found.values()), None))

    @property
    def constraint_param(self) -> str:
        """The field that holds the constraint, to name it in an error."""
        return next(iter(self._constraints()), "grammar")

    def _constraints(self) -> dict[str, Grammar]:
        found: dict[str, Grammar] = {}
        if self.json_schema is not None:
            found["json_schema"] = of_schema(self.json_schema)
        if self.regex:
            found["guided_regex"] = Grammar(GrammarKind.REGEX, self.regex)
        if self.choices is not None:
            found["guided_choice"] = of_choices(self.choices)
        if self.response_format is not None and (grammar := of_format(self.response_format)) is not None:
            found["response_format"] = grammar
        if (grammar := _of_structured(self.structured_outputs)) is not None:
            found["structured_outputs"] = grammar
        return found


def of_schema(schema: Any) -> Grammar:
    """The constraint that a JSON schema is."""
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema, ensure_ascii=False))


def of_choices(choices: tuple[str, ...]) -> Grammar:
    """The constraint that leaves exactly these texts."""
    return Grammar(GrammarKind.REGEX, "|".join(map(_literal, choices)))


def of_format(value: Mapping[str, Any]) -> Grammar | None:
    """The constraint of OpenAI's `response_format`, None for plain text. Raises InvalidRequest."""
    match value.get("type"):
        case "text":
            return None
        case "json_object":
            # llama.cpp's clients may put a schema beside the type.
            schema = value.get("schema")
            return of_schema(_ANY_OBJECT if schema is None else _checked(schema, "response_format.schema"))
        case "json_schema":
            inner = value.get("json_schema")
            schema = inner.get("schema") if isinstance(inner, Mapping) else value.get("schema")
            return of_schema(_checked(schema, "response_format.json_schema.schema"))
    raise InvalidRequest(
        "'response_format': expected an object whose type is 'text', 'json_object' or 'json_schema'.",
        param="response_format",
    )


def _checked(schema: Any, param: str) -> Any:
    try:
        return read_schema(schema)
    except ValueError as error:
        raise InvalidRequest(f"'{param}': {error}.", param=param) from None


def _of_structured(value: Mapping[str, Any]) -> Grammar | None:
    """vLLM's `structured_outputs`: an object with one of `json`, `regex`, `choice`, `grammar`, `json_object`."""
    if value.get("json_object"):
        return of_schema(_ANY_OBJECT)
    if value.get("json") is not None:
        return of_schema(_checked(value["json"], "structured_outputs.json"))
    if value.get("choice") is not None:
        try:
            return of_choices(read_choices(value["choice"]))
        except ValueError as error:
            raise InvalidRequest(f"'structured_outputs.choice': {error}.", param="structured_outputs") from None
    for name, kind in (("regex", GrammarKind.REGEX), ("grammar", GrammarKind.GBNF)):
        if isinstance(value.get(name), str) and value[name]:
            return Grammar(kind, value[name])
    return None


_MEANINGFUL = re.compile(r"[^\w \x80-\U0010ffff]")


def _literal(text: str) -> str:
    """`text` as a regular expression: whatever may have a meaning there is written as a number."""
    return _MEANINGFUL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
