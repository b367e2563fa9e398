"""The examples of README and docs/, run as they stand against the real server with the demo model."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from tests.support.pages import PAGES, blocks, commands, name_of
from tests.support.programs.live_server import LiveServer, live_server
from tests.support.programs.programs import needed_program

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

URL = "http://127.0.0.1:8080"
"""Where the server stands in every example."""

SCRIPTS = [page for page in PAGES if blocks(page, "python")]
CALLS = [(page, command) for page in PAGES for command in commands(page) if command.startswith("curl ")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    batches = str(tmp_path_factory.mktemp("batches"))
    flags = ("--ctx-size", "4096", "--parallel", "2", "--temp", "0", "--predict", "64", "--batch-dir", batches)
    with live_server(*flags) as running:
        yield running


def run(page: Path, server: LiveServer) -> tuple[str, dict[str, Any]]:
    """What the page's Python says, block after block as a reader types them, and the names that are left."""
    names: dict[str, Any] = {}
    said = StringIO()
    with redirect_stdout(said):
        for block in blocks(page, "python"):
            assert URL in block or names, "the first block of a page makes the client"
            exec(compile(block.replace(URL, server.url), name_of(page), "exec"), names)
    for client in (names.get("client"), names.get("claude")):
        if client is not None:
            client.close()
    return said.getvalue(), names


@pytest.mark.parametrize("page", SCRIPTS, ids=name_of)
def test_python_runs(page: Path, server: LiveServer) -> None:
    said, names = run(page, server)
    assert len(said.split()) > 3
    match page.name:
        case "structured-output.md":
            cat, call = said.splitlines()
            jsonschema_rs.validate(names["schema"], json.loads(cat))
            assert "get_weather" in call
        case "api.md":
            assert names["second"].usage.input_tokens_details.cached_tokens > 0


@pytest.mark.parametrize(
    ("page", "command"), CALLS, ids=[f"{name_of(page)}: {command[:70]}" for page, command in CALLS]
)
def test_curl_is_answered(page: Path, command: str, server: LiveServer) -> None:
    needed_program("curl", "apt install curl")
    done = subprocess.run(
        ["bash", "-c", command.replace(URL, server.url).replace("curl ", "curl -sS --noproxy '*' ", 1)],
        env={**os.environ, "KEY": "any"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    if "/models/load" in command:
        # There is no such file here, and the answer says so; the server goes on as it was.
        assert "another.gguf" in answer["error"]["message"]
        return
    assert "error" not in answer, answer
    for field, least in {"choices": 1, "data": 0}.items():
        assert len(answer.get(field, [{}])) >= least
    if "choices" in answer:
        assert answer["choices"][0]["message"]["content"]


def test_there_are_examples() -> None:
    assert {page.name for page in SCRIPTS} >= {"README.md", "getting-started.md", "api.md", "structured-output.md"}
    assert len(CALLS) >= 5
