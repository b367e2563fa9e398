"""Translation of llama-server's variables and command line to settings, by the table.

A later flag overrides an earlier one, and a flag a variable, as in llama-server. What llama-server does not know passes
through to our own command line.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggufd.errors import ConfigError
from ggufd.settings.llama_server import combined, readings
from ggufd.settings.llama_server.flag import Exports, Fixed, Flag, Outcome, Part, Refused, Sets, Shows, Taken
from ggufd.settings.llama_server.table import BY_NAME, BY_VARIABLE

PREFIX = "LLAMA_ARG_"

_SYSTEM_CONFIG = "/etc"
_OPTION = re.compile(r"--[^-].*|-[A-Za-z][A-Za-z-]*")


@dataclass(slots=True)
class Variables:
    """Settings that llama-server's variables make: values with the variable that each came from.

    `notes` are lines for the log, `exports` variables to set, `parts` the parts of groups.
    """

    values: dict[str, tuple[Any, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    exports: dict[str, str] = field(default_factory=dict)
    parts: dict[str, list[tuple[str, Any, str]]] = field(default_factory=dict)


def variables(environ: Mapping[str, str]) -> Variables:
    """Read llama-server's variables, in its order. An empty one is unset; one that is not known is in the notes."""
    found = Variables()
    for name, flag in BY_VARIABLE.items():
        if value := environ.get(name):
            _read_variable(found, flag, name, value)
    for name in sorted(environ.keys() - BY_VARIABLE.keys()):
        if name.startswith(PREFIX):
            found.notes.append(f"{name} changes nothing: llama-server has no such variable{_near(name, BY_VARIABLE)}")
    found.notes += [f"{path} is not read: put its lines into config.toml" for path in _config_files(environ)]
    for group, parts in found.parts.items():
        where = parts[-1][2]
        # Where a part alone makes nothing, its other half may stand on the command line.
        with contextlib.suppress(ValueError):
            made = combined.GROUPS[group]([(name, value) for name, value, _ in parts])
            found.values |= {key: (value, where) for key, value in made.items()}
    return found


def _config_files(environ: Mapping[str, str]) -> Iterator[Path]:
    """llama-server's own configuration files, where there are any."""
    home = environ.get("XDG_CONFIG_HOME") or (f"{environ['HOME']}/.config" if environ.get("HOME") else None)
    for folder in (_SYSTEM_CONFIG, home):
        if folder is not None and (path := Path(folder) / "llama.cpp" / "config.ini").is_file():
            yield path


def _read_variable(found: Variables, flag: Flag, name: str, value: str) -> None:
    try:
        match _outcome_of_variable(flag, name, value):
            case Refused(instead):
                found.faults.append(f"{name}: {instead}")
            case Taken(why):
                found.notes.append(f"{name} changes nothing: {why}")
            case Exports(variable, fixed):
                found.exports[variable] = fixed or value
            case Part() as part:
                found.parts.setdefault(part.group, []).append((part.name, part.read(value), name))
            case Sets() | Fixed() as outcome:
                found.values |= {key: (one, name) for key, one in _settings(outcome, [value]).items()}
    except ValueError as error:
        found.faults.append(f"{name} = {json.dumps(value)}: expected {error}")


def _outcome_of_variable(flag: Flag, name: str, value: str) -> Outcome | None:
    """What becomes of a variable; None for one that turns on what it names, and says something else.

    Of a switch any other word is a ValueError, as in llama-server.
    """
    if flag.n_values:
        return flag.outcome
    if flag.off_outcome is not None:
        return flag.off_outcome if name == flag.off_env or not readings.is_on(value) else flag.outcome
    if value in readings.TRUE:
        return flag.outcome
    return None if value in readings.FALSE else Taken(f"it is read as on where it is {', '.join(readings.TRUE)}")


@dataclass(slots=True)
class CommandLine:
    """A command line of ours, as translated; notes for the log, variables to set, a command that ends the program."""

    arguments: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    exports: dict[str, str] = field(default_factory=dict)
    shows: str = ""


class UnknownOption(ConfigError):
    """Option that neither server has."""

    code = "unknown_option"


def command_line(arguments: Sequence[str], known: Mapping[str, bool], environ: Mapping[str, str]) -> CommandLine:
    """Translate `arguments`. `known` are the options of our own, and whether a value follows.

    Raises ConfigError for what is refused, for a value that is missing or wrong, and for an option nobody has.
    """
    return _Reader(known, variables(environ)).read(arguments)


class _Reader:
    """State of one translation: settings in the order given, and the parts of groups."""

    def __init__(self, known: Mapping[str, bool], from_environment: Variables) -> None:
        self._known = known
        self._line = CommandLine(notes=list(from_environment.notes), exports=dict(from_environment.exports))
        self._given: list[tuple[str, Any] | str] = []
        self._parts = {group: [part[:2] for part in parts] for group, parts in from_environment.parts.items()}
        self._touched: set[str] = set()
        self._seen: set[str] = set()

    def read(self, arguments: Sequence[str]) -> CommandLine:
        rest = iter(arguments)
        for argument in rest:
            name, equals, value = _spelled(argument).partition("=")
            flag = BY_NAME.get(name)
            if flag is not None:
                self._read_flag(flag, name, [value] if equals else [], rest)
            else:
                self._check_known(name)
                self._given.append(f"{name}{equals}{value}")
                if self._known.get(name) and not equals:
                    # Whatever it looks like.
                    self._given += itertools.islice(rest, 1)
        for group in self._parts:
            if group in self._touched:
                self._given += self._combine(group).items()
            else:
                self._note_halves(group)
        self._line.arguments = [text for one in self._given for text in _rendered(one)]
        return self._line

    def _read_flag(self, flag: Flag, name: str, values: list[str], rest: Iterator[str]) -> None:
        # Both ends of a range may stand in one value.
        while len(values) < flag.n_values and not (values and "," in values[0]):
            value = next(rest, None)
            if value is None:
                raise ConfigError(f"{name}: a value is missing")
            values.append(value)
        if values and not flag.n_values:
            raise ConfigError(f"{name}={values[0]}: this flag takes no value; write {name}")
        if flag.title in self._seen and not flag.repeats and flag.n_values:
            self._line.notes.append(f"{name} was given several times: the last one counts, as in llama-server")
        self._seen.add(flag.title)
        try:
            self._apply(flag, flag.outcome_of(name), name, values)
        except ValueError as error:
            raise ConfigError(f"{name} {' '.join(values)}: expected {error}") from None

    def _apply(self, flag: Flag, outcome: Outcome, name: str, values: list[str]) -> None:
        match outcome:
            case Refused(instead):
                raise ConfigError(f"{name}: {instead}")
            case Taken(why):
                self._line.notes.append(f"{name} changes nothing: {why}")
            case Shows(command):
                self._line.shows = self._line.shows or command
            case Exports(variable, fixed):
                self._line.exports[variable] = fixed or values[0]
            case Part() as part:
                self._parts.setdefault(part.group, []).append((part.name, part.read(*values)))
                self._touched.add(part.group)
            case Sets() | Fixed():
                for key, value in _settings(outcome, values).items():
                    if not flag.repeats:
                        self._given = [one for one in self._given if isinstance(one, str) or one[0] != key]
                    self._given.append((key, value))

    def _note_halves(self, group: str) -> None:
        """Note on variables that make nothing without another."""
        try:
            combined.GROUPS[group](self._parts[group])
        except ValueError as error:
            self._line.notes.append(f"of llama-server's variables one changes nothing: {error}")

    def _combine(self, group: str) -> dict[str, Any]:
        try:
            return combined.GROUPS[group](self._parts[group])
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def _check_known(self, name: str) -> None:
        """Letters behind one dash are a name too; a value written at a short option has digits, dots or slashes."""
        if _OPTION.fullmatch(name) and name not in self._known:
            near = _near(name, self._known, BY_NAME)
            raise UnknownOption(f"{name}: there is no such option{near or '; -h lists them all'}")


def _spelled(argument: str) -> str:
    """`argument` with dashes for underscores in the name of a long option."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}"


def _settings(outcome: Sets | Fixed, values: Sequence[str]) -> dict[str, Any]:
    """Settings that a flag makes of its values."""
    if isinstance(outcome, Fixed):
        return dict(outcome.values)
    read = outcome.read(",".join(values))
    return read if isinstance(read, dict) else dict.fromkeys(outcome.keys, read)


def _rendered(given: tuple[str, Any] | str) -> Iterator[str]:
    """A setting as a flag of ours."""
    if isinstance(given, str):
        yield given
        return
    key, value = given
    name = key.replace("_", "-")
    if isinstance(value, bool):
        yield f"--{name}" if value else f"--no-{name}"
    else:
        yield f"--{name}={json.dumps(value) if isinstance(value, list) else value}"


def _near(name: str, *known: Collection[str]) -> str:
    """The known name that is most like `name`; of two that are alike as much, that of the earlier collection."""
    close = [found for names in known for found in difflib.get_close_matches(name, names, 1)]
    best = max(close, key=lambda other: difflib.SequenceMatcher(None, name, other).ratio(), default=None)
    return f"; did you mean {best}?" if best else ""
