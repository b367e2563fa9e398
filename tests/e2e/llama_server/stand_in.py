"""Plugin of pytest for a run of llama.cpp's own server tests: models of ours, no network, outcomes into a file.

The tests' files stay as they are. What is replaced is the model that a test would download (one for text, one for
vectors, one for scores), the start of every model
before the first test, and the module `wget`. Several runs may share the tests; each needs a port of its own.
"""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

MODELS = "STAND_IN_MODELS"
OUTCOMES = "STAND_IN_OUTCOMES"
NOT_RUN = "STAND_IN_NOT_RUN"
SHARE = "STAND_IN_SHARE"
START_S = 60


def _refuse(*_: Any, **__: Any) -> None:
    raise OSError("these tests have no network")


# The tests' conftest imports it before any hook runs.
sys.modules["wget"] = types.SimpleNamespace(download=_refuse)  # type: ignore[assignment]


def pytest_configure(config: pytest.Config) -> None:
    import utils  # type: ignore[import-not-found]

    utils.ServerPreset.load_all = staticmethod(lambda: None)
    utils.ServerProcess.start = _start_with_stand_in(utils.ServerProcess.start)


def _start_with_stand_in(start: Any) -> Any:
    """As it was, with the stand-in for whatever would come from the network."""

    def run(server: Any, timeout_seconds: int = START_S) -> None:
        if server.model_hf_repo is not None and server.model_file is None:
            server.model_hf_repo = server.model_hf_file = None
            kind = "scores" if server.server_reranking else "vectors" if server.server_embeddings else "text"
            server.model_file = json.loads(os.environ[MODELS])[kind]
        start(server, min(timeout_seconds, START_S))

    return run


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not run, and what other runs take."""
    not_run = tuple(json.loads(os.environ[NOT_RUN]))
    place, n_shares = json.loads(os.environ[SHARE])
    wanted = [item for item in items if not f"{item.nodeid}$".startswith(not_run)]
    kept = wanted[place::n_shares]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Append the outcome of every phase that says something: an error of a fixture is a failure too."""
    report: pytest.TestReport = yield
    if report.when == "call" or report.outcome != "passed":
        line = {
            "test": item.nodeid,
            "outcome": report.outcome,
            "text": report.longreprtext[-2000:] + report.capstdout[-2000:],
        }
        with Path(os.environ[OUTCOMES]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    return report
