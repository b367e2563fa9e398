"""Text that may be sent: whole characters, no beginning of a stop string, and nothing held back without need."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.sampling.banned import Bans
from ggufd.engine.sampling.detokenizer import Delta, Detokenizer, StopMatcher


def feed_all(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[list[Delta[int]], Detokenizer[int]]:
    """One delta a piece, until a stop string ended the text; items are the pieces' places."""
    detokenizer: Detokenizer[int] = Detokenizer(stops)
    deltas = []
    for place, piece in enumerate(pieces):
        deltas.append(detokenizer.feed(piece, place))
        if detokenizer.stop is not None:
            break
    return deltas, detokenizer


def sent(deltas: list[Delta[int]]) -> str:
    return "".join(delta.text for delta in deltas)


@pytest.mark.parametrize(
    ("stops", "text", "found"),
    [
        (("b",), "abc", (1, "b")),
        (("x",), "abc", None),
        (("c", "b"), "abc", (1, "b")),
        (("a", "ab"), "abc", (0, "ab")),
        (("bc", "ab"), "abc", (0, "ab")),
        (("aa",), "aaaa", (0, "aa")),
    ],
)
def test_the_first_stop_string_wins_then_the_longest(
    stops: tuple[str, ...], text: str, found: tuple[int, str] | None
) -> None:
    assert StopMatcher(stops).find(text) == found


@pytest.mark.parametrize(
    ("stops", "text", "n_held"),
    [
        (("STOP",), "abc", 0),
        (("STOP",), "abS", 1),
        (("STOP",), "abSTO", 3),
        (("aab",), "aaa", 2),
        (("abab", "bx"), "zab", 2),
        (("\n\nUser:", "\n"), "x", 0),
    ],
)
def test_only_what_may_become_a_stop_string_is_held(stops: tuple[str, ...], text: str, n_held: int) -> None:
    assert StopMatcher(stops).n_held(text) == n_held


def test_a_character_of_several_pieces_comes_with_its_last() -> None:
    deltas, _ = feed_all([b"a\xf0", b"\x9f\x98", b"\x80b"])
    assert [(delta.text, delta.items) for delta in deltas] == [("a", []), ("", []), ("😀b", [0, 1, 2])]


def test_bytes_that_are_no_text_become_a_replacement_character() -> None:
    deltas, _ = feed_all([b"a\xff", b"b", b"\xf0\x9f", b"c"])
    assert sent(deltas) == "a�b�c"


def test_bytes_that_never_became_a_character_are_dropped_at_the_end() -> None:
    deltas, detokenizer = feed_all([b"a", b"\xe2\x82"])
    rest = detokenizer.flush()
    assert (sent(deltas) + rest.text, rest.items) == ("a", [])


def test_tokens_without_text_travel_at_once() -> None:
    deltas, _ = feed_all([b"a", b"", b"b"])
    assert [delta.items for delta in deltas] == [[0], [1], [2]]


def test_what_a_stop_string_cut_is_not_sent() -> None:
    deltas, detokenizer = feed_all([b"one", b" S", b"TOP", b" more"], ("STOP",))
    assert (sent(deltas), detokenizer.stop) == ("one ", "STOP")
    assert [item for delta in deltas for item in delta.items] == [0]
    assert detokenizer.flush() == Delta("", [])


def test_nothing_may_be_fed_after_the_end() -> None:
    _, detokenizer = feed_all([b"STOP"], ("STOP",))
    with pytest.raises(ValueError, match="ended"):
        detokenizer.feed(b"x", 1)


@st.composite
def split_bytes(draw: st.DrawFn) -> list[bytes]:
    """Any text over few letters and wide characters, its bytes cut anywhere; some pieces empty, some not text."""
    text = draw(st.text(st.sampled_from("ab\n😀é"), max_size=30))
    data = text.encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    for place, junk in draw(st.lists(st.tuples(st.integers(0, 12), st.sampled_from([b"\xff", b"\xf0"])), max_size=2)):
        pieces.insert(place, junk)
    return pieces


stop_strings = st.lists(st.text(st.sampled_from("ab\n😀"), min_size=1, max_size=4), max_size=4).map(tuple)


def grown(pieces: list[bytes]) -> list[str]:
    """The text of the first 1, 2, ... pieces, half characters left out."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    texts, text = [], ""
    for piece in pieces:
        text += decoder.decode(piece)
        texts.append(text)
    return texts


def expected(pieces: list[bytes], stops: tuple[str, ...]) -> tuple[str, str | None]:
    """The text up to the first stop string at the first moment when one is complete, found the slow way."""
    text = ""
    for text in grown(pieces):
        found = [(text.find(stop), -len(stop), stop) for stop in stops if stop in text]
        if found:
            position, _, stop = min(found)
            return text[:position], stop
    return text, None


@given(split_bytes(), stop_strings)
def test_what_is_sent_is_the_text_up_to_the_first_stop_string(pieces: list[bytes], stops: tuple[str, ...]) -> None:
    deltas, detokenizer = feed_all(pieces, stops)
    rest = detokenizer.flush()
    assert (sent(deltas) + rest.text, detokenizer.stop) == expected(pieces, stops)
    assert not any(stop in sent(deltas) + rest.text for stop in stops)


@given(split_bytes(), stop_strings)
def test_nothing_is_held_back_that_cannot_become_a_stop_string(pieces: list[bytes], stops: tuple[str, ...]) -> None:
    deltas, detokenizer = feed_all(pieces, stops)
    n_whole = len(deltas) - (detokenizer.stop is not None)
    for n, text in enumerate(grown(pieces)[:n_whole], 1):
        held = text.removeprefix(sent(deltas[:n]))
        assert not held or any(stop.startswith(held) for stop in stops)


@given(split_bytes(), stop_strings)
def test_items_come_once_in_order_and_with_their_text(pieces: list[bytes], stops: tuple[str, ...]) -> None:
    deltas, detokenizer = feed_all(pieces, stops)
    deltas.append(detokenizer.flush())
    items = [item for delta in deltas for item in delta.items]
    assert items == list(range(len(items)))
    texts = grown(pieces)
    for n in range(1, len(deltas) + 1):
        n_items = sum(len(delta.items) for delta in deltas[:n])
        # All that the pieces say whose items came is sent, and of the next piece something is missing.
        assert n_items == 0 or len(texts[n_items - 1]) <= len(sent(deltas[:n]))
    if detokenizer.stop is None:
        unfinished = len(pieces) - len(items)
        assert all(text == texts[-1] for text in texts[len(items) :]) or unfinished == 0


# --- tokens that are taken back ---------------------------------------------------------------------------------------


def test_nothing_of_a_token_is_sent_before_all_of_it_may_be() -> None:
    detokenizer: Detokenizer[int] = Detokenizer((), Bans(("ivers",), (), case_sensitive=False))
    assert detokenizer.feed(b"she", 0) == Delta("she", [0])
    assert detokenizer.feed(b" shiv", 1) == Delta("", [])
    assert detokenizer.feed(b"a", 2) == Delta(" shiva", [1, 2])


def test_what_was_sent_counts_when_what_followed_it_is_taken_back() -> None:
    """`shiv` is sent, as `shiva` is no phrase; then `a` goes, and `ers` would complete one across the seam."""
    detokenizer: Detokenizer[int] = Detokenizer((), Bans(("shivers", "ahoy"), (), case_sensitive=False))
    detokenizer.feed(b"shiv", 0)
    assert detokenizer.feed(b"a", 1) == Delta("shiv", [0])
    detokenizer.feed(b"hoy", 2)
    assert detokenizer.n_banned == 2
    detokenizer.rewind(2)
    detokenizer.feed(b"ers", 3)
    assert detokenizer.n_banned == 1


def test_no_stop_string_may_have_begun_in_what_is_sent_before_something_that_may_be_taken_back() -> None:
    detokenizer: Detokenizer[int] = Detokenizer(("end.",), Bans(("ahoy",), (), case_sensitive=False))
    assert detokenizer.feed(b"the ", 0) == Delta("the ", [0])
    detokenizer.feed(b"end", 1)
    assert detokenizer.feed(b"a", 2) == Delta("", [])
    detokenizer.feed(b"hoy", 3)
    detokenizer.rewind(detokenizer.n_banned)
    assert detokenizer.feed(b".", 4) == Delta("", [])
    assert detokenizer.stop == "end."


banned_phrases = st.lists(
    st.text(st.sampled_from("ab\n\U0001f600\ufffd"), min_size=1, max_size=4), min_size=1, max_size=4
)


@given(
    st.lists(split_bytes(), min_size=1, max_size=3), stop_strings, banned_phrases, st.integers(0, 5), st.integers(0, 2)
)
def test_what_is_sent_is_the_text_of_the_tokens_that_stay(
    parts: list[list[bytes]], stops: tuple[str, ...], phrases: list[str], n_kept: int, n_more: int
) -> None:
    pieces = [piece for part in parts for piece in part]
    detokenizer: Detokenizer[bytes] = Detokenizer(stops, Bans(tuple(phrases), (), case_sensitive=True))
    kept: list[bytes] = []
    text, items = "", []
    for piece in pieces:
        kept.append(piece)
        delta = detokenizer.feed(piece, piece, n_kept)
        text, items = text + delta.text, items + delta.items
        if detokenizer.stop is not None:
            break
        if detokenizer.n_banned:
            n = min(detokenizer.n_banned + n_more, detokenizer.n_pending)
            detokenizer.rewind(n)
            del kept[-n:]
        assert text == b"".join(items).decode("utf-8", "replace")
        assert kept == [*items, *kept[len(items) :]]
        assert len(kept) - len(items) == detokenizer.n_pending
    text += detokenizer.flush().text
    assert (text, detokenizer.stop) == expected(kept, stops)
    assert not any(phrase in text for phrase in phrases)
