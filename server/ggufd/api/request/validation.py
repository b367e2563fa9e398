"""Validation of a JSON object by a pydantic model, and pydantic's errors as one sentence for people.

Knows no route and no field; which names a client used comes from `fields.Resolved`.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from ggufd.api.request.fields import UNSET, Aliases, Resolved, Unset, resolve
from ggufd.errors import InvalidRequest
from ggufd.wording import plain

Model = TypeVar("Model", bound=BaseModel)

_short = reprlib.Repr()
_short.maxstring, _short.maxlong, _short.maxlevel = 60, 40, 2
_NO_VALUE = ("missing", "value_error", "json_invalid")


class Body(BaseModel):
    """Base of request bodies; unknown fields are passed over.

    Its validator is built at the first request: most API families are never used, and the start would wait for all of
    them.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)


def invalid_field(path: str, what: str) -> InvalidRequest:
    """Error for a field, by the client's own path to it."""
    return InvalidRequest(f"'{path}': {what}.", param=path)


def validate(
    model: type[Model], body: Mapping[str, Any], aliases: Aliases, *, unset: Unset = UNSET, where: str = ""
) -> Model:
    """The body as `model`. Raises InvalidRequest that names the client's own field; `where` is the object itself."""
    resolved = resolve(body, aliases, unset)
    try:
        return model.model_validate(resolved.values, context=resolved)
    except ValidationError as error:
        raise _as_invalid_request(error, resolved, where) from None


def _as_invalid_request(error: ValidationError, resolved: Resolved, where: str) -> InvalidRequest:
    details = error.errors(include_url=False, include_context=False)
    first = details[0]
    param = _path(first["loc"], resolved, where)
    more = f" ({len(details) - 1} more such errors)" if len(details) > 1 else ""
    return InvalidRequest(f"{_subject(param)}{_sentence(first)}.{more}", param=param)


def _subject(param: str | None) -> str:
    return f"'{param}': " if param else ""


def _path(loc: Sequence[int | str], resolved: Resolved, where: str) -> str | None:
    """`messages[0].role` out of `("messages", 0, "role")`; the first part as the client wrote it."""
    path = where
    for position, part in enumerate(loc):
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            name = resolved.wire_name(part) if position == 0 else part
            path += f".{name}" if path else name
    return path or None


def _sentence(detail: ErrorDetails) -> str:
    if detail["type"] == "missing":
        return "is required but missing"
    message = plain(re.sub(r"^(Input|Value error,) ?(should be)?", _expected, detail["msg"]).strip())
    if detail["type"] in _NO_VALUE:
        return message
    return f"{message}, got {_shown(detail['input'])}"


def _expected(match: re.Match[str]) -> str:
    return "expected" if match.group(2) else ""


def _shown(value: object) -> str:
    names = {True: "true", False: "false", None: "null"}
    if isinstance(value, bool) or value is None:
        return names[value]
    return _short.repr(value).encode("ascii", "backslashreplace").decode()
