"""Tables [models.NAME] of config.toml: settings of single models. Knows no file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from ggufd.settings.config import Setting, settings

SECTIONS = ("model", "context", "reasoning", "output", "sampling")
"""Sections whose settings may be those of one model; the others are the server's."""

KEEP_LOADED = "keep_loaded"
"""Key of a table that is no setting of [model]: the model stays loaded beside the one that is swapped."""

Where = Callable[[str, str | None], str]
"""Place of a table, or of a key in it, for people."""


def own_settings() -> dict[str, Setting]:
    """Settings that a model may have of its own, by key."""
    return {one.key: one for one in settings() if one.section in SECTIONS}


def read(tables: Any, where: Where, faults: list[str]) -> dict[str, dict[str, Any]]:
    """The tables as they are used; what is no setting of a model is one of the `faults`."""
    if not isinstance(tables, dict):
        faults.append(
            f"{where('', None)}: models holds tables: write [models.NAME], and under it a line for each setting"
        )
        return {}
    known = own_settings()
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            faults.append(f"{where('', name)}: [models] {name} is no table: write [models.{name}] on a line of its own")
            continue
        faults += [
            f"{where(name, key)}: [models.{name}] {key} is no setting of a model{_hint(key, known)}"
            for key in table
            if key not in (*known, KEEP_LOADED)
        ]
        if not isinstance(table.get(KEEP_LOADED, False), bool):
            faults.append(f"{where(name, KEEP_LOADED)}: [models.{name}] {KEEP_LOADED}: expected true or false")
    return {name: dict(table) for name, table in tables.items() if isinstance(table, Mapping)}


def kept(tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the models that stay loaded, in the order of their tables."""
    return [name for name, table in tables.items() if table.get(KEEP_LOADED)]


def _hint(key: str, known: Mapping[str, Setting]) -> str:
    homes = {one.key: one.section for one in settings()}
    if key in homes:
        return f"; it is the server's, and belongs under [{homes[key]}]"
    close = difflib.get_close_matches(key, (*known, KEEP_LOADED), 1)
    return f"; did you mean {close[0]}?" if close else ""
