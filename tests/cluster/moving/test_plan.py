"""Which chat goes where."""

from __future__ import annotations

from collections.abc import Sequence

from ggufd.cluster.moving.peer_calls import KeptChat
from ggufd.cluster.moving.plan import moves
from ggufd.cluster.replicas import Replica

A, B, C = (Replica(name, f"http://{name}:1") for name in "abc")


def kept(name: str, used_s: float = 1.0, chat: bytes | None = None) -> KeptChat:
    return KeptChat(name * 32, 1000, 300, used_s, name.encode() if chat is None else chat)


def home(chat: bytes, replicas: Sequence[Replica]) -> Replica | None:
    """The replica that the chat has the name of, else the last."""
    return next((one for one in replicas if one.id == chat.decode()), replicas[-1] if replicas else None)


def test_each_chat_goes_to_its_home_the_last_used_first() -> None:
    planned = moves({A: [kept("b", 1), kept("c", 3), kept("d", 2)]}, [B, C], home, {"b", "c"})
    assert [(one.kept.chat, one.target.id) for one in planned] == [(b"c", "c"), (b"d", "c"), (b"b", "b")]


def test_what_is_at_home_stays() -> None:
    assert moves({A: [kept("a")], B: [kept("a")]}, [A, B], home, {"a", "b"})[0].source is B
    assert moves({A: [kept("a")]}, [A, B], home, {"a", "b"}) == []


def test_a_chat_that_nobody_named_goes_nowhere() -> None:
    assert moves({A: [kept("b", chat=b"")]}, [B], home, {"b"}) == []


def test_a_home_that_computes_otherwise_gets_nothing_and_nobody_else_does() -> None:
    assert moves({A: [kept("b"), kept("c")]}, [B, C], home, {"c"})[0].target is C
    assert len(moves({A: [kept("b"), kept("c")]}, [B, C], home, {"c"})) == 1


def test_nobody_is_left_to_go_to() -> None:
    assert moves({A: [kept("b")]}, [], home, set()) == []


def test_what_several_keep_comes_from_the_last_that_used_it() -> None:
    (move,) = moves({A: [kept("c", 1)], B: [kept("c", 2)]}, [A, B, C], home, {"c"})
    assert (move.source, move.kept.used_s) == (B, 2)
