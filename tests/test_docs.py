"""Every setting and every flag is documented, in config.toml and in README, with its true default."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import typer

from server.cli import build_app
from server.config import Config, Setting, settings
from server.sources import load
from tests.readme import PARTS, between
from tests.vocabularies import source_file

ROOT = Path(__file__).parent.parent
LINES = (ROOT / "config.toml").read_text("utf-8").splitlines()
TABLES = tomllib.loads("\n".join(LINES))


@pytest.mark.parametrize("one", settings(), ids=lambda one: one.key)
def test_a_setting_stands_in_config_toml_with_its_default(one: Setting) -> None:
    table = TABLES[one.section]
    if one.field.default is None:
        assert one.key not in table
        assert any(line.startswith(f"# {one.key} = ") for line in LINES)
    else:
        assert json.dumps(table[one.key]) == one.default_text


@pytest.mark.parametrize("one", settings(), ids=lambda one: one.key)
def test_the_line_above_says_why(one: Setting) -> None:
    start = LINES.index(f"[{one.section}]")
    place = next(n for n in range(start, len(LINES)) if LINES[n].removeprefix("# ").startswith(f"{one.key} ="))
    assert LINES[place - 1] == f"# {one.description}"


@pytest.mark.parametrize("one", [one for one in settings() if one.field.default is None], ids=lambda one: one.key)
def test_the_example_of_an_unset_one_is_valid(one: Setting, tmp_path: Path) -> None:
    (line,) = (line.removeprefix("# ") for line in LINES if line.startswith(f"# {one.key} = "))
    file = tmp_path / "config.toml"
    file.write_text(f"[{one.section}]\n{line}\n", "utf-8")
    assert getattr(getattr(load(file, {}, {}), one.section), one.key) is not None


def test_config_toml_as_it_stands_changes_nothing() -> None:
    assert load(ROOT / "config.toml", {}, {}) == Config()


def test_descriptions_are_sentences_on_one_line() -> None:
    for one in settings():
        assert one.description.endswith("."), one.key
        assert "\n" not in one.description
        assert "|" not in one.description, "would break README's table"


@pytest.mark.parametrize("name", PARTS)
def test_readme_holds_what_is_made_from_the_code(name: str) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert between(name, text) == PARTS[name]().strip(), "write it with: python -m tests.readme"


def test_ci_runs_readmes_test_command() -> None:
    command = "-m pytest"
    assert f".venv/bin/python {command}\n" in (ROOT / "README.md").read_text("utf-8")
    assert f'"$venv/bin/python" {command}\n' in (ROOT / ".ci/run").read_text("utf-8")


@pytest.mark.parametrize("command", ["serve", "check"])
def test_every_flag_is_in_the_help(command: str) -> None:
    group = typer.main.get_command(build_app(command))
    parameters = group.commands[command].params  # type: ignore[attr-defined]
    described = {flag for one in parameters if one.help for flag in one.opts}
    assert described >= {flag for one in settings() for flag in one.flags} | {"--config"}


def test_a_flag_of_llama_servers_has_all_of_its_names() -> None:
    source = source_file("common/arg.cpp").read_text("utf-8")
    options = re.findall(r"add_opt\(common_arg\(\s*((?:\{[^{}]*\},?\s*)+)", source)
    assert len(options) > 100, "llama.cpp writes its options in another way now"
    theirs = [set(re.findall(r'"(-[^"]+)"', names)) for names in options]
    # A switch is turned off by --no-its-name, and that is all the names it needs.
    for ours in [set(one.flags) for one in settings() if not one.is_switch]:
        for names in theirs:
            assert not ours & names or names <= ours
