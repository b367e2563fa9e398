"""Jinja templates: rendered as the models' authors expect, and harmless when they mean harm."""

from __future__ import annotations

import re

import pytest

from ggufd.chat.rendering.template import CHATML, Template, TemplateError, TemplateOverflowError


def render(source: str, **variables: object) -> str:
    return Template(source).render(variables)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
        ("{{ x | tojson }}", '{"b": "é<&\'", "a": [1]}'),
        ("{{ x | tojson(indent=1, sort_keys=true) }}", '{\n "a": [\n  1\n ],\n "b": "é<&\'"\n}'),
        ("{{ x | tojson(separators=(',', ':'), ensure_ascii=true) }}", '{"b":"\\u00e9<&\'","a":[1]}'),
        ("{% for i in [0, 1, 2] %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02"),
        ("{% for i in [0, 1, 2] %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}", "0"),
        ("{% generation %}{% set y = 1 %}said{% endgeneration %}{{ y }}", "said1"),
        ("{{ missing }}|{{ missing is defined }}", "|False"),
        ("{{ '<b>' }}", "<b>"),
        ("{% macro m(a) %}[{{ a }}]{% endmacro %}{{ m(1) }}", "[1]"),
        ("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
    ],
)  # fmt: skip
def test_renders_as_transformers_does(source: str, expected: str) -> None:
    assert render(source, x={"b": "é<&'", "a": [1]}) == expected


def test_the_date_is_todays() -> None:
    assert re.fullmatch(r"\d{1,2} \w+ \d{4}", render("{{ strftime_now('%d %b %Y') }}"))


def test_a_refusal_carries_the_templates_words_and_line() -> None:
    with pytest.raises(TemplateError, match=r"roles must alternate \(template line 2\)"):
        render("first\n{{ raise_exception('roles must alternate') }}")


def test_no_jinja_is_refused_with_its_line() -> None:
    with pytest.raises(TemplateError, match=r"no valid Jinja.*line 3"):
        Template("a\nb\n{% if %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{% for c in ().__class__.__base__.__subclasses__() %}{{ c }}{% endfor %}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ (''|attr('__class__')).__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages.clear() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ range(10**9) }}",
    ],
)
def test_a_template_cannot_break_out(source: str) -> None:
    with pytest.raises(TemplateError):
        render(source, messages=[1])


def test_what_is_hidden_reads_as_nothing() -> None:
    assert render("{{ raise_exception.__globals__ }}{{ ''.__class__ }}{{ ''|attr('__class__') }}") == ""


def test_what_a_template_writes_is_bounded() -> None:
    template = Template("{% for i in range(1000) %}{{ 'x' * 100 }}{% endfor %}", max_chars=50_000)
    with pytest.raises(TemplateOverflowError, match="more than 50000 characters"):
        template.render({})


@pytest.mark.parametrize("source", ["{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "{% if 1 %}" * 300, "{{ 1 // 0 }}"])
def test_odd_templates_fail_as_templates(source: str) -> None:
    with pytest.raises(TemplateError):
        render(source)


def test_chatml() -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    written = render(CHATML, messages=messages, add_generation_prompt=True)
    assert written == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>assistant\n"
    )
