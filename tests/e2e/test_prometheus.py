"""A real Prometheus, configured as under docker/, against the real server: it is let in, and every panel shows data."""

from __future__ import annotations

import contextlib
import math
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.api.ops.test_metrics import DOCKER, expressions
from tests.support.limits import ANSWER_S
from tests.support.programs.live_server import LiveServer, free_port, live_server
from tests.support.programs.programs import needed_program

KEY = "sk-an-admins"
SMALL = ("--ctx-size", "1024", "--parallel", "2", "--threads", "1", "--flash-attn", "off")
WAIT_S = 60

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Its API, after it has seen the server idle and at work."""
    command = needed_program("prometheus", "Debian's package of that name has it")
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "key").write_text(KEY)
    listen = f"127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(live_server(*SMALL, "--api-key", KEY))
        write_config(folder, server)
        files = f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"
        process = subprocess.Popen(
            [command, *files, f"--web.listen-address={listen}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        stack.callback(process.wait, WAIT_S)
        stack.callback(process.terminate)
        http = stack.enter_context(httpx.Client(base_url=f"http://{listen}", trust_env=False, timeout=ANSWER_S))
        wait_for(lambda: math.isfinite(value(http, "ggufd_steps_total")))
        n_steps = value(http, "ggufd_steps_total")
        work(server)
        wait_for(lambda: value(http, "ggufd_steps_total") > n_steps)
        yield http


def write_config(folder: Path, server: LiveServer) -> None:
    """The config under docker/, for this server and key, in a hurry."""
    text = (DOCKER / "prometheus.yml").read_text("utf-8")
    changes = {
        "/run/secrets/ggufd_key": str(folder / "key"),
        "ggufd.internal:8080": server.url.removeprefix("http://"),
        "scrape_interval: 10s": "scrape_interval: 1s",
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "prometheus.yml").write_text(text)


def work(server: LiveServer) -> None:
    """An answer, an error, and one who leaves."""
    with httpx.Client(base_url=server.url, headers={"x-api-key": KEY}, timeout=60, trust_env=False) as http:
        assert http.post("/v1/completions", json={"prompt": "The", "max_tokens": 8}).status_code == 200
        assert http.post("/v1/completions", json={"prompt": 3.5}).status_code == 400
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/completions", json={"prompt": "x", "max_tokens": 900, "ignore_eos": True}, timeout=0.5)


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def value(http: httpx.Client, query: str) -> float:
    """The largest value that a query has, NaN where it has none: no connection and 503 (it starts) are none yet."""
    with contextlib.suppress(httpx.HTTPError):
        response = http.get("/api/v1/query", params={"query": query})
        answer = response.json() if response.status_code != 503 else {}
        values = [float(series["value"][1]) for series in answer["data"]["result"]] if "data" in answer else []
        return max((number for number in values if math.isfinite(number)), default=math.nan)
    return math.nan


@pytest.mark.parametrize(("title", "expression"), list(expressions()))
def test_every_panel_shows_data(prometheus: httpx.Client, title: str, expression: str) -> None:
    query = expression.replace("$__rate_interval", "5m")
    wait_for(lambda: math.isfinite(value(prometheus, query)))
