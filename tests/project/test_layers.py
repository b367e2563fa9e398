"""Imports point one way: api -> chat -> engine -> llama. Read from the source alone."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "server"

LAYERS = ("llama", "engine", "chat", "api")
"""From below to above."""

BASE = {"", "errors", "wording"}
"""What every layer may import: the version, the exceptions, and the words for what is wrong."""

SHARED = {"api": {"keys"}, "engine": {"keys"}}
"""What a layer may import beside it: whose key it is and what its owner is granted, as plain data."""

BINDINGS = {"llama_cpp", "llguidance"}
"""C libraries that only llama/ touches."""

HTTP = {"fastapi", "starlette", "uvicorn", "sse_starlette"}

FILES = sorted(ROOT.rglob("*.py"))


def package_of(path: Path) -> str:
    """`llama` for server/llama/x.py, `cli` for server/ggufd/cli.py, empty for server/__init__.py."""
    first = path.relative_to(ROOT).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_packages(path: Path) -> set[str]:
    """Which parts of the server a file imports."""
    names = [name.split(".") for name in imports(path)]
    children = {child.stem for child in ROOT.iterdir()}
    return {name[1] for name in names if name[0] == "server" and len(name) > 1 and name[1] in children}


def of(*packages: str) -> list[Path]:
    return [path for path in FILES if package_of(path) in packages]


@pytest.mark.parametrize("path", of(*LAYERS), ids=str)
def test_a_layer_imports_only_what_lies_below(path: Path) -> None:
    below = LAYERS[: LAYERS.index(package_of(path)) + 1]
    shared = SHARED.get(package_of(path), set())
    assert own_packages(path) - set(below) - BASE - shared == _shared_data(path)
    assert {name for name in imports(path) if name.startswith("ggufd.keys")} <= _names_in("ggufd.keys.ring")


def _names_in(module: str) -> set[str]:
    return {module, *(f"{module}.{name}" for name in vars(importlib.import_module(module)))}


def _shared_data(path: Path) -> set[str]:
    """llama/ may use the plain messages of the engine: sampling parameters are the same thing in both."""
    engine = {name for name in imports(path) if name.startswith("ggufd.engine.")}
    is_messages = all(name.startswith("ggufd.engine.messages.messages") for name in engine)
    return {"engine"} if package_of(path) == "llama" and engine and is_messages else set()


ENGINE_BENCH = ROOT / "bench" / "engine"
"""The part of the bench that drives the engine itself."""


@pytest.mark.parametrize("path", [path for path in of("bench") if path.parent != ENGINE_BENCH], ids=str)
def test_the_bench_knows_only_http(path: Path) -> None:
    assert own_packages(path) <= {"bench"}


@pytest.mark.parametrize("path", of("errors", "config", "wording"), ids=str)
def test_the_base_imports_no_other_part(path: Path) -> None:
    assert own_packages(path) == set()


def test_keys_are_plain_data() -> None:
    assert own_packages(ROOT / "keys" / "ring.py") == set()


@pytest.mark.parametrize("path", [path for path in FILES if package_of(path) != "llama"], ids=str)
def test_only_llama_touches_the_binding(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & BINDINGS


@pytest.mark.parametrize("path", of("llama", "engine", "chat"), ids=str)
def test_only_the_api_knows_http(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & HTTP


@pytest.mark.parametrize("name", ["cli.py", "__main__.py", "__init__.py", "errors.py"])
def test_what_every_child_imports_again_is_light(name: str) -> None:
    """A spawned child imports these before it loads its model: nothing heavy at their top."""
    body = ast.parse((ROOT / name).read_text("utf-8")).body
    top = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    top |= {node.module or "" for node in body if isinstance(node, ast.ImportFrom)}
    heavy = {part for part in top if part.split(".")[0] in HTTP | BINDINGS | {"typer", "rich", "pydantic", "numpy"}}
    assert not heavy
    assert {part for part in top if part.startswith("server")} <= {"server", "ggufd.errors", "ggufd.cli"}


def test_the_http_side_loads_no_c_library_of_the_model() -> None:
    """Neither directly nor through what it imports: its process stays small, and no crash of theirs is its own."""
    program = "import sys, ggufd.api.app; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT.parent, capture_output=True, text=True, check=True
    )
    assert not {"numpy", *BINDINGS} & set(output.stdout.split())


def test_a_bench_over_http_loads_no_c_library_of_the_model() -> None:
    """Its client eats from the cores that it measures."""
    program = "import sys, ggufd.bench.app; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT.parent, capture_output=True, text=True, check=True
    )
    assert not {"numpy", "matplotlib", *BINDINGS} & set(output.stdout.split())


def test_no_duration_is_taken_from_a_clock_that_can_be_set() -> None:
    """The wall clock tells people and clients the date; whoever measures uses a monotonic one."""
    tells_the_date = {
        "api/settings.py",
        "api/openai/head.py",
        "api/openai/responses/create.py",
        "api/openai/responses/response.py",
        "api/ollama.py",
        "api/traces.py",
        "chat/renderer.py",
        "chat/template.py",
        "bench/report.py",
    }
    wall_clock = re.compile(r"\btime\.time(_ns)?\(|datetime\.(now|utcnow)\(|\bdate\.today\(")
    users = {str(path.relative_to(ROOT)) for path in FILES if wall_clock.search(path.read_text())}
    assert users == tells_the_date
