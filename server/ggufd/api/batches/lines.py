"""Lines of an input file, each a request of its own: validation, with the number of every line that is wrong.

{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ggufd.api.http.body import parse_json
from ggufd.batches.records import BatchLine, LineFault
from ggufd.errors import InvalidRequest

RESPONSES = "/v1/responses"
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", RESPONSES, "/v1/embeddings")
MAX_LINES = 50_000
"""As many as OpenAI takes."""

_MAX_FAULTS = 100
_MAX_ID = 512


class LineReader:
    """Reader of the lines of one input file, for a batch to `endpoint`; call `read` until it returns False.

    A line is bounded by `max_bytes`, as the body of a request is. `faults` are what is wrong, `lines` what is not.
    """

    def __init__(self, path: Path, endpoint: str, max_bytes: int) -> None:
        self.faults: list[LineFault] = []
        self.lines: list[BatchLine] = []
        self._endpoint = endpoint
        self._max_bytes = max_bytes
        self._ids: set[str] = set()
        self._all = self._numbered(path)

    def read(self, n_lines: int) -> bool:
        """Check the next lines; whether there are more. Raises OSError."""
        return all(self._read_one() for _ in range(n_lines))

    def _read_one(self) -> bool:
        found = next(self._all, None)
        if found is None:
            self._finish()
            return False
        number, offset, raw = found
        if len(self.lines) >= MAX_LINES:
            self._fault(number, "too_many_lines", f"expected at most {MAX_LINES} lines; divide the file")
            return False
        if raw.strip():
            self._check(number, offset, raw)
        return len(self.faults) < _MAX_FAULTS

    def _numbered(self, path: Path) -> Iterator[tuple[int, int, bytes]]:
        with path.open("rb") as content:
            number, offset = 1, 0
            # A line without an end is as large as the file: no more of it is held than is looked at.
            while raw := content.readline(self._max_bytes + 2):
                yield number, offset, raw
                if len(raw) > self._max_bytes and not raw.endswith(b"\n"):
                    while len(rest := content.readline(self._max_bytes)) and not rest.endswith(b"\n"):
                        pass
                offset, number = content.tell(), number + 1

    def _finish(self) -> None:
        if not self.lines and not self.faults:
            self.faults.append(LineFault("empty_file", "The file has no lines.", None, "input_file_id"))

    def _fault(self, number: int | None, code: str, message: str, param: str | None = None) -> None:
        self.faults.append(LineFault(code, message, number, param))

    def _check(self, number: int, offset: int, raw: bytes) -> None:
        if len(raw.rstrip(b"\r\n")) > self._max_bytes:
            self._fault(number, "line_too_large", f"the line is over the limit of {self._max_bytes} bytes")
            return
        try:
            line = parse_json(raw)
        except InvalidRequest as error:
            self._fault(number, "invalid_json_line", error.message.replace("The request body", "The line"))
            return
        fault = self._fault_of(line)
        if fault is not None:
            self._fault(number, *fault)
            return
        custom_id = line["custom_id"]
        self._ids.add(custom_id)
        self.lines.append(BatchLine(number, offset, len(raw), custom_id))

    def _fault_of(self, line: dict[str, Any]) -> tuple[str, str, str] | None:
        """Code, message and field of what is wrong with a line; None where nothing is."""
        custom_id = line.get("custom_id")
        if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MAX_ID:
            what = f"expected a text of 1 to {_MAX_ID} characters that no other line has"
            return "invalid_custom_id", f"'custom_id': {what}", "custom_id"
        if custom_id in self._ids:
            return "duplicate_custom_id", f"'custom_id': an earlier line has {custom_id[:60]!a} too", "custom_id"
        if line.get("method") != "POST":
            return "invalid_method", "'method': expected 'POST'", "method"
        if line.get("url") != self._endpoint:
            return "mismatched_endpoint", f"'url': expected '{self._endpoint}', as the batch says", "url"
        body = line.get("body")
        if not isinstance(body, dict):
            return "invalid_body", "'body': expected an object", "body"
        if body.get("stream"):
            return "invalid_body", "'body.stream': nobody reads a stream here; leave it out", "body.stream"
        return None


def body_of(raw: bytes) -> dict[str, Any]:
    """The request in a line that was found valid."""
    line = parse_json(raw)
    body: dict[str, Any] = line["body"]
    if line["url"] == RESPONSES and body.get("store") is None:
        # Fifty thousand of them would push out what people go on from.
        body["store"] = False
    return body
