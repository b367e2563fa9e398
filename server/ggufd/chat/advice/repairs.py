"""Cache repairs: changes to a conversation that let its computed prefix be reused, each by a rule with a name.

Everything that is changed is listed in `CACHE_REPAIRS`. Each rule is a pure function, and gives back an equal text
when there is nothing for it to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ggufd.chat.prompt import Message

_SYSTEM_ROLES = ("system", "developer")

_BILLING_HEADER = re.compile(
    r"\Ax-anthropic-billing-header:(?:[ \t]*[\w.-]{1,64}=[^;\s]{0,256}(?:;|(?=\s)|\Z))+[ \t]*(?:\r?\n)?"
)
"""Name and `key=value;` pairs: https://github.com/ggml-org/llama.cpp/pull/21793. Text may follow on the same line."""


def without_billing_header(text: str) -> str:
    """A system text without the header that Claude Code puts at its top, for Anthropic's billing, new each time."""
    return _BILLING_HEADER.sub("", text, count=1)


CACHE_REPAIRS: Mapping[str, Callable[[str], str]] = {"billing_header": without_billing_header}
"""Rules by name, for texts of system messages. Each can be switched off (`cache_repairs`)."""


def repair_messages(messages: Sequence[Message], names: Collection[str]) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """Repaired messages, and the names of the rules that changed something."""
    repaired = tuple(messages)
    applied = []
    for name, repair in CACHE_REPAIRS.items():
        if name in names:
            changed = tuple(_repair(message, repair) for message in repaired)
            applied += [name] if changed != repaired else []
            repaired = changed
    return repaired, tuple(applied)


def _repair(message: Message, repair: Callable[[str], str]) -> Message:
    if message["role"] not in _SYSTEM_ROLES:
        return message
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": _repair_parts(content, repair)}
    return {**message, "content": repair(content)} if isinstance(content, str) else message


def _repair_parts(parts: Sequence[Mapping[str, Any]], repair: Callable[[str], str]) -> list[dict[str, Any]]:
    """Parts, each text repaired by itself; one that has no text any more goes, unless it is the only one."""
    pairs = [(part, {**part, "text": repair(part["text"])} if "text" in part else {**part}) for part in parts]
    kept = [new for old, new in pairs if new.get("text") or not old.get("text")]
    return kept or [new for _, new in pairs[:1]]
