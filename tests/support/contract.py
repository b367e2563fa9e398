"""What a client asks and what it must find in the reply: plain data, read and checked here.

A file of `tests/contract/` is one client in one version: `base` is a body that most of its requests change a little
(`changes`, `without`), others bring their own `body`. A check looks `at` a path (`a[0].b`, `[*]` for every element,
on a stream the elements are its events) or at the `text` that the values there make up together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "contracts"

_LONG = "{5000 words}"
_LIMITS = frozenset(("max_tokens", "max_new_tokens", "n_predict", "num_predict", "max_length"))
_BARE = _LIMITS | {
    *("prompt", "messages", "stream", "raw", "options", "stop", "stop_sequence", "temperature"),
    *("rep_pen", "repetition_penalty", "repeat_penalty", "rep_pen_range", "repetition_penalty_range", "repeat_last_n"),
}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
}
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\*|-?\d+)\]")


@dataclass(frozen=True)
class Exchange:
    """One request and what its reply must be."""

    client: str
    name: str
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any] | None
    reply: str
    status: int
    checks: list[dict[str, Any]] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.client}: {self.name}"

    @property
    def is_default(self) -> bool:
        """Whether it asks for text and for nothing else: what a client sends whose user has set nothing."""
        names = ("an answer", "a stream", "the older completions route")
        return self.status == 200 and self.name.startswith(names) and "probabilities" not in self.name

    def greedy(self, n_tokens: int) -> dict[str, Any]:
        """The body at temperature 0, with another limit."""
        assert self.body is not None
        body = _limited(self.body, n_tokens)
        if "options" in body:
            return body | {"options": _limited(body["options"], n_tokens) | {"temperature": 0}}
        return body | {"temperature": 0}

    def bare(self, n_tokens: int) -> dict[str, Any]:
        """The same with nothing but the prompt, limits, stop strings and penalties."""
        body = self.greedy(n_tokens)
        body |= {"options": bared(body["options"])} if "options" in body else {}
        # A model that is named tells OpenAI's /completions from llama-server's.
        return bared(body) | ({"model": body["model"]} if "model" in body else {})

    @property
    def content(self) -> bytes:
        """The body as it goes over the wire."""
        return b"" if self.body is None else json.dumps(self.body).encode()

    @property
    def greedy_content(self) -> bytes:
        """The same at temperature 0: what a true model says is then no matter of luck."""
        if self.body is None:
            return b""
        body = self.body | ({"temperature": 0} if "temperature" in self.body else {})
        options = self.body.get("options")
        return json.dumps(body | ({"options": options | {"temperature": 0}} if options else {})).encode()


def bared(part: dict[str, Any]) -> dict[str, Any]:
    """What a body says of what to write on from, how far, where to stop, and with which penalties."""
    return {name: value for name, value in part.items() if name in _BARE}


def _limited(part: dict[str, Any], n_tokens: int) -> dict[str, Any]:
    return {name: n_tokens if name in _LIMITS else value for name, value in part.items()}


def exchanges() -> list[Exchange]:
    """Everything in the folder."""
    return [exchange for path in sorted(FOLDER.glob("*.json")) for exchange in _read(path)]


def _read(path: Path) -> Iterator[Exchange]:
    data = json.loads(path.read_text("utf-8"))
    for one in data["exchanges"]:
        request = one["request"]
        body = request.get("body")
        if "changes" in request:
            body = data["base"] | request["changes"]
            body = {name: value for name, value in body.items() if name not in request.get("without", ())}
        headers = {"Content-Type": "application/json", **request.get("headers", {})}
        yield Exchange(
            client=f"{data['client']} {data['version']}",
            name=one["name"],
            method=request["method"],
            path=request["path"],
            headers={name: value for name, value in headers.items() if value or name != "Content-Type"},
            body=_with_long_texts(body),
            reply=one["reply"],
            status=one["status"],
            checks=one["checks"],
        )


def _with_long_texts(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(_LONG, "word " * 5000)
    if isinstance(value, list):
        return [_with_long_texts(item) for item in value]
    if isinstance(value, dict):
        return {name: _with_long_texts(item) for name, item in value.items()}
    return value


def check(exchange: Exchange, status: int, headers: dict[str, str], text: str) -> None:
    """Assert that a reply is what the exchange says, and what every reply must be."""
    assert status == exchange.status, f"{status}: {text[:500]}"
    assert "\u2028" not in text
    assert "\u2029" not in text
    # A request that is refused is refused before anything is streamed.
    data = read(exchange, text) if status == 200 else _whole(text)
    kinds = {"json": "application/json", "lines": "application/x-ndjson"}
    expected = kinds.get(exchange.reply, "text/event-stream") if status == 200 else kinds["json"]
    assert headers["content-type"].startswith(expected)
    if status == 200:
        _check_no_error(exchange, data)
    else:
        assert isinstance(data["error"]["message"], str)
        assert "detail" not in data
    if exchange.reply == "events" and "/completions" in exchange.path and status == 200:
        assert text.rstrip().endswith("data: [DONE]")
        assert all(len(chunk["choices"]) <= 1 for chunk in data)
    for one in exchange.checks:
        _check_one(one, data)


def read(exchange: Exchange, text: str) -> Any:
    """What the reply to this exchange holds, as JSON data."""
    readers = {"json": _whole, "events": _events, "named events": _named_events, "lines": _lines}
    return readers[exchange.reply](text)


def _check_no_error(exchange: Exchange, data: Any) -> None:
    """Clients take any truthy `error`, `message` or `detail` at the top of a chunk for an error."""
    for item in data if isinstance(data, list) else [data]:
        names = {"error", "detail"} | ({"message"} if exchange.reply == "events" else set())
        assert not any(item.get(name) for name in names), item


def _strict(text: str) -> Any:
    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def _whole(text: str) -> Any:
    return _strict(text)


def _lines(text: str) -> Any:
    return [_strict(line) for line in text.splitlines()]


def _events(text: str) -> Any:
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    data = [block.removeprefix("data: ") for block in blocks]
    assert all(item.strip() for item in data), "an event without data"
    return [_strict(item) for item in data if item != "[DONE]"]


def _named_events(text: str) -> Any:
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("event: message\ndata: ") for block in blocks)
    return [_strict(block.partition("data: ")[2]) for block in blocks]


def _check_one(one: dict[str, Any], data: Any) -> None:
    if "text" in one:
        text = "".join(map(str, found(data, one["text"])))
        if "same_as" in one:
            assert text == "".join(map(str, found(data, one["same_as"]))), one
        assert text, f"no text at {one['text']}"
        return
    values = list(found(data, one["at"]))
    if one.get("absent"):
        assert not values, one
        return
    assert values, f"nothing at {one['at']}"
    if "type" in one:
        is_bool_wanted = one["type"] == "boolean"
        assert all(isinstance(value, _TYPES[one["type"]]) for value in values), (one, values)
        assert all(isinstance(value, bool) == is_bool_wanted for value in values), (one, values)
    if "equals" in one:
        assert values == [one["equals"]], (one, values)
    if "values" in one:
        assert sorted(set(values)) == one["values"], (one, values)
    if "contains" in one:
        assert one["contains"] in values[0], (one, values)


def found(data: Any, path: str) -> Iterator[Any]:
    """Every value at a path; what is missing is passed over."""
    values = [data]
    for match in _STEP.finditer(path):
        name, index = match.groups()
        values = [child for value in values for child in _step(value, name, index)]
    return iter(values)


def _step(value: Any, name: str | None, index: str | None) -> list[Any]:
    if name is not None:
        return [value[name]] if isinstance(value, dict) and value.get(name) is not None else []
    if not isinstance(value, list) or not value:
        return []
    if index == "*":
        return list(value)
    position = int(index or 0)
    return [value[position]] if -len(value) <= position < len(value) else []
