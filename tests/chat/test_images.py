"""Images in conversations, through templates that know them and templates that do not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from ggufd.chat.images import ImageMarkers, image_part, images_of, with_markers, with_texts
from ggufd.chat.process.text import TextModel
from ggufd.chat.prompt import ChatPrompt, ImagePlace, Message
from ggufd.chat.rendering.renderer import ChatRenderer
from ggufd.chat.rendering.template import CHATML, Template
from ggufd.errors import InvalidRequest
from ggufd.llama.model.model import GgufModel
from tests.support.models.vocabularies import demo_model, real_templates
from tests.support.renderers import renderer_of

KEY = b"secret"

TURNS = "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}"
ENDS = "{% endfor %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
LIKE_SMOLVLM = (
    "{% for m in messages %}{{ m.role | capitalize }}{% if m.content[0].type == 'image' %}{{ ':' }}{% else %}{{ ': ' }}"
    "{% endif %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% elif p.type == 'image' %}"
    "{{ '<image>' }}{% endif %}{% endfor %}<end>{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
LIKE_QWEN = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' or 'image' in p %}<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in p %}"
    "{{ p.text }}{% endif %}{% endfor %}{% endif %}<end>{% endfor %}"
)
LIKE_GEMMA = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content | trim }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}{{ '<start_of_image>' }}{% elif p.type == 'text' %}"
    "{{ p.text | trim }}{% endif %}{% endfor %}{% endif %}<end>{% endfor %}"
)
IMAGE_LINES = (
    f"{TURNS}{{% if p.type == 'image' %}}{{{{ '<image>\\n' }}}}{{% else %}}{{{{ p.text }}}}{{% endif %}}{ENDS}"
)
IMAGES_FIRST = (
    "{% for m in messages %}[{{ m.role }}]{% for p in m.content | selectattr('type', 'equalto', 'image') %}<image>"
    "{% endfor %}{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p.text }}{% endfor %}{% endfor %}"
)
NO_IMAGES_FOR_SYSTEM = LIKE_QWEN.replace(
    "{% if p.type == 'image'",
    "{% if p.type == 'image' and m.role == 'system' %}{{ raise_exception('no images here') }}{% elif p.type == 'image'",
)
REPRESENTS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
PLAIN = (CHATML, REPRESENTS, f"{TURNS}{{{{ p.text }}}}{ENDS}", IMAGES_FIRST)


def image(name: str = "data:,") -> dict[str, str]:
    return image_part(name, "messages[0].content[0].image_url")


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in content]}


def rendered(source: str, *messages: Message, **options: Any) -> tuple[str, tuple[str, ...]]:
    """The prompt with `<0>`, `<1>` in the places of images, and the repairs."""
    marked, markers = with_markers(messages, KEY)
    renderer = renderer_of(source)
    text, repairs = renderer.render(ChatPrompt(marked, markers=markers, **options))
    places = ImageMarkers(markers)
    numbers = [f"<{index}>" for index in places.indexes(text)]
    pieces = places.texts(text)
    return "".join(a + b for a, b in zip(pieces, [*numbers, ""], strict=True)), repairs


# --- markers --------------------------------------------------------------------------------------------------------


def test_the_same_conversation_has_the_same_markers_and_no_other_has_them() -> None:
    asked = user("a", image("data:1"), "b")
    _, markers = with_markers([asked], KEY)
    assert with_markers([asked], KEY)[1] == markers
    assert with_markers([user("a", image("data:2"), "b")], KEY)[1] == markers, "pixels are nothing to a template"
    assert with_markers([asked], b"other")[1] != markers
    assert with_markers([user("a", image("data:1"), markers[0])], KEY)[1] != markers


def test_a_marker_that_somebody_has_seen_stays_text() -> None:
    _, markers = with_markers([user("a", image())], KEY)
    text, _ = rendered(CHATML, user("a", image()), user(f"what is {markers[0]}"))
    assert f"what is {markers[0]}" in text
    assert text.count("<0>") == 1


def test_images_are_found_in_order() -> None:
    messages = [user(image("1"), "a", image("2")), {"role": "assistant", "content": "x"}, user(image("3"))]
    assert [one.reference for one in images_of(messages)] == ["1", "2", "3"]
    shown = with_texts(messages, ["<A>", "<B>", "<C>"])
    assert [part.get("marker") for part in shown[0]["content"]] == ["<A>", None, "<B>"]
    assert shown[1] is messages[1]


def test_a_conversation_without_images_has_no_markers() -> None:
    messages = (user("a"), {"role": "assistant", "content": "x"})
    assert with_markers(messages, KEY) == (messages, ())
    assert ImageMarkers().split("text") == ["text"]


# --- templates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", PLAIN)
def test_templates_that_know_no_images_get_them_within_the_text(source: str) -> None:
    text, repairs = rendered(source, user("Look:", image(), " what", "is it", image(), image()))
    assert "Look:<0> what\nis it<1><2>" in text
    assert repairs == ()


@pytest.mark.parametrize("source", PLAIN)
def test_what_somebody_types_stays_text(source: str) -> None:
    for typed in ("<image>", "<__media__>", "<|image_pad|>", "ggufdImage00n0e"):
        text, _ = rendered(source, user(typed, image(), typed))
        assert f"{typed}<0>{typed}" in text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (LIKE_SMOLVLM, "User:<0> what<end>User: and<1><end>Assistant:"),
        (LIKE_QWEN, "<user><0> what<end><user>and<1><end>"),
        (LIKE_GEMMA, "<user><0> what<end><user>and<1><end>"),
        (IMAGE_LINES, "[user]<0>\n what[user]and<1>\n[assistant]"),
    ],
)
def test_templates_that_know_images_write_what_stands_around_them(source: str, expected: str) -> None:
    renderer = ChatRenderer(Template(source), {})
    assert renderer.image_placeholder
    text, repairs = rendered(source, user(image(), " what"), user("and", image()))
    assert (text, repairs) == (expected, ())


@pytest.mark.parametrize("source", [LIKE_SMOLVLM, LIKE_QWEN, LIKE_GEMMA, IMAGE_LINES])
def test_a_placeholder_that_somebody_types_stays_text(source: str) -> None:
    placeholder = ChatRenderer(Template(source), {}).image_placeholder
    text, _ = rendered(source, user(placeholder, image(), placeholder))
    assert text.count(placeholder) == 2
    assert text.count("<0>") == 1


def test_a_template_that_refuses_an_image_gets_it_within_the_text() -> None:
    text, repairs = rendered(NO_IMAGES_FOR_SYSTEM, {"role": "system", "content": ["Be", image()]}, user("b", image()))
    assert (text, repairs) == ("<system>Be<0><end><user>b<1><end>", ())


def test_a_template_whose_placeholders_differ_gets_images_within_the_text() -> None:
    wraps = (
        "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{% if p.type == 'image' %}"
        "{% if not loop.first %}</t>{% endif %}<img>{% if not loop.last %}<t>{% endif %}"
        "{% else %}{% if loop.first %}<t>{% endif %}{{ p.text }}{% if loop.last %}</t>{% endif %}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    assert ChatRenderer(Template(wraps), {}).image_placeholder == "</t><img><t>"
    text, _ = rendered(wraps, user("a", image(), "b"), user(image(), "c"))
    assert text == "[user]<t>a<0>b</t>[user]<t><1>c</t>"


@pytest.mark.parametrize("path", real_templates())
def test_real_templates_take_images_and_leave_no_placeholder(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    placeholder = renderer_of(source).image_placeholder
    begun = {"role": "assistant", "content": "te2xt."}
    text, repairs = rendered(source, user("te0xt.", image(), " te1xt."), begun, user(image(), image(), "te3xt."))
    plain, plain_repairs = rendered(source, user("te0xt."), begun, user("te3xt."))
    assert repairs == plain_repairs
    assert re.findall(r"te0xt\.\s*<0>\s*te1xt\.|<1>\s*<2>\s*te3xt\.", text) == [ANY, ANY]
    assert all(f"te{number}xt." in text for number in range(4))
    assert not placeholder or text.count(placeholder) == plain.count(placeholder)


def test_templates_without_images_have_no_placeholder() -> None:
    for source in PLAIN:
        assert ChatRenderer(Template(source), {}).image_placeholder == ""


def test_images_of_every_role_and_turn_stay_through_repairs() -> None:
    strict = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
    )
    text, repairs = rendered(
        strict,
        {"role": "system", "content": ["S", image()]},
        user("a", image()),
        {"role": "assistant", "content": "b"},
        {"role": "tool", "content": [image(), "c"], "tool_call_id": "1"},
        user(image()),
    )
    assert text.startswith("[user]S<0>\n\na<1>[assistant]b[user]")
    assert [text.count(f"<{i}>") for i in range(4)] == [1, 1, 1, 1]
    assert "fold_system" in repairs


def test_an_answer_that_begins_with_an_image_is_continued() -> None:
    text, _ = rendered(CHATML, user("a"), {"role": "assistant", "content": ["It is ", image(), " and"]})
    assert text.endswith("<|im_start|>assistant\nIt is <0> and")


# --- tokens ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_model() -> Any:
    model = GgufModel(demo_model())
    yield TextModel(model)
    model.close()


def test_places_of_images_split_the_tokens(text_model: TextModel) -> None:
    marked, markers = with_markers([user("Look:", image(), " what", image())], KEY)
    prompt = text_model.render(ChatPrompt(marked, markers=markers))
    pieces = ImageMarkers(markers).texts(prompt.text)
    ends = [place.position for place in prompt.images]
    assert [place.image for place in prompt.images] == [0, 1]
    assert list(prompt.tokens[: ends[0]]) == text_model.encode(pieces[0], add_special=False)
    assert list(prompt.tokens[ends[0] : ends[1]]) == text_model.encode(" what", add_special=False)
    assert list(prompt.tokens[ends[1] :]) == text_model.encode(pieces[2], add_special=False)


def test_two_images_may_stand_side_by_side(text_model: TextModel) -> None:
    marked, markers = with_markers([user(image(), image())], KEY)
    (first, second) = text_model.render(ChatPrompt(marked, markers=markers)).images
    assert (first, second) == (ImagePlace(first.position, 0), ImagePlace(first.position, 1))


def test_a_template_that_leaves_an_image_out_is_told(text_model: TextModel) -> None:
    model = GgufModel(demo_model())
    drops = TextModel(model, "{% for m in messages %}{{ m.role }}{% endfor %}")
    marked, markers = with_markers([user("a", image())], KEY)
    with pytest.raises(InvalidRequest, match="leaves out an image"):
        drops.render(ChatPrompt(marked, markers=markers))
    model.close()
