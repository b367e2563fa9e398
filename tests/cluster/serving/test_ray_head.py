"""Ray's head as a process that is remembered, over a program that says what `ray start` says; and its dashboard."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from ggufd.cluster.serving import ray_head
from ggufd.cluster.serving.dashboard import Dashboard, RayError
from ggufd.cluster.serving.ray_head import RayHead

RUNS = "print('This command will now block forever'); import time; time.sleep(600)"


class FakeDashboard(Dashboard):
    """A dashboard that is there or not."""

    def __init__(self, is_up: bool) -> None:
        self.is_up = is_up

    def is_there(self) -> bool:
        return self.is_up


def program(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(ray_head, "_command", lambda: [sys.executable, "-u", "-c", text])
    monkeypatch.setattr(ray_head, "_POLL_S", 0.01)


def test_it_is_started_remembered_and_ended_with_its_children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    program(monkeypatch, child + RUNS)
    first = RayHead(tmp_path)
    first.start(FakeDashboard(True))
    # Another command, later.
    later = RayHead(tmp_path)
    found = later.process()
    assert found is not None
    everybody = [found, *found.children(recursive=True)]
    assert len(everybody) == 2
    assert later.stop()
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in everybody)
    assert not later.stop()
    assert not first.stop()


def test_one_that_ends_is_told_with_its_last_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(monkeypatch, "print('x'); raise SystemExit('ConnectionError: port 6379 is taken')")
    with pytest.raises(RayError, match="Ray ended with 1: ConnectionError: port 6379 is taken"):
        RayHead(tmp_path).start(FakeDashboard(False))
    assert RayHead(tmp_path).process() is None


def test_one_that_gave_itself_too_little_time_is_started_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mark = tmp_path / "tried"
    late = f"import pathlib; p = pathlib.Path({str(mark)!r}); tried = p.exists(); p.touch()\n"
    late += f"if not tried: raise SystemExit('Exception: The current node timed out during startup.')\n{RUNS}"
    program(monkeypatch, late)
    head = RayHead(tmp_path)
    head.start(FakeDashboard(True))
    assert head.stop()


def test_a_process_that_has_the_id_by_now_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        created_s = psutil.Process(other.pid).create_time() - 100
        (tmp_path / "ray.json").write_text(json.dumps({"pid": other.pid, "created": created_s}))
        assert not RayHead(tmp_path).stop()
        assert other.poll() is None
        other.kill()


def test_ray_is_told_where_modules_are_by_full_paths_and_to_use_haproxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "server:/abs")
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    monkeypatch.setenv("RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S", "7")
    variables = ray_head._environment()
    assert variables["PYTHONPATH"] == f"{tmp_path}/server:/abs"
    assert variables["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert variables["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"] == "7"


# --- the dashboard ----------------------------------------------------------------------------------------------------


@contextmanager
def answering(status: int, text: str) -> Iterator[tuple[str, list[tuple[str, str, str | None]]]]:
    """A server that answers everything so; its URL, and what it was asked: method, path, authorization."""
    asked: list[tuple[str, str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append((self.command, self.path, self.headers.get("authorization")))
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_PUT = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_refusal_is_told_by_the_last_line_of_its_traceback() -> None:
    with answering(500, "Traceback ...\n  File x\nValueError: no such field\n") as (url, asked):
        with pytest.raises(RayError, match="Ray Serve refuses the deployment: ValueError: no such field"):
            Dashboard(url).deploy({"applications": []})
        assert asked == [("PUT", "/api/serve/applications/", None)]


def test_a_ray_with_a_token_is_asked_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with answering(200, "{}") as (url, asked):
        assert Dashboard(url).details() == {}
        assert asked[0][2] == "Bearer abc"
    (tmp_path / "token").unlink()
    with pytest.raises(RayError, match=r"RAY_AUTH_MODE is token, and .* cannot be read"):
        Dashboard(url).details()


@pytest.mark.parametrize("url", ["ftp://x", "http://"])
def test_what_is_no_address_of_a_dashboard_is_told(url: str) -> None:
    with pytest.raises(RayError, match="expected the address of Ray's dashboard"):
        Dashboard(url)
