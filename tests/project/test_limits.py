"""No test depends on how fast a loaded machine answers: what waits for one has a limit that was chosen."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.programs.live_server import ROOT

ASKING = {"AsyncClient", "Client", "delete", "get", "patch", "post", "put", "request", "stream"}
"""What of httpx waits for an answer, 5 s where nothing is said."""


def without_limit(source: str) -> list[int]:
    """Lines where httpx asks a server under its own limit. An app that is asked without a socket has none."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    asking = [
        call
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and (call.func.value.id, call.func.attr) in {("httpx", name) for name in ASKING}
    ]
    return [call.lineno for call in asking if not {word.arg for word in call.keywords} & {"timeout", "transport"}]


@pytest.mark.parametrize("folder", ["api", "command", "e2e", "support"])
def test_every_question_over_http_has_a_limit_of_its_own(folder: str) -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in sorted(Path(ROOT, "tests", folder).rglob("*.py"))
        for line in without_limit(file.read_text("utf-8"))
    ]
    assert found == [], "add timeout=ANSWER_S of tests/support/limits.py, or the limit that is tested"


def test_one_without_is_found() -> None:
    assert without_limit("import httpx\nhttpx.get('x', timeout=1)\nhttpx.get('x')\nhttpx.Client(transport=y)\n") == [3]
