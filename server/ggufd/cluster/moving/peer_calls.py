"""Calls to the servers of a cluster about the chats that they keep. Every one ends within its time."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp

from ggufd.api.peers.gate import TOKEN_HEADER

_CALL_S = 10.0
_LOOK_S = 3.0

FETCH_S = 60.0
"""What moving one chat may take."""


class CallFailed(Exception):
    """A server that gave no answer, or not the one that was asked for; in words for a log."""


class KeptChat(NamedTuple):
    """A chat that a server keeps on disk. `chat` is the digest of its conversation, empty where none was named."""

    digest: str
    n_bytes: int
    n_tokens: int
    used_s: float
    chat: bytes


class FetchResult(NamedTuple):
    """What came of a move: `status` is `fetched`, `present` or `failed`, the latter with its reason."""

    status: str
    n_bytes: int = 0
    reason: str = ""


class PeerCalls:
    """Calls with the cluster's token, inside `async with`."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(headers={TOKEN_HEADER: self._token})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def n_open(self, url: str) -> int:
        """Requests that run or wait at a server. Raises CallFailed."""
        load = await self._call("GET", f"{url}/peers/load", _LOOK_S)
        return int(load["running"]) + int(load["waiting"])

    async def fingerprint(self, url: str) -> str:
        """What a server computes with: states fit only where it is the same. Raises CallFailed."""
        return str((await self._call("GET", f"{url}/peers/load", _LOOK_S))["fingerprint"])

    async def save(self, url: str, timeout_s: float) -> int:
        """Have a server write what it keeps to disk; how many chats it had no time for. Raises CallFailed."""
        answer = await self._call("POST", f"{url}/peers/chats/save", timeout_s + _CALL_S, {"timeout_s": timeout_s})
        return int(answer["left"])

    async def kept(self, url: str) -> list[KeptChat]:
        """Chats that a server has on disk, the most recently used first. Raises CallFailed."""
        answer = await self._call("GET", f"{url}/peers/chats", _CALL_S)
        return [_kept(one) for one in answer["data"]]

    async def fetch(self, target: str, source: str, digest: str, timeout_s: float) -> FetchResult:
        """Have one server fetch a chat from another one. Raises CallFailed."""
        body = {"from": source, "digest": digest, "timeout_s": timeout_s}
        # Fetches wait for each other there.
        answer = await self._call("POST", f"{target}/peers/chats/fetch", 2 * timeout_s + _CALL_S, body)
        return FetchResult(str(answer["status"]), int(answer.get("n_bytes", 0)), str(answer.get("reason", "")))

    async def _call(self, method: str, url: str, timeout_s: float, body: Mapping[str, Any] | None = None) -> Any:
        assert self._session is not None
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(method, url, json=body, timeout=timeout) as response:
                if response.status != 200:
                    raise CallFailed(f"{url} answered {response.status}")
                return await response.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise CallFailed(f"{url}: {error or type(error).__name__}") from None


def _kept(told: Mapping[str, Any]) -> KeptChat:
    chat = bytes.fromhex(told["chat"] or "")
    return KeptChat(str(told["digest"]), int(told["n_bytes"]), int(told["n_tokens"]), float(told["used_s"]), chat)
