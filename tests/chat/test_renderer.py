"""Conversations of every shape through templates of every fashion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ggufd.chat.prompt import ChatPrompt
from ggufd.chat.rendering.renderer import CONTINUE_AFTER_PROMPT, PLAIN_TOOLS, needed
from ggufd.chat.rendering.template import CHATML
from ggufd.errors import InvalidRequest, Unsupported
from tests.support.models.vocabularies import real_templates
from tests.support.renderers import renderer_of

_LETTERS = {"S": "system", "D": "developer", "U": "user", "A": "assistant", "X": "narrator"}
_SHAPES = ("U", "SU", "SSU", "SSUASU", "S", "UU", "SUAAU", "AU", "SAU", "SUAS", "XU", "DU", "UASSAU", "SS", "UAUAU")
_BEGUN = ("UA", "SUA", "SA", "A", "UAA", "SUASA", "SAUA")

STRICT = """\
{% for m in messages %}
{% if m.role not in ('user', 'assistant') %}{{ raise_exception('only user and assistant') }}{% endif %}
{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
[{{ m.role }}]{{ m.content | trim }}</s>
{% endfor %}
{% if add_generation_prompt %}[assistant]{% endif %}"""
DROPS_SYSTEM = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
ONE_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}|{% endif %}"
    "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
PARTS = "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
NO_EMPTY = (
    "{% for m in messages %}{% if not m.content %}{{ raise_exception('empty') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}"
)
THINKS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1] }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
DROPS_LAST = (
    "{% for m in messages %}{% if not (loop.last and m.role == 'assistant') %}[{{ m.role }}]{{ m.content }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def conversation(shape: str) -> tuple[dict[str, Any], ...]:
    return tuple({"role": _LETTERS[letter], "content": f"te{i}xt."} for i, letter in enumerate(shape))


def render(source: str, *messages: dict[str, Any], **options: Any) -> tuple[str, tuple[str, ...]]:
    renderer = renderer_of(source)
    return renderer.render(ChatPrompt(messages, **options))


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


# --- the shapes ---------------------------------------------------------------------------------------------------


def test_a_template_that_takes_everything_is_left_alone() -> None:
    for shape in _SHAPES:
        text, repairs = render(CHATML, *conversation(shape))
        assert repairs == ()
        assert text.count("<|im_start|>") == len(shape) + 1


@pytest.mark.parametrize(
    ("source", "messages", "expected", "repairs"),
    [
        (STRICT, (system("S"), user("U")), "[user]S\n\nU</s>\n[assistant]", ("fold_system",)),
        (STRICT, (user("1"), user("2")), "[user]1\n\n2</s>\n[assistant]", ("merge_same_role",)),
        (
            STRICT,
            (assistant("A"), user("U")),
            "[user]...</s>\n[assistant]A</s>\n[user]U</s>\n[assistant]",
            ("user_first",),
        ),
        (STRICT, (system("S"),), "[user]S</s>\n[assistant]", ("fold_system",)),
        (
            STRICT,
            (user("1"), assistant("2"), system("3"), user("4")),
            "[user]1</s>\n[assistant]2</s>\n[user]3\n\n4</s>\n[assistant]",
            ("system_to_user", "merge_same_role"),
        ),
        (DROPS_SYSTEM, (system("rules"), user("U")), "[user]rules\n\nU", ("fold_system",)),
        (ONE_SYSTEM, (system("1"), system("2"), user("U")), "1\n\n2|[user]U", ("merge_system",)),
        (ONE_SYSTEM, (system("one"), user("U"), system("two")), "one|[user]U[user]two", ("system_to_user",)),
        (NO_EMPTY, (system(""), user("U")), "[user]U", ("drop_empty",)),
        (NO_EMPTY, (user("U"), assistant(""), user("V")), "[user]U[user]V", ("drop_empty",)),
    ],
)  # fmt: skip
def test_a_picky_template_is_given_what_it_takes(
    source: str, messages: tuple[dict[str, Any], ...], expected: str, repairs: tuple[str, ...]
) -> None:
    assert render(source, *messages) == (expected, repairs)


def test_a_tool_result_becomes_the_users_where_tools_are_unknown() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = (user("U"), {"role": "assistant", "content": None, "tool_calls": [call]})
    text, repairs = render(STRICT, *messages, {"role": "tool", "tool_call_id": "1", "content": "found"})
    assert text == (
        '[user]U</s>\n[assistant]<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call></s>\n'
        "[user]<tool_response>\nfound\n</tool_response></s>\n[assistant]"
    )
    assert "tool_to_user" in repairs


def test_arguments_reach_the_template_as_a_mapping() -> None:
    source = (
        "{% for m in messages %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    )
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    text, _ = render(source, user("U"), {"role": "assistant", "content": "", "tool_calls": [call]}, user("V"))
    assert text == 'U{"a": 1}V'


def test_when_nothing_helps_the_templates_own_words_are_the_error() -> None:
    with pytest.raises(InvalidRequest, match=r"never\. \(template line 2\)") as caught:
        render("\n{{ raise_exception('never.') }}", user("U"))
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ((), InvalidRequest),
        (({"content": "x"},), InvalidRequest),
        (({"role": "user", "content": 5},), InvalidRequest),
        (({"role": "user", "content": [5]},), InvalidRequest),
        (({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},), Unsupported),
    ],
)
def test_what_is_no_conversation_is_refused(messages: tuple[dict[str, Any], ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        render(CHATML, *messages)


# --- contents and variables ---------------------------------------------------------------------------------------


def test_parts_are_joined_for_a_template_of_strings_and_wrapped_for_one_of_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render(DROPS_SYSTEM, user(parts))[0] == "[user]a\nb"
    assert render(PARTS, user(parts), user("c"))[0] == "[user]a\nb[user]c"
    assert render(CHATML, user(None))[0].startswith("<|im_start|>user\n<|im_end|>")


def test_template_variables() -> None:
    source = (
        "{{ bos_token }}{{ tools | tojson }}{{ enable_thinking }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    tool = {"type": "function", "function": {"name": "f"}}
    text, _ = render(source, user("U"), tools=(tool,), template_kwargs={"enable_thinking": False, "messages": []})
    assert text == '<s>[{"type": "function", "function": {"name": "f"}}]FalseU'
    assert render(source, user("U"))[0] == "<s>nullTrueU"


def test_a_template_that_walks_its_tools_gets_an_empty_list() -> None:
    source = "{% for t in tools %}{{ t }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert render(source, user("U"))[0] == "U"


# --- continuing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [CHATML, STRICT, THINKS, PARTS, ONE_SYSTEM], ids=str.split)
def test_a_begun_answer_is_continued_exactly(source: str) -> None:
    begun = "  Once upon a\n time, "
    text, _ = render(source, user("Tell."), assistant(begun))
    assert text.endswith(begun)
    assert text.count("Once upon") == 1


def test_a_begun_answer_has_no_end_and_no_new_turn() -> None:
    text, _ = render(CHATML, user("U"), assistant("So"))
    assert text == "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nSo"
    assert render(CHATML, user("U"), assistant(""))[0] == "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"


def test_a_begun_answer_may_be_its_own_question() -> None:
    text, _ = render(CHATML, user("So"), assistant("So"))
    assert text == "<|im_start|>user\nSo<|im_end|>\n<|im_start|>assistant\nSo"


def test_the_overrides() -> None:
    closed = "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    messages = (user("U"), assistant("A"))
    assert render(CHATML, *messages, continue_final_message=False)[0] == closed + "<|im_start|>assistant\n"
    assert render(CHATML, *messages, add_generation_prompt=True)[0] == closed + "<|im_start|>assistant\n"
    assert render(CHATML, *messages, continue_final_message=False, add_generation_prompt=False)[0] == closed
    assert render(CHATML, user("U"), continue_final_message=True)[0] == "<|im_start|>user\nU"
    assert render(CHATML, user("U"), add_generation_prompt=False)[0] == "<|im_start|>user\nU<|im_end|>\n"
    with pytest.raises(InvalidRequest, match="exclude each other"):
        render(CHATML, *messages, continue_final_message=True, add_generation_prompt=True)


def test_a_begun_thought_takes_the_place_of_the_empty_one() -> None:
    text, _ = render(THINKS, user("U"), assistant("<think>\nHm"))
    assert text == "<user>U<end><assistant><think>\nHm"
    text, _ = render(THINKS, user("U"), assistant("Well"))
    assert text == "<user>U<end><assistant><think>\n\n</think>\n\nWell"


def test_a_template_that_drops_the_last_answer_gets_it_behind_the_opened_turn() -> None:
    text, repairs = render(DROPS_LAST, user("U"), assistant("So"))
    assert text == "[user]U[assistant]So"
    assert repairs == (CONTINUE_AFTER_PROMPT,)


def test_a_template_that_refuses_a_last_answer_gets_it_behind_the_opened_turn() -> None:
    refuses = "{% if messages[-1].role != 'user' %}{{ raise_exception('the user must be last') }}{% endif %}" + CHATML
    text, repairs = render(refuses, user("U"), assistant("So"))
    assert text == "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nSo"
    assert repairs == (CONTINUE_AFTER_PROMPT,)
    assert render(refuses, assistant("So"))[0].endswith("<|im_start|>assistant\nSo")


def test_ids_of_calls_are_shortened_for_a_template_that_insists() -> None:
    source = (
        "{% for m in messages %}{% if m.tool_call_id and m.tool_call_id|length != 9 %}{{ raise_exception('nine') }}"
        "{% endif %}{% for c in m.tool_calls or [] %}{{ c.id }}({{ c.function.arguments }})={% endfor %}"
        "{% if m.role == 'tool' %}{{ m.tool_call_id }}:{% endif %}{{ m.content }};{% endfor %}"
    )
    call = {"id": "call_" + "0" * 24, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "found"}
    text, repairs = render(source, user("U"), {"role": "assistant", "content": None, "tool_calls": [call]}, result)
    _, called, answered, _ = text.split(";")
    assert called.partition("(")[0] == answered.partition(":")[0]
    assert repairs == ("short_call_ids",)


def called(content: str, *names: str) -> list[dict[str, Any]]:
    """An answer that calls tools, and their results."""
    calls = [{"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}} for name in names]
    results = [{"role": "tool", "tool_call_id": name, "content": f"result {name}"} for name in names]
    return [{"role": "assistant", "content": content, "tool_calls": calls}, *results]


_CALLS = (
    "{% for m in messages %}[{{ m.role }}]{% if m.tool_calls %}"
    "{% if m.tool_calls|length > MAX %}{{ raise_exception('too many') }}{% endif %}"
    "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def test_several_calls_are_told_one_by_one_to_a_template_that_takes_one() -> None:
    messages = (system("S"), user("U"), *called("", "f", "g"), assistant("A"), user("V"))
    text, repairs = render(_CALLS.replace("MAX", "1"), *messages)
    assert text == "[system]S[user]U[assistant]f{}[tool]result f[assistant]g{}[tool]result g[assistant]A[user]V"
    assert repairs == ("split_calls",)


def test_what_is_said_beside_calls_is_not_lost_and_nothing_else_is_changed() -> None:
    text, repairs = render(_CALLS.replace("MAX", "9"), system("S"), user("U"), *called("Said.", "f", "g"))
    assert text == "[system]S[user]U[assistant]Said.[assistant]f{}g{}[tool]result f[tool]result g"
    assert repairs == ("content_before_calls",)


def test_calls_are_not_lost_where_something_is_said_beside_them() -> None:
    source = (
        "{% for m in messages %}[{{ m.role }}]{% if m.content %}{{ m.content }}{% else %}"
        "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments }}{% endfor %}{% endif %}{% endfor %}"
    )
    text, repairs = render(source, user("U"), *called("Said.", "f"))
    assert text == "[user]U[assistant]Said.[assistant]f{}[tool]result f"
    assert repairs == ("content_before_calls",)


def test_a_call_has_no_content_where_an_empty_one_is_written() -> None:
    source = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}<call>{{ c.function.arguments }}{% endfor %}"
        "{% if m.content is not none %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
    )
    assert render(source, user("U"), *called("", "f"))[0] == "<user>U<call>{}<tool>result f"


def test_schemas_of_tools_are_told_in_a_form_that_the_template_takes() -> None:
    source = (
        "{% for t in tools or [] %}{% for name, one in t.function.parameters.properties.items() %}"
        "{% if one.type is not string %}{{ raise_exception('one type') }}{% endif %}"
        "{{ name + ' ' + one.type + one.description }};{% endfor %}{% endfor %}"
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    properties = {"a": {"type": "string"}, "b": {"type": ["integer", "null"]}, "c": {"anyOf": []}, "d": True}
    properties |= {"e": {"type": "object", "properties": 5}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}
    text, repairs = render(source, user("U"), tools=(tool,))
    assert text == "a string;b integer;c string;d string;e object;[user]U"
    assert repairs == (PLAIN_TOOLS,)


def test_nothing_is_escaped() -> None:
    source = """{% for m in messages %}{{ "<"|safe + m.content + '"' }}{% endfor %}"""
    assert render(source, user('"&'))[0] == '<"&"'


@pytest.mark.parametrize(("kwargs", "expected"), [({"enable_thinking": True}, "yes"), ({}, "no")])
def test_thoughts_are_switched_on_under_either_name(kwargs: dict[str, Any], expected: str) -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}{{ 'yes' if thinking else 'no' }}"
    assert render(source, user("U"), template_kwargs=kwargs)[0] == f"U{expected}"


def test_an_answer_that_calls_a_tool_is_not_continued() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "no JSON"}}
    text, _ = render(CHATML, user("U"), {"role": "assistant", "content": "So", "tool_calls": [call]})
    assert text.endswith("<|im_start|>assistant\nSo<|im_end|>\n<|im_start|>assistant\n")


# --- real templates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", real_templates())
def test_real_templates_take_every_shape_and_lose_nothing(path: Path) -> None:
    renderer = renderer_of(path.read_text(encoding="utf-8"))
    for shape in _SHAPES + _BEGUN:
        messages = conversation(shape)
        text, repairs = renderer.render(ChatPrompt(messages))
        assert all(message["content"] in text for message in messages), (shape, repairs)
        if shape in _BEGUN:
            assert text.endswith(messages[-1]["content"]), (shape, repairs)
            assert CONTINUE_AFTER_PROMPT not in repairs
        if shape in ("U", "SU") and "fold_system" not in needed(renderer):
            assert repairs == (), shape
