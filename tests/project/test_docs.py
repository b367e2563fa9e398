"""README, docs/ and config.toml say what is true: settings, flags, routes, files, links; and the site builds."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import typer
from starlette.routing import Match

from docs.generate import PAGES as GENERATED
from docs.generate import PARTS
from ggufd.api.app import create_app
from ggufd.api.services.settings import ApiConfig
from ggufd.bench.scenarios import SCENARIOS
from ggufd.cli import build_app
from ggufd.settings import flags
from ggufd.settings.config import Config, settings
from ggufd.settings.llama_server import translation
from ggufd.settings.llama_server.table import BY_NAME
from ggufd.settings.sources import load
from tests.support.pages import DOCS, PAGES, ROOT, anchors, blocks, commands, ggufd_calls, links, name_of, prose, spans
from tests.support.programs.programs import needed_program

README = ROOT / "README.md"
LINES = (ROOT / "config.toml").read_text("utf-8").splitlines()
TABLES = tomllib.loads("\n".join(LINES))
HAND_WRITTEN = [page for page in PAGES if page not in {DOCS / name for name in GENERATED}]

# --- settings -------------------------------------------------------------------------------------------------------


def test_every_setting_stands_in_config_toml_with_its_default() -> None:
    for one in settings():
        table = TABLES[one.section]
        if one.field.default is None:
            assert one.key not in table, one.key
            assert any(line.startswith(f"# {one.key} = ") for line in LINES), one.key
        else:
            assert json.dumps(table[one.key]) == one.default_text, one.key


def test_the_line_above_each_says_why() -> None:
    for one in settings():
        start = LINES.index(f"[{one.section}]")
        place = next(n for n in range(start, len(LINES)) if LINES[n].removeprefix("# ").startswith(f"{one.key} ="))
        assert LINES[place - 1] == f"# {one.description}", one.key


def test_the_example_of_each_unset_one_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    for one in settings():
        if one.field.default is None:
            (line,) = (line.removeprefix("# ") for line in LINES if line.startswith(f"# {one.key} = "))
            file.write_text(f"[{one.section}]\n{line}\n", "utf-8")
            assert getattr(getattr(load(file, {}, {}), one.section), one.key) is not None, one.key


def test_config_toml_as_it_stands_changes_nothing() -> None:
    assert load(ROOT / "config.toml", {}, {}) == Config()


def test_descriptions_are_sentences_on_one_line() -> None:
    for one in settings():
        assert one.description.endswith("."), one.key
        assert "\n" not in one.description
        assert "|" not in one.description, "would break the table of settings"


def test_every_setting_stands_on_its_page_with_its_flags() -> None:
    text = (DOCS / "reference/settings.md").read_text("utf-8")
    for one in settings():
        table = text.split(f"\n## {one.section}\n")[1].split("\n## ")[0]
        (row,) = [line for line in table.splitlines() if line.startswith(f"| `{one.key}` |")] or [one.key]
        assert one.description in row, one.key
        assert all(f"`{flag}`" in row for flag in one.flags), one.key
        assert (f"| `{one.default_text}` |" if one.default_text else "| unset |") in row, one.key


@pytest.mark.parametrize("name", GENERATED)
def test_a_page_is_what_the_code_makes_of_it(name: str) -> None:
    assert (DOCS / name).read_text("utf-8") == GENERATED[name](), "write it with: python -m docs.generate"


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_a_page_is_what_the_code_makes_of_it(name: str) -> None:
    marker, make = PARTS[name]
    part = f"\n<!-- {marker} -->\n{make()}\n<!-- end of {marker} -->\n"
    assert part in (DOCS / name).read_text("utf-8"), "write it with: python -m docs.generate"


def test_every_module_is_listed() -> None:
    listed = set(
        re.findall(r"^\| `(\w+\.py)` \| \S", (DOCS / "development/modules.md").read_text("utf-8"), re.MULTILINE)
    )
    assert listed == {path.name for path in (ROOT / "server").rglob("*.py")} - {"__init__.py"}


# --- commands and flags ---------------------------------------------------------------------------------------------


def test_ci_runs_readmes_test_command() -> None:
    command = "-m pytest"
    assert f".venv/bin/python {command}\n" in README.read_text("utf-8")
    steps = (ROOT / ".ci/run").read_text("utf-8")
    assert f'"$venv/bin/python" {command} --cache-clear "$@" && return\n' in steps
    assert "run_tests 40m\n" in steps
    assert "run_tests 60m -m long -n 0\n" in steps


@functools.cache
def command_of(name: str) -> Any:
    """`serve`, a group, or one of it: `bench http`."""
    first, _, rest = name.partition(" ")
    if rest:
        return command_of(first).commands[rest]
    return typer.main.get_command(build_app(first)).commands[first]  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", ["serve", "check"])
def test_every_flag_is_in_the_help(command: str) -> None:
    described = {flag for one in command_of(command).params if one.help for flag in one.opts}
    assert described >= {flag for one in settings() for flag in one.flags} | {"--config"}


NESTED = {"keys": "", "bench": "http", "cluster": "serve"}
"""Commands with others under them, and which of those it is where none is named."""


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What the command makes of its arguments; nothing is run. Raises click's UsageError."""
    if not arguments or arguments[0].startswith("-"):
        arguments = ["serve", *arguments]
    name, *rest = arguments
    if name in ("serve", "check"):
        rest = translation.command_line(rest, flags.options(), {}).arguments
    if name in NESTED:
        inner = rest.pop(0) if rest and rest[0] in command_of(name).commands else NESTED[name]
        name = f"{name} {inner}"
    with command_of(name).make_context(name, rest) as context:
        return dict(context.params)


CALLS = [(page, call) for page in PAGES for command in commands(page) for call in ggufd_calls(command)]


@pytest.mark.parametrize(("page", "call"), CALLS, ids=[f"{name_of(page)}: {shlex.join(call)}" for page, call in CALLS])
def test_a_command_of_the_pages_is_one(page: Path, call: list[str]) -> None:
    parsed(call)


def test_a_command_with_a_typing_error_is_none() -> None:
    assert len(CALLS) > 10
    for wrong in (["--modle", "FILE"], ["bench", "engine", "--roundz", "1"], ["plan", "A", "B"]):
        with pytest.raises(Exception, match=r"(?i)no such option|unexpected extra argument"):
            parsed(wrong)


def columns(page: Path) -> Iterator[list[str]]:
    """The cells of each row of the page's tables, heads left out."""
    for line in prose(page).splitlines():
        if line.startswith("|") and not set(line) <= set("|-: "):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


MOVING = sorted((DOCS / "moving").glob("*.md"))
ADVICE = [
    (page, span)
    for page in MOVING
    for _, *here in columns(page)
    for cell in here
    for span in re.findall(r"`(--?[a-z][^`]*)`", cell)
    if len(span.split()) > 1
]
"""Flags with their values in the columns that say what to write here."""


@pytest.mark.parametrize(("page", "span"), ADVICE, ids=[f"{page.stem}: {span}" for page, span in ADVICE])
def test_what_to_write_here_is_understood(page: Path, span: str) -> None:
    assert parsed(shlex.split(span.replace("\\|", "|")))


def known_flags() -> set[str]:
    names = ["serve", "check", "plan"]
    for group in NESTED:
        names += [f"{group} {name}" for name in command_of(group).commands]
    options = [one for name in names for one in command_of(name).params]
    return {flag for one in options for flag in (*one.opts, *one.secondary_opts)} | {"--version", "-h"}


FOREIGN = {"--profile"}
"""Flags of other programs that stand alone in a span."""


def own_spans(page: Path) -> list[str]:
    """Spans of the page, without those of another program's habits."""
    if page not in MOVING or page.stem == "llama-server":
        return spans(page)
    return [span for _, *here in columns(page) for cell in here for span in re.findall("`([^`]+)`", cell)]


def test_every_flag_that_is_named_exists() -> None:
    known = known_flags() | FOREIGN | set(BY_NAME)
    named = {
        (name_of(page), flag)
        for page in HAND_WRITTEN
        for span in own_spans(page)
        if span.startswith(("-", "ggufd "))
        for flag in re.findall(r"(?<![\w-])--?[a-z](?:[\w.-]*\w)?", span)
    }
    assert len(named) > 60
    assert {(page, flag) for page, flag in named if flag not in known} == set()


def test_every_scenario_of_the_bench_is_described() -> None:
    assert [name for name in SCENARIOS if f"`{name}`" not in prose(DOCS / "measuring/running.md")] == []


# --- routes ---------------------------------------------------------------------------------------------------------


def routes_named() -> Iterator[tuple[str, str, str]]:
    for page in PAGES:
        for span in spans(page):
            if found := re.fullmatch(r"(GET|POST|DELETE) (/[^\s?]*)(?:\?\S*)?", span):
                yield name_of(page), found[1], re.sub(r"\{\w+\}", "1", found[2])


def test_every_route_that_is_named_exists() -> None:
    nobody = Mock()
    app = create_app(nobody, nobody, ApiConfig(model_id="any", peer_token="of a cluster"))

    def exists(method: str, path: str) -> bool:
        scope = {"type": "http", "method": method, "path": path, "headers": [], "root_path": "", "app": app}
        return any(route.matches(dict(scope))[0] is Match.FULL for route in app.routes)

    named = list(routes_named())
    assert len(named) > 60
    assert [one for one in named if not exists(*one[1:])] == []
    assert not exists("POST", "/v1/chat/completion")
    assert not exists("GET", "/v1/chat/completions")


# --- pages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_headings_of_a_page_have_anchors_of_their_own(page: Path) -> None:
    found = anchors(page)
    assert len(found) == len(set(found))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_json_blocks_are_json(page: Path) -> None:
    for text in blocks(page, "json"):
        json.loads(text)


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=name_of)
def test_lines_are_short(page: Path) -> None:
    """Tables, pictures and blocks may be wide."""
    wide = ("|", "![", "RAM without offload")
    assert [line for line in prose(page).splitlines() if len(line) > 120 and not line.startswith(wide)] == []


def test_readme_is_read_in_one_sitting() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 180


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=name_of)
def test_files_that_are_named_are_there(page: Path) -> None:
    """And sources are named on two pages only, so that moving them is no search."""
    named = [span for span in spans(page) if re.match(r"(server|tests|docs|docker|\.ci)/[\w./-]*\w$", span)]
    assert [name for name in named if not (ROOT / name).exists()] == []
    if page.name not in {"architecture.md", "contributing.md"}:
        assert not [name for name in named if name.startswith(("server/", "tests/"))]


def defined_names() -> Iterator[str]:
    """Classes, constants and functions of the code and its tests, members also as `Class.member`."""
    for path in [*(ROOT / "server").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for node in ast.parse(path.read_text("utf-8")).body:
            yield from names_in(node)
            if isinstance(node, ast.ClassDef):
                yield from (f"{node.name}.{name}" for member in node.body for name in names_in(member))


def names_in(node: ast.stmt) -> list[str]:
    """What a statement defines."""
    match node:
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            return [node.name]
        case ast.AnnAssign(target=ast.Name(name)):
            return [name]
        case ast.Assign():
            return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def test_classes_and_constants_that_are_named_exist() -> None:
    """Sources are named where the development is told; variables of the environment are none of theirs."""
    pages = [DOCS / "development" / name for name in ("architecture.md", "contributing.md", "glossary.md")]
    identifier = re.compile(r"_?[A-Z]\w*(?:\.\w+)?")
    named = {span for page in pages for span in spans(page) if identifier.fullmatch(span)}
    assert len(named) > 20
    assert {name for name in named if not name.startswith("GGUFD_")} <= set(defined_names())


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text("utf-8"))
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


# --- the site -------------------------------------------------------------------------------------------------------


class Fetched(HTMLParser):
    """What a browser fetches for a page by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        wanted = "href" if tag == "link" else "src"
        if tag != "a":
            self.urls += [value for name, value in attributes if name == wanted and value]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning ends the build."""
    beside = shutil.which("zensical", path=str(Path(sys.executable).parent))
    program = beside or needed_program("zensical", "pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", folder)
    built = subprocess.run(
        [program, "build", "--strict"],
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "site"


def test_the_site_has_every_page(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        html = (site / page.relative_to(DOCS)).with_suffix(".html").read_text("utf-8")
        assert all(f'id="{anchor}"' in html for anchor in anchors(page)), page
        assert len(html) > 2000
    assert not list(site.rglob("*.py"))


def test_a_page_of_the_site_asks_nobody_else(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(GENERATED)
    for page in pages:
        fetched = Fetched(page.read_text("utf-8")).urls
        assert [url for url in fetched if url.endswith(".css")]
        assert [url for url in fetched if url.startswith(("http:", "https:", "//"))] == []
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?(?:https?:)?//|@import", sheet.read_text("utf-8"))
