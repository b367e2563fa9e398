"""llama-server's routes over the fakes: `/completion` whole and streamed, `/props`, `/slots`, `/apply-template`."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ggufd.api.services.settings import OutputDefaults
from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.messages.sampling import GrammarKind
from ggufd.errors import EngineFailure
from ggufd.llama.params import DEFAULT_DRY_BREAKERS
from tests.support.fakes.api_client import error_of, parse_events, running
from tests.support.fakes.fake_engine import BOS, EOS, FakeEngine, FakeText

PATH = "/completion"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def contents(events: list[Any]) -> dict[int, str]:
    """The text of every choice of a stream."""
    texts: dict[int, str] = {}
    for event in events:
        texts[event["index"]] = texts.get(event["index"], "") + event["content"]
    return texts


async def asked(**body: Any) -> EngineRequest:
    """What the engine gets."""
    async with running() as api:
        await api.ok(PATH, **{"prompt": "a"} | body)
        return api.engine.requests[0]


async def test_an_answer_has_llama_servers_shape() -> None:
    async with running() as api:
        answer = await api.ok(PATH, prompt="abc", n_predict=40, temperature=0.5, stop=["zz"])
    assert (answer["index"], answer["content"], answer["stop"], answer["tokens"]) == (0, "Hello world", True, [])
    assert (answer["tokens_evaluated"], answer["tokens_predicted"], answer["tokens_cached"]) == (3, 11, 0)
    assert (answer["stop_type"], answer["stopping_word"], answer["truncated"]) == ("eos", "", False)
    assert (answer["model"], answer["prompt"], answer["has_new_line"]) == ("fake-model", "abc", False)
    assert answer["timings"]["predicted_n"] == 11
    settings = answer["generation_settings"]
    assert (settings["temperature"], settings["n_predict"], settings["stop"]) == (0.5, 40, ["zz"])
    assert settings["samplers"]
    assert "completion_probabilities" not in answer


async def test_completions_without_a_prefix_are_the_familys_that_asks() -> None:
    async with running() as api:
        native = await api.ok("/completions", prompt="abc", n_predict=3)
        assert native["content"] == (await api.ok(PATH, prompt="abc", n_predict=3))["content"]
        assert "choices" not in native
        events = await api.events("/completions", prompt="abc", n_predict=3)
        assert events[-1]["stop"] is True
        openai = await api.ok("/completions", prompt="abc", max_tokens=3, model="any")
        assert openai["choices"][0]["text"] == native["content"]
        assert "choices" in await api.ok("/v1/completions", prompt="abc", max_tokens=3)


@pytest.mark.parametrize(
    ("path", "kind"), [(PATH, "exceed_context_size_error"), ("/v1/completions", "invalid_request_error")]
)
async def test_a_prompt_that_is_too_long_is_told_in_the_familys_words(path: str, kind: str) -> None:
    async with running() as api:
        response = await api.post(path, {"prompt": "a" * 600})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["code"]) == (kind, "context_length_exceeded")
    assert "maximum context length" in error["message"]
    assert "exceeds the available context size" in error["message"]
    numbers = {name: error[name] for name in ("n_prompt_tokens", "n_ctx") if name in error}
    assert numbers == ({"n_prompt_tokens": 600, "n_ctx": 512} if path == PATH else {})


async def test_timings_agree_with_each_other() -> None:
    async with running() as api:
        one = (await api.ok(PATH, prompt="abc", n_predict=1))["timings"]
        many = (await api.ok(PATH, prompt="abc", n_predict=9))["timings"]
    assert (one["predicted_n"], one["predicted_per_second"], one["predicted_per_token_ms"]) == (1, 0, 0)
    assert many["prompt_per_token_ms"] * many["prompt_n"] == pytest.approx(many["prompt_ms"])
    assert many["prompt_per_token_ms"] * many["prompt_per_second"] == pytest.approx(1000)
    # The first token came with the prompt.
    assert many["predicted_per_token_ms"] * 8 == pytest.approx(many["predicted_ms"])
    assert many["predicted_per_second"] == pytest.approx(8 * 1000 / many["predicted_ms"], abs=1e-6)


@pytest.mark.parametrize(
    ("body", "stop_type", "word"),
    [({}, "eos", ""), ({"n_predict": 3}, "limit", ""), ({"stop": ["wor"]}, "word", "wor")],
)
async def test_why_it_stopped(body: Any, stop_type: str, word: str) -> None:
    async with running() as api:
        answer = await api.ok(PATH, prompt="a", **body)
        assert (answer["stop_type"], answer["stopping_word"]) == (stop_type, word)
        last = (await api.events(PATH, prompt="a", **body))[-1]
        assert (last["stop_type"], last["stopping_word"]) == (stop_type, word)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [(BOS, 97, 98)]),
        ("<s>ab", [(BOS, 97, 98)]),
        ([97, 98], [(97, 98)]),
        (["ab"], [(BOS, 97, 98)]),
        (["a", "b"], [(BOS, 97), (BOS, 98)]),
        ([97, "b", 99], [(97, 98, 99)]),
        (["a", 98], [(BOS, 97, 98)]),
        ([[97, "b"], "c"], [(97, 98), (BOS, 99)]),
        ({"prompt_string": "a"}, [(BOS, 97)]),
        ([{"prompt_string": "a"}, [98]], [(BOS, 97), (98,)]),
    ],
)
async def test_prompts_in_every_shape(prompt: Any, expected: list[tuple[int, ...]]) -> None:
    async with running(text=FakeText(adds_bos=True)) as api:
        answer = await api.ok(PATH, prompt=prompt)
        assert [request.prompt for request in api.engine.requests] == expected
        assert isinstance(answer, list) == (len(expected) > 1)


async def test_several_answers_are_an_array_and_the_prompt_is_sent_once() -> None:
    async with running(FakeEngine(["x", "yy"])) as api:
        answers = await api.ok(PATH, prompt="a", n=2)
        assert [(answer["index"], answer["content"]) for answer in answers] == [(0, "x"), (1, "yy")]
        assert [request.n for request in api.engine.requests] == [2]
        events = await api.events(PATH, prompt="a", n=2)
        assert contents(events) == {0: "x", 1: "yy"}
        assert [event["index"] for event in events if event["stop"]] == [0, 1]


@pytest.mark.parametrize("stream", [False, True])
async def test_probabilities_after_sampling_have_llama_servers_names(stream: bool) -> None:
    async with running(FakeEngine(["xy"])) as api:
        body = {"prompt": "a", "n_probs": 2, "post_sampling_probs": True}
        if stream:
            events = await api.events(PATH, **body)
            entries = [entry for event in events[:-1] for entry in event["completion_probabilities"]]
        else:
            answer = await api.ok(PATH, **body)
            assert answer["generation_settings"]["post_sampling_probs"]
            entries = answer["completion_probabilities"]
        assert [request.are_logprobs_final for request in api.engine.requests] == [True]
    assert "".join(entry["token"] for entry in entries) == "xy"
    for entry in entries:
        assert entry.keys() == {"id", "token", "content", "bytes", "prob", "top_probs", "probs"}
        assert 0 < entry["prob"] <= 1
        assert all(other.keys() == {"id", "token", "bytes", "prob"} for other in entry["top_probs"])
        assert [other["prob"] for other in entry["top_probs"]] == [other["prob"] for other in entry["probs"]]


async def test_probabilities_before_sampling_are_the_default() -> None:
    assert not (await asked(n_probs=2)).are_logprobs_final
    assert not (await asked(n_probs=2, post_sampling_probs=False)).are_logprobs_final


async def test_a_stream_says_stop_once_and_nothing_after() -> None:
    async with running() as api:
        response = await api.post(PATH, {"prompt": "abc", "stream": True})
        events = parse_events(response.text)
    assert "[DONE]" not in response.text
    assert [event["stop"] for event in events] == [False] * 11 + [True]
    assert contents(events) == {0: "Hello world"}
    assert [token for event in events for token in event["tokens"]] == list(b"Hello world")
    assert events[-2]["tokens_predicted"] == 11
    assert events[-1]["content"] == ""
    assert events[-1]["timings"]["predicted_n"] == 11


async def test_tokens_of_a_split_character_come_with_its_text() -> None:
    async with running(FakeEngine(["a😀"])) as api:
        events = await api.events(PATH, prompt="a")
        assert [(event["content"], event["tokens"]) for event in events[:-1]] == [
            ("a", [97]),
            ("😀", list("😀".encode())),
        ]
        assert (await api.ok(PATH, prompt="a", return_tokens=True))["tokens"] == list("a😀".encode())


async def test_probabilities_in_the_words_of_old_and_new_clients() -> None:
    async with running(FakeEngine(["aé"])) as api:
        entries = (await api.ok(PATH, prompt="a", n_probs=2))["completion_probabilities"]
        assert [entry["content"] for entry in entries] == ["a", "", "é"]
        first = entries[0]
        assert (first["token"], first["id"], first["bytes"], first["logprob"]) == ("a", 97, [97], -0.5)
        assert first["top_logprobs"][0] == {"id": 97, "token": "a", "bytes": [97], "logprob": -0.5}
        assert first["probs"][0] == {"tok_str": "a", "prob": pytest.approx(math.exp(-0.5))}
        events = await api.events(PATH, prompt="a", n_probs=2)
        assert all(len(event["completion_probabilities"]) == 1 for event in events[:-1])
        assert "completion_probabilities" not in events[-1]
        assert contents(events) == {0: "aé"}


@pytest.mark.parametrize("value", [0, False, None])
async def test_no_probabilities_unless_asked_for(value: Any) -> None:
    assert (await asked(n_probs=value)).n_logprobs is None


async def test_progress_of_the_prompt() -> None:
    engine = FakeEngine()
    engine.cached_tokens = 2
    async with running(engine) as api:
        first = (await api.events(PATH, prompt="abcd", return_progress=True))[0]
    assert first["prompt_progress"] == {"total": 4, "cache": 2, "processed": 4, "time_ms": 20}
    assert (first["content"], first["stop"]) == ("", False)


async def test_timings_come_with_every_chunk_that_asks_for_them() -> None:
    engine = FakeEngine()
    engine.cached_tokens = 2
    body = {"prompt": "abcd", "n_predict": 4, "timings_per_token": True}
    async with running(engine) as api:
        progress, *texts = await api.events(PATH, **body, return_progress=True)
        assert progress["prompt_progress"]["processed"] == 4
        quiet = await api.events(PATH, **body)
        plain = await api.events(PATH, prompt="abcd", n_predict=4)
    timings = progress["timings"]
    assert (timings["cache_n"], timings["prompt_n"], timings["prompt_ms"]) == (2, 2, 20)
    assert (timings["predicted_n"], timings["predicted_ms"]) == (0, 0)
    assert [chunk["timings"]["predicted_n"] for chunk in texts] == [1, 2, 3, 4, 4]
    assert {chunk["timings"]["prompt_n"] for chunk in texts} == {2}
    # Progress that nobody asked for is not shown, though the timings are made of it.
    assert [chunk.get("prompt_progress") for chunk in quiet] == [None] * 5
    assert quiet[0]["timings"]["prompt_n"] == 2
    assert ["timings" in chunk for chunk in plain] == [False] * 4 + [True]


async def test_biases_are_told_and_the_end_that_may_not_come() -> None:
    async with running() as api:
        answer = await api.ok(PATH, prompt="a", logit_bias=[[5, -100], [6, False]], ignore_eos=True)
        assert (await api.ok(PATH, prompt="a"))["generation_settings"]["logit_bias"] == []
    told = [(entry["token"], entry["bias"]) for entry in answer["generation_settings"]["logit_bias"]]
    assert told == [(5, -100), (6, None), (EOS, None)]


@pytest.mark.parametrize("biases", [[["ab", -100], [7, 1]], {"ab": -100, "7": 1}])
async def test_a_bias_of_a_text_is_one_of_each_of_its_tokens(biases: Any) -> None:
    assert (await asked(logit_bias=biases)).sampling.logit_bias == ((97, -100), (98, -100), (7, 1))


async def test_rewinds_are_counted_when_phrases_are_banned() -> None:
    engine = FakeEngine()
    engine.rewinds = 2
    async with running(engine) as api:
        answer = await api.ok(PATH, prompt="a", banned_strings=["x"])
        assert answer["timings"]["banned_rewinds"] == 2
        assert "banned_rewinds" not in (await api.ok(PATH, prompt="a"))["timings"]


async def test_an_answer_that_went_on_in_a_full_slot_says_what_that_cost() -> None:
    engine = FakeEngine()
    async with running(engine) as api:
        whole = await api.ok(PATH, prompt="a")
        engine.dropped_tokens = 7
        shifted = await api.ok(PATH, prompt="a", n_keep=3)
        usage = (await api.ok("/v1/completions", prompt="a", n=2))["usage"]
    assert (whole["truncated"], whole["timings"].get("dropped_tokens")) == (False, None)
    assert (shifted["truncated"], shifted["timings"]["dropped_tokens"]) == (True, 7)
    assert shifted["generation_settings"]["n_keep"] == 3
    assert usage["dropped_tokens"] == 14


async def test_an_error_in_a_stream_is_its_last_event() -> None:
    engine = FakeEngine()
    engine.error, engine.error_after = EngineFailure("broken"), 2
    async with running(engine) as api:
        events = await api.events(PATH, prompt="a")
    assert [event.get("content") for event in events] == ["H", "e", None]
    assert events[-1]["error"]["message"] == "broken"


async def test_nothing_to_predict_computes_the_prompt() -> None:
    async with running() as api:
        answer = await api.ok(PATH, prompt="abc", n_predict=0)
    assert (answer["content"], answer["tokens_predicted"]) == ("", 0)


PANEL: list[tuple[dict[str, Any], str, Any]] = [
    ({"temperature": 0.7}, "temperature", 0.7),
    ({"temperature": 0}, "temperature", 0.0),
    ({"dynatemp_range": 0.4, "dynatemp_exponent": 2}, "dynatemp_range", 0.4),
    ({"dynatemp_range": 0.4, "dynatemp_exponent": 2}, "dynatemp_exponent", 2.0),
    ({"dynamic_temperature": True, "dynatemp_low": 0.5, "dynatemp_high": 1.5}, "dynatemp_range", 0.5),
    ({"top_k": 12}, "top_k", 12),
    ({"top_p": 0.5}, "top_p", 0.5),
    ({"typical": 0.6, "typical_p": 0.5}, "typ_p", 0.5),
    ({"min_p": 0.1}, "min_p", 0.1),
    ({"top_n_sigma": 1.5, "nsigma": 2}, "top_n_sigma", 1.5),
    ({"top_n_sigma": 0}, "top_n_sigma", 0.0),
    ({"min_keep": 4}, "min_keep", 4),
    ({"repeat_penalty": 1.2, "rep_pen": 1.1, "repetition_penalty": 1.1}, "repeat_penalty", 1.2),
    ({"repeat_last_n": 0, "rep_pen_range": 0, "repetition_penalty_range": 0}, "repeat_last_n", 0),
    ({"repeat_last_n": -1}, "repeat_last_n", -1),
    ({"repeat_last_n": 128, "rep_pen_range": 5}, "repeat_last_n", 128),
    ({"frequency_penalty": 0.3}, "frequency_penalty", 0.3),
    ({"presence_penalty": 0.3}, "presence_penalty", 0.3),
    ({"dry_multiplier": 0.8}, "dry_multiplier", 0.8),
    ({"dry_base": 1.5}, "dry_base", 1.5),
    ({"dry_allowed_length": 4}, "dry_allowed_length", 4),
    ({"dry_multiplier": 0.8, "dry_penalty_last_n": 0}, "dry_penalty_last_n", -1),
    ({"dry_penalty_last_n": 99}, "dry_penalty_last_n", 99),
    ({"dry_sequence_breakers": ["\n", ":"]}, "dry_sequence_breakers", ("\n", ":")),
    ({"dry_sequence_breakers": '["\\n", ":"]'}, "dry_sequence_breakers", ("\n", ":")),
    ({"dry_sequence_breakers": "x,y"}, "dry_sequence_breakers", ("x", "y")),
    ({"dry_sequence_breakers": ""}, "dry_sequence_breakers", DEFAULT_DRY_BREAKERS),
    ({"xtc_probability": 0.5}, "xtc_probability", 0.5),
    ({"xtc_threshold": 0.2}, "xtc_threshold", 0.2),
    ({"adaptive_target": 0.3}, "adaptive_target", 0.3),
    ({"adaptive_decay": 0.8}, "adaptive_decay", 0.8),
    ({"mirostat": 2, "mirostat_mode": 1}, "mirostat", 2),
    ({"mirostat_mode": 1}, "mirostat", 1),
    ({"mirostat_tau": 4}, "mirostat_tau", 4.0),
    ({"mirostat_eta": 0.2}, "mirostat_eta", 0.2),
    ({"ignore_eos": True}, "ignore_eos", True),
    ({"ban_eos_token": True}, "ignore_eos", True),
    ({"seed": 7}, "seed", 7),
    ({"seed": -1}, "seed", None),
    ({"logit_bias": [[5, 1.5], [6, False]]}, "logit_bias", ((5, 1.5), (6, -math.inf))),
    ({"custom_token_bans": "7,8"}, "logit_bias", ((7, -math.inf), (8, -math.inf))),
    ({"samplers": ["temperature", "top_k"]}, "samplers", ("temperature", "top_k")),
    ({"samplers": ["typical_p", "tfs_z"], "repeat_penalty": 1.1}, "samplers", ("penalties", "typ_p")),
]
"""Controls of the panel: what is sent, and what must have changed for the engine."""


@pytest.mark.parametrize(("body", "field", "value"), PANEL)
async def test_every_sampler_of_the_panel_reaches_the_engine(body: Any, field: str, value: Any) -> None:
    assert getattr((await asked(**body)).sampling, field) == value


SPELLED_DEFAULTS: list[dict[str, Any]] = [{"dry_sequence_breakers": ""}, {"seed": -1}]
"""Values of the panel that mean the same as sending nothing."""


@pytest.mark.parametrize("body", [body for body, field, _ in PANEL if body not in SPELLED_DEFAULTS])
async def test_every_control_changes_something(body: Any) -> None:
    base = {"dry_penalty_last_n": 5} if "dry_penalty_last_n" in body else {}
    assert (await asked(**base | body)).sampling != (await asked(**base)).sampling


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ({"n": 3}, "n", 3),
        ({"n_cmpl": 2}, "n", 2),
        ({"n_predict": 5, "max_tokens": 9, "max_new_tokens": 8}, "max_tokens", 5),
        ({"max_tokens": 9}, "max_tokens", 9),
        ({"n_predict": -1}, "max_tokens", None),
        ({"min_tokens": 4}, "min_tokens", 4),
        ({"stop": ["\nUser:"], "stopping_strings": ["x"]}, "stop", ("\nUser:",)),
        ({"stop": None, "stopping_strings": ["x"]}, "stop", ("x",)),
        ({"stop": [], "stopping_strings": ["x"]}, "stop", ()),
        ({"skip_special_tokens": False}, "skip_special_tokens", False),
        ({"banned_strings": ["a shiver"]}, "banned_strings", ("a shiver",)),
        ({"banned_regex": ["a+"]}, "banned_regexes", ("a+",)),
        ({"n_probs": 10, "logprobs": 5}, "n_logprobs", 10),
        ({"logprobs": 5}, "n_logprobs", 5),
        ({"return_progress": True}, "return_progress", True),
        ({"n_keep": 5}, "n_keep", 5),
        ({"n_keep": -1}, "n_keep", 1),
    ],
)
async def test_every_other_control_reaches_the_engine(body: Any, field: str, value: Any) -> None:
    assert getattr(await asked(**body), field) == value


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"grammar": ""}, None),
        ({"grammar": 'root ::= "a"'}, GrammarKind.GBNF),
        ({"json_schema": {}}, GrammarKind.JSON_SCHEMA),
        ({"json_schema": {"type": "object"}, "grammar": ""}, GrammarKind.JSON_SCHEMA),
    ],
)
async def test_grammar_and_schema(body: Any, kind: GrammarKind | None) -> None:
    grammar = (await asked(**body)).sampling.grammar
    assert (grammar.kind if grammar else None) is kind


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [999]}, "prompt"),
        ({"prompt": {"prompt_string": "a", "multimodal_data": ["x"]}}, "prompt.multimodal_data"),
        ({"prompt": {"prompt_string": "<__media__>", "multimodal_data": ["x"]}}, "prompt.multimodal_data[0]"),
        ({"prompt": "[img-1]", "image_data": [{"id": 1}]}, "image_data[0].data"),
        ({"prompt": "a", "n": 65}, "n"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": "a" * 600}, "prompt"),
    ],
)
async def test_a_wrong_request_is_a_400_that_names_the_field(body: Any, param: str) -> None:
    async with running() as api:
        assert (await api.refused(PATH, body))["param"] == param


async def test_props_tell_the_template_byte_for_byte_and_a_slots_context() -> None:
    template = "{% if x %}\n  'é' \u2028{{ y }}\n\n"
    async with running(text=FakeText(template=template), sampling={"min_p": 0.05}) as api:
        props = (await api.http.get("/props?model=whatever")).json()
    assert props["chat_template"] == template
    assert props["default_generation_settings"]["n_ctx"] == 512
    assert props["default_generation_settings"]["params"]["min_p"] == 0.05
    assert (props["total_slots"], props["model_path"], props["bos_token"]) == (4, "fake.gguf", "<s>")


async def test_props_tell_what_holds_for_a_request_that_does_not_say() -> None:
    async with running(output=OutputDefaults(stop=("END",), n_keep=7)) as api:
        params = (await api.http.get("/props")).json()["default_generation_settings"]["params"]
    assert (params["stop"], params["n_keep"]) == (["END"], 7)


async def test_props_cannot_be_changed() -> None:
    async with running() as api:
        assert (await api.refused("/props", {}))["code"] == "unsupported"


async def test_slots_tell_what_is_kept() -> None:
    async with running() as api:
        idle, busy = (await api.http.get("/slots")).json()
        assert (idle["id"], idle["is_processing"], idle["n_past"], idle["n_ctx"]) == (0, False, 5, 512)
        assert (busy["id_task"], busy["is_processing"], busy["n_tokens"], busy["n_past"]) == (1000, True, 9, 7)
        assert (await api.http.get("/slots?fail_on_no_slot=1")).status_code == 200


async def test_an_idle_slot_is_erased() -> None:
    async with running() as api:
        assert (await api.http.post("/slots/0?action=erase")).json() == {"id_slot": 0, "n_erased": 5}
        assert (await api.http.post("/slots/0?action=erase")).json() == {"id_slot": 0, "n_erased": 0}
        error_of(await api.http.post("/slots/1?action=erase"), 503)
        error_of(await api.http.post("/slots/4?action=erase"), 404)
        error_of(await api.http.post("/slots/x?action=erase"), 404)


@pytest.mark.parametrize("action", ["save", "restore", "nonsense"])
async def test_other_actions_on_slots_are_refused(action: str) -> None:
    async with running() as api:
        response = await api.http.post(f"/slots/0?action={action}", json={"filename": "x"})
        assert error_of(response, 400)["code"] == "unsupported"


async def test_a_chat_is_rendered() -> None:
    async with running() as api:
        answer = await api.ok("/apply-template", messages=[{"role": "user", "content": "Hi"}])
        assert answer["prompt"] == "user: Hi\nassistant: "
        assert answer["n_tokens"] == len(answer["prompt"])
        assert (await api.refused("/apply-template", {}))["param"] == "messages"


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
        {"tools": [TOOL], "tool_choice": "none"},
        {"reasoning_effort": "none"},
        {"template_vars": {"mood": "good"}},
    ],
)
async def test_a_template_is_applied_to_what_the_same_chat_request_would_give_it(more: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], **more}
    async with running() as api:
        await api.ok("/apply-template", **body)
        await api.ok("/v1/chat/completions", **body, max_tokens=1)
        applied, chatted = api.text.chats
    assert applied == chatted


async def test_a_tool_choice_without_its_tool_is_refused_by_apply_template() -> None:
    async with running() as api:
        body = {"messages": [{"role": "user", "content": "Hi"}], "tool_choice": "required"}
        assert (await api.refused("/apply-template", body))["param"] == "tool_choice"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"grammar": "bad"}, "grammar"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": "{"}}}, "response_format"),
        ({"banned_regex": ["("]}, "banned_regex"),
        ({"custom_token_bans": [10**9]}, "custom_token_bans"),
        ({"lora": [{"id": 3, "scale": 1}]}, "lora[0].id"),
    ],
)
async def test_apply_template_refuses_what_the_same_chat_request_would_be_refused_for(
    more: dict[str, Any], param: str
) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], **more}
    async with running() as api:
        refused = await api.refused("/apply-template", body)
        assert refused == await api.refused("/v1/chat/completions", body)
        assert refused["param"].startswith(param)


async def test_nothing_is_there_while_the_model_loads() -> None:
    async with running() as api:
        api.engine.ready = None
        for path in ("/props", "/slots"):
            assert (await api.http.get(path)).status_code == 503
        assert (await api.post(PATH, {"prompt": "a"})).status_code == 503


GAP = {"input_prefix": "def f(", "input_suffix": "):"}


async def test_infill() -> None:
    async with running(FakeEngine(["x"]), FakeText(has_infill=True)) as api:
        answer = await api.ok("/infill", **GAP, prompt="a, ", n_predict=4, input_extra=[{"text": "b", "filename": "n"}])
        assert (answer["content"], answer["stop"]) == ("x", True)
        request = api.engine.requests[0]
        assert bytes(request.prompt) == b"nb\x01def f(a, \x02):\x03"
        assert request.max_tokens == 4
        events = await api.events("/infill", **GAP)
        assert "".join(event["content"] for event in events) == "x"


async def test_infill_needs_infill_tokens() -> None:
    async with running() as api:
        error = await api.refused("/infill", GAP)
        assert error["code"] == "unsupported"
        assert "infill" in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input_suffix": "b"}, "input_prefix"),
        ({"input_prefix": "a"}, "input_suffix"),
        ({**GAP, "prompt": 3}, "prompt"),
        ({**GAP, "input_extra": "a"}, "input_extra"),
        ({**GAP, "input_extra": [{"filename": "a"}]}, "input_extra[0].text"),
        ({**GAP, "temperature": "hot"}, "temperature"),
    ],
)
async def test_a_wrong_gap_is_named(body: Any, param: str) -> None:
    async with running(text=FakeText(has_infill=True)) as api:
        assert (await api.refused("/infill", body))["param"] == param


async def test_slots_that_are_switched_off_are_shown_to_nobody() -> None:
    async with running(slots=False) as api:
        assert error_of(await api.http.get("/slots"), 501)["code"] == "switched_off"
        assert (await api.http.post("/slots/0?action=erase")).status_code == 200
