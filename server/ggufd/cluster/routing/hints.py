"""Hints of requests: which conversation a request belongs to, and how long its prompt is, by the body of any API.

The conversation is what tells one chat from another and stays the same in all its turns: who asks, and either a session
that the client names or the head of the conversation. A hint never fails: a body that says nothing, or that no server
would take, has none, and any replica may answer it. Knows no replicas.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ggufd.api.http.body import parse_json
from ggufd.cluster.routing.leaves import digest, leaves, n_bytes
from ggufd.errors import InvalidRequest

HEAD_CHARACTERS = (1024, 8192)
"""So much of the beginning of a text completion's prompt tells its conversation, and tells it from others beside it.

A prompt grows at its end, so its beginning is the same in every turn, but for prompts that are shorter than that: they
belong to another conversation with each turn until they are as long. In the simulation 0.99 of role play's histories
stay at home by 1,024 characters and 0.89 of those without a character, by 2,048 characters 0.96 and 0.80. Chats of a
caller that begin alike for longer, with one character, have one home, which is none too many for most callers; they are
told apart there once they are as long as the second number.
"""

_SESSION_HEADERS = ("x-session-id", "x-conversation-id")

_SESSION_FIELDS = ("session_id", "conv_id", "prompt_cache_key", "user")
"""From what names one chat to what names a person."""

_FIRST_MESSAGES = 2
"""So many messages are the head of a conversation in which nobody has the user's role."""

_OWN_ROLES = frozenset({"system", "developer", "user"})

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RouteHint:
    """What is known of a request before a replica is chosen.

    `chat` is the digest of its session or of its head, 16 bytes: its home. `head` is that of more of the conversation,
    once there is more, and tells chats apart that have one home: those of one session name, or with one beginning.
    `n_prompt_bytes` is the length of the prompt. `is_new` says that it is the beginning of a chat that is told by its
    head: no replica has answered in it yet.
    """

    chat: bytes
    n_prompt_bytes: int
    head: bytes = b""
    is_new: bool = False


def hint_of(method: str, path: str, headers: Mapping[str, str], body: bytes, address: str = "") -> RouteHint | None:
    """Hint of a request; None where any replica may answer it. Never raises.

    Names of `headers` are in lower case, or found in any. `address` is the client's: it stands for a caller without a
    key.
    """
    family = _FAMILIES.get(_route(path)) if method == "POST" else None
    parsed = None if family is None else _parsed(body)
    if family is None or parsed is None:
        return None
    head = family.head(parsed, 1)
    session = session_of(headers, parsed)
    if not head and not session:
        return None
    caller = caller_of(headers, address)
    of_head = digest(("head", caller, *head))
    of_chat = digest(("session", caller, session)) if session else of_head
    longer = family.head(parsed, 2)
    of_more = digest(("longer head", caller, *longer)) if longer else of_head
    is_new = not session and family.begins is not None and family.begins(parsed)
    return RouteHint(of_chat, family.n_bytes(parsed), of_more, is_new)


def caller_of(headers: Mapping[str, str], address: str = "") -> str:
    """Who asks: the key, in whichever header it is sent, else the client's address."""
    scheme, _, bearer = headers.get("authorization", "").strip().partition(" ")
    key = headers.get("x-api-key", "").strip() or (bearer.strip() if scheme.lower() == "bearer" else "")
    return f"key {key}" if key else f"address {address}"


def session_of(headers: Mapping[str, str], body: Body) -> str:
    """Name of the session by the client's word, "" without: a header first, then fields of the body."""
    for name in _SESSION_HEADERS:
        if sent := headers.get(name, "").strip():
            return sent
    metadata = body.get("metadata")
    named = [body.get(name) for name in _SESSION_FIELDS]
    named.append(metadata.get("user_id") if isinstance(metadata, dict) else None)
    return next((one for one in named if isinstance(one, str) and one), "")


def _route(path: str) -> str:
    """Path without what may be left out of it: the prefix /v1, doubled slashes, a slash at the end."""
    parts = [part for part in path.split("/") if part]
    return "/".join(parts[1:] if parts[:1] == ["v1"] else parts)


def _parsed(body: bytes) -> Body | None:
    """The body as JSON; None where it is no object, or none that a replica would read: it will say what is wrong."""
    try:
        return parse_json(body)
    except InvalidRequest:
        return None


@dataclass(frozen=True, slots=True)
class _ConversationFields:
    """How an API family writes a conversation: its head, and the parts of a body that become prompt.

    `head` gives the texts of the head (1), or of twice as much (2): none while the conversation is not as long.
    `begins` says whether nothing in it is an answer; None where that cannot be seen.
    """

    head: Callable[[Body, int], list[str]]
    prompt: tuple[str, ...]
    begins: Callable[[Body], bool] | None = None

    def n_bytes(self, body: Body) -> int:
        """Bytes of the whole prompt."""
        return sum(n_bytes(body.get(name)) for name in self.prompt)


def _chat_head(messages: str, *before: str) -> Callable[[Body, int], list[str]]:
    """Head of a chat: the fields `before`, then the messages up to the first user's, or the second's, included."""

    def head(body: Body, n_users: int) -> list[str]:
        first = _first_messages(body.get(messages), n_users)
        parts = [*(body.get(name) for name in before), *first] if first else []
        return [leaf.text for part in parts for leaf in leaves(part)]

    return head


def _begins(messages: str) -> Callable[[Body], bool]:
    """Whether all messages are the client's own; a character's greeting is an answer."""

    def begins(body: Body) -> bool:
        said = body.get(messages)
        if body.get("previous_response_id"):
            return False
        own = said if isinstance(said, list) else []
        return isinstance(said, str) or all(isinstance(one, dict) and one.get("role") in _OWN_ROLES for one in own)

    return begins


def _first_messages(messages: Any, n_users: int) -> list[Any]:
    """Messages up to one of the user's; none where there are not so many. A text in place of all is the user's."""
    if not isinstance(messages, list):
        return [messages] if n_users == 1 else []
    places = (place for place, one in enumerate(messages, 1) if isinstance(one, dict) and one.get("role") == "user")
    end = next(itertools.islice(places, n_users - 1, None), None)
    if end is None and n_users == 1:
        return messages[:_FIRST_MESSAGES]
    return messages[:end] if end else []


def _text_head(*names: str) -> Callable[[Body, int], list[str]]:
    """Head of a text: the first characters of the fields one after the other, of the first where there are several."""

    def head(body: Body, level: int) -> list[str]:
        left, found = HEAD_CHARACTERS[level - 1], []
        for text in (text for name in names for text in _first_text(body.get(name))):
            found.append(text[:left])
            left -= len(text)
            if left <= 0:
                return found
        return found if level == 1 else []

    return head


def _first_text(prompt: Any) -> Iterator[str]:
    """Texts and token ids of a prompt, of the first where there are several."""
    if isinstance(prompt, list) and prompt and all(isinstance(one, (str, list, dict)) for one in prompt):
        prompt = prompt[0]
    yield from (leaf.text for leaf in leaves(prompt))


_CHAT = _ConversationFields(_chat_head("messages", "system"), ("system", "messages", "tools"), _begins("messages"))
_RESPONSES = _ConversationFields(
    _chat_head("input", "instructions"), ("instructions", "input", "tools"), _begins("input")
)
_TEXT = _ConversationFields(_text_head("system", "prompt"), ("system", "prompt"))
_KOBOLD = _ConversationFields(_text_head("memory", "prompt"), ("memory", "prompt"))
_INFILL = _ConversationFields(
    _text_head("input_extra", "input_prefix"), ("input_extra", "input_prefix", "input_suffix", "prompt")
)

_FAMILIES: dict[str, _ConversationFields] = {
    "chat/completions": _CHAT,
    "messages": _CHAT,
    "api/chat": _CHAT,
    "responses": _RESPONSES,
    "completions": _TEXT,
    "completion": _TEXT,
    "api/generate": _TEXT,
    "api/v1/generate": _KOBOLD,
    "api/latest/generate": _KOBOLD,
    "api/extra/generate/stream": _KOBOLD,
    "infill": _INFILL,
}
"""API families by the paths that generate."""
