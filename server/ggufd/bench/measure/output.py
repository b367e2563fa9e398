"""Output of the bench's commands: tables to stdout, progress and errors to stderr, samples into a file."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType

from ggufd.bench.measure.client import BenchError

FILE_WIDTH = 150
"""Columns of a table that goes into a file or a pipe."""


def console() -> Console:
    """Console of the tables."""
    found = Console()
    if not found.is_terminal:
        found.width = FILE_WIDTH
    return found


def say(line: str) -> None:
    """Print a line of progress."""
    say_for_now("")
    Console(stderr=True).print(line, style="dim", highlight=False, markup=False, soft_wrap=True)


def say_for_now(line: str) -> None:
    """Print a line that the next one takes the place of. Nothing where no terminal can do that."""
    out = Console(stderr=True)
    if out.is_terminal and not out.is_dumb_terminal:
        out.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
        out.print(line, style="dim", highlight=False, markup=False, no_wrap=True, overflow="ellipsis", end="")


def fail(message: str) -> NoReturn:
    """Print one line, and exit 1."""
    line = f"ggufd bench: {message}"
    Console(stderr=True).print(line, style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(1)


@contextlib.contextmanager
def failing_in_one_line() -> Iterator[None]:
    """Context in which a `BenchError` ends the command with one line."""
    try:
        yield
    except BenchError as error:
        fail(str(error))


def run_until_interrupted(work: Coroutine[Any, Any, None]) -> bool:
    """Run to the end, or to Ctrl-C, which is no error: True then."""
    try:
        asyncio.run(work)
    except KeyboardInterrupt:
        return True
    return False


def write_json(path: Path | None, value: dict[str, Any]) -> None:
    """Write `value` where a path was given."""
    if path is None:
        return
    try:
        path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}")
