"""What is installed with the server has no weakness that is known here.

No database of them can be asked where this runs, so the version that mended each is written down. Where a network
allows, `pip-audit` in the environment that was installed asks for the rest.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.programs.live_server import ROOT

MENDED = {
    "certifi": ("2024.7.4", "CVE-2024-39689"),
    "filelock": ("3.20.3", "CVE-2026-22701"),
    "h11": ("0.16", "CVE-2025-43859"),
    "idna": ("3.7", "CVE-2024-3651"),
    "jinja2": ("3.1.6", "CVE-2025-27516"),
    "llama-cpp-python": ("0.2.72", "CVE-2024-34359"),
    "numpy": ("1.22", "CVE-2021-41496"),
    "pillow": ("12.1.1", "CVE-2026-25990"),
    "protobuf": ("6.31.1", "CVE-2025-4565"),
    "pydantic": ("2.4", "CVE-2024-3772"),
    "pygments": ("2.15.1", "CVE-2022-40896"),
    "pyyaml": ("5.4", "CVE-2020-14343"),
    "requests": ("2.32.4", "CVE-2024-47081"),
    "starlette": ("1.0.1", "CVE-2026-48710"),
    "tqdm": ("4.66.3", "CVE-2024-34062"),
    "urllib3": ("2.6.3", "CVE-2026-21441"),
}
"""The first version without the latest weakness that is known of a package."""

NOT_USED = {
    # CVE-2025-69872: who can write its folder runs code. llama-cpp-python brings it, no release mends it.
    "diskcache": {"diskcache", "LlamaDiskCache"},
}
"""Names that nothing here may use."""

AT_RUN_TIME = {"hub", "otel"}
"""Extras that a server may be installed with."""


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def direct() -> list[Requirement]:
    """What the project itself asks for, with the extras of a server."""
    table = project()
    extras = [line for name in sorted(AT_RUN_TIME) for line in table["optional-dependencies"][name]]
    return [Requirement(line) for line in (*table["dependencies"], *extras)]


def installed(wanted: Iterable[Requirement]) -> dict[str, Version]:
    """These packages and all that they need, as far as they are installed here."""
    found: dict[str, Version] = {}
    queue = [(one, frozenset[str]()) for one in wanted]
    seen = set()
    while queue:
        one, extras = queue.pop()
        name = canonicalize_name(one.name)
        is_wanted = one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in {"", *extras})
        if not is_wanted or (name, frozenset(one.extras)) in seen:
            continue
        seen.add((name, frozenset(one.extras)))
        try:
            found[name] = Version(version(name))
        except PackageNotFoundError:
            continue
        queue += [(Requirement(line), frozenset(one.extras)) for line in requires(name) or ()]
    return found


def test_nothing_that_is_installed_is_known_to_be_weak() -> None:
    here = installed(direct())
    assert len(here) > 2 * len(MENDED)
    known = [name for name in MENDED if name in here]
    assert {"starlette", "jinja2", "urllib3", "idna"} <= set(known)
    assert [f"{name} {here[name]}: {MENDED[name]}" for name in known if here[name] < Version(MENDED[name][0])] == []


@pytest.mark.parametrize("one", direct(), ids=lambda one: one.name)
def test_the_lowest_version_that_is_accepted_is_not_weak_either(one: Requirement) -> None:
    lowest = [Version(part.version) for part in one.specifier if part.operator == ">="]
    assert lowest, "any version is accepted"
    mended, _ = MENDED.get(canonicalize_name(one.name), ("0", ""))
    assert lowest[0] >= Version(mended)


@pytest.mark.parametrize("name", NOT_USED)
def test_what_is_weak_and_comes_along_is_not_used(name: str) -> None:
    used = {
        getattr(node, field)
        for path in (ROOT / "server").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for field in ("id", "attr", "module", "name")
        if isinstance(getattr(node, field, None), str)
    }
    assert "llama_cpp" in used
    assert not used & NOT_USED[name]
