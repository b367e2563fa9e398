"""Streamed requests that run or wait until they are left, as the load of a server."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence

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
    """A request of each key, the first of them first; they are left at the end."""
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


def _wait_placed(url: str, key: str, requests: Sequence[LongRequest]) -> None:
    """Wait until these requests of the key run or wait."""
    deadline = time.monotonic() + PLACED_S
    while _n_placed(url, key) < sum(one.is_open for one in requests):
        assert time.monotonic() < deadline, "the request is not seen"
        time.sleep(0.02)


def _n_placed(url: str, key: str) -> int:
    return len(httpx.get(f"{url}/v1/queue", headers=_headers(key), trust_env=False, timeout=PLACED_S).json()["data"])


def _headers(key: str) -> dict[str, str]:
    return {"x-api-key": key} if key else {}
