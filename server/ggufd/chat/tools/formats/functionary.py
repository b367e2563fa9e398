"""functionary 3.2: parts that begin with `>>>` and a name: a tool's, then arguments, or `all`, then content."""

from __future__ import annotations

from dataclasses import dataclass

from ggufd.chat.deltas.reader import MalformedError, Reader, Steps
from ggufd.chat.deltas.writer import AnswerWriter
from ggufd.chat.tools.base import TextArguments, ToolFormat
from ggufd.chat.tools.rules import TEXT, GrammarRules, literal, more

_SAID = "all\n"
_TEXT_ALONE = "/([^>]|>>?[^>])+>{0,2}|>{1,2}/?"
"""Content without a tag after which a call would be parsed."""


@dataclass(frozen=True, kw_only=True)
class FunctionaryParts(ToolFormat):
    """functionary's parts. The prompt ends with the first `>>>`."""

    opening: str = ">>>"
    is_whole: bool = True

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.opening,)

    def read(self, reader: Reader, answer: AnswerWriter, texts: TextArguments) -> Steps[None]:
        while True:
            reader.record()
            n_calls = answer.n_calls
            try:
                is_more = yield from self._read_part(reader, answer)
            except MalformedError:
                if answer.n_calls == n_calls:
                    answer.content(reader.recorded)
                yield from reader.rest(answer.content)
                return
            if not is_more:
                return

    def _read_part(self, reader: Reader, answer: AnswerWriter) -> Steps[bool]:
        if (yield from reader.skip(_SAID)):
            return bool((yield from reader.until((self.opening,), answer.content)))
        name = (yield from reader.name("\n")).strip()
        if (yield from reader.peek()) != "{":
            raise MalformedError
        answer.begin(name)
        yield from reader.json_value(answer.arguments)
        yield from reader.blanks()
        return (yield from reader.skip(self.opening))

    def read_calls(self, reader: Reader, answer: AnswerWriter, texts: TextArguments) -> Steps[None]:
        raise NotImplementedError("functionary is read as a whole")

    def calls(self, rules: GrammarRules, *, may_repeat: bool) -> str:
        call = rules.choice("call", lambda index, tool: f"{literal(tool.name)} /\\n/ {rules.arguments(index)}")
        return call + (more(f'/\\n?/ ">>>" {call}') if may_repeat else "")

    def answer(self, rules: GrammarRules, *, body: str, may_repeat: bool, is_required: bool) -> str:
        if not rules.tools:
            return f"{literal(_SAID)} {body if body != TEXT else _TEXT_ALONE}"
        said = f"{literal(_SAID)} {body}{'?' if body == TEXT else ''}"
        calls = rules.add("calls", self.calls(rules, may_repeat=may_repeat))
        if is_required:
            return calls
        if body != TEXT:
            return f"{said} | {calls}"
        return f"{said} | {literal(_SAID)} {rules.up_to('opened', self.opening)} {calls} | {calls}"
