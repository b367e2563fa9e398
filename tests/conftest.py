"""Fixtures of all tests. Imports nothing of llama.cpp at its top: tests of the light modules need none of it."""

from __future__ import annotations

import gc
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Child processes import the package from the same folder as the tests do.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parents[1] / "server"), os.environ.get("PYTHONPATH")])
)

# A busy machine makes an example slow, not wrong.
settings.register_profile("ggufd", deadline=None)
settings.load_profile("ggufd")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timed"):
            item.add_marker(pytest.mark.flaky(reruns=2))


def pytest_collection_finish() -> None:
    """Thousands of tests stay to the end: looking through them for garbage again and again would take seconds."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """A test that sets the log up writes to the stderr of its own time: no other test's lines may go there."""
    root = logging.getLogger()
    handlers, level = tuple(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(autouse=True)
def _no_apps_of_before() -> Iterator[None]:
    """FastAPI remembers the endpoints of thousands of apps, and so the apps, half a megabyte each."""
    yield
    if models := sys.modules.get("fastapi.dependencies.models"):
        for cache in vars(models).values():
            if hasattr(cache, "cache_clear"):
                cache.cache_clear()


@pytest.fixture(scope="session")
def tiny_model() -> Iterator[Path]:
    """The path of the tiny model's file."""
    from tests.support.models.tiny_model import quiet_llama, write_tiny_model

    quiet_llama()
    with tempfile.TemporaryDirectory(prefix="ggufd-tests-") as folder:
        yield write_tiny_model(Path(folder) / "tiny.gguf")


@pytest.fixture
def quiet_log_afterwards() -> Iterator[None]:
    """For tests that load an engine: its log goes with it, and C must not call a function that is gone."""
    from tests.support.models.tiny_model import quiet_llama

    yield
    quiet_llama().install()
