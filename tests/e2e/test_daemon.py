"""The running program: from the command to ready, and out again. With the real demo model."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from ggufd.models import hub
from tests.support.limits import ANSWER_S

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
START_S = 60
ENDLESS = {"prompt": "Once", "max_tokens": 8000, "stream": True, "ignore_eos": True}
SMALL = ("--ctx-size", "8192", "--parallel", "1", "--flash-attn", "off", "--threads", "1")
"""One thread: compute threads that wait for each other crawl where other programs are busy."""


class Program:
    """A started `ggufd`; `out` and `err` grow while it runs."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ggufd", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._threads = [
            threading.Thread(target=lines.extend, args=(pipe,), daemon=True)
            for lines, pipe in ((self.out, self.process.stdout), (self.err, self.process.stderr))
        ]
        for thread in self._threads:
            thread.start()

    def until(self, words: str) -> str:
        """Wait for a line with these words on stdout."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := [line for line in self.out if words in line]:
                return found[0]
            time.sleep(0.05)
        raise AssertionError(f"{words!r} was not said: {self.out} {self.err}")

    @property
    def url(self) -> str:
        found = re.search(r"http://\S+(?=/v1)", self.until("API"))
        assert found is not None
        self.until("Ctrl-C stops")
        return found[0]

    def wait(self, timeout_s: float = START_S) -> int:
        code = self.process.wait(timeout_s)
        for thread in self._threads:
            thread.join(5)
        return code

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def start() -> Iterator[type[Program]]:
    started: list[Program] = []

    class Started(Program):
        def __init__(self, *arguments: str) -> None:
            started.append(self)
            super().__init__(*arguments)

    yield Started
    for program in started:
        program.close()


def wait_draining(url: str) -> None:
    """Until the server has heard the signal and takes no more requests."""
    deadline = time.monotonic() + START_S
    while httpx.get(f"{url}/health", timeout=ANSWER_S).status_code != 503:
        assert time.monotonic() < deadline, "the signal is not heard"
        time.sleep(0.02)


class Stream:
    """A completion without an end, read on a thread."""

    def __init__(self, url: str) -> None:
        self.lines: list[str] = []
        self.is_running = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(url,), daemon=True)
        self._thread.start()
        assert self.is_running.wait(START_S)

    def _read(self, url: str) -> None:
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream("POST", f"{url}/v1/completions", json=ENDLESS, timeout=START_S) as response,
        ):
            for line in response.iter_lines():
                if line:
                    self.lines.append(line)
                if line.startswith("data:"):
                    self.is_running.set()

    def join(self) -> None:
        self._thread.join(START_S)
        assert not self._thread.is_alive()


def test_the_curl_line_works_when_pasted_and_ctrl_c_ends_it(start: type[Program]) -> None:
    program = start("--port", "0", *SMALL)
    url = program.url
    assert httpx.get(f"{url}/health", timeout=ANSWER_S).status_code == 200
    line = program.until("curl ").strip()
    done = subprocess.run(["sh", "-c", f"{line} --silent"], capture_output=True, text=True, timeout=START_S, check=True)
    assert '"role":"assistant"' in done.stdout
    summary = "".join(program.out)
    for words in ("1 slot of 8,192 tokens", "Q4", "CPU", "flash attention off", "/docs", "small demo model"):
        assert words in summary
    program.process.send_signal(signal.SIGINT)
    assert program.wait(20) == 0
    assert not [line for line in program.err if "llama_" in line or "Traceback" in line]


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGTERM to catch")
def test_sigterm_refuses_the_new_and_cuts_the_old_at_the_deadline(start: type[Program]) -> None:
    program = start("--port", "0", "--drain-s", "3", *SMALL)
    url = program.url
    stream = Stream(url)
    program.process.send_signal(signal.SIGTERM)
    wait_draining(url)
    refused = httpx.post(f"{url}/v1/completions", json={"prompt": "x"}, timeout=ANSWER_S)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "shutting_down"
    assert refused.headers["retry-after"]
    assert httpx.get(f"{url}/health", timeout=ANSWER_S).status_code == 503
    assert program.wait(30) == 0
    stream.join()
    assert "shutting_down" in stream.lines[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGTERM to catch")
def test_what_ends_within_the_deadline_is_not_cut(start: type[Program]) -> None:
    program = start("--port", "0", *SMALL)
    url = program.url
    answers: list[httpx.Response] = []
    body = {"prompt": "Once", "max_tokens": 40, "ignore_eos": True}
    thread = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{url}/v1/completions", json=body, timeout=START_S))
    )
    thread.start()
    while not answers and not any(slot["is_processing"] for slot in httpx.get(f"{url}/slots", timeout=START_S).json()):
        time.sleep(0.01)
    # As a service manager does it: to every process of the service.
    for process in psutil.Process(program.process.pid).children(recursive=True):
        process.terminate()
    program.process.send_signal(signal.SIGTERM)
    assert program.wait() == 0
    thread.join(5)
    assert answers[0].json()["usage"]["completion_tokens"] == 40


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_a_second_ctrl_c_ends_it_at_once(start: type[Program]) -> None:
    program = start("--port", "0", "--drain-s", "60", *SMALL)
    stream = Stream(program.url)
    program.process.send_signal(signal.SIGINT)
    wait_draining(program.url)
    assert program.process.poll() is None
    program.process.send_signal(signal.SIGINT)
    assert program.wait(20) == 130
    stream.join()


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_a_signal_while_loading_ends_it(start: type[Program]) -> None:
    program = start("--port", "0")
    time.sleep(0.5)
    program.process.send_signal(signal.SIGTERM)
    assert program.wait(20) in (0, -signal.SIGTERM)


def test_a_model_that_cannot_be_loaded_is_one_line(start: type[Program], tmp_path: Path) -> None:
    whole = hub.find("").path
    cut = tmp_path / "cut.gguf"
    with whole.open("rb") as file:
        cut.write_bytes(file.read(5_000_000))
    program = start("--port", "0", "-m", str(cut))
    assert program.wait() == 1
    said = [line for line in program.err if "INFO" not in line]
    assert len(said) == 1
    assert said[0].startswith("ggufd: ")
    assert "cut.gguf" in said[0]


def test_a_file_of_responses_that_cannot_be_used_is_one_line(start: type[Program], tmp_path: Path) -> None:
    program = start("--port", "0", "--responses-path", str(tmp_path / "none" / "responses.sqlite"), *SMALL)
    assert program.wait() == 1
    assert program.err[-1].startswith("ggufd: responses_path: ")
    assert not [line for line in program.err if "Traceback" in line]


def test_require_gpu_refuses_the_cpu(start: type[Program]) -> None:
    program = start("--port", "0", "--require-gpu", "-ngl", "0", *SMALL)
    assert program.wait() == 1
    assert program.err[-1].startswith("ggufd: require_gpu is set, but no layer runs on a GPU")
