"""`ggufd keys`: create, list and revoke the API keys of a key file, which a running server reloads by itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ggufd.errors import GgufdError
from ggufd.keys import file
from ggufd.keys.ring import Key, Role
from ggufd.settings import access, sources

app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True, rich_markup_mode=None)

_File = Annotated[
    Path | None,
    typer.Option("--api-key-file", metavar="FILE", help="Key file; default: the settings', else your config folder's."),
]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key's owner, which the log shows.")]


@app.command()
def add(
    name: _Name,
    admin: Annotated[bool, typer.Option("--admin", help="Admin role: also slots, metrics and all queues.")] = False,
    weight: Annotated[float | None, typer.Option(help="Share relative to other keys; default 1.")] = None,
    max_running: Annotated[int | None, typer.Option(help="Most slots held at once.")] = None,
    max_waiting: Annotated[int | None, typer.Option(help="Most requests waiting in the queue.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Most tokens per minute.")] = None,
    max_priority: Annotated[int | None, typer.Option(help="Most urgent (lowest) priority allowed.")] = None,
    api_key_file: _File = None,
) -> None:
    """Create a key and show it once: the file keeps only its hash."""
    options = {
        "role": Role.ADMIN.value if admin else None,
        "weight": weight,
        "max_running": max_running,
        "max_waiting": max_waiting,
        "tokens_per_minute": tokens_per_minute,
        "max_priority": max_priority,
    }
    with _errors_in_one_line():
        path = _path(api_key_file)
        key = file.add(path, name, {option: value for option, value in options.items() if value is not None})
    print(f"The key of {name} is shown only this once. Its hash is in {path}.", file=sys.stderr)
    print(key)


@app.command("list")
def list_keys(api_key_file: _File = None) -> None:
    """List all keys with their roles and limits."""
    with _errors_in_one_line():
        path = _path(api_key_file)
        keys = file.read(path) if path.exists() else ()
    table = Table("name", "role", "limits", box=None, pad_edge=False, header_style="bold")
    for key in keys:
        table.add_row(key.name, key.role.value, _limits(key))
    console = Console()
    if keys:
        console.print(table)
    else:
        console.print(f"There is no key in {path}. Create one: ggufd keys add NAME", highlight=False, soft_wrap=True)


@app.command()
def revoke(name: _Name, api_key_file: _File = None) -> None:
    """Revoke a key: a running server refuses it within a second and ends its requests."""
    with _errors_in_one_line():
        path = _path(api_key_file)
        file.revoke(path, name)
    print(f"The key of {name} is revoked: removed from {path}.", file=sys.stderr)


def _path(given: Path | None) -> Path:
    if given is not None:
        return given
    return access.key_file(sources.load().server)


def _limits(key: Key) -> str:
    limits = key.limits
    parts = [
        (f"weight {limits.weight:g}", limits.weight != 1),
        (f"{limits.max_running} running", limits.max_running is not None),
        (f"{limits.max_waiting} waiting", limits.max_waiting is not None),
        (f"{limits.tokens_per_minute} tokens per minute", limits.tokens_per_minute is not None),
        (f"priority {limits.max_priority} or less urgent", limits.max_priority is not None),
    ]
    return ", ".join(text for text, is_set in parts if is_set) or "none"


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except GgufdError as error:
        print(f"ggufd: {error.message}", file=sys.stderr)
        sys.exit(1)
