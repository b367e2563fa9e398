"""Tokens, prompts and grammar checks over real vocabularies."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.chat.answers.parser import AnswerParser
from ggufd.chat.deltas.answer import Answer
from ggufd.chat.process.text import TextModel
from ggufd.chat.prompt import ChatPrompt, ToolChoice, ToolMode
from ggufd.chat.rendering.template import CHATML
from ggufd.chat.tools.formats.families import BY_NAME
from ggufd.chat.tools.formats.json_calls import JsonCalls
from ggufd.errors import InvalidRequest, ModelError, Unsupported
from ggufd.llama.grammar.grammar import MaskFiller, Matcher, build_tokenizer, compile_grammar, mask_words
from ggufd.llama.model.model import GgufModel
from tests.support.matching import allows
from tests.support.models.vocabularies import demo_model, vocabulary

_TEXT = "Hello  wörld, 你好 🙂\n\tok"


@pytest.fixture(scope="module")
def demo() -> Iterator[GgufModel]:
    model = GgufModel(demo_model())
    yield model
    model.close()


@pytest.fixture(scope="module")
def text_model(demo: GgufModel) -> TextModel:
    return TextModel(demo)


def chat(*messages: tuple[str, str]) -> ChatPrompt:
    return ChatPrompt(tuple({"role": role, "content": content} for role, content in messages))


# --- the demo model -------------------------------------------------------------------------------------------


def test_the_demo_models_prompt_by_hand(text_model: TextModel) -> None:
    rendered = text_model.render(chat(("system", "Be brief."), ("user", "Hi"), ("assistant", "Yo"), ("user", "Bye")))
    assert rendered.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYo<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered.tokens == tuple(text_model.encode(rendered.text, add_special=False))
    assert rendered.tokens.count(1) == 5
    assert rendered.repairs == ()
    assert not rendered.is_fallback


def test_the_demo_models_own_system_message_is_kept(text_model: TextModel) -> None:
    text = text_model.render(chat(("user", "Hi"))).text
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_a_begun_answer_ends_the_prompt(text_model: TextModel) -> None:
    rendered = text_model.render(chat(("system", "S"), ("user", "Hi"), ("assistant", "Well, ")))
    assert rendered.text.endswith("<|im_start|>assistant\nWell, ")
    assert rendered.tokens[-1] not in (text_model.info.eos_token, 2)


def test_facts(text_model: TextModel, demo: GgufModel) -> None:
    info = text_model.info
    assert info.chat_template == demo.chat_template
    assert (info.n_vocab, info.bos_piece, info.eos_piece) == (49152, "<|im_start|>", "<|im_end|>")
    assert (info.is_fallback, info.template_error, info.template_needs) == (False, None, ())


def test_special_tokens_in_a_prompt_are_read_on_request(text_model: TextModel) -> None:
    assert text_model.encode("<|im_end|>") == [2]
    assert len(text_model.encode("<|im_end|>", parse_special=False)) > 1


# This vocabulary has no token for some bytes: a few control characters, and the first bytes of planes 4 and up.
_IN_VOCABULARY = st.characters(exclude_categories=("Cs", "Cc"), max_codepoint=0x2FFFF)


@given(st.text(_IN_VOCABULARY, max_size=200))
def test_detokenizing_gives_the_text_back(text_model: TextModel, text: str) -> None:
    assert text_model.decode(text_model.encode(text, parse_special=False)) == text
    assert b"".join(text_model.pieces(text_model.encode(text, parse_special=False))) == text.encode()


@pytest.mark.parametrize("token", [-1, 49152, 2**31 - 1, -(2**63)])
def test_ids_outside_the_vocabulary_are_refused(text_model: TextModel, token: int) -> None:
    with pytest.raises(InvalidRequest, match="from 0 to 49151"):
        text_model.decode([1, token])


def test_lone_surrogates_are_refused_and_nul_is_text(text_model: TextModel) -> None:
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        text_model.encode("\ud83d")
    assert text_model.decode(text_model.encode("a\0b")) == "a\0b"


def test_infill(text_model: TextModel) -> None:
    if not text_model.info.has_infill:
        with pytest.raises(Unsupported, match="infill"):
            text_model.encode_infill("a", "b")
        return
    tokens = text_model.encode_infill("a", "b")
    assert len(tokens) == 5


# --- templates that are replaced, missing or broken -------------------------------------------------------------


def test_a_replacing_template(demo: GgufModel) -> None:
    model = TextModel(demo, "{% for m in messages %}({{ m.content }}){% endfor %}")
    assert model.render(chat(("user", "Hi"))).text == "(Hi)"
    assert model.info.chat_template.startswith("{% for")
    with pytest.raises(ModelError, match="no valid Jinja"):
        TextModel(demo, "{% for %}")


class _Without(GgufModel):
    """The demo model as if its file had another template."""

    def __init__(self, model: GgufModel, template: str | None) -> None:
        self.__dict__.update(model.__dict__)
        self._template = template

    @property
    def chat_template(self) -> str | None:
        return self._template


def test_a_file_without_a_template_is_rendered_as_chatml(demo: GgufModel) -> None:
    model = TextModel(_Without(demo, None))
    rendered = model.render(chat(("user", "Hi")))
    assert rendered.is_fallback
    assert rendered.text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert (model.info.chat_template, model.info.is_fallback) == ("", True)


def test_a_file_with_a_broken_template_still_tokenizes(demo: GgufModel) -> None:
    model = TextModel(_Without(demo, "x\n{% broken"))
    assert model.encode("a")
    assert "line 2" in (model.info.template_error or "")
    with pytest.raises(InvalidRequest, match=r"line 2.*--chat-template-file"):
        model.render(chat(("user", "Hi")))


# --- other vocabularies ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_of() -> Iterator[Callable[[str], GgufModel]]:
    """The model with that vocabulary, loaded once: some take a second."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def load(name: str) -> GgufModel:
            model = GgufModel(vocabulary(name))
            stack.callback(model.close)
            return model

        yield load


@pytest.mark.parametrize("name", ["llama-spm", "llama-bpe", "phi-3", "gemma-4", "command-r"])
def test_bos_is_never_doubled(model_of: Callable[[str], GgufModel], name: str) -> None:
    model = model_of(name)
    text_model = TextModel(model, "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
    without = TextModel(model, "{% for m in messages %}{{ m.content }}{% endfor %}")
    prompt = chat(("user", "Hello"))
    assert model.vocabulary.adds_bos
    tokens = list(text_model.render(prompt).tokens)
    assert tokens[:1] == [model.vocabulary.bos]
    assert tokens.count(model.vocabulary.bos or -1) == 1
    assert list(without.render(prompt).tokens) == tokens
    assert text_model.encode("Hello") == tokens
    assert text_model.encode(text_model.info.bos_piece + "Hello") == tokens
    assert text_model.encode("Hello", add_special=False) == tokens[1:]


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "deepseek-llm", "falcon", "gpt-2", "starcoder", "command-r"])
def test_real_vocabularies_give_text_back(model_of: Callable[[str], GgufModel], name: str) -> None:
    model = model_of(name)
    text_model = TextModel(model)
    tokens = text_model.encode(_TEXT, add_special=False)
    assert text_model.decode(tokens) == _TEXT
    assert text_model.info.n_vocab == model.vocabulary.n_vocab


@pytest.mark.parametrize("name", ["starcoder", "refact", "qwen2", "deepseek-coder"])
def test_infill_of_models_that_have_it(model_of: Callable[[str], GgufModel], name: str) -> None:
    model = model_of(name)
    text_model = TextModel(model)
    if model.vocabulary.infill_tokens is None:
        with pytest.raises(Unsupported):
            text_model.encode_infill("a", "b")
    else:
        prefix, suffix, middle = model.vocabulary.infill_tokens
        tokens = text_model.encode_infill("def f():", "return")
        assert tokens[-1] == middle
        assert prefix in tokens[:2]
        assert tokens.index(suffix) > 1
        other = TextModel(model, spm_infill=True).encode_infill("def f():", "return")
        assert other.index(suffix) < other.index(prefix)
        assert (sorted(other), other[-1]) == (sorted(tokens), middle)


# --- grammars over a real vocabulary ------------------------------------------------------------------------------


def test_a_grammar_over_the_demo_vocabulary_ends_with_every_end_token(demo: GgufModel, text_model: TextModel) -> None:
    tokenizer = build_tokenizer(demo.vocabulary)
    assert set(tokenizer.eos_tokens) == set(demo.vocabulary.eog_tokens)
    matcher = Matcher(tokenizer, compile_grammar("gbnf", 'root ::= "yes" | "no"'))
    masks = np.zeros((1, mask_words(demo.vocabulary.n_vocab)), dtype=np.uint32)
    filler = MaskFiller(1)
    for token in text_model.encode("yes", add_special=False):
        filler.fill([matcher], masks)
        assert masks[0, token // 32] >> (token % 32) & 1
        assert matcher.accept(token)
    assert matcher.is_accepting
    filler.fill([matcher], masks)
    allowed = np.flatnonzero(np.unpackbits(masks[0].view(np.uint8), bitorder="little"))
    assert set(map(int, allowed)) == set(demo.vocabulary.eog_tokens)


def test_grammar_checks(text_model: TextModel) -> None:
    text_model.check_grammar("gbnf", 'root ::= "a"')
    text_model.check_grammar("json_schema", '{"type": "object"}')
    text_model.check_grammar("lark", 'start: "a" <|im_end|>')
    with pytest.raises(InvalidRequest, match="no_such_token"):
        text_model.check_grammar("lark", 'start: "a" <|no_such_token|>')


def test_info_is_plain_data(text_model: TextModel) -> None:
    assert all(isinstance(v, (str, int, bool, tuple, type(None))) for v in dataclasses.asdict(text_model.info).values())


# --- answers --------------------------------------------------------------------------------------------------------

_TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "deep": {"type": "boolean"}, "n": {"type": "integer"}},
            "required": ["place"],
        },
    },
}


def asked(mode: ToolMode) -> ChatPrompt:
    return dataclasses.replace(chat(("user", "Hi")), tools=(_TOOL,), tool_choice=ToolChoice(mode))


@pytest.mark.parametrize("end", ["", "<think>\n", "{# <think> #}"])
@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_every_format_can_be_held_with_and_without_thoughts(demo: GgufModel, name: str, end: str) -> None:
    text_model = _text_model(demo, CHATML + end, name)
    for mode in (ToolMode.AUTO, ToolMode.REQUIRED):
        rendered = text_model.render(asked(mode))
        assert rendered.grammar is not None
        assert rendered.frame is not None
        text_model.check_grammar("lark", rendered.grammar)
        if mode is ToolMode.AUTO:
            text_model.check_grammar("json_schema", '{"type": "object"}', rendered.frame)


def _text_model(model: GgufModel, template: str, tool_format: str) -> TextModel:
    """One whose tokenizer for grammars is made once for all."""
    made = TextModel(model, template, tool_format)
    made.__dict__["_grammar_tokenizer"] = _grammar_tokenizer(model)
    return made


@functools.cache
def _grammar_tokenizer(model: GgufModel) -> Any:
    return build_tokenizer(model.vocabulary)


@pytest.mark.parametrize("name", ["hermes", "qwen3-coder", "pythonic", "gemma-4"])
def test_of_a_schema_that_cannot_be_held_the_rest_is(demo: GgufModel, name: str) -> None:
    text_model = _text_model(demo, CHATML, name)
    properties = {"place": {"enum": ["up"]}, "tags": {"type": "array", "uniqueItems": True}}
    parameters = {"type": "object", "properties": properties, "required": ["place", "tags"]}
    tool = {"type": "function", "function": {"name": "look", "parameters": parameters}}
    rendered = text_model.render(dataclasses.replace(asked(ToolMode.REQUIRED), tools=(tool,)))
    assert rendered.repairs == ("any_arguments:look",)
    assert rendered.grammar is not None
    wanted: dict[str, Any] = {"place": "up", "tags": [1, 1]}
    fitting = {json.dumps(wanted): True, '{"place": "up"}': False, '{"place": "in", "tags": []}': False}
    for arguments, is_allowed in fitting.items():
        text = BY_NAME[name].write([("look", json.loads(arguments))]) or ""
        matcher = Matcher(_grammar_tokenizer(demo), compile_grammar("lark", rendered.grammar), kind="lark")
        tokens = text_model.encode(text, add_special=False)
        assert allows(matcher, tokens) == is_allowed, text


def test_marks_that_are_special_tokens_are_written_out_and_held_as_such(
    demo: GgufModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo model has no marks for calls, so two others of its special tokens play them."""
    form = JsonCalls(name="special", signs=(), opening="<issue_start>", closing="<issue_closed>")
    monkeypatch.setitem(BY_NAME, "special", form)
    text_model = _text_model(demo, CHATML, "special")
    rendered = text_model.render(asked(ToolMode.AUTO))
    (opening,), (closing,) = (text_model.encode(mark, add_special=False) for mark in form.tags)
    assert rendered.shown == (opening, closing)
    assert rendered.grammar is not None
    assert f"<[{opening}]>" in rendered.grammar
    call = 'Yes. <issue_start>\n{"name": "look", "arguments": {"place": "up"}}\n<issue_closed>'
    wrong = 'Yes. <issue_start>\n{"name": "jump", "arguments": {}}\n<issue_closed>'
    for text, is_allowed in ((call, True), (wrong, False)):
        matcher = Matcher(_grammar_tokenizer(demo), compile_grammar("lark", rendered.grammar), kind="lark")
        tokens = text_model.encode(text, add_special=False)
        assert allows(matcher, tokens) == is_allowed
    parser = AnswerParser(rendered.form)
    (made,) = Answer.of([*parser.feed(call), *parser.finish()]).calls
    assert (made.name, made.arguments) == ("look", '{"place": "up"}')


def test_marks_with_a_special_token_inside_are_held_too(demo: GgufModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As DeepSeek's are; a special token of the demo model plays the one in them."""
    original = BY_NAME["deepseek-v4"]
    marks = {
        field.name: value.replace("｜DSML｜", "<issue_start>")
        for field in dataclasses.fields(original)
        if isinstance(value := getattr(original, field.name), str)
    }
    monkeypatch.setitem(BY_NAME, "special", dataclasses.replace(original, **marks | {"name": "special"}))
    text_model = _text_model(demo, CHATML, "special")
    rendered = text_model.render(asked(ToolMode.AUTO))
    assert rendered.shown == tuple(text_model.encode("<issue_start>", add_special=False))
    assert rendered.grammar is not None
    call = (
        'It is <b>. <<issue_start>tool_calls>\n<<issue_start>invoke name="look">\n<<issue_start>parameter name="place" '
        'string="true">a </b>, <i</<issue_start>parameter>\n</<issue_start>invoke>\n</<issue_start>tool_calls>'
    )
    texts = {call: True, "1 < 2, <b>": True, call.replace("look", "jump"): False, "So <issue_start>": False}
    for text, is_allowed in texts.items():
        matcher = Matcher(_grammar_tokenizer(demo), compile_grammar("lark", rendered.grammar), kind="lark")
        tokens = text_model.encode(text, add_special=False)
        assert allows(matcher, tokens) == is_allowed
        assert not is_allowed or (all(map(matcher.accept, tokens)) and matcher.is_accepting)
    parser = AnswerParser(rendered.form)
    (made,) = Answer.of([*parser.feed(call), *parser.finish()]).calls
    assert (made.name, made.arguments) == ("look", '{"place": "a </b>, <i"}')


def test_the_message_of_a_spent_reasoning_budget_stands_before_the_closing_tag(demo: GgufModel) -> None:
    template = CHATML + "{# <think> </think> #}"
    for message, expected in (("", "\n</think>"), (" Enough.", " Enough.\n</think>")):
        model = TextModel(demo, template, budget_message=message)
        reasoning = model.render(chat(("user", "Hi"))).reasoning
        assert reasoning is not None
        assert model.decode(reasoning.ending) == expected
