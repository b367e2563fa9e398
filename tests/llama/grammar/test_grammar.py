"""Grammars: what is translated means the same, what cannot be enforced is refused before anything runs."""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLTokenizer

from ggufd.api.request.constraints import of_choices
from ggufd.errors import InvalidRequest
from ggufd.llama.grammar.gbnf import plain_gbnf
from ggufd.llama.grammar.grammar import MaskFiller, Matcher, check_grammar, compile_grammar, mask_words
from tests.support.matching import allows

_BYTES = LLTokenizer("byte")


def matches(kind: str, grammar: str, text: str) -> bool:
    """Whether the grammar takes exactly this text, byte by byte."""
    matcher = Matcher(_BYTES, compile_grammar(kind, grammar))
    return all(matcher.accept(byte) for byte in text.encode()) and matcher.is_accepting


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        ('root ::= "yes" | "no"', "no", "maybe"),
        ('root ::= "\\x41\\u0042\\U00000043"', "ABC", "abc"),
        ('root ::= "\\U0001F600"', "😀", "x"),
        ("root ::= [\\u0041-\\u0043]+", "CAB", "D"),
        ("root ::= [a-cx]{2,3}", "xa", "x"),
        ("root ::= [-a]", "-", "b"),
        ("root ::= [a-]", "-", "b"),
        ("root ::= [a&&b]+", "&a", "c"),
        ("root ::= [^a-z]", "Z", "q"),
        ("root ::= [^\\]\\[]", "x", "]"),
        ("root ::= [.]", ".", "x"),
        ('root ::= . "x"', "\nx", "xy"),
        ("root ::= [^]", "\n", ""),
        ('root ::= "a\\"b\\\\c\\[\\]/"', 'a"b\\c[]/', "a"),
        ('root ::= "x" [/^$|()*+?]', "x^", "xy"),
        ('root ::= x-1 x_1 1x\nx-1 ::= "a"\nx_1 ::= "b" # "c"\n1x ::= ("d" |\n "e")?', "abe", "ab("),
        ('root ::= expr\nexpr ::= "(" expr ")" | [0-9]+', "((12))", "((1)"),
        ('root ::= ("a" "b"?)* "é"', "aabé", "bé"),
        ('root ::= ("a"{2})*', "aaaa", "aaa"),
        ('root ::= ((("a")?)+ "b" )+', "aabb", "aa"),
        ('root ::= "tab\\t" "\\r\\n"', "tab\t\r\n", "tab"),
    ],
)
def test_gbnf_means_what_it_means_in_llama_cpp(grammar: str, good: str, bad: str) -> None:
    check_grammar("gbnf", grammar)
    assert matches("gbnf", grammar, good)
    assert not matches("gbnf", grammar, bad)


@pytest.mark.parametrize(
    ("kind", "grammar", "good"),
    [
        ("gbnf", 'root ::= "a" [0-9]{2}', "a12"),
        ("lark", 'start: "a" /[0-9]{2}/', "a12"),
        ("regex", "a[0-9]{2}", "a12"),
        ("json_schema", '{"const": "a12"}', '"a12"'),
    ],
)
def test_a_grammar_of_any_kind_stands_in_its_frame(kind: str, grammar: str, good: str) -> None:
    frame = 'start: "<t>" /[^<]{0,9}/ "</t>" @body'
    check_grammar(kind, grammar, frame=frame)
    matcher = Matcher(_BYTES, compile_grammar(kind, grammar, frame))
    assert all(matcher.accept(byte) for byte in f"<t>so</t>{good}".encode())
    assert matcher.is_accepting
    assert not matcher.take(ord("x"))


@given(st.text(min_size=1, max_size=12))
def test_any_text_survives_as_a_literal(text: str) -> None:
    literal = re.sub(r'(["\\])', r"\\\1", text)
    assert matches("gbnf", f'root ::= "{literal}"', text)


@given(st.characters(exclude_categories=("Cs",)), st.characters(exclude_categories=("Cs",)))
def test_any_character_survives_in_a_class(inside: str, other: str) -> None:
    grammar = f"root ::= [\\U{ord(inside):08x}]"
    assert matches("gbnf", grammar, inside)
    assert matches("gbnf", grammar, other) == (inside == other)


@pytest.mark.parametrize(
    ("kind", "grammar", "said"),
    [
        ("gbnf", "", "is empty"),
        ("gbnf", 'start ::= "a"', "no rule named 'root'"),
        ("gbnf", 'root ::= "a" missing', "'missing' is used but not defined"),
        ("gbnf", 'root ::= "a', "not closed"),
        ("gbnf", "root ::= [a-z", "not closed"),
        ("gbnf", 'root ::= "\\q"', "unknown escape"),
        ("gbnf", 'root ::= "a"\nroot2 ::= [z-a]', "line 2"),
        ("gbnf", 'root ::= []"a"', "matches nothing"),
        ("gbnf", 'root ::= <think> "a"', "cannot be translated"),
        ("gbnf", 'root ::= "a"{1000000}', "at most 2000"),
        ("gbnf", f'root ::= "a"{{{"9" * 5000}}}', "at most 2000"),
        ("gbnf", 'root ::= "a"{3,2}', "backwards"),
        ("gbnf", 'root ::= "\\uD800"', "no Unicode character"),
        ("gbnf", "root ::= root", "no text can satisfy it"),
        ("gbnf", "root ::= " + " | ".join(f'"v{i}"' for i in range(3000)), "3001 items"),
        ("gbnf", 'root ::= ("a"', "')'"),
        ("gbnf", "root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000, "nested deeper"),
        ("regex", "(" * 100_000 + "a" + ")" * 100_000, "nested deeper"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", "(a", "unclosed group"),
        ("json_schema", '{"items":' * 100_000 + "{}" + "}" * 100_000, "longer than"),
        ("json_schema", '{"items":' * 20_000 + "{}" + "}" * 20_000, "nested deeper"),
        ("json_schema", '{"type":"foo"}', "foo"),
        ("json_schema", "{", "cannot be enforced"),
        ("json_schema", '{"enum":[]}', "Unsatisfiable"),
        ("lark", "start: " + "(" * 100_000 + '"a"' + ")" * 100_000, "nested deeper"),
        ("lark", 'start: "a"' + "*" * 100_000, "cannot be enforced"),
        ("lark", "garbage", "cannot be enforced"),
        ("lark", "start: \ud800", "surrogate"),
        ("nonsense", "x", "Unknown kind"),
    ],
)
def test_what_cannot_be_enforced_is_refused(kind: str, grammar: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(said)) as caught:
        check_grammar(kind, grammar)
    assert caught.value.param == "grammar"
    assert len(caught.value.message) < 600


@given(st.text(alphabet='root:=|"[]()*+?{},.ab01\\-^ \n#<', max_size=60))
def test_no_grammar_does_anything_but_pass_or_be_refused(text: str) -> None:
    with contextlib.suppress(InvalidRequest):
        check_grammar("gbnf", f"root ::= {text}")


def test_a_long_list_of_choices_can_be_enforced() -> None:
    grammar = of_choices(tuple(f"value {i}." for i in range(15_000)))
    check_grammar(grammar.kind.value, grammar.text)
    assert matches("regex", grammar.text, "value 14999.")
    assert not matches("regex", grammar.text, "value 14999x")


def test_plain_form_is_a_fixed_point() -> None:
    plain = plain_gbnf('root ::= a "\\n" [x-z]{2,} .\na ::= "b"')
    assert matches("gbnf", plain, "b\nxz!")


def test_masks_follow_the_tokens() -> None:
    matcher = Matcher(_BYTES, compile_grammar("gbnf", 'root ::= "ab" | "ac"'))
    masks = np.zeros((1, mask_words(_BYTES.vocab_size)), dtype=np.uint32)
    filler = MaskFiller(1)

    def allowed() -> list[int]:
        filler.fill([matcher], masks)
        bits = np.unpackbits(masks[0].view(np.uint8), bitorder="little")
        return [int(token) for token in np.flatnonzero(bits[: _BYTES.vocab_size])]

    assert allowed() == [ord("a")]
    assert matcher.forced_tokens() == [ord("a")]
    assert matcher.accept(ord("a"))
    assert allowed() == [ord("b"), ord("c")]
    assert allows(matcher, b"c")
    assert not allows(matcher, b"cc")
    assert matcher.accept(ord("b"))
    assert matcher.is_accepting
    assert matcher.is_stopped
    assert allowed() == [_BYTES.eos_token]
    assert matcher.rollback(1)
    assert allowed() == [ord("b"), ord("c")]
    assert not matcher.accept(ord("x"))
    assert matcher.is_error


def test_masks_of_many_are_filled_at_once_and_one_in_error_harms_no_other() -> None:
    start = Matcher(_BYTES, compile_grammar("regex", "[0-9]{2}"))
    broken, further = start.copy(), start.copy()
    assert not broken.accept(ord("x"))
    assert further.accept(ord("1"))
    assert further.accept(ord("2"))
    masks = np.zeros((4, mask_words(_BYTES.vocab_size)), dtype=np.uint32)
    MaskFiller(2).fill([start, broken, further], masks)
    counts = np.bitwise_count(masks).sum(axis=1)
    assert (counts[0], counts[2], counts[3]) == (10, 1, 0)
    assert [matcher.is_error for matcher in (start, broken, further)] == [False, True, False]
