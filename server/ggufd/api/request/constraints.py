"""Structured output under all its names: a grammar, a JSON schema, a regular expression, a choice.

At most one of them can hold; what they become is a `Grammar`, which the text process checks. Knows no route.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PrivateAttr, Strict, WithJsonSchema

from ggufd.api.http.ignored import is_ignored
from ggufd.api.request.fields import Resolved, is_unset, two_constraints
from ggufd.api.request.samplers import unknown_samplers
from ggufd.api.request.sampling import SamplingFields
from ggufd.api.request.validation import invalid_field
from ggufd.engine.messages.sampling import Grammar, GrammarKind, SamplingParams
from ggufd.errors import InvalidRequest

_ANY_OBJECT = {"type": "object"}


def read_schema(value: Any) -> Any:
    """A JSON schema, also as JSON in a string. `true` allows any JSON, and so does `{}` where it is not unset."""
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
    """Samplers, and at most one constraint. `response_format` is OpenAI's, `structured_outputs` vLLM's.

    `ignored` names what was asked for besides and is not done.
    """

    json_schema: Schema | None = None
    regex: Annotated[str, Strict()] | None = None
    choices: Choices | None = None
    response_format: Format | None = None
    structured_outputs: Annotated[Mapping[str, Any], WithJsonSchema(_ANY_OBJECT)] = Field(default_factory=dict)
    _resolved: Resolved = PrivateAttr(default_factory=Resolved)

    def model_post_init(self, context: Any, /) -> None:
        """Remember under which name each field came: errors are told in the client's own words."""
        self._resolved = context or Resolved()

    def to_params(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """As `SamplingFields.to_params`, with the constraint, else that of `defaults`.

        Raises InvalidRequest when there are two.
        """
        params = super().to_params({name: value for name, value in defaults.items() if name != "grammar"})
        found = self._constraints()
        if params.grammar is not None:
            found = {self._wire_name("grammar"): params.grammar, **found}
        if len(found) > 1:
            raise two_constraints(*found)
        return dataclasses.replace(params, grammar=next(iter(found.values()), defaults.get("grammar")))

    @property
    def constraint_param(self) -> str:
        """The field that holds the constraint, to name it in an error."""
        return next(iter(self._constraints()), self._wire_name("grammar"))

    @property
    def ignored(self) -> list[str]:
        """The client's names of fields that are ignored; unknown samplers each by its own."""
        unlisted = self._resolved.unlisted
        fields = [
            name for name, value in unlisted.items() if name not in type(self).model_fields and is_ignored(name, value)
        ]
        name = self._wire_name("samplers")
        return [*fields, *(f"{name}={unknown}" for unknown in unknown_samplers(self.samplers or []))]

    def _wire_name(self, field: str) -> str:
        return self._resolved.wire_name(field)

    def _constraints(self) -> dict[str, Grammar]:
        found: dict[str, Grammar] = {}
        if self.json_schema is not None:
            found[self._wire_name("json_schema")] = of_schema(self.json_schema)
        if self.regex:
            found[self._wire_name("regex")] = Grammar(GrammarKind.REGEX, self.regex)
        if self.choices is not None:
            found[self._wire_name("choices")] = of_choices(self.choices)
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
        raise invalid_field(param, str(error)) from None


def _of_structured(value: Mapping[str, Any]) -> Grammar | None:
    """vLLM's `structured_outputs`: an object with one of its constraints. What is no constraint of ours is refused."""
    asked = {name: item for name, item in value.items() if not _is_unset(name, item) and name not in _NO_CONSTRAINT}
    for name in asked:
        if name not in _STRUCTURED:
            raise _structured_error(f".{name}", f"expected one of {', '.join(_STRUCTURED)}")
    if len(asked) > 1:
        raise _structured_error("", f"only one constraint can hold at a time, but {' and '.join(asked)} were sent")
    for name, item in asked.items():
        try:
            return _STRUCTURED[name](item)
        except ValueError as error:
            raise _structured_error(f".{name}", str(error)) from None
    return None


def _is_unset(name: str, item: Any) -> bool:
    """`false` is a switch that is off, but as a schema it means that nothing is allowed."""
    return is_unset(f"guided_{name}", item) or (item is False and name != "json")


def _structured_error(path: str, reason: str) -> InvalidRequest:
    return invalid_field(f"structured_outputs{path}", reason)


def _read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a string")
    return value


def _read_switch(value: Any) -> Any:
    if value is not True:
        raise ValueError("expected true or false")
    return _ANY_OBJECT


_STRUCTURED: Mapping[str, Callable[[Any], Grammar]] = {
    "json": lambda value: of_schema(read_schema(value)),
    "regex": lambda value: Grammar(GrammarKind.REGEX, _read_text(value)),
    "choice": lambda value: of_choices(read_choices(value)),
    "grammar": lambda value: Grammar(GrammarKind.GBNF, _read_text(value)),
    "json_object": lambda value: of_schema(_read_switch(value)),
}
_NO_CONSTRAINT = frozenset(
    ("disable_fallback", "disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")
)
"""What else vLLM takes there: how its own engines write JSON."""

_MEANINGFUL = re.compile(r"[^\w \x80-\U0010ffff]")


def _literal(text: str) -> str:
    """`text` as a regular expression: whatever may have a meaning there is written as a number."""
    return _MEANINGFUL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
