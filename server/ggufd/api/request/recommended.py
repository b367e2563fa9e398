"""Sampling defaults that a model file recommends: its `general.sampling.*` metadata (llama.cpp's keys)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ggufd.engine.messages.sampling import SAMPLER_LETTERS, SAMPLER_NAMES

_PREFIX = "general.sampling."


def _samplers(text: str) -> tuple[str, ...]:
    """An order in llama.cpp's letters, or in names with semicolons between."""
    names = (
        text.split(";")
        if ";" in text or text in SAMPLER_NAMES
        else [SAMPLER_LETTERS.get(letter, "") for letter in text]
    )
    return tuple(name for name in names if name in SAMPLER_NAMES)


_FIELDS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "sequence": ("samplers", _samplers),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "xtc_probability": ("xtc_probability", float),
    "xtc_threshold": ("xtc_threshold", float),
    "temp": ("temperature", float),
    "penalty_last_n": ("repeat_last_n", int),
    "penalty_repeat": ("repeat_penalty", float),
    "mirostat": ("mirostat", int),
    "mirostat_tau": ("mirostat_tau", float),
    "mirostat_eta": ("mirostat_eta", float),
}


def recommended(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Our field -> value for what the file recommends; what cannot be read is left out."""
    found: dict[str, Any] = {}
    for key, (field, read) in _FIELDS.items():
        text = metadata.get(_PREFIX + key)
        if text is None:
            continue
        try:
            value = read(text)
        except ValueError:
            continue
        if value != () and not (isinstance(value, float) and not math.isfinite(value)):
            found[field] = value
    return found
