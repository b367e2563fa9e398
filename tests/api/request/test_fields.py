"""Aliases: which name wins, what is unset, and what every sampler's name becomes."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.api.request import fields
from ggufd.api.request.fields import (
    KOBOLD,
    LLAMACPP,
    OLLAMA,
    OLLAMA_CHAT,
    OPENAI_CHAT,
    OPENAI_COMPLETION,
    SAMPLING,
    Aliases,
    resolve,
)
from ggufd.api.request.samplers import order_samplers
from ggufd.api.request.sampling import SamplingFields
from ggufd.api.request.validation import validate
from ggufd.engine.messages.sampling import SAMPLER_NAMES, GrammarKind, SamplingParams
from ggufd.errors import InvalidRequest
from ggufd.llama.params import DEFAULT_DRY_BREAKERS, DEFAULT_SAMPLERS

ALL_TABLES = {
    "sampling": SAMPLING,
    "completion": OPENAI_COMPLETION,
    "chat": OPENAI_CHAT,
    "llamacpp": LLAMACPP,
    "kobold": KOBOLD,
    "ollama": OLLAMA,
    "ollama chat": OLLAMA_CHAT,
}


def params(body: dict[str, Any], **defaults: Any) -> SamplingParams:
    """What the engine would get for `body`."""
    return validate(SamplingFields, body, SAMPLING).to_params(defaults)


def refusal(body: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        params(body)
    return caught.value


@pytest.mark.parametrize("aliases", ALL_TABLES.values(), ids=ALL_TABLES)
def test_no_name_means_two_fields(aliases: Aliases) -> None:
    names = [name for names in aliases.values() for name in names]
    assert len(names) == len(set(names))


def test_every_sampler_of_the_engine_has_a_name_on_the_wire() -> None:
    assert {field.name for field in dataclasses.fields(SamplingParams)} <= set(SAMPLING)


def test_every_reader_belongs_to_a_known_name() -> None:
    known = {name for aliases in ALL_TABLES.values() for names in aliases.values() for name in names}
    assert set(fields.READERS) <= known
    assert set(fields.UNSET) <= known


CONSTRAINING = {"grammar", *fields.CONSTRAINTS}


@given(
    field=st.sampled_from(sorted(OPENAI_COMPLETION.keys() - CONSTRAINING)),
    values=st.lists(st.sampled_from([None, "", 0, 0.5, 3]), min_size=4, max_size=4),
)
def test_the_first_name_that_is_set_wins(field: str, values: list[Any]) -> None:
    names = [name for name in OPENAI_COMPLETION[field] if name not in fields.READERS]
    body = dict(zip(names, values, strict=False))
    resolved = resolve(body, OPENAI_COMPLETION)
    winner = next((name for name in names if not fields.is_unset(name, body.get(name))), None)
    if winner is None:
        assert field not in resolved.values
    else:
        assert resolved.values[field] == body[winner]
        assert resolved.wire_name(field) == winner


@given(st.dictionaries(st.text(max_size=20), st.integers()))
def test_what_no_table_lists_passes_through(body: dict[str, int]) -> None:
    known = {name for names in SAMPLING.values() for name in names} | set(SAMPLING)
    unknown = {name: value for name, value in body.items() if name not in known}
    assert resolve(unknown, SAMPLING).values == unknown


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ({"temperature": 3}, "temperature", 3.0),
        ({"temperature": 0}, "temperature", 0.0),
        ({"dynatemp_range": 0.5, "dynatemp_exponent": 2}, "dynatemp_range", 0.5),
        ({"dynatemp_low": 0.5, "dynatemp_high": 1.5}, "dynatemp_range", 0.5),
        ({"dynatemp_low": 0.5, "dynatemp_high": 2.5, "temperature": 9}, "temperature", 1.5),
        ({"dynatemp_range": 0.5, "dynamic_temperature": False}, "dynatemp_range", 0.0),
        ({"dynatemp_min": 0, "dynatemp_max": 0, "temperature": 0.7}, "temperature", 0.7),
        ({"min_temp": 1, "max_temp": 1, "temperature": 0.7}, "temperature", 0.7),
        ({"min_temp": 0.4, "max_temp": 0.4, "temperature": 0.7, "dynamic_temperature": True}, "temperature", 0.4),
        ({"dynatemp_range": 0.5, "temp_exponent": 2}, "dynatemp_exponent", 2.0),
        ({"top_k": 40.0}, "top_k", 40),
        ({"top_k": -1}, "top_k", 0),
        ({"top_p": 0.5}, "top_p", 0.5),
        ({"min_p": 0.1}, "min_p", 0.1),
        ({"typ_p": 0.2, "typical_p": 0.3, "typical": 0.4}, "typ_p", 0.2),
        ({"typical_p": 0.3, "typical": 0.4}, "typ_p", 0.3),
        ({"typical": 0.4}, "typ_p", 0.4),
        ({"nsigma": 1.5}, "top_n_sigma", 1.5),
        ({"top_n_sigma": 0, "nsigma": 2}, "top_n_sigma", 0.0),
        ({"xtc_probability": 0.5}, "xtc_probability", 0.5),
        ({"xtc_threshold": 0.2}, "xtc_threshold", 0.2),
        ({"dry_multiplier": 0.8, "dry_penalty_last_n": 0}, "dry_penalty_last_n", -1),
        ({"dry_multiplier": 0.8, "dry_range": 100}, "dry_penalty_last_n", 100),
        ({"dry_base": 2}, "dry_base", 2.0),
        ({"dry_allowed_length": 3}, "dry_allowed_length", 3),
        ({}, "dry_sequence_breakers", DEFAULT_DRY_BREAKERS),
        ({"dry_sequence_breakers": []}, "dry_sequence_breakers", ()),
        ({"dry_sequence_breakers": ["a", "b"]}, "dry_sequence_breakers", ("a", "b")),
        ({"dry_sequence_breakers": '["a", "\\n"]'}, "dry_sequence_breakers", ("a", "\n")),
        ({"dry_sequence_breakers": '"a", "\\n"'}, "dry_sequence_breakers", ("a", "\n")),
        ({"dry_sequence_breakers": "a,b"}, "dry_sequence_breakers", ("a", "b")),
        ({"repeat_penalty": 1.1, "rep_pen": 1.3}, "repeat_penalty", 1.1),
        ({"repetition_penalty": 1.2, "rep_pen": 1.3}, "repeat_penalty", 1.2),
        ({"rep_pen": 1.3}, "repeat_penalty", 1.3),
        ({"repeat_last_n": 0, "rep_pen_range": 7}, "repeat_last_n", 0),
        ({"rep_pen_range": 7}, "repeat_last_n", 7),
        ({"repetition_penalty_range": 0}, "repeat_last_n", -1),
        ({"repetition_range": 0}, "repeat_last_n", -1),
        ({"frequency_penalty": 3}, "frequency_penalty", 3.0),
        ({"presence_penalty": -3}, "presence_penalty", -3.0),
        ({"mirostat": 2, "mirostat_mode": 1}, "mirostat", 2),
        ({"mirostat_mode": 1}, "mirostat", 1),
        ({"mirostat_tau": 4, "mirostat_eta": 0.2}, "mirostat_tau", 4.0),
        ({"adaptive_target": 0.4}, "adaptive_target", 0.4),
        ({"adaptive_target": -0.01}, "adaptive_target", -0.01),
        ({"adaptive_decay": 0.5}, "adaptive_decay", 0.5),
        ({"min_keep": 3}, "min_keep", 3),
        ({"logit_bias": {"5": 1.5}}, "logit_bias", ((5, 1.5),)),
        ({"logit_bias": [[5, 1], [6, False]]}, "logit_bias", ((5, 1.0), (6, -math.inf))),
        ({"logit_bias": []}, "logit_bias", ()),
        ({"custom_token_bans": "1, 2"}, "logit_bias", ((1, -math.inf), (2, -math.inf))),
        ({"custom_token_bans": [3]}, "logit_bias", ((3, -math.inf),)),
        ({"custom_token_bans": ""}, "logit_bias", ()),
        ({"ban_eos_token": True}, "ignore_eos", True),
        ({"ignore_eos": False, "ban_eos_token": True}, "ignore_eos", False),
        ({"seed": -1}, "seed", None),
        ({"seed": 7}, "seed", 7),
        ({"sampler_seed": 7}, "seed", 7),
        ({"seed": 0xFFFFFFFF}, "seed", 0),
        ({"grammar": ""}, "grammar", None),
    ],
)
def test_a_sampler_under_each_of_its_names(body: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(params(body), field) == value


@pytest.mark.parametrize("name", ["grammar", "grammar_string", "guided_grammar"])
def test_a_grammar_is_gbnf(name: str) -> None:
    grammar = params({name: 'root ::= "a"'}).grammar
    assert grammar is not None
    assert (grammar.kind, grammar.text) == (GrammarKind.GBNF, 'root ::= "a"')


@pytest.mark.parametrize("field", sorted(SAMPLING))
def test_null_and_empty_are_unset_under_every_name(field: str) -> None:
    for name in SAMPLING[field]:
        assert params({name: None}) == params({name: ""}) == params({})


def test_a_value_that_is_set_wins_over_the_servers_default_even_when_it_is_zero() -> None:
    assert params({"temperature": 0, "top_k": 0}, temperature=0.7, top_k=40).temperature == 0
    assert params({"top_k": 0}, top_k=40).top_k == 0
    assert params({}, top_k=40, min_p=0.1).top_k == 40
    assert params({}, min_p=0.1).min_p == 0.1


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"temperature": -1}, "temperature", "at least 0, got -1"),
        ({"temperature": "hot"}, "temperature", "a number, got 'hot'"),
        ({"temperature": True}, "temperature", "a number, got true"),
        ({"temperature": math.inf}, "temperature", "a finite number"),
        ({"top_p": 2}, "top_p", "at most 1, got 2"),
        ({"typical": 3}, "typical", "'typical': expected"),
        ({"rep_pen": 0}, "rep_pen", "more than 0"),
        ({"top_k": 1.5}, "top_k", "a whole number"),
        ({"top_k": 10**30}, "top_k", "at most 2147483647"),
        ({"mirostat_mode": 3}, "mirostat_mode", "at most 2"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"1": "x"}}, "logit_bias", "a number or false"),
        ({"logit_bias": {"1": True}}, "logit_bias", "a number or false"),
        ({"logit_bias": [[1, 2, 3]]}, "logit_bias", "pair"),
        ({"logit_bias": [[-1, 2]]}, "logit_bias", "token ids"),
        ({"logit_bias": "x"}, "logit_bias", "an object"),
        ({"custom_token_bans": "1,x"}, "custom_token_bans[1]", "a whole number, got 'x'"),
        ({"dry_sequence_breakers": [1]}, "dry_sequence_breakers[0]", "a string"),
        ({"seed": "x" * 500}, "seed", "..."),
        ({"grammar": 3}, "grammar", "a string"),
        ({"samplers": 3}, "samplers", "an array"),
        ({"samplers": ["nonsense"]}, "samplers", "names of samplers (penalties, dry, "),
        ({"samplers": "nonsense"}, "samplers", "found none"),
        ({"samplers": "kqt"}, "samplers", "found none"),
        ({"sampler_priority": "a,b"}, "sampler_priority", "found none"),
        ({"sampler_order": [9]}, "sampler_order", "found none"),
    ],
)
def test_a_wrong_value_is_named_as_the_client_wrote_it(body: dict[str, Any], param: str, words: str) -> None:
    error = refusal(body)
    assert error.param == param
    assert words in error.message
    assert len(error.message) < 300


def test_further_errors_are_counted() -> None:
    assert "(1 more such errors)" in refusal({"temperature": -1, "top_p": 2}).message


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        ([], {}, DEFAULT_SAMPLERS),
        (["tfs_z", "nonsense"], {}, DEFAULT_SAMPLERS),
        (["typical_p", "tfs_z", "min_p", "min_p"], {}, ("typ_p", "min_p")),
        (["top_k", "temperature"], {"repeat_penalty": 1.1}, ("penalties", "top_k", "temperature")),
        (["temperature", "top_k"], {"dry_multiplier": 0.8}, ("dry", "temperature", "top_k")),
        (["top_k", "temperature"], {"xtc_probability": 0.5}, ("top_k", "xtc", "temperature")),
        (["top_k"], {"xtc_probability": 0.5}, ("top_k", "xtc")),
        (["adaptive_p", "top_k"], {}, ("top_k", "adaptive_p")),
        (["top_k"], {"adaptive_target": 0.3}, ("top_k", "adaptive_p")),
        (["repetition_penalty", "presence_penalty", "dynamic_temperature"], {}, ("penalties", "temperature")),
    ],
)
def test_order_of_samplers(names: list[str], values: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert order_samplers(names, values) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kmt", ("top_k", "min_p", "temperature")),
        ("t", ("temperature",)),
        ("edskypmxta", (*DEFAULT_SAMPLERS, "adaptive_p")),
        ("ik", ("top_k",)),
        ("dry", ("dry",)),
        ("xtc", ("xtc",)),
        ("temp", ("temperature",)),
        ("min_p;top_k", ("min_p", "top_k")),
        ("min_p, top_k", ("min_p", "top_k")),
        ("min_p\ntop_k", ("min_p", "top_k")),
        (",", DEFAULT_SAMPLERS),
    ],
)
def test_samplers_in_a_string_are_names_or_llama_cpps_letters(text: str, expected: tuple[str, ...]) -> None:
    assert params({"samplers": text}).samplers == expected


@pytest.mark.parametrize("name", SAMPLING["samplers"])
def test_no_samplers_are_the_default_order(name: str) -> None:
    assert params({name: []}).samplers == DEFAULT_SAMPLERS


def test_an_empty_list_of_samplers_leaves_the_choice_to_the_next_name() -> None:
    assert params({"samplers": [], "sampler_order": [5, 0]}).samplers == ("temperature", "top_k")


def test_aphrodites_names_of_samplers() -> None:
    order = ["dry", "penalties", "no_repeat_ngram", "temperature", "top_nsigma", "top_p_top_k", "quadratic", "xtc"]
    expected = ("dry", "penalties", "temperature", "top_n_sigma", "top_k", "top_p", "xtc")
    assert params({"sampler_priority": order}).samplers == expected


def test_sampler_priority_may_be_a_string_and_comes_after_samplers() -> None:
    assert params({"sampler_priority": "min_p;top_k"}).samplers == ("min_p", "top_k")
    assert params({"samplers": ["top_k"], "sampler_priority": ["min_p"]}).samplers == ("top_k",)


@given(st.lists(st.text(max_size=8) | st.sampled_from(sorted(SAMPLER_NAMES)) | st.integers()))
def test_an_order_never_repeats_nor_invents_a_sampler(names: list[Any]) -> None:
    order = order_samplers(names, {"dry_multiplier": 1, "frequency_penalty": 0.5})
    assert len(order) == len(set(order))
    assert set(order) <= SAMPLER_NAMES
    assert {"dry", "penalties"} <= set(order)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted({n for names in SAMPLING.values() for n in names})), JSON, max_size=5))
def test_whatever_json_comes_is_params_or_an_invalid_request(body: dict[str, Any]) -> None:
    try:
        result = params(body)
    except InvalidRequest:
        result = None
    if result is None:
        error = refusal(body)
        assert error.param
        assert json.dumps(error.message)
    else:
        assert result.top_k >= 0
        assert result.seed is None or 0 <= result.seed < 0xFFFFFFFF
        assert math.isfinite(result.temperature)
