"""Evidence of a cause in one chat, and the findings that are made of it."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import NamedTuple

from ggufd.chat.advice.causes import Cause, Diagnosis

_N_SEEN = 2
_N_PLACES = 3
_WITHIN_TURNS = 3
"""A cause is told when it was seen so often at one place, or at so many, with no more turns than that in between."""

_TOP = 0.1
_END = 0.9

_N_QUIET = 10
"""After so many turns without it, a cause is taken to be mended."""


@dataclass(slots=True)
class Evidence:
    """How often a cause was seen at one place of a chat, in which turn last, and what that cost."""

    cause: Cause
    turn: int = 0
    count: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, cause: Cause, turn: int, tokens: int, seconds: float) -> None:
        """Count one more. A block that comes and goes is injected, also in the turns that it goes in."""
        if turn - self.turn > _WITHIN_TURNS:
            self.count, self.tokens, self.seconds = 0, 0, 0.0
        if self.cause is not Cause.INJECTED_BLOCK:
            self.cause = cause
        self.turn = turn
        self.count += 1
        self.tokens += tokens
        self.seconds += seconds


class Cost(NamedTuple):
    """What one turn had to compute again, and the place from which on."""

    tokens: int
    seconds: float
    position: int
    prompt_tokens: int

    @property
    def place(self) -> str:
        """Where in the prompt that is, in one of three words."""
        share = self.position / max(1, self.prompt_tokens)
        return "top" if share < _TOP else "end" if share > _END else "middle"


@dataclass(slots=True)
class CacheFinding:
    """A cause that costs an owner's chats time, and where it was seen last.

    `position` and `prompt_tokens` are tokens: of the first difference, and of the prompt. `message` and `role` are None
    where that lies in no message that is known. The sums are over `turns`. Times are of the clock on the wall.
    """

    cause: Cause
    since: float
    last: float = 0.0
    turns: int = 0
    tokens: int = 0
    seconds: float = 0.0
    position: int = 0
    prompt_tokens: int = 0
    message: int | None = None
    role: str | None = None
    was: str = ""
    now: str = ""
    n_quiet: int = 0

    @property
    def share(self) -> float:
        """Where in the prompt it is: 0 is the top, 1 the end."""
        return self.position / max(1, self.prompt_tokens)


def note_evidence(
    evidence: MutableMapping[tuple[object, ...], Evidence], diagnosis: Diagnosis, turn: int, cost: Cost
) -> tuple[Cause, Evidence | None]:
    """Count a diagnosis in a chat's evidence: what it is taken for, and the evidence where that is enough.

    Words that change at one place in turn after turn are no edits: something writes others there each time. What is
    seen at many places, once at each, is enough by its number.
    """
    cause = diagnosis.cause
    own = evidence.setdefault(diagnosis.place, Evidence(cause))
    own.add(cause, turn, cost.tokens, cost.seconds)
    if own.count >= _N_SEEN:
        return Cause.RANDOM_TEXT if own.cause is Cause.EDITED_MESSAGE else own.cause, own
    kind = Cause.EDITED_MESSAGE if diagnosis.place[0] == "changed" else cause
    every = evidence.setdefault((kind,), Evidence(kind))
    every.add(kind, turn, cost.tokens, cost.seconds)
    return (kind, every) if every.count >= _N_PLACES else (own.cause, None)


class OwnerFindings:
    """The findings of one owner, one for each cause."""

    def __init__(self) -> None:
        self.by_cause: dict[Cause, CacheFinding] = {}

    def tell(self, cause: Cause, evidence: Evidence, cost: Cost, now_s: float) -> CacheFinding:
        """The finding of a cause that was seen often enough, with this turn in it; new where there was none."""
        finding = self.by_cause.get(cause)
        if finding is None:
            finding = self.by_cause[cause] = CacheFinding(cause, now_s)
            finding.turns, finding.tokens, finding.seconds = evidence.count, evidence.tokens, evidence.seconds
        else:
            finding.turns += 1
            finding.tokens += cost.tokens
            finding.seconds += cost.seconds
        finding.last, finding.n_quiet = now_s, 0
        finding.position, finding.prompt_tokens = cost.position, cost.prompt_tokens
        return finding

    def count_turn(self, seen: Cause | None) -> None:
        """One more turn of the owner, in which this cause was seen: the others are mended when that goes on."""
        for cause, finding in list(self.by_cause.items()):
            finding.n_quiet += cause is not seen
            if finding.n_quiet >= _N_QUIET:
                del self.by_cause[cause]

    def forget_before(self, time_s: float) -> None:
        """Forget what was not seen since then."""
        self.by_cause = {cause: one for cause, one in self.by_cause.items() if one.last > time_s}
