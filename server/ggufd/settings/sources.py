"""Sources of settings, by precedence: flag, environment, llama-server's variables, config.toml, default.

An unknown or invalid setting is a ConfigError with its place, what was expected, and the nearest known name. Knows
the fields of `config` only by their table.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from ggufd import text_files
from ggufd.errors import ConfigError
from ggufd.settings import model_tables
from ggufd.settings.config import ENV_PREFIX, Config, settings
from ggufd.settings.llama_server import translation
from ggufd.wording import plain

CONFIG_NAME = "config.toml"
_MODELS = "models"

_NOT_SETTINGS = frozenset({"CONFIG", "LLAMA_CPP_SRC"})
"""GGUFD_ variables that are not settings: the config file, and the tests' path to llama.cpp's sources."""

_SERVICE_LINK = re.compile(r"(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?)$")
"""Service links, which Kubernetes sets in every pod beside a service named ggufd; also GGUFD_PORT=tcp://..."""


class Given(NamedTuple):
    """A raw value and the place it was found in."""

    value: Any
    where: str


Layer = dict[tuple[str, str], Given]
"""Values of one source by `(section, key)`."""


def load(
    config_file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Read all sources and validate the result.

    `flags` maps a setting's key to its value on the command line. Raises ConfigError, one line per fault.
    """
    environ = os.environ if environ is None else environ
    faults: list[str] = []
    merged: Layer = {}
    layer, models = _from_file(find_file(config_file, environ), faults)
    merged.update(layer)
    merged.update(_from_llama_server(environ, faults))
    merged.update(_from_environment(environ, faults))
    merged.update(_from_flags(flags or {}))
    config = _validate(merged, faults)
    if config is not None and not faults:
        faults.extend(_contradictions(config))
        faults.extend(_faults_of_models(config, models))
    if config is None or faults:
        raise ConfigError("\n".join(faults))
    return config.model_copy(update={"models": models})


def _faults_of_models(config: Config, models: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What is wrong with the values of [models.NAME]."""
    for name, table in models.items():
        try:
            revise(config, table)
        except ConfigError as error:
            for line in error.message.splitlines():
                yield f"[models.{name}] {line}"


def revise(config: Config, changes: Mapping[str, Any]) -> Config:
    """`config` with `changes` by key; None is the default. It has no name. Raises ConfigError, one line per fault."""
    merged: Layer = {
        (one.section, one.key): Given(getattr(getattr(config, one.section), one.key), one.key) for one in settings()
    }
    for one in settings():
        if one.key in changes:
            value = changes[one.key]
            merged[one.section, one.key] = Given(one.field.default if value is None else value, one.key)
    faults: list[str] = []
    revised = _validate(merged, faults)
    if revised is not None and not faults:
        faults.extend(_contradictions(revised))
    if revised is None or faults:
        raise ConfigError("\n".join(faults))
    return revised.model_copy(update={"models": config.models})


def find_file(config_file: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Path of the config file: the one named, else ./config.toml, else the one in the user's config folder."""
    named = config_file or (Path(environ["GGUFD_CONFIG"]) if environ.get("GGUFD_CONFIG") else None)
    if named is not None:
        if not named.is_file():
            raise ConfigError(f"{named}: no such file; --config expects a TOML file")
        return named
    import platformdirs

    candidates = (Path(CONFIG_NAME), platformdirs.user_config_path("ggufd") / CONFIG_NAME)
    return next((path for path in candidates if path.is_file()), None)


def _from_file(path: Path | None, faults: list[str]) -> tuple[Layer, dict[str, dict[str, Any]]]:
    """Settings of the sections, and the tables of single models."""
    if path is None:
        return {}, {}
    try:
        text = text_files.read(path)
        tables = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as TOML: {error}") from None
    layer: Layer = {}
    sections = {one.section for one in settings()}
    own = tables.pop(_MODELS, {})
    lines = _NameLines(path, text)
    models = model_tables.read(own, lambda name, key: lines.place(_table_of(name), key), faults)
    for section, table in tables.items():
        if section not in sections or not isinstance(table, dict):
            faults.append(f"{lines.place(section, None)}: {_no_section(section, table)}")
            continue
        for key, value in table.items():
            where = f"{lines.place(section, key)}: [{section}] {key}"
            if Config.model_fields[section].annotation.model_fields.get(key):  # type: ignore[union-attr]
                layer[section, key] = Given(value, where)
            else:
                faults.append(f"{where} is not a setting{_nearest(key, section)}")
    return layer, models


def _table_of(name: str) -> str:
    return f"{_MODELS}.{name}" if name else _MODELS


def _from_environment(environ: Mapping[str, str], faults: list[str]) -> Layer:
    by_name = {one.env: one for one in settings()}
    layer: Layer = {}
    # The short name is what container recipes use.
    for name, value in {"GGUFD_REQUIRE_GPU": environ.get("REQUIRE_GPU", ""), **environ}.items():
        if not name.startswith(ENV_PREFIX) or value == "" or _is_not_ours(name, value):
            continue
        if one := by_name.get(name):
            layer[one.section, one.key] = Given(value, name)
        else:
            close = difflib.get_close_matches(name, by_name, 1)
            faults.append(f"{name} is not a setting{f'; did you mean {close[0]}?' if close else ''}")
    return layer


def _from_llama_server(environ: Mapping[str, str], faults: list[str]) -> Layer:
    """Settings of llama-server's variables, which stay below our own."""
    by_key = {one.key: one for one in settings()}
    found = translation.variables(environ)
    faults.extend(found.faults)
    return {(by_key[key].section, key): Given(value, name) for key, (value, name) in found.values.items()}


def _is_not_ours(name: str, value: str) -> bool:
    rest = name.removeprefix(ENV_PREFIX)
    return rest in _NOT_SETTINGS or _SERVICE_LINK.match(rest) is not None or value.startswith("tcp://")


def _from_flags(flags: Mapping[str, Any]) -> Layer:
    by_key = {one.key: one for one in settings()}
    return {
        (one.section, one.key): Given(value, one.flags[-1])
        for key, value in flags.items()
        if value is not None and (one := by_key[key])
    }


def _validate(merged: Layer, faults: list[str]) -> Config | None:
    tables: dict[str, dict[str, Any]] = {}
    for (section, key), given in merged.items():
        tables.setdefault(section, {})[key] = given.value
    try:
        return Config.model_validate(tables)
    except ValidationError as error:
        expected: dict[tuple[str, str], list[str]] = {}
        for fault in error.errors():
            place = (str(fault["loc"][0]), str(fault["loc"][1]))
            expected.setdefault(place, []).append(_expected(fault["msg"]))
        for place, messages in expected.items():
            given = merged[place]
            shown = "(hidden)" if place[1] == "api_key" else json.dumps(given.value, default=str)
            faults.append(f"{given.where} = {shown}: expected {' or '.join(dict.fromkeys(messages))}")
        return None


def _expected(message: str) -> str:
    """Expectation of a pydantic message, without its frame."""
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    return plain(message.partition(", unable to")[0])


def _contradictions(config: Config) -> Iterator[str]:
    context = config.context
    if context.parallel and 0 < context.ctx_size < context.parallel:
        yield (
            f"--ctx-size {context.ctx_size} is shared by the slots of --parallel {context.parallel}: "
            f"that is less than one token each"
        )
    if config.model.model_draft and not context.spec_draft_n_max:
        yield f"--model-draft {config.model.model_draft} has no effect with --spec-draft-n-max 0; remove one of the two"
    if context.flash_attn == "off" and context.cache_type_v not in ("f32", "f16", "bf16"):
        yield (
            f"--cache-type-v {context.cache_type_v} needs flash attention: set --flash-attn on, or --cache-type-v f16"
        )


def _no_section(name: str, value: Any) -> str:
    """What is wrong with a name at the top of the file that is no section, or holds what is none."""
    homes = {one.key: one.section for one in settings()}
    names = [*dict.fromkeys(one.section for one in settings()), _MODELS]
    is_table = isinstance(value, dict)
    if name in names and (name not in homes or isinstance(value, list)):
        return (
            f"{name} is a section, and {_kind(value)} was found: write [{name}] on a line of its own, "
            f"and under it a line for each setting, such as {_example(name)}"
        )
    if name in homes and is_table:
        return f"[{name}] is a setting, not a section: write {name} = ... under [{homes[name]}]"
    if name in homes:
        return f"{name} is outside its section: put it under [{homes[name]}]"
    close = difflib.get_close_matches(name, names if is_table else [*names, *homes], 1)
    if close and close[0] not in names:
        return f"{name} is not a setting; did you mean {close[0]} under [{homes[close[0]]}]?"
    hint = f"did you mean [{close[0]}]?" if close else f"expected one of: {', '.join(names)}"
    return f"[{name}] is not a section; {hint}" if is_table else f"{name} is neither a section nor a setting; {hint}"


def _kind(value: Any) -> str:
    """What a value of a TOML file is, in words; the value itself may be secret."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}
    return kinds.get(type(value), "a date or time")


def _example(section: str) -> str:
    """A line of this section. Where the first setting has no default, it takes a number."""
    one = next(one for one in settings() if one.section == section)
    return f"{one.key} = {json.dumps(1024 if one.field.default is None else one.field.default)}"


def _nearest(key: str, section: str) -> str:
    homes = {one.key: one.section for one in settings()}
    own = [name for name, home in homes.items() if home == section]
    if key in homes:
        return f" of this section; it belongs under [{homes[key]}]"
    close = difflib.get_close_matches(key, own, 1) or difflib.get_close_matches(key, homes, 1)
    if not close:
        return f"; expected one of: {', '.join(own)}"
    home = homes[close[0]]
    return f"; did you mean {close[0]}{'' if home == section else f' under [{home}]'}?"


_HEADER = re.compile(r"\s*\[{1,2}\s*([^\]]+?)\s*\]")
_KEY = re.compile(r"\s*(?:\"([^\"]*)\"|'([^']*)'|([^\"'=\s]+))\s*=")


class _NameLines:
    """Lines of a TOML file's names, which tomllib does not keep: found in one pass, the first of each counts."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._numbers: dict[tuple[str, str | None], int] = {}
        current = ""
        for number, line in enumerate(text.splitlines(), 1):
            if found := _HEADER.match(line):
                current = re.sub("[\"']", "", found[1])
                self._numbers.setdefault((current, None), number)
            elif found := _KEY.match(line):
                self._numbers.setdefault((current, found[1] or found[2] or found[3] or ""), number)

    def place(self, section: str, key: str | None) -> str:
        """`file, line N` of a key, or of a name at the top: a section's header, or a key before all of them."""
        names = [(section, key)] if key is not None else [(section, None), ("", section)]
        numbers = [self._numbers[name] for name in names if name in self._numbers]
        return f"{self._path}, line {min(numbers)}" if numbers else str(self._path)
