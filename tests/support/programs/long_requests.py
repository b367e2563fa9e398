"""Streamed requests that run or wait until they are left, as the load of a server."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx

PLACED_S = 30


class LongRequest:
    """A streamed completion on a thread, until it ends or is left."""

    def __init__(self, url: str, key: str, prompt: str, n_tokens: int = 7900) -> None:
        self.lines: list[str] = []
        self.status = 0
        self.key = key
        self._url = url
        self._body = {"prompt": prompt, "max_tokens": n_tokens, "ignore_eos": True, "stream": True}
        self._is_left = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        headers = _headers(self.key)
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream(
                "POST", f"{self._url}/v1/completions", json=self._body, headers=headers, trust_env=False, timeout=120
            ) as answer,
        ):
            self.status = answer.status_code
            for line in answer.iter_lines():
                self.lines += [line] if line else []
                if self._is_left.is_set():
                    return

    @property
    def is_open(self) -> bool:
        return self._thread.is_alive()

    def wait_ended(self, timeout_s: float = 60.0) -> str:
        """Wait for its end by itself; its last line."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"the request goes on: {self.status}, {self.lines[-3:]}"
        return self.lines[-1]

    def leave(self) -> None:
        """Close the connection."""
        self._is_left.set()
        self._thread.join(30)


@contextlib.contextmanager
def long_requests(url: str, *keys: str, prompt: str = "Once upon a time") -> Iterator[list[LongRequest]]:
    """A request of each key, the first of them first; they are left at the end, and gone from the server then."""
    n_before = {key: len(placed(url, key)) for key in keys}
    started: list[LongRequest] = []
    try:
        for number, key in enumerate(keys):
            one = LongRequest(url, key, f"{prompt} {number}")
            started.append(one)
            _wait_placed(url, key, [one for one in started if one.key == key])
        yield started
    finally:
        for one in started:
            one.leave()
        # A test may have stopped the server: nothing goes on then.
        with contextlib.suppress(httpx.ConnectError):
            _wait_gone(url, n_before)


def _wait_placed(url: str, key: str, requests: Sequence[LongRequest]) -> None:
    """Wait until these requests of the key run or wait."""
    deadline = time.monotonic() + PLACED_S
    while len(placed(url, key)) < sum(one.is_open for one in requests):
        assert time.monotonic() < deadline, "the request is not seen"
        time.sleep(0.02)


def _wait_gone(url: str, n_before: Mapping[str, int]) -> None:
    """Wait until no more requests of each key run or wait than before."""
    deadline = time.monotonic() + PLACED_S
    while any(len(placed(url, key)) > n for key, n in n_before.items()):
        assert time.monotonic() < deadline, "requests that were left go on"
        time.sleep(0.02)


def placed(url: str, key: str) -> list[dict[str, Any]]:
    """Requests that run or wait, of those that the key may see, as `GET /v1/queue` lists them."""
    answer = httpx.get(f"{url}/v1/queue", headers=_headers(key), trust_env=False, timeout=PLACED_S)
    listed: list[dict[str, Any]] = answer.json()["data"]
    return listed


def _headers(key: str) -> dict[str, str]:
    return {"x-api-key": key} if key else {}
