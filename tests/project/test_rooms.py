"""The rooms of the package: imports point down the table, in no circle, and a room can be overlooked."""

from __future__ import annotations

import ast
import builtins
import collections.abc
import re
import subprocess
import sys
import typing
from collections import Counter
from graphlib import TopologicalSorter

import pytest

from tests.project.rooms import PACKAGE, REGISTRIES, ROOMS, ROOT, imports, modules, own_imports, purpose, room_of

MODULES = modules()
PLACE = {room: place for place, room in enumerate(ROOMS)}

BINDINGS = {"llama_cpp", "llguidance"}
"""C libraries that only llama/ touches."""

HTTP = {"fastapi", "starlette", "uvicorn", "sse_starlette"}

MOST_FILES = 13
"""In one room, besides its `__init__.py`."""


def in_rooms(*names: str) -> list[str]:
    """The modules of these top-level folders."""
    return [module for module in MODULES if module.split(".")[0] in names]


def libraries(module: str) -> set[str]:
    return {name.split(".")[0] for name in imports(MODULES[module])}


def test_imports_point_down_the_table() -> None:
    upwards = [
        f"{module} imports {one}"
        for module, path in MODULES.items()
        if module
        for one in own_imports(path)
        if one and PLACE[room_of(one)] > PLACE[room_of(module)]
    ]
    assert upwards == []


def test_every_room_stands_in_the_table_once() -> None:
    assert sorted(ROOMS) == sorted({room_of(module) for module in MODULES if module})


def test_every_room_says_what_it_is_for() -> None:
    """The architecture page prints it."""
    assert [room for room in ROOMS if not purpose(room)] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: own_imports(path) - {module} for module, path in MODULES.items()}
    list(TopologicalSorter(graph).static_order())


def test_a_room_has_at_most_about_a_dozen_files() -> None:
    sizes = Counter(room_of(module) for module, path in MODULES.items() if path.name != "__init__.py")
    assert {room: n for room, n in sizes.items() if n > MOST_FILES and room not in REGISTRIES} == {}


def test_no_two_classes_have_one_name_and_none_hides_a_standard_one() -> None:
    trees = [ast.parse(path.read_text("utf-8")) for path in MODULES.values()]
    names = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert sum(names.values()) > 500
    assert [name for name, n in names.items() if n > 1] == []
    assert not names.keys() & {*dir(builtins), *dir(collections.abc), *dir(typing)}


def test_the_engine_and_what_is_under_it_know_no_layer_above() -> None:
    for module in in_rooms("llama", "engine", "placement", "processes", "keys"):
        above = {one.split(".")[0] for one in own_imports(MODULES[module])} & {"chat", "api", "settings", "daemon"}
        assert not above, module


def test_the_bench_and_the_server_know_nothing_of_each_other() -> None:
    """But for `bench.engine`, which drives the engine itself, and the command line, which has both."""
    for module in in_rooms("bench"):
        others = {one for one in own_imports(MODULES[module]) if one and not one.startswith("bench")}
        assert not others or module.startswith("bench.engine"), module
    users = {module for module, path in MODULES.items() if any(one.startswith("bench") for one in own_imports(path))}
    assert {module for module in users if not module.startswith("bench")} == {"cli"}


def test_only_llama_touches_the_binding() -> None:
    others = [module for module in MODULES if not module.startswith("llama")]
    assert [module for module in others if libraries(module) & BINDINGS] == []


def test_only_the_api_knows_http() -> None:
    others = in_rooms("llama", "engine", "chat", "placement", "keys", "processes")
    assert [module for module in others if libraries(module) & HTTP] == []


@pytest.mark.parametrize("name", ["cli.py", "__main__.py", "__init__.py", "errors.py"])
def test_what_every_child_imports_again_is_light(name: str) -> None:
    """A spawned child imports these before it loads its model: nothing heavy at their top."""
    body = ast.parse((PACKAGE / name).read_text("utf-8")).body
    top = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    top |= {node.module or "" for node in body if isinstance(node, ast.ImportFrom)}
    heavy = {part for part in top if part.split(".")[0] in HTTP | BINDINGS | {"typer", "rich", "pydantic", "numpy"}}
    assert not heavy
    assert {part for part in top if part.startswith("ggufd")} <= {"ggufd", "ggufd.errors", "ggufd.cli"}


def loaded_by(module: str) -> set[str]:
    """All modules that a fresh Python holds when it has imported this one."""
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_http_side_loads_no_c_library_of_the_model() -> None:
    """Neither directly nor through what it imports: its process stays small, and no crash of theirs is its own."""
    assert not {"numpy", *BINDINGS} & loaded_by("ggufd.api.app")


def test_a_bench_over_http_loads_no_c_library_of_the_model() -> None:
    """Its client eats from the cores that it measures."""
    assert not {"numpy", "matplotlib", *BINDINGS} & loaded_by("ggufd.bench.app")


def test_no_duration_is_taken_from_a_clock_that_can_be_set() -> None:
    """The wall clock tells people and clients the date; whoever measures uses a monotonic one."""
    tells_the_date = {
        "api.compat.ollama",
        "api.live.view",
        "api.openai.head",
        "api.openai.responses.create",
        "api.openai.responses.response",
        "api.ops.traces",
        "api.peers.transfer",
        "api.services.metrics",
        "api.services.settings",
        "api.streams.conversations",
        "batches.records",
        "bench.measure.report",
        "chat.rendering.renderer",
        "chat.rendering.template",
        "cluster.moving.mover",
    }
    wall_clock = re.compile(r"\btime\.time(_ns)?\(|datetime\.(now|utcnow)\(|\bdate\.today\(")
    assert {module for module, path in MODULES.items() if wall_clock.search(path.read_text())} == tells_the_date
