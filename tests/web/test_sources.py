"""The sources of the web page, checked with Node's tools: types, unit tests, and what was vendored."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.programs.sillytavern_app import or_skip, require_node
from tests.support.programs.web_tools import SOURCES, WEB, modules, node

UNITS = sorted(Path(__file__).parent.glob("*.test.mjs"))


@pytest.fixture(scope="module")
def packages() -> Path:
    with or_skip():
        return modules()


def test_what_is_vendored_is_what_the_pinned_packages_give(packages: Path, tmp_path: Path) -> None:
    done = node("vendor.mjs", packages, tmp_path)
    assert done.returncode == 0, done.stderr
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_bytes() for path in (WEB / "vendor").iterdir()}
    assert kept.keys() == made.keys()
    assert [name for name in made if made[name] != kept[name]] == []


def test_every_vendored_library_has_its_licence() -> None:
    licences = (WEB / "vendor" / "LICENCES.txt").read_text("utf-8")
    names = ("preact ", "@preact/signals ", "htm ", "marked ", "dompurify ", "uplot ", "sugar-high ")
    assert [name for name in names if f"\n{name}" not in f"\n{licences}"] == []


def test_the_types_are_right(packages: Path, tmp_path: Path) -> None:
    for name in SOURCES:
        shutil.copytree(WEB / name, tmp_path / name)
    shutil.copy(WEB / "tsconfig.json", tmp_path)
    (tmp_path / "node_modules").symlink_to(packages)
    done = node(packages / "typescript" / "bin" / "tsc", "-p", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", UNITS, ids=lambda path: path.name)
def test_units(file: Path) -> None:
    with or_skip():
        require_node()
    done = node("--test", file)
    assert done.returncode == 0, done.stdout
