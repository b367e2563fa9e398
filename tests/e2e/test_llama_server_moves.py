"""A compose file and a systemd unit of llama-server's, run with ggufd: only image and program have another name."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]

from tests.support.limits import ANSWER_S
from tests.support.models.vocabularies import demo_model
from tests.support.programs.live_server import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "tests/support/units"
HELLO = {"messages": [{"role": "user", "content": "Is water wet?"}]}
START_S = 90
PROGRAM = [sys.executable, "-m", "ggufd"]


@contextmanager
def started(command: list[str], environment: dict[str, str], folder: Path, url: str) -> Iterator[list[str]]:
    """The program in `folder`, with nothing of this environment that is a setting; the lines of its log, at the end."""
    ours = ("GGUFD_", "LLAMA_", "HF_", "REQUIRE_GPU")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    lines: list[str] = []
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT / "server"), "XDG_CONFIG_HOME": str(folder), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if httpx.get(f"{url}/health", trust_env=False, timeout=ANSWER_S).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        yield lines
    finally:
        process.terminate()
        lines += process.communicate(timeout=60)[0].splitlines()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "my_model.gguf").symlink_to(demo_model())
    return folder


def image_environment() -> dict[str, str]:
    """The variables that our image sets, of those that are settings."""
    text = (ROOT / "docker/Dockerfile").read_text("utf-8")
    return dict(re.findall(r"\b((?:GGUFD|LLAMA)_[A-Z_]+)=(\S+)", text.split("FROM")[-1].split("USER")[0]))


def service(text: str) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment that Docker makes of the one service of a compose file, over our image."""
    (one,) = yaml.safe_load(text)["services"].values()
    environment = {**image_environment(), **{name: str(value) for name, value in one["environment"].items()}}
    return shlex.split(one.get("command", "")), environment


def test_a_compose_file_of_llama_servers(models: Path, tmp_path: Path) -> None:
    port = free_port()
    text = (UNITS / "compose.yaml").read_text("utf-8").replace("8080", str(port)).replace("/models/", f"{models}/")
    arguments, environment = service(text)
    url = f"http://127.0.0.1:{port}"
    with (
        started([*PROGRAM, *arguments], environment, tmp_path, url) as log,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):
        assert http.post("/v1/chat/completions", json=HELLO).status_code == 401
        http.headers["Authorization"] = "Bearer secret-of-the-compose-file"
        answer = http.post("/v1/chat/completions", json=HELLO).json()
        assert answer["model"] == "my-model"
        assert answer["choices"][0]["message"]["content"]
        assert answer["usage"]["completion_tokens"] <= 16
        again = http.post("/v1/chat/completions", json=HELLO).json()
        assert again["choices"][0]["message"] == answer["choices"][0]["message"], "it is greedy"
        assert [slot["n_ctx"] for slot in http.get("/slots").json()] == [2048, 2048]
        assert http.get("/metrics").status_code == 200
        settings = http.get("/props").json()["default_generation_settings"]["params"]
        assert (settings["temperature"], settings["top_k"], settings["n_predict"]) == (0, 40, 16)
        assert settings["samplers"] == ["top_k", "top_p", "min_p", "temperature"]
        assert http.get("/", headers={"accept": "text/html"}).json()["name"] == "ggufd"
    said = "\n".join(log)
    for flag in ("--jinja", "--threads-http", "--no-warmup", "--log-colors", "LLAMA_ARG_CONT_BATCHING"):
        assert f"{flag} changes nothing: " in said
    assert "secret" not in said
    assert "Traceback" not in said


def test_without_a_key_the_example_of_the_readme_is_refused_in_one_line(models: Path, tmp_path: Path) -> None:
    """The one difference that is meant: a server that others reach wants a key, or to be told that it needs none."""
    example = {"LLAMA_ARG_MODEL": f"{models}/my_model.gguf", "LLAMA_ARG_CTX_SIZE": "4096"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "server"), **image_environment(), **example}
    done = subprocess.run(PROGRAM, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "no key is set" in done.stderr
    assert "--allow-unauthenticated" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def unit(text: str) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment that systemd makes of a unit."""
    entries = re.findall(r"^(\w+)=(.*)$", text.replace("\\\n", " "), re.MULTILINE)
    (line,) = (value for name, value in entries if name == "ExecStart")
    pairs = [pair for name, value in entries if name == "Environment" for pair in shlex.split(value)]
    return shlex.split(line), dict(pair.split("=", 1) for pair in pairs)


def test_a_systemd_unit_of_llama_servers(models: Path, tmp_path: Path) -> None:
    port = free_port()
    text = (UNITS / "llama-server.service").read_text("utf-8").replace("8080", str(port))
    text = text.replace("/var/lib/llama/my_model.gguf", f"{models}/my_model.gguf").replace(
        "/var/lib/llama", str(tmp_path)
    )
    (program, *arguments), environment = unit(text)
    assert program == "/usr/local/bin/llama-server"
    url = f"http://127.0.0.1:{port}"
    with (
        started([*PROGRAM, *arguments], environment, tmp_path, url) as log,
        httpx.Client(base_url=f"{url}/llm", trust_env=False, timeout=60) as http,
    ):
        answers = [http.post("/v1/chat/completions", json=HELLO).json() for _ in range(2)]
        contents = [answer["choices"][0]["message"]["content"] for answer in answers]
        assert contents[0] in ("yes", "no")
        assert contents[0] == contents[1], "it has a seed"
        own = http.post(
            "/completion", json={"prompt": "Two:", "json_schema": {"type": "integer"}, "n_predict": 3}
        ).json()
        assert isinstance(json.loads(own["content"]), int)
        slots = http.get("/slots")
        assert (slots.status_code, slots.json()["error"]["type"]) == (501, "not_supported_error")
        props = http.get("/props").json()
        assert "<|im_start|>" in props["chat_template"]
        assert props["default_generation_settings"]["n_ctx"] == 2048
        assert props["default_generation_settings"]["params"]["repeat_penalty"] == 1.1
        completion: dict[str, Any] = http.post("/completion", json={"prompt": "a", "n_predict": 1}).json()
        assert completion["generation_settings"]["n_keep"] == 16
    said = "\n".join(log)
    assert "--cont-batching changes nothing: requests are always batched continuously" in said
    assert "--prio changes nothing: " in said
    assert "Traceback" not in said
    written = (tmp_path / "server.log").read_text("utf-8")
    assert "--jinja changes nothing: chat templates are always Jinja" in written
    assert "/v1/chat/completions" in written
