"""Fixtures of all tests. Imports nothing of llama.cpp at its top: tests of the light modules need none of it."""

from __future__ import annotations

import gc
import logging
import os
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.turns import Turns

# Child processes import the package from the same folder as the tests do.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parents[1] / "server"), os.environ.get("PYTHONPATH")])
)

# A busy machine makes an example slow, not wrong. The step of CI for what takes long has `--hypothesis-profile full`.
settings.register_profile("full", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=30)
settings.load_profile("quick")


E2E = Path(__file__).parent / "e2e"
SLOW = {"test_lint.py", "test_text_client.py", "test_text_pool.py", "test_draft_model.py"}
"""Files that take long, as those under `E2E` do: begun last, one would keep a single core busy at the end."""

TURNS = pytest.StashKey[Turns]()


def _is_of_files(config: pytest.Config) -> bool:
    """Whether single files were asked for: they run at once, in this process, with what is long in them."""
    return any(".py" in argument for argument in config.args)


def _leaves_out(config: pytest.Config, mark: str) -> bool:
    """Whether the `-m` expression says so, alone or beside others."""
    return f"not {mark}" in config.option.markexpr.split(" and ")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The libraries of real clients take a quarter of the collection to import."""
    return True if collection_path == E2E and _leaves_out(config, "e2e") else None


@pytest.hookimpl(wrapper=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> Generator[None, int, int]:
    """pytest-xdist has one worker a core. Without servers one more computes while the test of another waits."""
    n_cores = yield
    return 0 if _is_of_files(config) else n_cores + _leaves_out(config, "e2e")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.stash[TURNS] = Turns(room=Path(__file__), door=config.rootpath / "pyproject.toml")


def pytest_unconfigure(config: pytest.Config) -> None:
    if turns := config.stash.get(TURNS, None):
        turns.close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if E2E in item.path.parents:
            item.add_marker(pytest.mark.e2e)
        if item.get_closest_marker("timed"):
            item.add_marker(pytest.mark.flaky(reruns=2))
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: E2E not in item.path.parents and item.path.name not in SLOW)
    if "long" not in config.option.markexpr and not _is_of_files(config):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Around all other hooks: the time limit of a test does not count its wait for a turn."""
    turns = item.config.stash.get(TURNS, None)
    if turns is None:
        return (yield)
    with turns.turn(is_alone=item.get_closest_marker("timed") is not None):
        return (yield)


def pytest_collection() -> None:
    """Thousands of tests stay to the end: looking through them for garbage again and again takes seconds."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.enable()
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
