"""Streaming answer parser: generated text to content, reasoning and tool calls. One for each choice; no I/O."""

from __future__ import annotations

from collections.abc import Callable

from ggufd.chat.deltas.answer import ContentDelta, Delta
from ggufd.chat.deltas.reader import CutError, MalformedError, Reader, Steps
from ggufd.chat.deltas.thinking import Thinking, keep_thinking, read_thinking
from ggufd.chat.deltas.writer import AnswerWriter, RepeatedCallError, new_call_id
from ggufd.chat.prompt import AnswerFormat
from ggufd.chat.tools.formats.families import BY_NAME


class AnswerParser:
    """Parser of one answer. `is_plain`: all further text is content, unchanged.

    `is_over`: the answer ended with a repeated call; later text does not belong to it. `keeps_thinking` leaves
    reasoning in the content, tags included.
    """

    def __init__(
        self,
        form: AnswerFormat | None = None,
        *,
        keeps_thinking: bool = False,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._form = form or AnswerFormat()
        self._keeps_thinking = keeps_thinking
        self._reader = Reader()
        self._answer = AnswerWriter(new_id)
        self._steps = self._read()
        self.is_plain = self.is_over = False
        self._go_on()

    @property
    def is_thinking(self) -> bool:
        """Whether the text read so far ends inside reasoning."""
        return self._answer.is_thinking

    @property
    def has_whole_calls(self) -> bool:
        """Whether there are calls, each with complete arguments."""
        return self._answer.has_whole_calls

    def feed(self, text: str) -> list[Delta]:
        """Deltas that are certain once `text` is added."""
        if self.is_plain:
            return [ContentDelta(text)] if text else []
        if not self.is_over:
            self._reader.add(text)
            self._go_on()
        return self._answer.take()

    def finish(self, *, is_cut: bool = False) -> list[Delta]:
        """Last deltas, at the end of the text.

        In a text that a limit or a stop string cut, an incomplete tag or head of a call is dropped.
        """
        if not self.is_plain and not self.is_over:
            self._reader.end(is_cut=is_cut)
            self._go_on()
            self._answer.release()
        return self._answer.take()

    def _go_on(self) -> None:
        """Parse until more text is needed, or the rest is content."""
        try:
            next(self._steps)
        except RepeatedCallError:
            self.is_over = True
        except CutError:
            self.is_plain = True
        except (StopIteration, MalformedError):
            self.is_plain = True
            self._answer.content(self._reader.unread())
            self._answer.flush()

    def _read(self) -> Steps[None]:
        form = self._form
        if form.closing:
            read = keep_thinking if self._keeps_thinking else read_thinking
            yield from read(self._reader, self._answer, Thinking(form.opening, form.closing), form.opened)
        if form.tool_format:
            yield from BY_NAME[form.tool_format].read(self._reader, self._answer, form.text_arguments)
