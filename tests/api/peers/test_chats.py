"""Chats between two servers of a cluster: listed, written, sent, fetched; and what is wrong with one costs it alone."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from ggufd.api.peers import transfer
from ggufd.engine.kv_store import state_file, state_head
from ggufd.engine.kv_store.state_file import KeptState
from ggufd.engine.messages.config import DiskPlace
from ggufd.engine.messages.requests import EVERYBODYS, CacheScope
from tests.support.fakes.api_client import Api, error_of, running
from tests.support.fakes.api_server import Served, serving
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.limits import ANSWER_S

TOKEN = "t" * 32
PEER = {"x-ggufd-peer": TOKEN}
CHAT = "ab" * 16
BIG = 1 << 30


def engine(folder: Path, fingerprint: str = "model", max_bytes: int = BIG) -> FakeEngine:
    folder.mkdir(exist_ok=True)
    made = FakeEngine()
    assert made.ready is not None
    made.ready = replace(made.ready, disk=DiskPlace(str(folder), max_bytes, fingerprint), fingerprint=fingerprint)
    return made


def put(
    folder: Path, first: int = 5, chat: str = CHAT, scope: CacheScope = EVERYBODYS, fingerprint: str = "model"
) -> str:
    """A chat on disk, 300 tokens long; its digest."""
    folder.mkdir(exist_ok=True)
    tokens = array("i", range(first, first + 300))
    digest = state_head.digest_of(fingerprint, tokens, scope)
    kept = KeptState(tokens, np.full(3_000_000, first % 256, np.uint8), scope, "somebody", chat)
    state_file.write(folder / f"{digest}.npz", kept, fingerprint)
    return digest


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def fetch(api: Api, source: str, digest: str, **more: Any) -> dict[str, Any]:
    response = await api.post("/peers/chats/fetch", {"from": source, "digest": digest, **more}, headers=PEER)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def reason(api: Api, folder: Path, source: str, digest: str, **more: Any) -> str:
    """Why a chat was not taken; nothing has changed then."""
    before = files(folder)
    answer = await fetch(api, source, digest, **more)
    assert answer["status"] == "failed"
    assert files(folder) == before
    assert api.engine.adopted == []
    assert (await api.http.get("/health")).status_code == 200
    return str(answer["reason"])


# --- list and save ----------------------------------------------------------------------------------------------------


async def test_chats_that_fit_are_listed_the_last_used_first(tmp_path: Path) -> None:
    old, new = put(tmp_path, 5), put(tmp_path, 1000, chat="")
    os.utime(tmp_path / f"{old}.npz", (1000.0, 1000.0))
    put(tmp_path, 5, fingerprint="another model")
    (tmp_path / ("0" * 32 + ".npz")).write_bytes(b"broken")
    (tmp_path / ".lock").touch()
    async with running(engine(tmp_path), peer_token=TOKEN) as api:
        answer = (await api.http.get("/peers/chats", headers=PEER)).json()
    first, second = answer["data"]
    assert (first["digest"], first["chat"]) == (new, None)
    assert second == {
        "digest": old,
        "n_bytes": (tmp_path / f"{old}.npz").stat().st_size,
        "n_tokens": 300,
        "used_s": 1000.0,
        "chat": CHAT,
        "fingerprint": "model",
    }


async def test_a_server_without_a_disk_has_none() -> None:
    async with running(peer_token=TOKEN) as api:
        assert (await api.http.get("/peers/chats", headers=PEER)).json()["data"] == []
        assert error_of(await api.http.get(f"/peers/chats/{'0' * 32}", headers=PEER), 404)
        answer = await fetch(api, "http://127.0.0.1:9", "0" * 32)
        assert (answer["status"], "--cache-disk" in answer["reason"]) == ("failed", True)


async def test_saving_goes_on_until_nothing_is_left() -> None:
    async with running(peer_token=TOKEN) as api:
        api.engine.n_unsaved = 5
        assert (await api.http.post("/peers/chats/save", headers=PEER)).json() == {"left": 0}
        api.engine.n_unsaved = 1000
        answer = await api.post("/peers/chats/save", {"timeout_s": 0.1}, headers=PEER)
        assert 0 < answer.json()["left"] < 1000


@pytest.mark.parametrize("digest", ["0" * 32, "..%2f..%2fetc%2fpasswd", "A" * 32, "0" * 31, ".lock"])
async def test_no_other_file_of_the_machine_is_sent(digest: str, tmp_path: Path) -> None:
    put(tmp_path)
    (tmp_path / ".lock").touch()
    async with running(engine(tmp_path), peer_token=TOKEN) as api:
        assert error_of(await api.http.get(f"/peers/chats/{digest}", headers=PEER), 404)


async def test_a_chat_is_sent_as_it_lies_there_with_the_digest_of_its_bytes(tmp_path: Path) -> None:
    digest = put(tmp_path)
    raw = (tmp_path / f"{digest}.npz").read_bytes()
    async with running(engine(tmp_path), peer_token=TOKEN) as api:
        response = await api.http.get(f"/peers/chats/{digest}", headers=PEER)
    assert response.content == raw
    expected = base64.b64encode(hashlib.sha256(raw).digest()).decode()
    assert response.headers["content-digest"] == f"sha-256=:{expected}:"
    assert float(response.headers["x-ggufd-used"]) == pytest.approx(time.time(), abs=60)


# --- fetch ------------------------------------------------------------------------------------------------------------


@contextmanager
def giver(folder: Path, token: str = TOKEN) -> Iterator[Served]:
    with serving(engine(folder), peer_token=token) as served:
        yield served


async def test_a_chat_is_fetched_and_given_to_the_engine(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    digest = put(there, scope=CacheScope("alice", (0.5,)))
    os.utime(there / f"{digest}.npz", (2000.0, 2000.0))
    with giver(there) as peer:
        async with running(engine(here), peer_token=TOKEN) as api:
            answer = await fetch(api, peer.url, digest)
            assert answer == {"status": "fetched", "n_tokens": 300, "n_bytes": (there / f"{digest}.npz").stat().st_size}
            (chat,) = api.engine.adopted
            assert (chat.path, chat.used_s) == (str(here / f"{digest}.npz"), 2000.0)
            assert (chat.tokens.tolist(), chat.cache_scope) == ([*range(5, 305)], CacheScope("alice", (0.5,)))
            assert await fetch(api, peer.url, digest) == {"status": "present"}
    assert files(here) == [f"{digest}.npz"]
    path = here / f"{digest}.npz"
    assert path.read_bytes() == (there / f"{digest}.npz").read_bytes()
    assert (path.stat().st_mtime, path.stat().st_mode & 0o077) == (2000.0, 0)


async def test_a_peer_that_has_not_the_chat_or_another_token_is_a_failure(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    digest = put(there)
    async with running(engine(here), peer_token=TOKEN) as api:
        with giver(there) as peer:
            assert await reason(api, here, peer.url, "0" * 32) == "the peer answered 404"
        with giver(there, token="another" * 8) as peer:
            assert await reason(api, here, peer.url, digest) == "the peer answered 401"
        assert "refused" in await reason(api, here, peer.url, digest)


async def test_a_chat_that_is_too_large_is_not_even_read(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    digest = put(there)
    with giver(there) as peer:
        async with running(engine(here, max_bytes=1_000_000), peer_token=TOKEN) as api:
            assert "no more than 1000000 are kept" in await reason(api, here, peer.url, digest)


async def test_a_folder_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    digest = put(there)
    made = engine(here)
    here.rmdir()
    with giver(there) as peer:
        async with running(made, peer_token=TOKEN) as api:
            answer = await fetch(api, peer.url, digest)
            assert answer == {"status": "failed", "reason": "No such file or directory"}


Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def liar(answer: Answer) -> Iterator[str]:
    """A peer that says what a test wants it to; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def said(raw: bytes, *, digest_of: bytes | None = None, length: int | None = None) -> Answer:
    """An answer of these bytes, with the digest of others, or with another length."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        sha256 = hashlib.sha256(raw if digest_of is None else digest_of).digest()
        handler.send_response(200)
        handler.send_header("content-length", str(len(raw) if length is None else length))
        handler.send_header("content-digest", transfer.digest_header(sha256))
        handler.end_headers()
        handler.wfile.write(raw)

    return answer


def raw_of(folder: Path, **changes: Any) -> tuple[bytes, str]:
    digest = put(folder, **changes)
    return (folder / f"{digest}.npz").read_bytes(), digest


async def test_bytes_that_changed_on_the_way_are_refused(tmp_path: Path) -> None:
    raw, digest = raw_of(tmp_path / "there")
    broken = raw[:1_000_000] + bytes([raw[1_000_000] ^ 1]) + raw[1_000_001:]
    async with running(engine(tmp_path / "here"), peer_token=TOKEN) as api:
        with liar(said(broken, digest_of=raw)) as url:
            assert await reason(api, tmp_path / "here", url, digest) == "its bytes are not what the peer read"


async def test_another_models_chat_and_another_chat_are_refused(tmp_path: Path) -> None:
    here = tmp_path / "here"
    foreign, of_foreign = raw_of(tmp_path / "there", fingerprint="another model")
    other, _ = raw_of(tmp_path / "there", first=900)
    async with running(engine(here), peer_token=TOKEN) as api:
        with liar(said(foreign)) as url:
            assert "computed by another model" in await reason(api, here, url, of_foreign)
        with liar(said(other)) as url:
            assert await reason(api, here, url, "0" * 32) == "it is another chat than was asked for"


@pytest.mark.parametrize("raw", [b"", b"nonsense", b"PK\x03\x04" + bytes(1000), b"\x80\x04\x95" + bytes(100)])
async def test_what_is_no_saved_chat_is_refused(raw: bytes, tmp_path: Path) -> None:
    async with running(engine(tmp_path / "here"), peer_token=TOKEN) as api:
        with liar(said(raw)) as url:
            assert "no saved chat" in await reason(api, tmp_path / "here", url, "0" * 32)


async def test_a_peer_that_dies_on_the_way_is_a_failure(tmp_path: Path) -> None:
    raw, digest = raw_of(tmp_path / "there")
    async with running(engine(tmp_path / "here"), peer_token=TOKEN) as api:
        with liar(said(raw[:500_000], digest_of=raw, length=len(raw))) as url:
            why = await reason(api, tmp_path / "here", url, digest)
            assert why == f"the peer broke off after 500000 of {len(raw)} bytes"


async def test_a_silent_peer_and_one_that_drips_are_given_up(tmp_path: Path) -> None:
    raw, digest = raw_of(tmp_path / "there")
    stop = threading.Event()

    def hang(handler: BaseHTTPRequestHandler) -> None:
        stop.wait(30)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        said(raw[:1000], digest_of=raw, length=len(raw))(handler)
        while not stop.wait(0.02):
            handler.wfile.write(b"x")

    async with running(engine(tmp_path / "here"), peer_token=TOKEN) as api:
        with liar(hang) as url:
            assert "timed out" in await reason(api, tmp_path / "here", url, digest, timeout_s=0.3)
        with liar(drip) as url:
            assert await reason(api, tmp_path / "here", url, digest, timeout_s=0.3) == "the peer is too slow"
        stop.set()


async def test_a_peer_that_speaks_no_http_is_a_failure(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"hello there\r\n\r\n")

        thread = threading.Thread(target=speak)
        thread.start()
        async with running(engine(tmp_path / "here"), peer_token=TOKEN) as api:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            assert "does not speak HTTP" in await reason(api, tmp_path / "here", url, "0" * 32)
        thread.join()


@pytest.mark.parametrize("name", ["content-length", "content-digest"])
async def test_an_answer_with_length_or_digest_alone_is_refused(name: str, tmp_path: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header(name, {"content-length": "5", "content-digest": "sha-256=:AAAA:"}[name])
        handler.end_headers()
        handler.wfile.write(b"hello")

    async with running(engine(tmp_path / "here"), peer_token=TOKEN) as api:
        with liar(answer) as url:
            assert "neither length nor digest" in await reason(api, tmp_path / "here", url, "0" * 32)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "from"),
        ({"from": "http://a:1"}, "digest"),
        ({"from": 5, "digest": "0" * 32}, "from"),
        ({"from": "ftp://a:1", "digest": "0" * 32}, "from"),
        ({"from": "http://user:word@a:1", "digest": "0" * 32}, "from"),
        ({"from": "http://a:1/path", "digest": "0" * 32}, "from"),
        ({"from": "http://a:99999", "digest": "0" * 32}, "from"),
        ({"from": "http://a:1", "digest": "../x"}, "digest"),
        ({"from": "http://a:1", "digest": "0" * 32, "timeout_s": 0}, "timeout_s"),
        ({"from": "http://a:1", "digest": "0" * 32, "timeout_s": 1e9}, "timeout_s"),
    ],
)
async def test_a_wrong_request_is_a_400_that_names_the_field(body: dict[str, Any], param: str, tmp_path: Path) -> None:
    async with running(engine(tmp_path), peer_token=TOKEN) as api:
        response = await api.post("/peers/chats/fetch", body, headers=PEER)
        assert error_of(response, 400)["param"] == param


def test_a_reader_that_goes_away_leaves_no_file_open(tmp_path: Path) -> None:
    digest = put(tmp_path)
    with giver(tmp_path) as peer:
        before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
        for _ in range(5):
            url = f"{peer.url}/peers/chats/{digest}"
            with httpx.stream("GET", url, headers=PEER, timeout=ANSWER_S, trust_env=False) as response:
                assert response.status_code == 200
        if before:
            deadline = time.monotonic() + 20
            while len(os.listdir("/proc/self/fd")) > before + 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
