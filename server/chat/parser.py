"""A model's text to the parts of an answer, piece by piece: a pure state machine, one for each choice."""

from __future__ import annotations

from server.chat.answer import ContentDelta, Delta


class AnswerParser:
    """Reads one answer. `is_plain` says that from here on all text is content, as it is."""

    def __init__(self) -> None:
        self.is_plain = True
        self.n_calls = 0

    def feed(self, text: str) -> list[Delta]:
        """What is certain with `text` added."""
        return [ContentDelta(text)] if text else []

    def finish(self) -> list[Delta]:
        """What is left at the end of the text."""
        return []
