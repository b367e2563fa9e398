"""Pages made from the code (settings, command line, routes, modules), and the table of rooms in the architecture page.

`python -m docs.generate` writes them; tests/project/test_docs.py holds what is written to what would be. Needs no model
and no llama.cpp.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from unittest.mock import Mock

import typer

from ggufd.api.app import create_app
from ggufd.api.services.settings import ApiConfig
from ggufd.cli import build_app
from ggufd.settings.config import Config, Setting, settings
from ggufd.settings.llama_server.flag import Exports, Fixed, Flag, Outcome, Part, Refused, Sets, Shows, Taken
from ggufd.settings.llama_server.table import SECTIONS
from tests.project.rooms import ROOMS, modules, purpose

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "server" / "ggufd"

_NOTE = "<!-- Made by `python -m docs.generate`: change the code instead. -->"
_METHODS = ("get", "post", "put", "delete")


def settings_page() -> str:
    """Every setting, a table for each section of config.toml."""
    parts = [
        "# Settings",
        "A setting is given by its flag, by an environment variable, or in `config.toml`, which lists them all. A flag "
        "overrides the environment, and the environment the file; llama-server's flags and variables are known too, "
        "see [From llama-server](../moving/llama-server.md). The variable is `GGUFD_` and the name in capitals: "
        "`GGUFD_PORT=9000`. The file is looked for at `--config`, in the current folder, then in your config folder. "
        "Values of a list are separated by commas, or given by the flag several times where llama-server adds them up "
        "too. A switch is turned off by `--no-` and its name.",
    ]
    for section, field in Config.model_fields.items():
        if not (own := [one for one in settings() if one.section == section]):
            continue
        about = _first_paragraph(getattr(field.annotation, "__doc__", ""))
        parts += [f"## {section}", about, _table(("setting", "meaning", "default", "flags"), map(_setting_row, own))]
    return _page(parts)


def _setting_row(one: Setting) -> tuple[str, ...]:
    default = f"`{one.default_text}`" if one.default_text else "unset"
    flags = ", ".join(f"`{flag}`" for flag in one.flags)
    choices = [f"`{choice}`" for choice in _choices(one.field.annotation) if choice]
    among = f" One of {', '.join(choices)}." if len(choices) > 1 else ""
    return f"`{one.key}`", one.description + among, default, flags


def _choices(annotation: Any) -> list[str]:
    """What a setting may be, where that is a list of words; a list of such settings has the same."""
    if get_origin(annotation) is Literal:
        return [str(one) for one in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def command_line_page() -> str:
    """Every command with its arguments; those that are settings are on the page of settings."""
    parts = [
        "# Command line",
        "`ggufd --model FILE` is `ggufd serve --model FILE`. `-h` after a command lists its options.",
    ]
    for name, command in _commands():
        parts += [f"## {name}", _paragraphs(command.help or ""), *_parameters(command)]
    return _page(parts)


def _commands() -> Iterator[tuple[str, Any]]:
    """Every command with its full name."""
    for name in _group("serve").commands:
        command = _group(name).commands[name]
        for inner, one in getattr(command, "commands", {"": command}).items():
            yield f"ggufd {name} {inner}".rstrip(), one


def _group(command: str) -> Any:
    return typer.main.get_command(build_app(command))


def _parameters(command: Any) -> list[str]:
    """A table of what is no setting, and which sections of settings the command takes."""
    takes_settings = any(one.name == "config" for one in command.params)
    sections = {one.key: one.section for one in settings()} if takes_settings else {}
    own = [_parameter_row(one) for one in command.params if one.name not in sections]
    taken = dict.fromkeys(sections[one.name] for one in command.params if one.name in sections)
    parts = [_table(("argument", "meaning"), own)] if own else []
    if taken:
        links = ", ".join(f"[{section}](settings.md#{section})" for section in taken)
        parts.append(f"And every setting of {links}, as a flag.")
    return parts


def _parameter_row(one: Any) -> tuple[str, str]:
    if one.param_type_name == "argument":
        return f"`{(one.metavar or one.name.upper()).replace('|', ' or ')}`", one.help or ""
    names = ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts))
    is_shown = one.default not in (None, False, "") and not callable(one.default)
    return names, (one.help or "") + (f" Default: `{one.default}`." if is_shown else "")


def routes_page() -> str:
    """Every documented route of the application, family by family."""
    # Nothing is asked of engine and text process while no request comes.
    nobody = Mock()
    document = create_app(nobody, nobody, ApiConfig(model_id="any")).openapi()
    families: dict[str, list[tuple[str, str]]] = {tag["name"]: [] for tag in document["tags"]}
    for path, operations in document["paths"].items():
        for method in _METHODS:
            if method in operations:
                one = operations[method]
                families[one["tags"][0]].append((f"`{method.upper()} {path}`", _first_paragraph(one["description"])))
    parts = [
        "# Routes",
        "The fields of each body, with examples to try, are at `/docs` of a running server, and as a document at "
        "`/openapi.json`. Routes of OpenAI's and Anthropic's families answer without `/v1` too. [The API]"
        "(../using/api.md) says what the families have in common.",
    ]
    for family, rows in families.items():
        parts += [f"## {family}", _table(("route", "what"), rows)]
    return _page(parts)


def modules_page() -> str:
    """Every module of the package with the first sentence of its docstring, folder by folder."""
    parts = ["# Modules", "One sentence for each module: the first of its docstring."]
    for folder in sorted({path.parent for path in PACKAGE.rglob("*.py")}):
        name = folder.relative_to(DOCS.parent).as_posix()
        modules = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        rows = [(f"`{module.name}`", _first_sentence(module)) for module in modules]
        parts += [f"## {name}", f"{_first_sentence(folder / '__init__.py')}.", _table(("module", "what"), rows)]
    return _page(parts)


def rooms_table() -> str:
    """The rooms with what each of them says of itself, from the highest layer to the lowest."""
    folders = {name for name, path in modules().items() if path.name == "__init__.py"}
    return _table(("room", "what"), ((_room(name, name in folders), purpose(name)) for name in reversed(ROOMS)))


def _room(name: str, is_folder: bool) -> str:
    """A room as its path, linked to its list of modules."""
    folder = f"server/ggufd/{name.replace('.', '/')}" if is_folder else "server/ggufd"
    path = f"{name.replace('.', '/')}/" if is_folder else f"{name}.py"
    return f"[`{path}`](modules.md#{folder.replace('/', '')})"


def flags_part() -> str:
    """Every flag of llama-server and what becomes of it, a table for each subject."""
    parts = []
    for subject, flags in SECTIONS.items():
        rows = [row for flag in flags for row in _flag_rows(flag)]
        parts += [f"### {subject}", _table(("flag", "variable", "here"), rows)]
    return "\n\n".join(parts)


def _flag_rows(flag: Flag) -> Iterator[tuple[str, str, str]]:
    """A row, and a second one where the off form is another matter."""
    on, off = _outcome(flag.outcome), "" if flag.off_outcome is None else _outcome(flag.off_outcome)
    env = f"`{flag.env}`" if flag.env else ""
    if off in ("", on):
        yield _flags((*flag.names, *flag.off_names)), env, on
        return
    yield _flags(flag.names), env, on
    yield _flags(flag.off_names), f"`{flag.off_env}`" if flag.off_env else "", off


def _flags(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _outcome(outcome: Outcome) -> str:
    match outcome:
        case Sets(keys) | Part(_, _, keys):
            return _links(keys)
        case Fixed(values):
            return ", ".join(f"{_links([key])} {_shown(value)}" for key, value in values.items())
        case Exports(variable):
            return f"as the variable `{variable}`, which downloads obey"
        case Shows(command):
            return f"shows the {command}, and ends"
        case Taken(why):
            return f"*changes nothing here*: {why}"
        case Refused(instead):
            return f"**refused**: {instead}"


def _shown(value: Any) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else f"`{value}`"


def _links(keys: Iterable[str]) -> str:
    sections = {one.key: one.section for one in settings()}
    return ", ".join(f"[{key}](../reference/settings.md#{sections[key]})" for key in keys)


def with_part(page: str, marker: str, part: str) -> str:
    """The page with `part` between `<!-- marker -->` and `<!-- end of marker -->`."""
    between = re.compile(rf"(?<=<!-- {marker} -->\n).*?(?=<!-- end of {marker} -->)", re.DOTALL)
    return between.sub(lambda _: f"{part}\n", page)


def _first_sentence(module: Path) -> str:
    paragraph = _first_paragraph(ast.get_docstring(ast.parse(module.read_text("utf-8"))) or "")
    return re.split(r"(?<=\.)\s", paragraph)[0].rstrip(".")


def _first_paragraph(text: str) -> str:
    return " ".join(text.strip().split("\n\n")[0].split())


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _page(parts: list[str]) -> str:
    return "\n\n".join([_NOTE, *(part for part in parts if part)]) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "reference/settings.md": settings_page,
    "reference/command-line.md": command_line_page,
    "reference/routes.md": routes_page,
    "development/modules.md": modules_page,
}
"""A page's path below docs/ -> what makes it."""

PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "development/architecture.md": ("rooms", rooms_table),
    "moving/llama-server.md": ("flags", flags_part),
}
"""A page's path below docs/ -> the marker in it, and what makes the part that follows."""


def main() -> None:
    for name, make in PAGES.items():
        (DOCS / name).write_text(make(), "utf-8")
    for name, (marker, make) in PARTS.items():
        page = DOCS / name
        page.write_text(with_part(page.read_text("utf-8"), marker, make()), "utf-8")


if __name__ == "__main__":
    main()
