"""Repairs: changes to a conversation that a strict chat template needs, least invasive first.

Each repair is a pure function from messages to messages that gives back an equal list when there is nothing for it
to do. Contents are plain strings here. Nothing is ever dropped except messages without any text. Knows no Jinja.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any

from ggufd.chat.tools.formats.families import GENERIC
from ggufd.chat.tools.generic import read_call

Messages = list[dict[str, Any]]
Repair = Callable[[Messages], Messages]

PLACEHOLDER = "..."
"""Said by a user who says nothing, where a template insists on a user."""

_JOINT = "\n\n"
_KNOWN_ROLES = frozenset(("system", "developer", "user", "assistant", "tool"))
_CALL_FIELDS = ("tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking")


def _is_bare(message: dict[str, Any]) -> bool:
    """Whether the message is nothing but role and content, so that it may be merged with a neighbour."""
    return not any(message.get(name) for name in _CALL_FIELDS)


def developer_to_system(messages: Messages) -> Messages:
    return [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]


def unknown_to_user(messages: Messages) -> Messages:
    return [m if m["role"] in _KNOWN_ROLES else {**m, "role": "user"} for m in messages]


def tool_to_user(messages: Messages) -> Messages:
    """Tool results as user messages, calls as the assistant's content."""
    return [_without_calls(m) for m in messages]


def _without_calls(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if not message.get("tool_calls"):
        return message
    text = GENERIC.write([read_call(call) for call in message["tool_calls"]])
    return {"role": "assistant", "content": "\n".join(part for part in (message["content"], text) if part)}


def split_calls(messages: Messages) -> Messages:
    """One call per message, each followed by its result: Llama 3's templates require it."""
    split: Messages = []
    for place, message in enumerate(messages):
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            split += [] if _is_result_of_several(messages, place) else [message]
            continue
        results = _results_behind(messages, place)
        for index, call in enumerate(calls):
            own = [result for result in results if result.get("tool_call_id") == call.get("id")]
            rest = [result for result in results if result not in own] if index == len(calls) - 1 else []
            results = [result for result in results if result not in own]
            split += [{**(message if index == 0 else _CALLER), "tool_calls": [call]}, *own, *rest]
    return split


_CALLER = {"role": "assistant", "content": ""}


def _results_behind(messages: Messages, place: int) -> Messages:
    """The results right behind a message."""
    return list(itertools.takewhile(lambda message: message["role"] == "tool", messages[place + 1 :]))


def _is_result_of_several(messages: Messages, place: int) -> bool:
    """Whether a message is one of the results right behind several calls."""
    if messages[place]["role"] != "tool":
        return False
    caller = next((m for m in reversed(messages[:place]) if m["role"] != "tool"), {})
    return len(caller.get("tool_calls") or ()) > 1


def content_before_calls(messages: Messages) -> Messages:
    """Content beside calls as a message of its own: some templates write only one of the two."""
    split: Messages = []
    for message in messages:
        if message.get("tool_calls") and message["content"].strip():
            split += [{"role": message["role"], "content": message["content"]}, {**message, "content": ""}]
        else:
            split.append(message)
    return split


def short_call_ids(messages: Messages) -> Messages:
    """Call ids of nine letters and digits, consistent throughout: Mistral's templates require it."""
    return [_with_short_ids(m) for m in messages]


def _with_short_ids(message: dict[str, Any]) -> dict[str, Any]:
    if isinstance(message.get("tool_call_id"), str):
        message = {**message, "tool_call_id": _short_id(message["tool_call_id"])}
    if not message.get("tool_calls"):
        return message
    calls = [{**call, "id": _short_id(call["id"])} if call.get("id") else call for call in message["tool_calls"]]
    return {**message, "tool_calls": calls}


def _short_id(call_id: str) -> str:
    if len(call_id) == 9 and call_id.isalnum():
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:9]


def drop_empty(messages: Messages) -> Messages:
    return [m for m in messages if m["content"].strip() or not _is_bare(m) or m["role"] == "tool"]


def merge_system(messages: Messages) -> Messages:
    """System messages at the start merged into one."""
    n = _n_leading_system(messages)
    if n < 2:
        return messages
    joined = _JOINT.join(m["content"] for m in messages[:n] if m["content"])
    return [{**messages[0], "content": joined}, *messages[n:]]


def system_to_user(messages: Messages) -> Messages:
    """System messages after the start as user messages, in place."""
    n = _n_leading_system(messages)
    rest = [{**m, "role": "user"} if m["role"] == "system" else m for m in messages[n:]]
    return messages[:n] + rest


def fold_system(messages: Messages) -> Messages:
    """System messages at the start put before the content of the first user message."""
    n = _n_leading_system(messages)
    if n == 0:
        return messages
    text = _JOINT.join(m["content"] for m in messages[:n] if m["content"])
    rest = messages[n:]
    if rest and rest[0]["role"] == "user":
        return [{**rest[0], "content": _JOINT.join(filter(None, (text, rest[0]["content"])))}, *rest[1:]]
    return [{"role": "user", "content": text or PLACEHOLDER}, *rest]


def merge_same_role(messages: Messages) -> Messages:
    merged: Messages = []
    for message in messages:
        last = merged[-1] if merged else None
        if last is None or last["role"] != message["role"] or not (_is_bare(last) and _is_bare(message)):
            merged.append(message)
        else:
            joined = _JOINT.join(filter(None, (last["content"], message["content"])))
            merged[-1] = {**last, "content": joined}
    return merged


def user_first(messages: Messages) -> Messages:
    """Placeholder user message after the system messages, where no user message comes first."""
    n = _n_leading_system(messages)
    if n < len(messages) and messages[n]["role"] == "user":
        return messages
    return [*messages[:n], {"role": "user", "content": PLACEHOLDER}, *messages[n:]]


def _n_leading_system(messages: Messages) -> int:
    return next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))


REPAIRS: dict[str, Repair] = {
    repair.__name__: repair
    for repair in (
        developer_to_system,
        unknown_to_user,
        short_call_ids,
        split_calls,
        content_before_calls,
        tool_to_user,
        drop_empty,
        merge_system,
        system_to_user,
        fold_system,
        merge_same_role,
        user_first,
    )
}
"""By name, in the order in which they are applied: roles first, then places, then the alternation."""

LADDER: tuple[str, ...] = (
    "unknown_to_user",
    "developer_to_system",
    "short_call_ids",
    "split_calls",
    "content_before_calls",
    "drop_empty",
    "merge_system",
    "merge_same_role",
    "user_first",
    "system_to_user",
    "fold_system",
    "tool_to_user",
)
"""By invasiveness: what is tried first when a template refuses a conversation."""


def apply(messages: Messages, names: Collection[str]) -> tuple[Messages, tuple[str, ...]]:
    """Repaired messages, and the names of the repairs that changed something."""
    used = []
    for name, repair in REPAIRS.items():
        if name not in names:
            continue
        repaired = repair(messages)
        if repaired != messages:
            used.append(name)
        messages = repaired
    return messages, tuple(used)


def attempts(messages: Messages, needed: Collection[str]) -> Iterator[tuple[Messages, tuple[str, ...]]]:
    """Attempts to render: with the repairs this template needs, with one more, then cumulatively.

    Attempts that come out equal are left out. Lazy, since the first one nearly always does.
    """
    tried = [apply(messages, needed)]
    yield tried[0]
    one_more = [{*needed, name} for name in LADDER]
    more_and_more = [{*needed, *LADDER[: n + 1]} for n in range(1, len(LADDER))]
    for names in (*one_more, *more_and_more):
        repaired, used = apply(messages, names)
        if repaired and all(repaired != other for other, _ in tried):
            tried.append((repaired, used))
            yield tried[-1]
