"""Comparison of two prompts of a chat: the differences, in order, as runs of segments.

A segment is a line, a sentence or a template's tag with what follows it. Prompts of a chat have thousands of them in
common, so the comparison is linear: runs that are equal are skipped, and behind a difference the nearest segment that
both have is searched for. Segments that a prompt has several times align nothing, unless a long run of them follows one
that was replaced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

_BREAK = "\x1f"
_BREAKS = (
    ("\n", "\n\x1f"),
    (". ", ". \x1f"),
    ("\u3002", "\u3002\x1f"),
    ("<|", "\x1f<|"),
    ("[INST]", "\x1f[INST]"),
    ("[/INST]", "[/INST]\x1f"),
    ("</s>", "</s>\x1f"),
)

_MIN_ANCHOR = 12
"""Characters of a segment by which both prompts are aligned: what is shorter may stand anywhere."""

_MIN_RUN = 160
"""Characters that are equal behind a replaced segment, for the prompts to be aligned there whatever they are."""

_MAX_DIFFERENCES = 12


def split_segments(text: str) -> list[str]:
    """The segments of a text, which are the text when joined."""
    for end, broken in _BREAKS:
        text = text.replace(end, broken)
    return [segment for segment in text.split(_BREAK) if segment]


def count_segments(text: str) -> int:
    """The number of segments that a text has at most, without splitting it."""
    return 1 + sum(text.count(end) for end, _ in _BREAKS)


class Difference(NamedTuple):
    """Segments `[start_a, end_a)` of the earlier prompt that became `[start_b, end_b)` of the later one."""

    start_a: int
    end_a: int
    start_b: int
    end_b: int


@dataclass(frozen=True, slots=True)
class PromptComparison:
    """Two prompts as segments, and what differs. `n_common` leading segments are equal."""

    earlier: Sequence[str]
    later: Sequence[str]
    differences: tuple[Difference, ...]
    n_common: int

    def removed(self, difference: Difference) -> Sequence[str]:
        """What the earlier prompt had there."""
        return self.earlier[difference.start_a : difference.end_a]

    def inserted(self, difference: Difference) -> Sequence[str]:
        """What the later prompt has there."""
        return self.later[difference.start_b : difference.end_b]


def n_characters(segments: Iterable[str]) -> int:
    """Length of the text that these segments are."""
    return sum(map(len, segments))


def common_beginning(a: Sequence[object], b: Sequence[object]) -> int:
    """Number of leading items that are equal: by bisection, since slices are compared at the speed of C."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def compare(earlier: Sequence[str], later: Sequence[str]) -> PromptComparison:
    """The differences between two prompts. After a dozen of them the rest counts as one."""
    i = j = n_common = common_beginning(earlier, later)
    anchors = _anchors(later, n_common)
    found: list[Difference] = []
    while i < len(earlier) or j < len(later):
        skip = None if len(found) + 1 == _MAX_DIFFERENCES else _next_match(earlier, i, later, j, anchors)
        end_a, end_b = (len(earlier), len(later)) if skip is None else (i + skip[0], j + skip[1])
        found.append(Difference(i, end_a, j, end_b))
        i, j = _behind_run(earlier, end_a, later, end_b)
    return PromptComparison(earlier, later, tuple(found), n_common)


def _anchors(segments: Sequence[str], start: int) -> dict[str, int]:
    """Places of the segments from `start` on that are long enough, and there once only."""
    counts = Counter(segments[start:])
    return {
        segment: place
        for place, segment in enumerate(segments[start:], start)
        if len(segment) >= _MIN_ANCHOR and counts[segment] == 1
    }


def _next_match(
    earlier: Sequence[str], i: int, later: Sequence[str], j: int, anchors: Mapping[str, int]
) -> tuple[int, int] | None:
    """How many segments to skip in both until they meet again: the fewest in all. None when they never do."""
    best = (1, 1) if _is_replaced(earlier, i, later, j) else None
    for skip_a, segment in enumerate(earlier[i:]):
        if best is not None and skip_a >= sum(best):
            break
        place = anchors.get(segment, -1)
        if place >= j and (best is None or skip_a + place - j < sum(best)):
            best = skip_a, place - j
    return best


def _is_replaced(earlier: Sequence[str], i: int, later: Sequence[str], j: int) -> bool:
    """Whether one segment stands in the place of another, and what follows is the same in both."""
    n_equal = 0
    for a, b in zip(islice(earlier, i + 1, None), islice(later, j + 1, None), strict=False):
        if a != b or n_equal >= _MIN_RUN:
            break
        n_equal += len(a)
    return n_equal >= _MIN_RUN


def _behind_run(earlier: Sequence[str], i: int, later: Sequence[str], j: int) -> tuple[int, int]:
    while i < len(earlier) and j < len(later) and earlier[i] == later[j]:
        i, j = i + 1, j + 1
    return i, j
