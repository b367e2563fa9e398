"""Messages found again in a rendered prompt."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ggufd.chat.rendering.places import MessagePlace, find_messages


def chatml(*messages: dict[str, Any]) -> str:
    """As a template that trims writes it."""
    return "".join(f"<|im_start|>{m['role']}\n{m['content'].strip()}<|im_end|>\n" for m in messages)


def message(content: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": content}


@given(st.lists(st.text("ab \n", max_size=5).map(lambda text: text + "Z" * (len(text) % 2)), max_size=6))
def test_places_come_in_order_and_hold_the_contents(contents: list[str]) -> None:
    messages = [message(f"{i}{content}{i}") for i, content in enumerate(contents)]
    prompt = chatml(*messages)
    places = find_messages(prompt, messages)
    assert [place.message for place in places] == list(range(len(messages)))
    assert [prompt[place.start : place.end] for place in places] == [m["content"] for m in messages]
    assert all(a.end <= b.start for a, b in itertools.pairwise(places))


def test_what_a_template_trims_is_counted() -> None:
    messages = [message("  hello \n")]
    assert find_messages("<user>hello</user>", messages) == [MessagePlace(0, "user", 6, 11, 2)]


def test_a_text_said_twice_is_found_twice() -> None:
    messages = [message("hi"), message("hi", "assistant")]
    places = find_messages(chatml(*messages), messages)
    assert places[0].end <= places[1].start
    assert [place.role for place in places] == ["user", "assistant"]


def test_a_short_text_is_not_taken_for_a_part_of_the_templates_words() -> None:
    messages = [message("a"), message("1", "assistant"), message("st", "user")]
    prompt = chatml(*messages)
    assert [prompt[place.start - 1] for place in find_messages(prompt, messages)] == ["\n"] * 3


def test_a_text_that_is_glued_to_the_templates_words_is_found() -> None:
    assert find_messages("Usersays", [message("says")]) == [MessagePlace(0, "user", 4, 8, 0)]


def test_parts_are_one_text() -> None:
    messages = [message([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}])]
    assert find_messages("> one\ntwo <", messages) == [MessagePlace(0, "user", 2, 9, 0)]


def test_an_answer_is_found_without_what_was_thought() -> None:
    content = "<think>hm</think>\n\nyes"
    assert find_messages("A: yes.", [message(content, "assistant")]) == [MessagePlace(0, "assistant", 3, 6, 19)]
    assert find_messages(f"A: {content}", [message(content, "assistant")]) == [MessagePlace(0, "assistant", 3, 25, 0)]


def test_what_is_not_written_or_empty_is_left_out() -> None:
    messages = [message("gone"), message(" "), message(None, "assistant"), message("here")]
    assert find_messages("> here", messages) == [MessagePlace(3, "user", 2, 6, 0)]
