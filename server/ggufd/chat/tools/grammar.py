"""Grammar (Lark) of a whole answer: reasoning, then content or calls.

Text is free until a call is opened; from there on it can be nothing but a call of a known tool with arguments that
fit, to its end. llguidance's lazy terminals do that, so a free token costs a few microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggufd.chat.deltas.thinking import Thinking
from ggufd.chat.prompt import ToolMode
from ggufd.chat.tools.base import ToolFormat
from ggufd.chat.tools.rules import TEXT, GrammarRules

BODY = "@body"
"""Content that a grammar of its own describes."""

_BLANKS = r"/\s{0,4}/"
_BEFORE_REASONING = r"/\n{0,2}/"
"""No more than the parser skips before reasoning (`chat.deltas.thinking`): else it would be content."""


@dataclass(frozen=True, slots=True)
class Calling:
    """Tool calling of an answer: format, mode, and whether several calls may come."""

    form: ToolFormat
    mode: ToolMode
    may_repeat: bool


def answer_grammar(
    rules: GrammarRules, calling: Calling | None, thinking: Thinking | None, *, is_inside: bool, has_body: bool
) -> str:
    """Grammar of an answer. `is_inside`: the prompt ends inside reasoning; `has_body`: content is `@body`."""
    body = BODY if has_body else TEXT
    is_required = calling is not None and calling.mode is ToolMode.REQUIRED
    if calling is None:
        after = body
    else:
        after = calling.form.answer(rules, body=body, may_repeat=calling.may_repeat, is_required=is_required)
    if thinking is None:
        return rules.text(after)
    rules.add("after", after)
    return rules.text(_with_reasoning(rules, thinking, is_inside=is_inside, may_end=not is_required and not has_body))


def _with_reasoning(rules: GrammarRules, thinking: Thinking, *, is_inside: bool, may_end: bool) -> str:
    """Reasoning and what follows. With `may_end` the model may also stop inside reasoning."""
    opening, reasoning = rules.tag(thinking.opening.strip()), rules.up_to("reasoning", thinking.closing)
    unfinished = f" | {TEXT}?" if may_end else ""
    if is_inside:
        return f"{reasoning} {_BLANKS} after{unfinished}"
    if may_end and not opening.startswith("<["):
        # Free text may be anything, so a tag that is plain text could not be told from it.
        return "after"
    unclosed = f" | {opening} {TEXT}?" if may_end else ""
    return f"({_BEFORE_REASONING} {opening} {reasoning} {_BLANKS})? after{unclosed}"
