"""Receipts in files: the receipt itself, or an answer that has one. Its request, ready to be sent again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ggufd.errors import GgufdError

VERSION = 1

_WHOLE = {"/api/extra/generate/stream": "/api/v1/generate"}
"""Routes that only stream, and those that give the same answer whole."""

_LEFT_OUT = ("stream_options", "resumable", "timeout")
"""Fields of streams, and the one that would end a slower answer."""


class ReplayError(GgufdError):
    """Replay that cannot be done; the message is one line."""

    code = "replay_failed"


@dataclass(frozen=True, slots=True)
class ReceiptFile:
    """Parts of a receipt. See docs/using/deterministic.md."""

    path: str
    body: Mapping[str, Any]
    computed_by: Mapping[str, Any]
    parameters: Mapping[str, Any]
    prompts: tuple[Mapping[str, Any], ...]
    choices: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """The receipt in a file. Raises `ReplayError`."""
        try:
            value = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise ReplayError(f"{path}: cannot be read: {error.strerror or error}") from None
        except (ValueError, RecursionError):
            raise ReplayError(f"{path}: is no JSON; expected the 'receipt' of an answer, or the answer") from None
        return cls.of(value, str(path))

    @classmethod
    def of(cls, value: Any, where: str) -> Self:
        """The receipt that a JSON value is or holds. Raises `ReplayError`; `where` is what holds it."""
        found = next(_receipts(value), None)
        if found is None:
            raise ReplayError(f"{where}: has no receipt; answers to requests with 'deterministic': true have one")
        if found["version"] != VERSION:
            raise ReplayError(f"{where}: its receipt is of version {found['version']}, this one reads {VERSION}")
        try:
            request = found["request"]
            receipt = cls(
                request["path"],
                request["body"],
                found["computed_by"],
                found["parameters"],
                tuple(found["prompts"]),
                tuple(found["choices"]),
            )
            receipt.check()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ReplayError(f"{where}: its receipt is not whole ({error})") from None
        return receipt

    def check(self) -> None:
        """Raises an error of Python's for parts of other types, or missing ones."""
        dict(self.body), dict(self.computed_by), dict(self.parameters)
        if not self.path.startswith("/"):
            raise ValueError("its path is none")
        for prompt in self.prompts:
            str(prompt["digest"]), int(prompt["n_tokens"])
        for choice in self.choices:
            [int(token) for token in choice["tokens"]]
            str(choice["finish_reason"])

    @property
    def request(self) -> tuple[str, dict[str, Any]]:
        """Path and body that ask for the same answer, whole."""
        path = _WHOLE.get(self.path, self.path)
        body = {name: value for name, value in self.body.items() if name not in _LEFT_OUT}
        stored = {"store": False} if path.endswith("/responses") else {}
        return path, {**body, **stored, "stream": False, "deterministic": True}


def _receipts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every receipt in a JSON value, from the outside to the inside."""
    if isinstance(value, list):
        for item in value:
            yield from _receipts(item)
    elif isinstance(value, dict):
        if "version" in value and "computed_by" in value:
            yield value
            return
        if "receipt" in value:
            yield from _receipts(value["receipt"])
        for name, item in value.items():
            if name != "receipt":
                yield from _receipts(item)
