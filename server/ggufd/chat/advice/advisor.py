"""Cache advisor: remembers each owner's last prompts, and finds what keeps the next turns from reusing them.

Everything is in memory and bounded: prompts are forgotten within an hour, findings within a day.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ggufd.chat.advice.causes import Cause, Diagnosis, find_cause, is_next_turn
from ggufd.chat.advice.chats import PromptTurn, SeenChat, best_matches
from ggufd.chat.advice.comparison import PromptComparison, compare, count_segments, n_characters
from ggufd.chat.advice.evidence import CacheFinding, Cost, OwnerFindings, note_evidence
from ggufd.chat.prompt import Message
from ggufd.chat.rendering.places import MessagePlace, find_messages

MAX_CHARACTERS = 600_000
MAX_SEGMENTS = 12_000
"""Longer prompts are not compared: that would keep others waiting. A segment is half a line of prose or more."""

MAX_OWNERS = 64
MAX_CHATS = 8
MAX_BYTES = 32 << 20
PROMPT_S = 3600.0
FINDING_S = 86400.0

_MIN_TOKENS = 64
"""What costs fewer tokens a turn is not worth a word."""

_MAX_COMPARED = 2
"""Of the chats that a prompt may belong to, so many are compared."""

_SYSTEM_ROLES = ("system", "developer")


class LostPrefix(NamedTuple):
    """What a turn had to compute again: for the metrics, and where it is a new finding (`is_news`) for the log."""

    cause: Cause
    cost: Cost
    is_news: bool


@dataclass(slots=True)
class _Owner:
    """The chats of one owner, the one used last at the end, and what was found in them."""

    chats: list[SeenChat] = field(default_factory=list)
    findings: OwnerFindings = field(default_factory=OwnerFindings)


Schedule = Callable[[float, Callable[[], None]], object]
"""Has something called in so many seconds."""


class CacheAdvisor:
    """Prompts and findings by owner, who alone may be shown their words. `clock` is the wall's, in seconds.

    By `schedule` they are forgotten when their time is over, also when nobody sends anything more.
    """

    def __init__(self, clock: Callable[[], float] = time.time, schedule: Schedule | None = None) -> None:
        self._clock = clock
        self._schedule = schedule
        self._is_scheduled = False
        self._owners: OrderedDict[str, _Owner] = OrderedDict()

    def observe(self, owner: str, turn: PromptTurn) -> LostPrefix | None:
        """Remember a prompt; what its chat had to compute again although it had been computed, if anything."""
        if not turn.text or len(turn.text) > MAX_CHARACTERS or count_segments(turn.text) > MAX_SEGMENTS:
            return None
        now_s = self._clock()
        self._forget_old(now_s)
        known = self._owners.setdefault(owner, _Owner())
        self._owners.move_to_end(owner)
        chat = SeenChat.of(turn, now_s)
        lost = _compared(known, chat, turn)
        known.chats.append(chat)
        self._bound()
        self._schedule_next()
        return lost

    def findings(self, owner: str) -> list[CacheFinding]:
        """The owner's findings, the one that costs most first."""
        self._forget_old(self._clock())
        known = self._owners.get(owner, _Owner())
        found = known.findings.by_cause.values()
        return sorted(found, key=lambda finding: finding.seconds / finding.turns, reverse=True)

    @property
    def owners(self) -> list[str]:
        """Everybody of whom something is kept, the one who was served last at the end."""
        return list(self._owners)

    def forget(self, owners: Iterable[str]) -> None:
        """Forget all that was kept of these."""
        for owner in owners:
            self._owners.pop(owner, None)

    def forget_prompts(self) -> None:
        """Forget the prompts of everybody, as when another model has other tokens. The findings stay."""
        for known in self._owners.values():
            known.chats.clear()

    def check_integrity(self) -> None:
        """Raises AssertionError when a bound does not hold."""
        assert len(self._owners) <= MAX_OWNERS
        assert all(len(known.chats) <= MAX_CHATS for known in self._owners.values())
        assert sum(chat.size for chat in self.chats()) <= MAX_BYTES

    def chats(self) -> Iterator[SeenChat]:
        """The chats of everybody."""
        for known in self._owners.values():
            yield from known.chats

    def _schedule_next(self) -> None:
        """Have the next of what is kept forgotten in time."""
        times = [chat.used_s + PROMPT_S for chat in self.chats()]
        times += [one.last + FINDING_S for known in self._owners.values() for one in known.findings.by_cause.values()]
        if self._schedule is not None and not self._is_scheduled and times:
            self._is_scheduled = True
            self._schedule(max(1.0, min(times) - self._clock()), self._on_time)

    def _on_time(self) -> None:
        self._is_scheduled = False
        self._forget_old(self._clock())
        self._schedule_next()

    def _forget_old(self, now_s: float) -> None:
        for known in self._owners.values():
            known.chats = [chat for chat in known.chats if chat.used_s + PROMPT_S > now_s]
            known.findings.forget_before(now_s - FINDING_S)
        gone = [owner for owner, known in self._owners.items() if not known.chats and not known.findings.by_cause]
        self.forget(gone)

    def _bound(self) -> None:
        """Forget what was used least recently until the rest may stay."""
        while len(self._owners) > MAX_OWNERS:
            self._owners.popitem(last=False)
        for known in self._owners.values():
            del known.chats[:-MAX_CHATS]
        size = sum(chat.size for chat in self.chats())
        for known in self._owners.values():
            while known.chats and size > MAX_BYTES:
                size -= known.chats.pop(0).size


def _compared(known: _Owner, chat: SeenChat, turn: PromptTurn) -> LostPrefix | None:
    """What a prompt lost of the chat that it belongs to, whose place it takes where it is the next turn.

    Another prompt of that chat stands beside it: the next turn may go on from either.
    """
    matches = best_matches(known.chats, chat)[:_MAX_COMPARED]
    for earlier in matches:
        comparison = compare(earlier.segments, chat.segments)
        if not comparison.differences:
            chat.take_place_of(earlier)
            known.chats.remove(earlier)
            return None
        if is_next_turn(comparison, earlier.answers):
            chat.go_on_from(earlier)
            known.chats.remove(earlier)
            return _lost(known.findings, comparison, (earlier, chat), turn)
    if matches:
        chat.inherit(matches[0])
    return None


def _lost(
    findings: OwnerFindings, comparison: PromptComparison, chats: tuple[SeenChat, SeenChat], turn: PromptTurn
) -> LostPrefix | None:
    """What a next turn lost, if that is worth a word."""
    earlier, chat = chats
    found = _found(comparison, earlier, chat, turn)
    if found is None:
        findings.count_turn(None)
        return None
    return _told(findings, chat, *found)


class _Place(NamedTuple):
    """A diagnosis with the message that it lies in, where that is known."""

    diagnosis: Diagnosis
    message: int | None
    role: str | None


def _found(
    comparison: PromptComparison, earlier: SeenChat, chat: SeenChat, turn: PromptTurn
) -> tuple[_Place, Cost] | None:
    """What is the matter with a next turn, and what it costs; None where that is nothing, or not worth a word."""
    diagnosis = find_cause(comparison, (earlier.tools, chat.tools))
    if diagnosis is None:
        return None
    cost = _cost(comparison, chat.n_common_tokens(earlier), turn)
    if cost.tokens < _MIN_TOKENS:
        return None
    place = _message_at(turn.text, turn.messages, diagnosis.character)
    if place is None:
        return _Place(diagnosis, None, None), cost
    if diagnosis.cause is Cause.HISTORY_TRIMMED and place.role in _SYSTEM_ROLES:
        diagnosis = diagnosis._replace(cause=Cause.INJECTED_BLOCK)
    return _Place(diagnosis, place.message, place.role), cost


def _told(findings: OwnerFindings, chat: SeenChat, place: _Place, cost: Cost) -> LostPrefix:
    """Count what is the matter, and make it a finding where it was seen often enough."""
    cause, enough = note_evidence(chat.evidence, place.diagnosis, chat.turn, cost)
    is_news = enough is not None and cause not in findings.by_cause
    if enough is not None:
        finding = findings.tell(cause, enough, cost, chat.used_s)
        finding.message, finding.role = place.message, place.role
        finding.was, finding.now = place.diagnosis.was, place.diagnosis.now
    findings.count_turn(cause)
    return LostPrefix(cause, cost, is_news)


def _cost(comparison: PromptComparison, position: int, turn: PromptTurn) -> Cost:
    """What was computed of a prompt, less what is new in it: as many tokens as its characters are in the mean."""
    before = set(comparison.earlier[comparison.n_common :])
    new = n_characters(one for one in comparison.later[comparison.n_common :] if one not in before)
    n_tokens = len(turn.tokens)
    n_lost = turn.computed_tokens - round(new * n_tokens / len(turn.text))
    n_lost = max(0, min(n_lost, n_tokens - position))
    return Cost(n_lost, turn.prefill_s * n_lost / max(1, turn.computed_tokens), position, n_tokens)


def _message_at(text: str, messages: Sequence[Message], character: int) -> MessagePlace | None:
    return next((place for place in find_messages(text, messages) if character < place.end), None)
