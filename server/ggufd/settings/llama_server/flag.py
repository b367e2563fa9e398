"""One flag of llama-server, and what becomes of it here.

`outcome` is what a flag does (of a switch: the on form, and `off_outcome` the other). Knows no flag by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Sets:
    """Honoured: the value becomes the settings `keys`, as `read` returns it; a mapping from `read` sets its own keys.

    `read` raises ValueError in words that follow "expected".
    """

    keys: tuple[str, ...]
    read: Callable[[str], Any] = str


@dataclass(frozen=True, slots=True)
class Fixed:
    """Honoured: the flag sets these values."""

    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """Honoured together with other flags: `combined.GROUPS[group]` makes settings of all the parts of a group.

    `keys` are the settings that it can change. Its value is `value` of what was given, or of a switch `value` itself.
    """

    group: str
    name: str
    keys: tuple[str, ...]
    value: Any = str

    def read(self, *given: str) -> Any:
        """The part's value. Raises ValueError in words that follow "expected"."""
        return self.value(*given) if callable(self.value) else self.value


@dataclass(frozen=True, slots=True)
class Exports:
    """Honoured: the value becomes a variable of the environment, which the downloads obey."""

    variable: str
    value: str | None = None


@dataclass(frozen=True, slots=True)
class Shows:
    """Honoured: a command of its own, which ends the program."""

    command: str


@dataclass(frozen=True, slots=True)
class Taken:
    """Accepted without effect; `why` is a clause for the log."""

    why: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Refused; `instead` says why, and what to do."""

    instead: str


Outcome = Sets | Fixed | Part | Exports | Shows | Taken | Refused
Honoured = Sets | Fixed | Part | Exports | Shows


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag of llama-server: its names, its variable, the number of its values, and what becomes of it.

    `off_names` turn a switch off. `repeats` says that a later one adds to an earlier one; else the last counts.
    `is_former` marks one that the vendored llama-server knows no longer, and earlier ones did.
    """

    names: tuple[str, ...]
    outcome: Outcome
    n_values: int = 0
    env: str = ""
    off_names: tuple[str, ...] = ()
    off_outcome: Outcome | None = None
    repeats: bool = False
    is_former: bool = False

    @property
    def title(self) -> str:
        """The longest of its names."""
        return max(self.names, key=len)

    @property
    def off_env(self) -> str:
        """Variable that turns a switch off whatever its value; empty without one."""
        return self.env.replace("LLAMA_ARG_", "LLAMA_ARG_NO_") if self.env and self.off_names else ""

    @property
    def variables(self) -> tuple[str, ...]:
        return tuple(name for name in (self.env, self.off_env) if name)

    def outcome_of(self, name: str) -> Outcome:
        """What becomes of the flag under one of its names."""
        if name in self.off_names:
            assert self.off_outcome is not None
            return self.off_outcome
        return self.outcome


def valued(names: str, outcome: Outcome, env: str = "", *, repeats: bool = False, is_former: bool = False) -> Flag:
    """Flag with one value; names are separated by blanks."""
    return Flag(tuple(names.split()), outcome, 1, env, repeats=repeats, is_former=is_former)


def plain(names: str, outcome: Outcome, env: str = "") -> Flag:
    """Flag without a value and without an off form."""
    return Flag(tuple(names.split()), outcome, 0, env)


def switch(
    names: str, off_names: str, outcome: Outcome, off_outcome: Outcome, env: str = "", *, is_former: bool = False
) -> Flag:
    """Flag with an off form."""
    return Flag(tuple(names.split()), outcome, 0, env, tuple(off_names.split()), off_outcome, is_former=is_former)


def sets(*keys: str, read: Callable[[str], Any] = str) -> Sets:
    return Sets(keys, read)


def fixed(**values: Any) -> Fixed:
    return Fixed(values)
