"""A program in place of `ggufd serve`: takes its command line, prints its address, and tells load as a replica does.

`python -m tests.support.programs.fake_server --config FILE --peer-token-file FILE --host H --port 0`. Its model is the
name of an act: "cannot" ends at once, "deaf" heeds no SIGTERM, others serve. Requests for text are paced; their field
`fake` says how: a `pace_s` of its own, and the `pid` of the process that sends nothing but comments after `n_tokens`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tomllib
from pathlib import Path
from typing import Any

from aiohttp import web

TOKEN_HEADER = "x-ggufd-peer"
N_TOKENS = 20


class FakeServer:
    """State of the program: what it was told, and how many requests run."""

    def __init__(self, tables: dict[str, Any], token: str) -> None:
        self.model = tables.get("model", {}).get("model", "fake")
        self.pace_s = float(os.environ.get("FAKE_PACE_S", "0.02"))
        self.tables = tables
        self._token = token
        self.running = 0
        self.waiting = 0
        self.is_alive = True
        self.is_draining = False
        self.served: dict[str, float] = {}
        self.limits: dict[str, Any] = {}
        self.limits_told: list[Any] = []
        self.told: list[dict[str, float]] = []
        self.idle = asyncio.Event()
        self.idle.set()

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._gate])
        app.router.add_get("/health/live", self.live)
        app.router.add_get("/health", self.live)
        app.router.add_get("/peers/load", self.load)
        app.router.add_get("/peers/served", self.get_served)
        app.router.add_post("/peers/served", self.post_served)
        app.router.add_get("/peers/chats", self.chats)
        app.router.add_post("/peers/chats/save", self.save)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/fake", self.tell)
        app.router.add_post("/fake", self.act)
        app.router.add_post("/v1/chat/completions", self.complete)
        return app

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if not request.path.startswith("/health") and request.headers.get(TOKEN_HEADER) != self._token:
            return web.json_response({"error": {"message": "not a peer"}}, status=401)
        return await handler(request)  # type: ignore[no-any-return]

    async def live(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"}, status=200 if self.is_alive else 503)

    async def load(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "running": self.running,
                "waiting": self.waiting,
                "n_slots": 4,
                "wait_s": 0.0,
                "prefill_tok_s": 100.0,
                "kv_used": 0.25,
                "is_draining": self.is_draining,
                "fingerprint": "fake",
                "model": self.model,
            }
        )

    async def get_served(self, _: web.Request) -> web.Response:
        return web.json_response({"accounts": self.served, "limits": self.limits})

    async def post_served(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.told.append(body["accounts"])
        self.limits_told.append(body["limits"])
        return web.json_response({})

    async def chats(self, _: web.Request) -> web.Response:
        return web.json_response({"data": []})

    async def save(self, _: web.Request) -> web.Response:
        return web.json_response({"left": 0})

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self.model, "object": "model"}]})

    async def tell(self, _: web.Request) -> web.Response:
        """All that it was started with and told."""
        told = {"tables": self.tables, "told": self.told, "cwd": os.getcwd(), "environment": dict(os.environ)}
        told["limits"] = self.limits_told
        return web.json_response(told)

    async def act(self, request: web.Request) -> web.Response:
        """Be sick, have requests that wait, or have served tokens."""
        body = await request.json()
        self.waiting = body.get("waiting", self.waiting)
        self.is_alive = body.get("is_alive", self.is_alive)
        self.served.update(body.get("served", {}))
        self.limits.update(body.get("limits", {}))
        return web.json_response({})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """A paced stream whose tokens name the process and the model; 503 while it drains."""
        if self.is_draining:
            return web.json_response({"error": {"message": "draining"}}, status=503, headers={"Retry-After": "1"})
        told = (await request.json()).get("fake", {})
        n_tokens = told["n_tokens"] if told.get("pid") == os.getpid() else N_TOKENS
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        self.running += 1
        self.idle.clear()
        try:
            await response.prepare(request)
            for number in range(N_TOKENS):
                while number == n_tokens:
                    await response.write(b": ping\n\n")
                    await asyncio.sleep(self.pace_s)
                await asyncio.sleep(told.get("pace_s", self.pace_s))
                await response.write(self._chunk(f"{os.getpid()} {self.model} ", None))
            await response.write(self._chunk("", "stop") + b"data: [DONE]\n\n")
            await response.write_eof()
        finally:
            self.running -= 1
            if not self.running:
                self.idle.set()
        return response

    def _chunk(self, text: str, reason: str | None) -> bytes:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": self.model, "choices": [choice]}
        return f"data: {json.dumps(chunk)}\n\n".encode()


async def serve(host: str, server: FakeServer) -> None:
    """Serve until SIGTERM, then until no request runs."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    if server.model == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    runner = web.AppRunner(server.app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, 0)
    await site.start()
    port = runner.addresses[0][1]
    print(f"fake is ready\n  API  http://{host}:{port}/v1", flush=True)
    await stop.wait()
    server.is_draining = True
    await server.idle.wait()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--config", "--peer-token-file", "--host", "--port"):
        parser.add_argument(name, required=True)
    given = parser.parse_args()
    tables = tomllib.loads(Path(given.config).read_text())
    token = Path(given.peer_token_file).read_text()
    assert given.port == "0"
    if tables.get("model", {}).get("model") == "cannot":
        sys.exit("ggufd: cannot.gguf: no such file")
    asyncio.run(serve(given.host, FakeServer(tables, token)))


if __name__ == "__main__":
    main()
