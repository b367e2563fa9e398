"""Timings of an answer that is still being written, in llama-server's words. Knows no route."""

from __future__ import annotations

import time
from typing import Any

from ggufd.api.answer.usage import timings_json
from ggufd.engine.messages.events import Progress, Usage


class RunningTimings:
    """Timings of one choice, as far as it has come: of its prompt by what the engine told, of its text by the clock."""

    def __init__(self) -> None:
        self._prompt: Progress | None = None
        self._first_s = 0.0

    def of_prompt(self, progress: Progress) -> dict[str, Any]:
        """The timings after this part of the prompt."""
        self._prompt = progress
        return timings_json(Usage(progress.processed, 0, progress.cached, 0.0, progress.time_s, 0.0))

    def of_text(self, n_tokens: int) -> dict[str, Any]:
        """The timings after so many tokens of text."""
        now_s = time.monotonic()
        self._first_s = self._first_s or now_s
        prompt = self._prompt or Progress(0, 0, 0, 0, 0, 0.0)
        decode_s = now_s - self._first_s
        return timings_json(Usage(prompt.processed, n_tokens, prompt.cached, 0.0, prompt.time_s, decode_s))
