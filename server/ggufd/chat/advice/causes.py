"""Causes of a lost prefix: why the next turn of a chat does not begin as the turn before did.

A prompt that is no next turn has none: a regenerated answer, an edit of the last message, another chat.
"""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from ggufd.chat.advice.comparison import Difference, PromptComparison, common_beginning, n_characters


class Cause(enum.Enum):
    """Class of what differs, by its name in the API, the log and the metrics."""

    BILLING_HEADER = "billing_header"
    DATE_OR_TIME = "date_or_time"
    RANDOM_TEXT = "random_text"
    TOOLS_ORDER = "tools_order"
    HISTORY_TRIMMED = "history_trimmed"
    INJECTED_BLOCK = "injected_block"
    EDITED_MESSAGE = "edited_message"


class Diagnosis(NamedTuple):
    """Cause of one lost prefix. `character` of the later prompt is the first that differs.

    `place` identifies where in the chat it is: a second time at the same place tells a habit from an accident. `was`
    and `now` are the words there, some of those before them included.
    """

    cause: Cause
    place: tuple[object, ...]
    character: int
    was: str
    now: str


_N_QUOTED = 80
_N_LEADING = 24
"""Characters of a quotation: in all, and of those that both prompts have in common before the difference."""

_MAX_NARROWED = 4000
_MIN_BLOCK = 12

_BILLING = "x-anthropic-billing-header"
_REASONING = ("<think>", "<|channel|>analysis", "<|channel>thought", "[THINK]")
"""What reasoning begins with. Templates write that of the last turn, and drop it in the next one."""

_TIME = re.compile(
    r"""\b\d{1,2}[:.]\d{2}(?:[:.]\d{2})?(?:\s?[ap]\.?m\b)?          # 12:31:05 PM
    | \b\d{4}-\d{1,2}-\d{1,2}(?:T[\d:.]+Z?)?                         # 2026-11-29T12:31
    | \b\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b                            # 29.11.2026
    | \b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?\ \d{1,2}\b
    | \b\d{1,2}(?:st|nd|rd|th)?\.?\ (?:of\ )?(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*
    | \b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b
    | \b1[5-9]\d{8}(?:\d{3})?\b                                      # seconds or milliseconds since 1970
    | \b(?:\d+|an?|a\ few)\ (?:second|minute|hour|day|week)s?\b      # since the last message""",
    re.VERBOSE | re.IGNORECASE,
)
_OPAQUE = re.compile(r"(?=[^\d]*\d|[0-9a-fA-F-]{8,}\Z)[\w.:+/=~-]{1,200}")
"""One word that is a number or a code: it has a digit, or nothing but those of the hexadecimal system."""

_WORD = re.compile(r"[\w.:+/=~-]")


def find_cause(comparison: PromptComparison, tools: tuple[Sequence[str], Sequence[str]] = ((), ())) -> Diagnosis | None:
    """Why the next turn does not go on where the earlier prompt ended; None where it does, or the template is why.

    `tools` are the tools' names of both prompts.
    """
    first = comparison.differences[0]
    if len(comparison.differences) == 1:
        return _pushed_block(comparison, first)
    if tools[0] != tools[1] and sorted(tools[0]) == sorted(tools[1]):
        return _diagnosis(Cause.TOOLS_ORDER, comparison, first, ("tools",))
    there = *comparison.earlier[first.start_a : first.start_a + 1], *comparison.later[first.start_b : first.start_b + 1]
    if any(segment.lstrip().startswith(_REASONING) for segment in there):
        return None
    if _is_moved(comparison, first):
        return _diagnosis(Cause.INJECTED_BLOCK, comparison, first, ("moved",))
    removed, inserted = comparison.removed(first), comparison.inserted(first)
    if removed and inserted:
        return _changed(comparison, first)
    cause = Cause.INJECTED_BLOCK if inserted else Cause.HISTORY_TRIMMED
    return _diagnosis(cause, comparison, first, ("block", *_place(comparison)))


def is_next_turn(comparison: PromptComparison, answers: Collection[str]) -> bool:
    """Whether the later prompt has a turn behind all that the earlier one had, of whose answers these are words."""
    if not comparison.differences:
        return False
    last = comparison.differences[-1]
    inserted = "".join(comparison.inserted(last))
    if not inserted.strip():
        return False
    if last.start_a == last.end_a == len(comparison.earlier):
        return True
    return any(answer in inserted for answer in answers)


def _pushed_block(comparison: PromptComparison, only: Difference) -> Diagnosis | None:
    """A block that stands behind the last message in every prompt, and so before what is new in none."""
    behind = comparison.earlier[only.end_a :]
    if comparison.removed(only) or n_characters(behind) < _MIN_BLOCK:
        return None
    was, now = "".join(behind), "".join(comparison.later[only.start_b :])
    character = n_characters(comparison.later[: only.start_b]) + common_beginning(was, now)
    return Diagnosis(Cause.INJECTED_BLOCK, ("moved",), character, was[:_N_QUOTED], now[:_N_QUOTED])


def _is_moved(comparison: PromptComparison, difference: Difference) -> bool:
    """Whether one prompt has a block here that the other one has further on."""
    for block, own, others in (
        (comparison.removed(difference), comparison.earlier, comparison.later[difference.end_b :]),
        (comparison.inserted(difference), comparison.later, comparison.earlier[difference.end_a :]),
    ):
        counts = Counter(own)
        telling = [segment for segment in block if segment.strip() and counts[segment] == 1]
        if telling and set(telling) <= set(others):
            return True
    return False


def _changed(comparison: PromptComparison, difference: Difference) -> Diagnosis | None:
    """Text in the place of other text: what kind of text that is."""
    was = "".join(comparison.removed(difference))[:_MAX_NARROWED]
    now = "".join(comparison.inserted(difference))[:_MAX_NARROWED]
    if len(now) < len(was) and was.endswith(now):
        return _diagnosis(Cause.HISTORY_TRIMMED, comparison, difference, ("block", *_place(comparison)))
    return _diagnosis(_kind_of_change(was, now), comparison, difference, ("changed", *_place(comparison)))


def _kind_of_change(was: str, now: str) -> Cause:
    if _BILLING in was and _BILLING in now:
        return Cause.BILLING_HEADER
    start, n_behind = common_ends(was, now)
    spans = (was, start, len(was) - n_behind), (now, start, len(now) - n_behind)
    if all(_tells_time(*span) for span in spans):
        return Cause.DATE_OR_TIME
    if all(_OPAQUE.fullmatch(_whole_words(*span)) for span in spans):
        return Cause.RANDOM_TEXT
    return Cause.EDITED_MESSAGE


def common_ends(a: str, b: str) -> tuple[int, int]:
    """How many characters two texts have in common at their beginning, and at their end behind those."""
    start = common_beginning(a, b)
    return start, common_beginning(a[start:][::-1], b[start:][::-1])


def _tells_time(text: str, start: int, end: int) -> bool:
    """Whether a date or a time covers some of the characters that differ."""
    return any(match.start() <= end and match.end() >= start for match in _TIME.finditer(text))


def _whole_words(text: str, start: int, end: int) -> str:
    while start > 0 and _WORD.match(text[start - 1]):
        start -= 1
    while end < len(text) and _WORD.match(text[end]):
        end += 1
    return text[start:end]


def _place(comparison: PromptComparison) -> tuple[object, ...]:
    """The place of the first difference: what stands before it."""
    n_common = comparison.n_common
    return n_common, hash(comparison.later[n_common - 1]) if n_common else 0


def _diagnosis(
    cause: Cause, comparison: PromptComparison, difference: Difference, place: tuple[object, ...]
) -> Diagnosis | None:
    # No segment is empty, so that so many of them are long enough.
    was = "".join(comparison.earlier[difference.start_a : difference.start_a + _N_QUOTED])
    now = "".join(comparison.later[difference.start_b : difference.start_b + _N_QUOTED])
    start = common_beginning(was, now)
    character = n_characters(comparison.later[: difference.start_b]) + start
    begin = max(0, start - _N_LEADING)
    return Diagnosis(cause, place, character, was[begin : begin + _N_QUOTED], now[begin : begin + _N_QUOTED])
