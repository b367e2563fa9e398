"""JSON schemas for llguidance: preparation, and the location of unsupported keywords.

llguidance refuses keywords that it does not know how to enforce, which is what keeps a schema from failing open; but it
does not say where. `locate` finds the place by trying smaller parts of the schema.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from ggufd.errors import InvalidRequest

MAX_LEVELS = 1000
"""Schemas inside schemas, references followed. llguidance descends as deep, on the thread's stack."""

STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
"""JSON as Python writes it. With free whitespace small models write it for ever, and nothing is ever forced."""

_MAPS = ("properties", "patternProperties", "dependentSchemas")
_DEFINITIONS = ("$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLES = (
    "items",
    "additionalItems",
    "additionalProperties",
    "contains",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
    "propertyNames": (True, {}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
}
"""Keywords without effect, which llguidance refuses by their names."""

_MAX_MULTIPLE = 20_000
"""The least common multiple of all `multipleOf`, powers of ten aside: llguidance makes a state of each remainder."""

_MAX_EXACT = 2**53
"""The largest whole number up to which a double is each of them."""

_DIALECT = re.compile(r"https?://json-schema\.org/(?:(draft-0[3467])|draft/(2019-09|2020-12))/schema#?")

Refusal = Callable[[str], str | None]
"""Why a schema, written as JSON, is refused; None when it is not."""


class Subschema(NamedTuple):
    """A schema inside a schema, with the JSON pointer to it."""

    pointer: str
    schema: dict[str, Any]


def prepared(text: str) -> str:
    """Schema as llguidance takes it, with the style of its JSON. Raises InvalidRequest when it is none."""
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise refused(f"it is no valid JSON: {error}.") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise refused("expected an object.")
    name_dialect(schema)
    _check_levels(schema)
    _check_multiples(schema)
    for place in places(Subschema("#", schema)):
        for keyword, values in _NEUTRAL.items():
            if place.schema.get(keyword) in values and keyword in place.schema:
                del place.schema[keyword]
        _check_numbers(place)
        if "x-guidance" in place.schema:
            # It could switch off the very refusals that this server relies on.
            raise refused(f"'{place.pointer}/x-guidance' is not supported.")
    return json.dumps(schema | {"x-guidance": STYLE}, ensure_ascii=False)


def name_dialect(schema: dict[str, Any]) -> None:
    """Normalise the name of a dialect; many leave out a `#` or the `s` of https."""
    found = _DIALECT.fullmatch(str(schema.get("$schema")))
    if found is not None:
        old, new = found.groups()
        schema["$schema"] = (
            f"http://json-schema.org/{old}/schema#" if old else f"https://json-schema.org/draft/{new}/schema"
        )


def refused(reason: str) -> InvalidRequest:
    """Error for a schema that cannot be enforced."""
    return InvalidRequest(f"The JSON schema cannot be enforced: {reason}", param="grammar")


def places(start: Subschema) -> Iterator[Subschema]:
    """`start` and every schema inside it, outer ones first. References are not followed."""
    waiting = [start]
    while waiting:
        place = waiting.pop()
        yield place
        waiting.extend(reversed(list(children(place))))


def children(place: Subschema, *, definitions: bool = True) -> Iterator[Subschema]:
    """Direct subschemas of a schema."""
    for keyword in (*_MAPS, *(_DEFINITIONS if definitions else ())):
        inner = place.schema.get(keyword)
        if isinstance(inner, dict):
            yield from _schemas(place, ((f"{keyword}/{_escaped(name)}", value) for name, value in inner.items()))
    for keyword in _LISTS:
        inner = place.schema.get(keyword)
        if isinstance(inner, list):
            yield from _schemas(place, ((f"{keyword}/{i}", value) for i, value in enumerate(inner)))
    yield from _schemas(place, ((keyword, place.schema.get(keyword)) for keyword in _SINGLES))


def locate(text: str, reason: str, refusal: Refusal) -> str:
    """A JSON pointer to the keyword that is refused for `reason`: the innermost that is so alone, else "#"."""
    schema = json.loads(text)
    place = Subschema("#", schema if isinstance(schema, dict) else {})
    is_reference = "$ref" in reason or "Pointer" in reason or "Resource" in reason
    while inner := next((one for one in children(place) if _is_refused(one, reason, refusal, is_reference)), None):
        place = inner
    if place.pointer == "#" and not _is_refused(place, reason, refusal, is_reference):
        return "#"
    for keyword in place.schema:
        rest = {name: value for name, value in place.schema.items() if name != keyword}
        if not _is_refused(Subschema(place.pointer, rest), reason, refusal, is_reference):
            return f"{place.pointer}/{_escaped(keyword)}"
    return place.pointer


def _is_refused(place: Subschema, reason: str, refusal: Refusal, is_reference: bool) -> bool:
    # A part alone has nothing that its references could point to.
    part = place.schema if is_reference else _without_references(place.schema)
    return refusal(json.dumps(part)) == reason


def _without_references(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_references(inner) for name, inner in value.items() if name != "$ref"}
    return [_without_references(inner) for inner in value] if isinstance(value, list) else value


def _check_levels(schema: dict[str, Any]) -> None:
    """Check of nesting. Raises InvalidRequest when schemas nest too deep, references followed, each visited once."""
    seen: set[int] = set()
    waiting = [(Subschema("#", schema), 1)]
    while waiting:
        place, level = waiting.pop()
        if id(place.schema) in seen:
            continue
        seen.add(id(place.schema))
        if level > MAX_LEVELS:
            raise refused(f"at '{place.pointer}' it is more than {MAX_LEVELS} levels deep.")
        target = _target(schema, place.schema.get("$ref"))
        inner = [*children(place, definitions=False), *([] if target is None else [target])]
        waiting.extend((one, level + 1) for one in inner)


def _check_numbers(place: Subschema) -> None:
    """Raises InvalidRequest for whole numbers that llguidance, which reads them as doubles, would write otherwise."""
    for keyword in ("const", "enum"):
        waiting = [place.schema.get(keyword)]
        while waiting:
            value = waiting.pop()
            if isinstance(value, (dict, list)):
                waiting.extend(value.values() if isinstance(value, dict) else value)
            elif isinstance(value, int) and abs(value) > _MAX_EXACT:
                raise refused(f"'{place.pointer}/{keyword}': whole numbers beyond 2**53 cannot be held exactly.")


def _check_multiples(schema: dict[str, Any]) -> None:
    """Raises InvalidRequest where `multipleOf` would take minutes to compile; `allOf` may multiply any of them."""
    multiple = 1
    for place in places(Subschema("#", schema)):
        value = place.schema.get("multipleOf")
        if isinstance(value, (int, float)) and value > 0:
            digits = Decimal(str(value)).normalize().as_tuple().digits
            multiple = math.lcm(multiple, int("".join(map(str, digits))))
        if multiple > _MAX_MULTIPLE:
            raise refused(
                f"'{place.pointer}/multipleOf': the least common multiple of all 'multipleOf' is more than "
                f"{_MAX_MULTIPLE}, powers of ten aside."
            )


def _target(root: dict[str, Any], reference: Any) -> Subschema | None:
    """Target of a reference into the same document."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found: Any = root
    for part in filter(None, reference[1:].split("/")):
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict) and name in found:
            found = found[name]
        else:
            return None
    return Subschema(reference, found) if isinstance(found, dict) else None


def _schemas(place: Subschema, inner: Iterator[tuple[str, Any]]) -> Iterator[Subschema]:
    return (Subschema(f"{place.pointer}/{way}", value) for way, value in inner if isinstance(value, dict))


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
