"""Prefix-cache explanations: how much of a prompt was cached, where it first differs, and in which message.

Made for who sends `explain_cache`, and for the log when its level is debug. Knows no route.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ggufd.api.images.prompts import shown_row, shown_rows
from ggufd.api.receipts.receipt import Receipt
from ggufd.api.services.services import TextService
from ggufd.chat.prompt import Message
from ggufd.chat.rendering.places import find_messages
from ggufd.engine.messages.events import CacheDifference, Usage
from ggufd.engine.messages.requests import EngineRequest
from ggufd.errors import GgufdError

logger = logging.getLogger(__name__)

_N_BEFORE = 8
_N_AFTER = 16
"""The window in tokens: so many that both have, and so many from the difference on."""

_NOT_A_CHARACTER = "\ufffd"
_MAX_SPLIT = 3
"""At most so many bytes of a character lie behind the token that begins it."""


@dataclass(frozen=True, slots=True)
class SentPrompt:
    """Prompt before tokenization: its text where that is known, and the messages and tools of a conversation."""

    text: str | None = None
    messages: Sequence[Message] = ()
    tools: tuple[str, ...] = ()


class CacheExplainer:
    """Cache explanations of one HTTP request; `is_shown` says that its client asked for them.

    `receipt` is told beside them, where the request is deterministic.
    """

    def __init__(self, text: TextService, *, is_shown: bool) -> None:
        self.receipt: Receipt | None = None
        self._text = text
        self._is_shown = is_shown
        self._prompts: list[SentPrompt] = []
        self._made: dict[int, dict[str, Any]] = {}

    def add_prompt(self, text: str | None, messages: Sequence[Message] = (), tools: tuple[str, ...] = ()) -> None:
        """Add the next prompt as text, and what it was made of; without a text it is read from its tokens."""
        self._prompts.append(SentPrompt(text, messages, tools))

    def prompt(self, position: int) -> SentPrompt:
        """The prompt that was added as the `position`-th; without a text where none was."""
        return self._prompts[position] if position < len(self._prompts) else SentPrompt()

    def of(self, index: int) -> dict[str, Any]:
        """`cache` of a choice that has ended, and `receipt` once all have; without what was not asked for."""
        made = {"cache": self._made[index]} if self._is_shown and index in self._made else {}
        return made if self.receipt is None else {**made, **self.receipt.take()}

    async def note(self, index: int, request: EngineRequest, usage: Usage) -> None:
        """Explain a choice that has ended, if the engine was asked to report. Never raises for a failure to explain."""
        if usage.cache is None:
            return
        prompt = self.prompt(index // request.n)
        difference = usage.cache.difference
        try:
            first = None if difference is None else await self._difference(request, prompt, difference)
        except GgufdError as error:
            logger.warning("the cache could not be explained: %s", error.message)
            return
        source = usage.cache.source
        self._made[index] = {
            "reused": usage.cached_tokens,
            "of": usage.prompt_tokens,
            "from": None if source is None else source.value,
            "computed_s": round(usage.prefill_s, 6),
            "first_difference": first,
        }
        _log(request.request_id, self._made[index])

    async def _difference(
        self, request: EngineRequest, prompt: SentPrompt, difference: CacheDifference
    ) -> dict[str, Any]:
        first, held = difference.token, difference.held
        since = max(0, first - _N_BEFORE)
        return {
            "token": first,
            **await self._place(request, prompt, first),
            **_image_at(request, first),
            "prompt": await self._decoded(request, since, first + _N_AFTER),
            "cached": None if held is None else await self._held(request, since, first, held),
        }

    async def _decoded(self, request: EngineRequest, start: int, end: int | None = None) -> str:
        """Text of a part of a prompt, with a name for each image."""
        tokens, texts = request.prompt, []
        end = len(tokens) if end is None else min(end, len(tokens))
        for span in request.images:
            if start < span.end and span.start < end:
                texts += [await self._text.decode(tokens[start : max(start, span.start)]), shown_rows(span.rows)]
                start = span.end
        return "".join([*texts, await self._text.decode(tokens[start:end])])

    async def _held(self, request: EngineRequest, start: int, end: int, held: Sequence[int]) -> str:
        """Text of what the cache held behind a part that it shares with the prompt.

        Of images side by side in the cache only the first is named.
        """
        before = request.prompt[start:end]
        if all(token >= 0 for token in (*before, *held)):
            # At once: a character may begin before the difference and end behind it.
            return await self._text.decode([*before, *held])
        texts = [await self._decoded(request, start, end)]
        for is_image, run in itertools.groupby(held, key=lambda token: token < 0):
            numbers = list(run)
            texts.append(shown_row(numbers[0]) if is_image else await self._text.decode(numbers))
        return "".join(texts)

    async def _place(self, request: EngineRequest, prompt: SentPrompt, first: int) -> dict[str, Any]:
        """In which message token `first` is and at which character of it; outside of all, the prompt's character.

        Counted from the end: a tokenizer may add to the beginning of a text, never to its end. What the template writes
        before a message belongs to it.
        """
        text = await self._decoded(request, 0) if prompt.text is None else prompt.text
        character = _beginning(text, await self._decoded(request, first))
        for place in find_messages(text, prompt.messages):
            if character < place.end:
                inside = max(0, character - place.start) + place.first
                return {"character": inside, "message": place.message, "role": place.role}
        return {"character": character, "message": None, "role": None}


def _image_at(request: EngineRequest, token: int) -> dict[str, Any]:
    """`{"image": name}` of a prompt with images where it differs in one of them; null where it does not."""
    if not request.images:
        return {}
    names = (shown_rows(span.rows) for span in request.images if span.start <= token < span.end)
    return {"image": next(names, None)}


def _beginning(text: str, rest: str) -> int:
    """Where `rest`, the end of `text` as its tokens say it, begins.

    It may begin within a character, whose bytes are then decoded one by one. Blanks may differ: some vocabularies drop
    those beside special tokens.
    """
    whole = rest[:_MAX_SPLIT].lstrip(_NOT_A_CHARACTER) + rest[_MAX_SPLIT:]
    position = len(text) - len(whole) if text.endswith(whole) else _beginning_but_for_blanks(text, whole)
    return max(0, position - (len(whole) < len(rest)))


def _beginning_but_for_blanks(text: str, rest: str) -> int:
    n_left = len("".join(rest.split()))
    position = len(text)
    while n_left and position:
        position -= 1
        n_left -= not text[position].isspace()
    return position - (len(rest) - len(rest.lstrip()))


def _log(request_id: int, made: Mapping[str, Any]) -> None:
    source = f" ({made['from']})" if made["from"] else ""
    logger.debug(
        "request %d reused %d of %d prompt tokens%s and computed the rest in %.3f s; %s",
        request_id,
        made["reused"],
        made["of"],
        source,
        made["computed_s"],
        _sentence(made["first_difference"]),
    )


def _sentence(first: Mapping[str, Any] | None) -> str:
    if first is None:
        return "no slot held anything else there"
    where = "" if first["message"] is None else f" of message {first['message']} ({first['role']})"
    cached = "another's text" if first["cached"] is None else repr(first["cached"])
    return (
        f"the first difference is token {first['token']}, character {first['character']}{where}: "
        f"{first['prompt']!r} where the cache held {cached}"
    )
