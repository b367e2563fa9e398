"""Error formats of API families. OpenAI's is the default; a family may bring another one.

The application hands the shapes of its families to the outermost middleware, which notes the one of each request in
its scope. Knows no family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ggufd.api.http.paths import own_path

_SCOPE_SHAPE = "ggufd.error_shape"

REQUEST_ID_HEADER = "x-request-id"


class ErrorBody(Protocol):
    """The JSON body of an error. `kind` is OpenAI's error type, `param` the field, `code` the reason, `details` the
    numbers of the message by name, where it has some.
    """

    def __call__(
        self,
        message: str,
        *,
        status: int,
        kind: str,
        param: str | None,
        code: str | None,
        details: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]: ...


def openai_body(
    message: str,
    *,
    status: int,
    kind: str,
    param: str | None,
    code: str | None,
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """OpenAI's error body, which has no place for details."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """The error body of the paths that `matches` says are a family's, and the headers that tell a request's id."""

    matches: Callable[[str], bool]
    body: ErrorBody
    id_headers: tuple[str, ...] = (REQUEST_ID_HEADER,)


OPENAI = ErrorShape(lambda path: True, openai_body)
"""The shape of every path that no family claims."""


def note_shape(scope: MutableMapping[str, Any], shapes: Sequence[ErrorShape]) -> ErrorShape:
    """Choose the shape of a request, the first of `shapes` that matches its path, and note it in its scope."""
    path = own_path(scope)
    shape = next((one for one in shapes if one.matches(path)), OPENAI)
    scope[_SCOPE_SHAPE] = shape
    return shape


def shape_of(scope: MutableMapping[str, Any]) -> ErrorShape:
    """The shape that was noted for a request; OpenAI's where none was."""
    shape: ErrorShape = scope.get(_SCOPE_SHAPE, OPENAI)
    return shape
