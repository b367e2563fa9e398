"""The table of rooms, from the lowest layer to the highest: a room may import itself and rooms above it in the list.

tests/project/test_rooms.py holds the code to it; docs/generate.py writes it into docs/development/architecture.md.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "server" / "ggufd"

ROOMS: tuple[str, ...] = (
    "errors",
    "wording",
    "text_files",
    "logs",
    "processes",
    "keys",
    "llama.gguf",
    "llama",
    "llama.model",
    "llama.grammar",
    "llama.context",
    "llama.projector",
    "llama.calibration",
    "placement",
    "engine.messages",
    "engine.backend",
    "engine.costs",
    "engine.sampling",
    "engine.kv_store",
    "engine.speculation",
    "engine.sequence",
    "engine.telemetry",
    "engine.scheduling",
    "engine.slots",
    "engine.queueing",
    "engine.preroll",
    "engine.embeddings",
    "engine.step",
    "engine.loading",
    "engine",
    "engine.client",
    "chat",
    "chat.deltas",
    "chat.tools",
    "chat.tools.formats",
    "chat.answers",
    "chat.rendering",
    "chat.advice",
    "chat.process",
    "images",
    "images.decoding",
    "images.fetching",
    "images.encoder",
    "batches",
    "model_pool",
    "api.http",
    "api.services",
    "api.images",
    "api.request",
    "api.request.chat",
    "api.receipts",
    "api.answer",
    "api.pool",
    "api.streams",
    "api.openai",
    "api.openai.responses",
    "api.anthropic",
    "api.llamacpp",
    "api.compat",
    "api.embeddings",
    "api.batches",
    "api.ops",
    "api.web",
    "api.live",
    "api.peers",
    "api",
    "models",
    "settings.llama_server",
    "settings",
    "console",
    "planner",
    "daemon",
    "bench.measure",
    "bench.scenarios",
    "bench.curves",
    "bench.engine",
    "bench.goodput",
    "bench.beside",
    "bench",
    "replay",
    "cluster",
    "cluster.routing",
    "cluster.directory",
    "cluster.moving",
    "cluster.merging",
    "cluster.relay",
    "cluster.ingress",
    "cluster.simulation",
    "cluster.serving",
    "cluster_cli",
    "cli_keys",
    "cli",
    "__main__",
)
"""Folders of the package, and its modules that lie in no folder."""

REGISTRIES = frozenset(("bench.scenarios", "chat.tools.formats"))
"""Rooms of many files of one kind, each independent of the others: they may have more than a dozen."""


def modules() -> dict[str, Path]:
    """Every module of the package by its name without `ggufd.`; `__init__` files by the name of their folder."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str:
    """The room that a module lies in: its folder, or itself at the top. The package itself is in none ("")."""
    path = modules_cached()[module]
    if path.name == "__init__.py":
        return module
    return module.rpartition(".")[0] or module


@functools.cache
def modules_cached() -> dict[str, Path]:
    """`modules`, read once a run."""
    return modules()


@functools.cache
def imports(path: Path) -> tuple[str, ...]:
    """Full names of everything that a file imports, anywhere in it. Raises AssertionError for a relative import."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def own_imports(path: Path) -> frozenset[str]:
    """Modules of the package that a file imports, named as in `modules`; "" is the package itself."""
    known = modules_cached()
    found = set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "ggufd":
            found.add(
                next(
                    candidate
                    for end in range(len(parts), 0, -1)
                    if (candidate := ".".join(parts[1:end])) in known or end == 1
                )
            )
    return frozenset(found)


def purpose(room: str) -> str:
    """The first sentence of a room's docstring."""
    path = modules_cached()[room]
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())
