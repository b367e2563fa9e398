"""Command-line options, generated from the settings: every setting has a flag.

Values stay strings here; the config validates them, with the same messages as for the file and the environment.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand

from ggufd.settings.config import Setting, settings, split

_PANELS = {
    "model": "Model",
    "context": "Context",
    "pool": "Several models",
    "server": "Server",
    "responses": "Stored responses",
    "streams": "Resumable streams",
    "batches": "Batches",
    "images": "Images",
    "queue": "Queue",
    "reasoning": "Reasoning",
    "output": "Output defaults",
    "sampling": "Sampling defaults",
}


class CommandWithSections(TyperCommand):
    """Typer command whose help groups the options by section.

    Flags are never truncated: the description of a long one starts on the next line, also at 80 columns.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for one in self.get_params(ctx):
            if (record := one.get_help_record(ctx)) is not None:
                heading = "Arguments" if one.param_type_name == "argument" else "Options"
                sections.setdefault(getattr(one, "rich_help_panel", None) or heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(typer.style(heading, bold=True)):
                formatter.write_dl([(typer.style(names, fg="cyan"), description) for names, description in records])


_KINDS = {int: "N", float: "X", str: "TEXT", bool: ""}


def with_settings(
    command: Callable[..., None],
    sections: Collection[str] = tuple(_PANELS),
    own: Mapping[str, tuple[Any, Any]] | None = None,
) -> Callable[..., None]:
    """`command` with the signature that typer reads: a keyword parameter for --config and each setting of `sections`.

    `own` are further parameters of the command, passed by name: annotation and default.
    """
    own = own or {}

    def run(config: Path | None = None, **given: Any) -> None:
        flags = {key: _value_of(value) for key, value in given.items() if value not in (None, []) and key not in own}
        command(config, flags, **{key: given[key] for key in own})

    settable = {one.key: _option(one) for one in settings() if one.section in sections}
    options = {**{key: annotation for key, (annotation, _) in own.items()}, "config": _config_option(), **settable}
    defaults = {key: default for key, (_, default) in own.items()}
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=annotation)
        for name, annotation in options.items()
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = options
    run.__doc__ = command.__doc__
    return run


def options() -> dict[str, bool]:
    """All options of a command that takes every setting, and whether a value follows."""
    spelled = (
        (name, not one.is_switch)
        for one in settings()
        for text in one.spellings
        for name in text.split("/")
        if name.strip()
    )
    return {"--config": True, "--help": False, "-h": False, **dict(spelled)}


def _value_of(value: Any) -> Any:
    """Value of a flag: a string for the config to parse, or the joined list of a flag given several times."""
    if not isinstance(value, list):
        return value
    return value[0] if len(value) == 1 else [part for text in value for part in split(text)]


def _config_option() -> Any:
    return Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="TOML file with settings; default: ./config.toml, else the one in your config folder.",
            show_default=False,
        ),
    ]


def _option(one: Setting) -> Any:
    option = typer.Option(
        *one.spellings,
        help=one.description + _default(one),
        metavar=None if one.is_switch else _metavar(one.field.annotation),
        rich_help_panel=_PANELS[one.section],
        show_default=False,
    )
    if one.is_switch:
        return Annotated[bool | None, option]
    kind = list[str] if _metavar(one.field.annotation) == "LIST" else str
    return Annotated[kind | None, option]


def _default(one: Setting) -> str:
    """Default in brackets; empty if there is none to show."""
    text = one.default_text.strip('"')
    return f" [{text}]" if text not in ("", "[]") else ""


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        choices = [str(choice) for choice in get_args(annotation) if choice]
        return "|".join(choices) if len(choices) <= 4 else "TYPE"
    if annotation in _KINDS:
        return _KINDS[annotation]
    if get_origin(annotation) is tuple:
        return "LIST"
    parts = [_metavar(part) for part in get_args(annotation)]
    return "|".join(part for part in parts if part != "LIST") or "LIST"
