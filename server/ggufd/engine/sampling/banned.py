"""Banned phrases: found in held-back text, taken back by backtracking, and not generated again at that place.

`Bans` finds the first banned phrase in held-back text and says how much of the text's end may still become one.
`BanGuard` remembers, along one sequence, which tokens are banned at which position. The engine does the rewind.

Phrases go through an Aho-Corasick automaton (Aho and Corasick, 1975). It is our own because its state after the last
character is the very number that is needed, the length of the longest end that begins a phrase, and no binding of a
library gives that. Regular expressions go through RE2: linear time, no backtracking.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ggufd.errors import InvalidRequest

if TYPE_CHECKING:
    # The API checks bans too, and it does without numpy.
    from ggufd.engine.backend.interfaces import Row

REGEX_WINDOW = 80
"""Characters held back while regular expressions are banned: longer matches may be missed."""

GRAMMAR_WINDOW = 80
"""Characters held back under a grammar that leaves few tokens: what it forces after a token may be banned."""

_MAX_PHRASE_CHARACTERS = 200_000
_MAX_REGEX_CHARACTERS = 1_000
_MAX_REGEXES_CHARACTERS = 4_000
_REGEX_BYTES = 1 << 20
_MAX_TRIES = 16
_MAX_REWINDS = 250
_MAX_SEARCHED = 150
"""Most attempts without text being sent, before and in the thorough search: the paths through the held-back text
multiply, and where none is allowed, finding that out must not take minutes."""

_PIECE_CHARACTERS = 1_000
"""Characters of a list that are built between two steps, in a millisecond or two."""


class Scan(NamedTuple):
    """Start of the first banned phrase, if one is there, and how many characters at the end must be held.

    A negative start is in text that was sent before: that was sent as what followed it was no phrase, and what followed
    was taken back.
    """

    found: int | None
    n_held: int


class BanContext(NamedTuple):
    """End of the sent text, in which a phrase may begin: the automaton's node behind it, and a tail for regexes."""

    node: int
    tail: str


NOTHING_SENT = BanContext(0, "")


class PhraseAutomaton:
    """Aho-Corasick automaton: finds any of `phrases`, and the longest end of a text that is a beginning of one of them.

    Long lists take long to build (0.3 s for 200,000 characters): `build` does it in pieces.
    """

    def __init__(self, phrases: tuple[str, ...]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._fail = [0]
        self._depth = [0]
        self._match = [0]
        self._building: Iterator[None] | None = self._build(phrases)

    @property
    def is_ready(self) -> bool:
        return self._building is None

    def build(self, n_characters: int | None = None) -> None:
        """Build so many characters more, or all. Each counts twice: once inserted, once linked."""
        if self._building is None:
            return
        for n, _ in enumerate(self._building, 1):
            if n == n_characters:
                return
        self._building = None

    def _build(self, phrases: tuple[str, ...]) -> Iterator[None]:
        for phrase in phrases:
            yield from self._insert(phrase)
        yield from self._link()

    def _insert(self, phrase: str) -> Iterator[None]:
        node = 0
        for character in phrase:
            child = self._next[node].get(character)
            if child is None:
                child = len(self._next)
                self._next[node][character] = child
                self._next.append({})
                self._fail.append(0)
                self._depth.append(self._depth[node] + 1)
                self._match.append(0)
            node = child
            yield
        self._match[node] = len(phrase)

    def _link(self) -> Iterator[None]:
        """Breadth first: a node's failure is the node of its longest proper end; matches are inherited along it."""
        nodes = deque(self._next[0].values())
        while nodes:
            node = nodes.popleft()
            for character, child in self._next[node].items():
                self._fail[child] = self._step(self._fail[node], character)
                self._match[child] = self._match[child] or self._match[self._fail[child]]
                nodes.append(child)
            yield

    def _step(self, node: int, character: str) -> int:
        while node and character not in self._next[node]:
            node = self._fail[node]
        return self._next[node].get(character, 0)

    def scan(self, text: str, node: int = 0) -> Scan:
        """Scan a text that continues from `node`; builds what is missing."""
        self.build()
        for end, character in enumerate(text, 1):
            node = self._step(node, character)
            if self._match[node]:
                return Scan(end - self._match[node], 0)
        return Scan(None, self._depth[node])

    def after(self, text: str, node: int = 0) -> int:
        """Node behind a text without a phrase that continues from `node`."""
        for character in text:
            node = self._step(node, character)
        return node


class Bans:
    """Banned phrases and regular expressions, case-insensitive unless `case_sensitive`."""

    def __init__(self, phrases: tuple[str, ...], regexes: tuple[str, ...], *, case_sensitive: bool) -> None:
        self._fold = (lambda text: text) if case_sensitive else fold
        self._automaton = PhraseAutomaton(tuple(self._fold(phrase) for phrase in phrases)) if phrases else None
        self._regexes = [_compile(regex, case_sensitive) for regex in regexes]

    @property
    def is_ready(self) -> bool:
        """Whether `scan` has nothing left to build."""
        return self._automaton is None or self._automaton.is_ready

    def build(self) -> None:
        """Build a piece of a long list, small enough to be done between two steps."""
        if self._automaton is not None:
            self._automaton.build(_PIECE_CHARACTERS)

    def scan(self, held: str, context: BanContext = NOTHING_SENT) -> Scan:
        """Scan held-back text; `context` is the end of what was sent."""
        scan = Scan(None, 0) if self._automaton is None else self._automaton.scan(self._fold(held), context.node)
        n_held = min(len(held), max(scan.n_held, REGEX_WINDOW if self._regexes else 0))
        starts = [start for regex in self._regexes if (start := _find(regex, held, context.tail)) is not None]
        starts += [] if scan.found is None else [scan.found]
        return Scan(min(starts, default=None), n_held)

    def after(self, sent: str, context: BanContext) -> BanContext:
        """Context after `sent` was sent too."""
        node = 0 if self._automaton is None else self._automaton.after(self._fold(sent), context.node)
        return BanContext(node, (context.tail + sent)[-REGEX_WINDOW - 1 :] if self._regexes else "")


@functools.lru_cache(maxsize=32)
def bans_of(phrases: tuple[str, ...], regexes: tuple[str, ...], case_sensitive: bool) -> Bans:
    """Cached bans: the same lists come with every message of a chat."""
    return Bans(phrases, regexes, case_sensitive=case_sensitive)


def check_bans(phrases: tuple[str, ...], regexes: tuple[str, ...]) -> None:
    """Raise `InvalidRequest` for what cannot be banned: an empty phrase, a broken or too large expression."""
    if any(not phrase for phrase in phrases):
        raise InvalidRequest("A banned string is empty; every text contains it.", param="banned_strings")
    if sum(map(len, phrases)) > _MAX_PHRASE_CHARACTERS:
        raise InvalidRequest(
            f"The banned strings have more than {_MAX_PHRASE_CHARACTERS} characters together.", param="banned_strings"
        )
    if sum(map(len, regexes)) > _MAX_REGEXES_CHARACTERS:
        raise InvalidRequest(
            f"The banned regexes have more than {_MAX_REGEXES_CHARACTERS} characters together.", param="banned_regex"
        )
    for regex in regexes:
        _compile(regex, False)


def fold(text: str) -> str:
    """Lower case of a text, character by character, so that positions stay: the few that would grow are left.

    Of a whole text Python writes the same Greek letter in two ways, by where in the word it is.
    """
    lowered = text.lower()
    if len(lowered) == len(text) and "\u03a3" not in text:
        return lowered
    return "".join(lower if len(lower := character.lower()) == 1 else character for character in text)


def _find(regex: Any, held: str, tail: str) -> int | None:
    """Start of the first match that reaches into `held`, before which `tail` stands."""
    # One more character of the tail than a match may have: whether its beginning is that of a line or word.
    matches = regex.finditer(tail + held, max(0, len(tail) - REGEX_WINDOW))
    starts = (match.start() for match in matches if match.group() and match.end() > len(tail))
    start = next(starts, None)
    return None if start is None else start - len(tail)


def _compile(regex: str, case_sensitive: bool) -> Any:
    import re2

    if len(regex) > _MAX_REGEX_CHARACTERS:
        raise InvalidRequest(f"A banned regex is longer than {_MAX_REGEX_CHARACTERS} characters.", param="banned_regex")
    options = re2.Options()
    options.case_sensitive = case_sensitive
    options.max_mem = _REGEX_BYTES
    options.log_errors = False
    try:
        return re2.compile(regex, options)
    except re2.error as error:
        reason = error.args[0]
        reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        reason = reason.encode("ascii", "backslashreplace").decode()
        raise InvalidRequest(f"The banned regex {regex[:60]!a} is not valid: {reason}", param="banned_regex") from None


class BanGuard:
    """Backtracking over the tokens of one sequence that were not sent yet; positions count its generated tokens.

    First the token in which a phrase begins is banned at its position: what replaces a whole phrase reads best.
    Where that leaves no token, or fails too often, the rest is searched depth-first (`is_thorough`): the token that
    completes a phrase is banned, and where none is left, the one before it. Since a text can be cut into tokens in many
    ways, a text from which the search came back is closed, however it is reached again.
    """

    def __init__(self) -> None:
        self._banned: dict[int, list[int]] = {}
        self._reopenable: dict[int, list[int]] = {}
        self._closed: set[bytes] = set()
        self._first = 0
        self._n_tried = 0
        self.is_thorough = False
        self.n_rewinds = 0

    def n_back(self, n_banned: int, n_pending: int, n_generated: int) -> int:
        """Number of tokens to take back where the last `n_banned` hold a phrase.

        One more where so much was tried at that position that the fault must lie before it.
        """
        if self.is_thorough:
            return 1
        is_dead_end = len(self._banned.get(n_generated - n_banned, ())) >= _MAX_TRIES
        return min(n_banned + is_dead_end, n_pending)

    def ban(self, position: int, token: int, *, is_last: bool) -> None:
        """Ban `token` at `position`; bans further on no longer apply.

        `is_last`: nothing that follows it could be right. Otherwise the thorough search tries it again.
        """
        self.n_rewinds += 1
        self._n_tried += 1
        self._keep(lambda at: at <= position)
        self._banned.setdefault(position, []).append(token)
        if not is_last:
            self._reopenable.setdefault(position, []).append(token)
        if not self.is_thorough and self._n_tried == _MAX_REWINDS:
            self.search(position)

    def search(self, position: int) -> bool:
        """Search depth-first from now on; returns whether a token at `position` may be tried again."""
        is_reopened = position in self._reopenable
        self._banned = {
            at: [token for token in tokens if token not in self._reopenable.get(at, ())]
            for at, tokens in self._banned.items()
        }
        self._reopenable = {}
        self.is_thorough, self._n_tried = True, 0
        return is_reopened

    def close(self, text: bytes) -> None:
        """Close `text`, which is what was not sent yet: no token may follow it."""
        self._closed.add(text)

    def is_closed(self, text: Callable[[], bytes]) -> bool:
        """Whether the search came back from this text before."""
        return bool(self._closed) and text() in self._closed

    @property
    def is_lost(self) -> bool:
        """Whether the search is given up: too many attempts since text was sent last."""
        return self.is_thorough and self._n_tried >= _MAX_SEARCHED

    def apply(self, row: Row, position: int) -> None:
        """Mask the tokens that are banned at `position`."""
        tokens = self._banned.get(position)
        if tokens:
            row[tokens] = -math.inf

    def forget(self, position: int) -> None:
        """Forget the bans before `position`: the text up to there was sent and cannot be taken back."""
        if position > self._first:
            self._first, self._n_tried, self.is_thorough = position, 0, False
            self._closed.clear()
        self._keep(lambda at: at >= position)

    def _keep(self, is_kept: Callable[[int], bool]) -> None:
        if self._banned:
            self._banned = {at: tokens for at, tokens in self._banned.items() if is_kept(at)}
            self._reopenable = {at: tokens for at, tokens in self._reopenable.items() if is_kept(at)}
