"""Request bodies: bytes to a JSON object, within a size limit, whatever the content type says.

Everything a stranger can put there ends in a JSON object that is safe to look at, or in an error of ours.
Knows nothing of what the fields mean.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

from starlette.requests import Request

from ggufd.api.http.body_budget import share_of
from ggufd.api.http.long_strings import ShortBody, take_out
from ggufd.api.http.record import record_of
from ggufd.errors import InvalidRequest, PayloadTooLarge

JsonObject = dict[str, Any]

MAX_DEPTH = 100
"""Levels of nesting. Deeper data would overflow the stack of whoever walks it next (pickle, a template)."""

MAX_STRINGS = 50_000
MAX_VALUES = 150_000
MAX_CONTAINERS = 20_000
"""How long parsing takes goes by the number of strings, of values, and of arrays and objects, not by the bytes: 2 MB of
text take 2 ms, 2 MB of empty arrays 500 ms, for which nobody else would be served."""

_LARGE_BYTES = 64_000

_CONTAINERS = frozenset((dict, list))


async def read_json(request: Request, max_bytes: int) -> JsonObject:
    """The body as a JSON object. Raises `PayloadTooLarge`, `InvalidRequest`, or, beside many, `Unavailable`."""
    raw = await _read_in_turn(request, max_bytes)
    body = take_out(raw)
    # Strings that were taken out have no escapes, and are longer than the name.
    if b'"deterministic"' in body.raw or b"\\u" in body.raw:
        # A receipt has the request as it was sent, before any field is renamed. An escape may spell the name.
        record_of(request).body = raw
    return _object(body)


async def read_optional_json(request: Request, max_bytes: int) -> JsonObject:
    """The body as a JSON object, which is empty when there is no body."""
    raw = await _read_in_turn(request, max_bytes)
    return parse_json(raw) if raw.strip() else {}


async def read_array(request: Request, max_bytes: int) -> list[Any]:
    """The body as a JSON array. Raises `PayloadTooLarge` or `InvalidRequest`."""
    value = _parse(take_out(await _read_in_turn(request, max_bytes)), "array")
    if not isinstance(value, list):
        raise InvalidRequest(f"The request body must be a JSON array, not {_kind(value)}.")
    return value


async def _read_in_turn(request: Request, max_bytes: int) -> bytes:
    """The bytes of the body. Large ones that have come at once are handed out one by one, so that what is quick, as a
    probe is, waits for one of them and not for all.
    """
    raw = await _read_bytes(request, max_bytes)
    if len(raw) > _LARGE_BYTES:
        async with request.app.state.large_bodies:
            # Two turns: in one what came meanwhile is read, in the other it is answered.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    return raw


async def _read_bytes(request: Request, max_bytes: int) -> bytes:
    declared, share = request.headers.get("content-length", ""), share_of(request)
    if declared.isdecimal():
        if int(declared[:20]) > max_bytes:
            raise _too_large(max_bytes)
        share.cover(int(declared[:20]))
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        share.cover(len(body))
    return bytes(body)


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request body is over the limit of {max_bytes} bytes. Send less.")


def parse_json(raw: bytes) -> JsonObject:
    """The JSON object that `raw` holds. Raises `InvalidRequest` for anything else."""
    return _object(take_out(raw))


def _object(body: ShortBody) -> JsonObject:
    value = _parse(body, "object")
    if not isinstance(value, dict):
        raise InvalidRequest(f"The request body must be a JSON object, not {_kind(value)}.")
    return value


def _parse(body: ShortBody, expected: str) -> Any:
    """The JSON of a body, safe to walk through. Raises `InvalidRequest` for what is none."""
    if not body.raw.strip():
        raise InvalidRequest(f"The request body is empty. Expected a JSON {expected}.")
    return body.whole(_parse_short(body.raw))


def _parse_short(raw: bytes) -> Any:
    _check_size(raw)
    try:
        # Strict: UTF-16 would deceive whoever counts bytes, and so might surrogates whoever looks for their escapes.
        value = json.loads(raw.decode("utf-8-sig"), parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise InvalidRequest(f"The request body is not valid JSON: {error}.") from None
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        _check_depth(value)
    # Bytes that are valid UTF-8 hold no surrogate; only an escape can make one.
    if b"\\ud" in raw or b"\\uD" in raw:
        _check_surrogates(value)
    return value


def _check_size(raw: bytes) -> None:
    """Raises InvalidRequest for what would take long to parse. Counts roughly first, and without texts if need be."""
    n_strings = (raw.count(b'"') - raw.count(b'\\"')) // 2
    if n_strings > MAX_STRINGS:
        raise _too_much(f"{MAX_STRINGS} strings")
    if raw.count(b",") <= MAX_VALUES and raw.count(b"[") + raw.count(b"{") <= MAX_CONTAINERS:
        return
    skeleton = _without_texts(raw)
    if skeleton.count(b",") > MAX_VALUES:
        raise _too_much(f"{MAX_VALUES} values")
    if skeleton.count(b"[") + skeleton.count(b"{") > MAX_CONTAINERS:
        raise _too_much(f"{MAX_CONTAINERS} arrays and objects")


def _without_texts(raw: bytes) -> bytes:
    """JSON without what its strings hold; of a string that never ends, too. All of it by searching, which is quick."""
    # Escapes pair up from the left, so what is left of a quote's backslashes tells whether it is one of the text.
    return b"".join(raw.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])


def _too_much(what: str) -> InvalidRequest:
    return InvalidRequest(f"The request body holds too much: at most {what} are read.")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    """A number. One such as 1e400 is JSON, but as a float it is infinite, and no answer could tell it back."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:20]} is too large a number")
    return number


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"The request body is nested too deeply: at most {MAX_DEPTH} levels are read.")


def _check_depth(value: Any) -> None:
    level: list[Any] = [value] if type(value) in _CONTAINERS else []
    for _ in range(MAX_DEPTH):
        # By exact types, which are all that `json` makes: it matters where there are a hundred thousand numbers.
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) in _CONTAINERS
        ]
        if not level:
            return
    raise _too_deep()


def _check_surrogates(body: Any) -> None:
    for path, text in _strings("", body):
        try:
            text.encode()
        except UnicodeEncodeError:
            path = path.encode("ascii", "backslashreplace").decode()
            raise InvalidRequest(
                f"'{path}' holds half of a surrogate pair, which is no character. Send well-formed Unicode.",
                param=path or None,
            ) from None


def _strings(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every string in `value`, keys too, with where it stands. Recursion is safe below `MAX_DEPTH`."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield path, key
            yield from _strings(f"{path}.{key}" if path else key, child)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _strings(f"{path}[{index}]", child)
