"""What each process of a server imports until it is ready: time and processor of every start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

HTTP = {"fastapi", "starlette", "uvicorn", "asyncio", "ssl"}
SETTINGS = {"pydantic", "typer", "rich", "tomlkit", "platformdirs"}
HIGH_LEVEL = {"llama_cpp.llama", "llama_cpp.llama_chat_format", "diskcache", "sqlite3"}
"""What the package llama_cpp makes of llama.cpp's functions, and what it needs for that."""


def imported_by(code: str) -> set[str]:
    """Modules that a new process has after this code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("code", "needed", "foreign"),
    [
        pytest.param(
            "from ggufd import cli",
            {"ggufd.errors"},
            {"ggufd.settings", "multiprocessing", *HTTP, *SETTINGS},
            id="the command, before it knows what to do",
        ),
        pytest.param(
            "from ggufd.daemon import prestart",
            {"ggufd.engine.messages.requests", "ggufd.engine.messages.reports"},
            {"llama_cpp", "numpy", "psutil", "jinja2", *HTTP, *SETTINGS},
            id="what all three are copies of",
        ),
        pytest.param(
            "from ggufd.engine import process; process.prepare()",
            {"llama_cpp.llama_cpp", "ggufd.engine.loader", "ggufd.engine.engine", "numpy"},
            {"jinja2", "llguidance", *HTTP, *SETTINGS, *HIGH_LEVEL},
            id="engine",
        ),
        pytest.param(
            "from ggufd.chat.process import worker; worker.prepare()",
            {"llama_cpp.llama_cpp", "ggufd.chat.process.text", "jinja2"},
            {"numpy", "psutil", "llguidance", "jsonschema_rs", *HTTP, *SETTINGS, *HIGH_LEVEL},
            id="text process",
        ),
        pytest.param(
            "from ggufd.settings import flags, sources; from ggufd.daemon import daemon",
            {"ggufd.settings.config", "asyncio"},
            {"llama_cpp", "numpy", "psutil", "rich", "tomlkit", "jinja2", "fastapi", "uvicorn", "PIL", "httpx"},
            id="server, until its engine may load",
        ),
        pytest.param(
            "from ggufd.daemon import daemon; from ggufd.api import app",
            {"fastapi"},
            {
                "llama_cpp",
                "numpy",
                "psutil",
                "rich",
                "tomlkit",
                "jinja2",
                "PIL",
                "httpx",
                "jsonschema_rs",
                "pydantic.v1",
            },
            id="server, until it is ready",
        ),
    ],
)
def test_a_process_imports_what_it_needs_and_no_more(code: str, needed: set[str], foreign: set[str]) -> None:
    modules = imported_by(code)
    assert needed <= modules
    assert not foreign & modules


@pytest.mark.parametrize("command", ["--version", "--help"])
def test_a_command_without_settings_does_not_read_their_definitions(command: str) -> None:
    assert not {"ggufd.settings.config", "pydantic", "fastapi"} & imported_by(
        f"from ggufd import cli; cli.build_app({command!r})"
    )
