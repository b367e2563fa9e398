"""Answer reader: the deltas of one choice, how it ended, and how many tokens were reasoning.

Knows no wire format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from ggufd.api.answer.logprobs import TokenTexts, chat_entry
from ggufd.chat.answers.parser import AnswerParser
from ggufd.chat.deltas.answer import Delta, ReasoningDelta, merged
from ggufd.engine.messages.events import Finish, FinishReason, Output
from ggufd.errors import EngineFailure


class AnswerReader:
    """Reader of one choice while it is generated. `reasoning_tokens` counts the tokens of its reasoning.

    `on_over` is called once where the answer ends by itself while the engine still writes on.
    """

    def __init__(self, parser: AnswerParser, on_over: Callable[[], None] = lambda: None) -> None:
        self._parser = parser
        self._on_over = on_over
        self._texts = TokenTexts()
        self._finish: Finish | None = None
        self._n_tokens = 0
        self.reasoning_tokens = 0

    @property
    def is_plain(self) -> bool:
        """Whether from here on all text is content, as it is: then it need not be fed any more."""
        return self._parser.is_plain

    @property
    def has_whole_calls(self) -> bool:
        """Whether there are calls, and each of them can be made."""
        return self._parser.has_whole_calls

    @property
    def finish(self) -> Finish:
        """How it ended. Raises EngineFailure when it did not."""
        if self._finish is None:
            raise EngineFailure.without_answer()
        return self._finish

    @property
    def is_over(self) -> bool:
        """Whether the answer has ended by itself: what the engine still says does not belong to it."""
        return self._parser.is_over

    def ended(self, finish: Finish) -> Finish:
        """The end as the client sees it. An answer that is over met no limit, and cost nothing from there on."""
        if not self.is_over:
            return finish
        usage = dataclasses.replace(finish.usage, completion_tokens=self._n_tokens)
        return Finish(FinishReason.STOP, usage)

    def feed(self, output: Output) -> Sequence[Delta]:
        """The pieces of the answer that are certain now."""
        deltas = [] if self.is_over else self._read(output)
        if output.finish is not None:
            is_cut = output.finish.reason is not FinishReason.STOP or output.finish.stop is not None
            deltas = [*deltas, *self._parser.finish(is_cut=is_cut)]
            self._finish = self.ended(output.finish)
        return deltas

    def _read(self, output: Output) -> list[Delta]:
        """Output of one step, token by token where it has several: reasoning may end between two of them."""
        deltas: list[Delta] = []
        for text, n_tokens in output.pieces():
            deltas += self._read_piece(text, n_tokens)
            if self.is_over:
                break
        if self.is_over and output.finish is None:
            self._on_over()
        return merged(deltas) if output.parts else deltas

    def _read_piece(self, text: str, n_tokens: int) -> list[Delta]:
        deltas = self._parser.feed(text) if text else []
        self._n_tokens += n_tokens
        if self._parser.is_thinking or (deltas and isinstance(deltas[-1], ReasoningDelta)):
            self.reasoning_tokens += n_tokens
        return deltas

    def logprobs(self, output: Output) -> list[dict[str, object]]:
        """The log-probabilities of this output's tokens, if they were asked for; to be called before `feed`."""
        entries = () if self.is_over else output.logprobs
        return [chat_entry(entry, self._texts.next(entry.piece)) for entry in entries]
