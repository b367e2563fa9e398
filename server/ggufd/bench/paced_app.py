"""`python -m ggufd.bench.paced_app PORT PACE_S`: completions of a set pace, whose words say when they were sent.

Each word is the time in nanoseconds of the clock that all processes of a machine share, so that whoever reads it knows
how long it was on its way. An HTTP server of a few lines: it costs little beside what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time

_CHUNK = {
    "id": "cmpl-0123456789abcdef01234567",
    "object": "text_completion",
    "created": 1700000000,
    "model": "a-model-with-a-name.Q4_K_M",
}
_BEGIN = json.dumps(_CHUNK)[:-1] + ', "choices": [{"index": 0, "text": " '
_END = '", "logprobs": null, "finish_reason": null}]}'
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-store\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


class PacedServer:
    """Server whose streams each get a word every `pace_s` seconds."""

    def __init__(self, pace_s: float) -> None:
        self._pace_s = pace_s

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: requests one after the other."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = head.partition("content-length:")[2].partition("\r\n")[0].strip()
                body = await reader.readexactly(int(length or 0))
                if head.startswith("post"):
                    await self._stream(writer, int(json.loads(body)["max_tokens"]))
                else:
                    writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{"status":"ok"}')
        writer.close()

    async def _stream(self, writer: asyncio.StreamWriter, n_words: int) -> None:
        writer.write(_HEAD)
        due_s = asyncio.get_running_loop().time()
        for _ in range(n_words):
            _write(writer, f"{_BEGIN}{time.perf_counter_ns()}{_END}")
            await writer.drain()
            due_s += self._pace_s
            await asyncio.sleep(due_s - asyncio.get_running_loop().time())
        _write(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _write(writer: asyncio.StreamWriter, data: str) -> None:
    event = f"data: {data}\n\n".encode()
    writer.write(b"%x\r\n%s\r\n" % (len(event), event))


async def serve(port: int, pace_s: float) -> None:
    """Serve until the process is ended."""
    server = await asyncio.start_server(PacedServer(pace_s).handle, "127.0.0.1", port, backlog=256)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))
