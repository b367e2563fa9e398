"""llama-server's flags as its source declares them, and a command line of its as settings of ours."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import typer

from ggufd.settings import flags, sources
from ggufd.settings.config import Config
from ggufd.settings.flags import with_settings
from ggufd.settings.llama_server import translation

_SERVER = ("LLAMA_EXAMPLE_SERVER", "LLAMA_EXAMPLE_COMMON", "mmproj_examples")
_STRINGS = r'"((?:[^"\\]|\\.)*)"'


class Declared(NamedTuple):
    """A flag of arg.cpp: its names, those that turn it off, its variable, the number of its values."""

    names: tuple[str, ...]
    off_names: tuple[str, ...]
    env: str
    n_values: int


def declared(source: str) -> Iterator[Declared]:
    """Every flag that llama-server has: those that name it as their program, and those of all programs."""
    for text in re.split(r"add_opt\(common_arg\(", source)[1:]:
        text = re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE).lstrip()
        lists = re.match(r"\{([^}]*)\}\s*,\s*(?:\{([^}]*)\}\s*,)?", text)
        handler = re.search(r"\[[^\]]*\]\(common_params\s*&[^,)]*(?:,([^)]*))?\)", text)
        assert lists is not None, text[:200]
        assert handler is not None, text[:200]
        programs = re.search(r"\.set_examples\(([^)]*)\)", text)
        without = re.search(r"\.set_excludes\(([^)]*)\)", text)
        if (programs and not any(name in programs[1] for name in _SERVER)) or (without and _SERVER[0] in without[1]):
            continue
        env = re.search(r'\.set_env\("([^"]+)"\)', text)
        value = handler[1] or ""
        n_values = 0 if not value or "bool" in value else value.count(",") + 1
        names, off_names = (tuple(re.findall(_STRINGS, part or "")) for part in lists.groups())
        yield Declared(names, off_names, env[1] if env else "", n_values)


def settings_of(arguments: Sequence[str], environ: Mapping[str, str] | None = None) -> Config:
    """The settings that a command line and an environment make, as `ggufd` reads them."""
    line = translation.command_line(arguments, flags.options(), environ or {})
    command, taken = _command()
    command.main(line.arguments, standalone_mode=False)
    return sources.load(None, taken.pop(), environ or {})


@functools.cache
def _command() -> tuple[Any, list[dict[str, Any]]]:
    """A command with every setting, and the list that it adds what it was given to; typer takes long to make one."""
    taken: list[dict[str, Any]] = []
    app = typer.Typer(add_completion=False)
    app.command()(with_settings(lambda config, given: taken.append(given)))
    return typer.main.get_command(app), taken
