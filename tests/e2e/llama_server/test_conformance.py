"""llama.cpp's own tests of its server, unchanged, against this one: what passes, and that the rest fails for a reason.

They lie in the binding's source and are run from a copy, with the demo model and two tiny ones for those that they
would download.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.llama_server import stand_in
from tests.e2e.llama_server.expected import FAILS, NOT_RUN
from tests.support.models.tiny_bert import Size, write_tiny_bert
from tests.support.models.vocabularies import SOURCE_VARIABLE, demo_model, source_file
from tests.support.programs.live_server import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

AT_LEAST = 175
TEST_TIMEOUT_S = 120

_LAUNCHER = """#!/bin/sh
exec "{python}" -m ggufd "$@"
"""

Outcomes = dict[str, tuple[str, str]]
"""Outcome of each test, and the last lines of its failure."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Of all the tests that concern one model, run by as many processes as there are cores, two at most."""
    source = source_file("tools/server/tests")
    if not source.is_dir():
        what = f"{SOURCE_VARIABLE} has no tools/server/tests"
        pytest.fail(what) if os.environ.get("TESTS_NEVER_SKIP") else pytest.skip(what)
    root = tmp_path_factory.mktemp("llama.cpp")
    tests = root / "tools" / "server" / "tests"
    shutil.copytree(source, tests)
    # Their paths of templates begin there.
    (root / "models").symlink_to(source_file("models"))
    size = Size(n_ctx=512)
    models = {
        "text": demo_model(),
        "vectors": str(write_tiny_bert(root / "vectors.gguf", size=size)),
        "scores": str(write_tiny_bert(root / "scores.gguf", "rank", size=size)),
    }
    n_shares = min(2, os.cpu_count() or 1)
    runs = [_start(tests, root / f"outcomes-{place}", models, place, n_shares) for place in range(n_shares)]
    logs = [run.communicate()[0] for run in runs]
    found = {
        line["test"]: (line["outcome"], line["text"])
        for place in range(n_shares)
        for line in _lines(root / f"outcomes-{place}")
    }
    assert found, "\n".join(log[-3000:] for log in logs)
    return found


def _start(tests: Path, outcomes: Path, models: Mapping[str, str], place: int, n_shares: int) -> subprocess.Popen[str]:
    """One process of pytest over its share of the tests."""
    launcher = outcomes.with_name(f"launcher-{place}")
    launcher.write_text(_LAUNCHER.format(python=sys.executable))
    launcher.chmod(0o755)
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT / "server"), str(ROOT))),
        "LLAMA_SERVER_BIN_PATH": str(launcher),
        "PORT": str(_port(place, n_shares)),
        # What is measured at the start elsewhere, and threads that would wait for those of the other share.
        "GGUFD_FLASH_ATTN": "on",
        "GGUFD_THREADS": "1",
        stand_in.MODELS: json.dumps(models),
        stand_in.OUTCOMES: str(outcomes),
        stand_in.NOT_RUN: json.dumps([prefix for prefixes in NOT_RUN.values() for prefix in prefixes]),
        stand_in.SHARE: json.dumps([place, n_shares]),
    }
    environ.pop("PYTEST_ADDOPTS", None)
    options = ("-q", "-m", "not slow", "-p", stand_in.__name__, "-p", "no:cacheprovider", "-p", "no:langsmith_plugin")
    command = [sys.executable, "-m", "pytest", *options, "--rootdir", str(tests), f"--timeout={TEST_TIMEOUT_S}", "unit"]
    return subprocess.Popen(
        command, cwd=tests, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _port(place: int, n_shares: int) -> int:
    """A port for all servers of a share, one after the other: below those that the system gives to anybody."""
    for port in range(20_000 + place, 32_000, n_shares):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


def _lines(path: Path) -> Iterator[dict[str, str]]:
    yield from map(json.loads, path.read_text("utf-8").splitlines())


def test_those_that_fail_are_those_that_are_right_to(outcomes: Outcomes) -> None:
    failed = {test: text for test, (outcome, text) in outcomes.items() if outcome == "failed"}
    listed = {test for tests in FAILS.values() for test in tests}
    unlisted = [f"{test}\n{text}" for test, text in failed.items() if test not in listed]
    assert not unlisted, "\n\n".join(unlisted)
    assert sorted(listed - failed.keys()) == [], "these are listed as failing, and pass or are gone"


def test_as_many_pass_as_were_promised(outcomes: Outcomes) -> None:
    n_passed = sum(outcome == "passed" for outcome, _ in outcomes.values())
    print(f"{n_passed} of llama.cpp's {len(outcomes)} server tests pass")
    assert n_passed >= AT_LEAST
