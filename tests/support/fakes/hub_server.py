"""A stand-in for the Hugging Face hub on 127.0.0.1: lists files, answers ranges, fails in the ways that hubs fail."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "1" * 40


@dataclass
class Hub:
    """Repositories by name, files by path. `served` counts bytes of files that went out."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str | None = None
    has_ranges: bool = True
    is_damaged: bool = False
    cut_after: int | None = None
    listing: bytes | None = None
    """What comes instead of a list of files: a page to log in on, or what a proxy says."""
    files_are_gated: bool = False
    """The list is everybody's, the files are not."""
    is_silent: bool = False
    """Files come after a second."""
    served: int = 0
    ranges: list[str] = field(default_factory=list)
    url: str = ""


class HubServer:
    """Runs while the `with` block does."""

    def __init__(self) -> None:
        self.hub = Hub()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.hub.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Hub:
        self._thread.start()
        return self.hub

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self.hub

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, *, with_body: bool) -> None:
                path = self.path.partition("?")[0]
                if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                    return self._fail(401, "RepoNotFound")
                if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
                    return self._tree(match[1])
                if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                    return self._file(match[1], match[2], with_body=with_body)
                return self._fail(404, "RepoNotFound")

            def _tree(self, repo: str) -> None:
                if hub.listing is not None:
                    return self._send(200, hub.listing, {"Content-Type": "application/json"})
                if repo in hub.gated and not hub.files_are_gated:
                    return self._fail(403, "GatedRepo")
                if repo not in hub.repos:
                    return self._fail(404, "RepoNotFound")
                entries = [
                    {
                        "type": "file",
                        "path": name,
                        "size": len(data),
                        "oid": "0" * 40,
                        "lfs": {"oid": _sum(data), "size": len(data), "pointerSize": 130},
                    }
                    for name, data in hub.repos[repo].items()
                ]
                return self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})

            def _file(self, repo: str, name: str, *, with_body: bool) -> None:
                data = hub.repos.get(repo, {}).get(name)
                if data is None:
                    return self._fail(404, "EntryNotFound")
                if repo in hub.gated:
                    return self._fail(403, "GatedRepo")
                if hub.is_silent:
                    time.sleep(1)
                head = {"ETag": f'"{_sum(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
                status, part = 200, data
                if hub.has_ranges and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
                    hub.ranges.append(match[0])
                    start, end = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
                    status, part = 206, data[start : end + 1]
                    head["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
                if hub.is_damaged and with_body and len(part) > 4096:
                    part = part[:-1] + bytes([part[-1] ^ 1])
                return self._send(status, part, head, with_body=with_body)

            def _send(self, status: int, data: bytes, head: dict[str, str], *, with_body: bool = True) -> None:
                self.send_response(status)
                for name, value in {**head, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if not with_body:
                    return
                if hub.cut_after is not None and len(data) > hub.cut_after:
                    data = data[: hub.cut_after]
                    self.close_connection = True
                hub.served += len(data)
                self.wfile.write(data)

            def _fail(self, status: int, code: str) -> None:
                self._send(status, b"", {"X-Error-Code": code})

        return Handler


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
