"""Sampler names and order: as clients write them, and as llama.cpp's sampler chain is built.

Knows no field but this one, and no route.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ggufd.engine.messages.sampling import SAMPLER_LETTERS, SAMPLER_NAMES
from ggufd.llama.params import DEFAULT_SAMPLERS

_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "typical_p": ("typ_p",),
    "typical": ("typ_p",),
    "nsigma": ("top_n_sigma",),
    "top_nsigma": ("top_n_sigma",),
    "temp": ("temperature",),
    "dynamic_temperature": ("temperature",),
    "repetition_penalty": ("penalties",),
    "repeat_penalty": ("penalties",),
    "frequency_penalty": ("penalties",),
    "presence_penalty": ("penalties",),
    "adaptive-p": ("adaptive_p",),
    "top_p_top_k": ("top_k", "top_p"),
}

_FOREIGN = frozenset(
    (
        "infill",
        "tfs",
        "tfs_z",
        "top_a",
        "skew",
        "quadratic",
        "quadratic_sampling",
        "epsilon_cutoff",
        "eta_cutoff",
        "mirostat",
        "encoder_repetition_penalty",
        "no_repeat_ngram",
    )
)
"""Samplers of other servers, which frontends list with every request. Their own fields tell whether one was wanted."""


def read_samplers(value: Any) -> Any:
    """An order of samplers: a list of names, a string with something between them, or llama.cpp's letters.

    Raises ValueError where nothing in it is the name of a sampler.
    """
    names = _split(value) if isinstance(value, str) else value
    if isinstance(names, list) and names and len(unknown_samplers(names)) == len(names):
        raise ValueError(
            f"expected names of samplers ({', '.join(DEFAULT_SAMPLERS)}) or llama.cpp's letters for them, found none"
        )
    return names


def _split(text: str) -> list[str]:
    names = [_plain(part) for part in re.split("[,;\n]", text) if part.strip()]
    if (
        len(names) == 1
        and not _meant(names[0])
        and names[0] not in _FOREIGN
        and set(names[0]) <= SAMPLER_LETTERS.keys()
    ):
        return [SAMPLER_LETTERS[letter] for letter in names[0]]
    return names


def _plain(item: Any) -> str:
    return str(item).strip().lower()


def _meant(name: str) -> tuple[str, ...]:
    return (name,) if name in SAMPLER_NAMES else _SYNONYMS.get(name, ())


def unknown_samplers(names: list[Any]) -> list[str]:
    """Listed names that are no sampler of any server."""
    plain = map(_plain, names)
    return [name for name in plain if not _meant(name) and name not in _FOREIGN]


def order_samplers(names: Any, values: Mapping[str, Any]) -> tuple[str, ...]:
    """The order to sample in. Names that mean nothing here are dropped, none left means the default order.

    Penalties, DRY and XTC that are in use and not listed go to their default place: the lists that older
    frontends send do not know them. Adaptive-p picks the token, so it runs last.
    """
    listed = [name for item in names for name in _meant(_plain(item))]
    order = list(dict.fromkeys(listed)) or list(DEFAULT_SAMPLERS)
    for name in _in_use(values):
        if name not in order:
            order.insert(_default_place(name, order), name)
    if "adaptive_p" in order or values.get("adaptive_target", -1.0) >= 0:
        order = [name for name in order if name != "adaptive_p"] + ["adaptive_p"]
    return tuple(order)


def _in_use(values: Mapping[str, Any]) -> list[str]:
    penalised = values.get("repeat_penalty", 1.0) != 1.0
    penalised |= any(values.get(name) for name in ("frequency_penalty", "presence_penalty"))
    in_use = {
        "penalties": penalised,
        "dry": values.get("dry_multiplier", 0.0) > 0,
        "xtc": values.get("xtc_probability", 0.0) > 0,
    }
    return [name for name, is_used in in_use.items() if is_used]


def _default_place(name: str, order: list[str]) -> int:
    later = DEFAULT_SAMPLERS[DEFAULT_SAMPLERS.index(name) + 1 :]
    return next((index for index, other in enumerate(order) if other in later), len(order))
