"""Comparison of two receipts: whether the texts are the same, what computed them otherwise, and where they part."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ggufd.replay.receipt_file import ReceiptFile

_GROUPS: Mapping[str, str] = {
    "template": "model",
    "adapters": "model",
    "control_vectors": "model",
    "parameters": "settings",
}
"""Parts of a receipt, and what they are called together; others by their own names."""


class ReplayOutcome(enum.Enum):
    """Outcome of a replay."""

    SAME = "same"
    OTHER = "other"
    PARTED = "parted"


class ReceiptDifference(NamedTuple):
    """A part of the receipts by its dotted name, and its values then and now."""

    name: str
    then: Any
    now: Any

    @property
    def group(self) -> str:
        """What kind of thing differs: "model", "settings", "build" or "hardware"."""
        first = self.name.partition(".")[0]
        return _GROUPS.get(first, first)

    def __str__(self) -> str:
        return f"{self.name}: {self.then!r} then, {self.now!r} now"


class Parting(NamedTuple):
    """Place where the texts of a choice part: token `token`, and all tokens of both."""

    choice: int
    token: int
    then: Sequence[int]
    now: Sequence[int]


@dataclass(frozen=True, slots=True)
class ReceiptComparison:
    """`differences` of what computed the texts; the first `prompt` that differs, and the `parting` of a choice."""

    differences: tuple[ReceiptDifference, ...]
    prompt: int | None
    parting: Parting | None

    @property
    def outcome(self) -> ReplayOutcome:
        if self.prompt is None and self.parting is None:
            return ReplayOutcome.SAME
        return ReplayOutcome.OTHER if self.differences else ReplayOutcome.PARTED

    @property
    def groups(self) -> tuple[str, ...]:
        """What is other now, each kind once."""
        return tuple(dict.fromkeys(one.group for one in self.differences))


def compare(then: ReceiptFile, now: ReceiptFile) -> ReceiptComparison:
    """Compare a receipt with that of the same request, computed again."""
    differences = [
        *_differences("", then.computed_by, now.computed_by),
        *_differences("parameters", then.parameters, now.parameters),
    ]
    prompts = [(one.get("digest"), other.get("digest")) for one, other in _pairs(then.prompts, now.prompts)]
    prompt = next((index for index, (before, after) in enumerate(prompts) if before != after), None)
    return ReceiptComparison(tuple(differences), prompt, _parting(then.choices, now.choices))


def _differences(name: str, then: Any, now: Any) -> Iterator[ReceiptDifference]:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*then, *now)):
            yield from _differences(f"{name}.{key}".lstrip("."), then.get(key), now.get(key))
    elif then != now:
        yield ReceiptDifference(name, then, now)


def _pairs(then: Sequence[Any], now: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Both lists side by side; the shorter one goes on with empty objects."""
    for index in range(max(len(then), len(now))):
        yield (then[index] if index < len(then) else {}), (now[index] if index < len(now) else {})


def _parting(then: Sequence[Any], now: Sequence[Any]) -> Parting | None:
    for choice, (one, other) in enumerate(_pairs(then, now)):
        before, after = one.get("tokens", ()), other.get("tokens", ())
        if before != after or one.get("finish_reason") != other.get("finish_reason"):
            return Parting(choice, _first_difference(before, after), before, after)
    return None


def _first_difference(before: Sequence[int], after: Sequence[int]) -> int:
    pairs = enumerate(zip(before, after, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(before), len(after)))
