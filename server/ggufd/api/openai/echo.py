"""Echo of the prompt at the head of a text completion, with its log-probabilities when they are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ggufd.api.answer.logprobs import LegacyLogprobs, joined
from ggufd.engine.messages.events import TokenLogprob


@dataclass(frozen=True, slots=True)
class Echo:
    """Prompt text to repeat, and the bytes of its first token, which has no log-probability."""

    text: str
    first_piece: bytes = b""

    def logprobs(self, legacy: LegacyLogprobs, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The legacy object for the whole prompt. A BOS that the text does not show has no width."""
        is_in_text = self.text.encode().startswith(self.first_piece)
        first = legacy.first_of_prompt(self.first_piece, is_in_text=is_in_text)
        return joined(first, legacy.add(entries, legacy.texts(entries)))
