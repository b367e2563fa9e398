"""`POST /v1/completions` over the fakes: prompts, choices, echo, infill, log-probabilities, streams, refusals."""

from __future__ import annotations

from typing import Any

import pytest

from ggufd.errors import EngineFailure, QueueFull
from tests.support.fakes.api_client import Api, error_of, running
from tests.support.fakes.fake_engine import BOS, FakeEngine, FakeText

PATH = "/v1/completions"


def texts(events: list[Any]) -> dict[int, str]:
    """The text of every choice of a stream."""
    parts: dict[int, str] = {}
    for event in events:
        for choice in event["choices"] if event != "[DONE]" else ():
            parts[choice["index"]] = parts.get(choice["index"], "") + choice["text"]
    return parts


async def test_an_answer_has_openais_shape() -> None:
    async with running() as api:
        answer = await api.ok(PATH, prompt="abc", model="whatever")
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "fake-model"
    assert answer["system_fingerprint"].startswith("fp_")
    assert answer["choices"] == [{"index": 0, "text": "Hello world", "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"]["total_tokens"] == 3 + 11
    assert answer["timings"]["predicted_per_second"] == pytest.approx(100)


async def test_ids_are_unique() -> None:
    async with running() as api:
        ids = {(await api.ok(PATH, prompt="a"))["id"] for _ in range(5)}
    assert len(ids) == 5


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [(97, 98)]),
        (["a", "bc"], [(97,), (98, 99)]),
        ([97, 98], [(97, 98)]),
        ([[97], [98, 99]], [(97,), (98, 99)]),
    ],
)
async def test_prompts_in_four_shapes(prompt: Any, expected: list[tuple[int, ...]]) -> None:
    async with running() as api:
        answer = await api.ok(PATH, prompt=prompt)
        assert [request.prompt for request in api.engine.requests] == expected
        assert [choice["index"] for choice in answer["choices"]] == list(range(len(expected)))


async def test_choices_are_numbered_prompt_by_prompt() -> None:
    async with running(FakeEngine(["x", "yy"])) as api:
        answer = await api.ok(PATH, prompt=["a", "b"], n=2)
        assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
            (0, "x"),
            (1, "yy"),
            (2, "x"),
            (3, "yy"),
        ]
        assert answer["usage"]["prompt_tokens"] == 2
        assert answer["usage"]["completion_tokens"] == 6
        events = await api.events(PATH, prompt=["a", "b"], n=2)
        assert texts(events) == {0: "x", 1: "yy", 2: "x", 3: "yy"}


async def test_bos_is_added_once() -> None:
    async with running(text=FakeText(adds_bos=True)) as api:
        await api.ok(PATH, prompt="a")
        await api.ok(PATH, prompt="<s>a")
        await api.ok(PATH, prompt="a", add_bos_token=False)
        assert [request.prompt for request in api.engine.requests] == [(BOS, 97), (BOS, 97), (97,)]


async def test_fields_reach_the_engine() -> None:
    async with running(sampling={"min_p": 0.05}) as api:
        await api.ok(PATH, prompt="a", n_predict=5, stop=["x", ""], top_k=3, seed=4, min_tokens=2, n_probs=3)
        (request,) = api.engine.requests
    assert (request.max_tokens, request.min_tokens, request.stop, request.n_logprobs) == (5, 2, ("x",), 3)
    assert (request.sampling.top_k, request.sampling.seed, request.sampling.min_p) == (3, 4, 0.05)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, 99),
        ({"max_tokens": 5, "n_predict": 6}, 5),
        ({"max_new_tokens": 7}, 7),
        ({"n_predict": -1}, 99),
        ({"num_predict": -2}, 99),
    ],
)
async def test_the_limit_under_its_names(body: dict[str, Any], expected: int) -> None:
    async with running(max_tokens=99) as api:
        await api.ok(PATH, prompt="a", **body)
        assert api.engine.requests[0].max_tokens == expected


@pytest.mark.parametrize("stop", ["wor", ["wor"], ["zzz", "wor"]])
async def test_stop_strings(stop: Any) -> None:
    async with running() as api:
        answer = await api.ok(PATH, prompt="a", stop=stop)
        assert answer["choices"][0]["text"] == "Hello "
        assert answer["choices"][0]["finish_reason"] == "stop"


async def test_a_limit_ends_with_length() -> None:
    async with running() as api:
        answer = await api.ok(PATH, prompt="a", max_tokens=4)
    assert answer["choices"][0] == {"index": 0, "text": "Hell", "logprobs": None, "finish_reason": "length"}


async def test_logprobs_have_the_legacy_shape_and_run_with_the_text() -> None:
    async with running(FakeEngine(["aé🙂"])) as api:
        answer = await api.ok(PATH, prompt="x", logprobs=2)
    choice = answer["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"] == "aé🙂"
    assert logprobs["text_offset"] == [0, 1, 1, 2, 2, 2, 2]
    assert logprobs["token_logprobs"] == [-0.5] * 7
    assert logprobs["top_logprobs"][0] == {"a": -1.5}  # the fake's best and its second share a text


async def test_logprobs_zero_tells_of_the_chosen_token_alone() -> None:
    async with running() as api:
        logprobs = (await api.ok(PATH, prompt="x", logprobs=0))["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"][0] == {"H": -0.5}


async def test_streamed_logprobs_come_one_token_a_chunk_with_running_offsets() -> None:
    async with running(FakeEngine(["aéb"])) as api:
        events = await api.events(PATH, prompt="x", logprobs=1)
    chunks = [event["choices"][0] for event in events if event != "[DONE]" and event["choices"][0]["logprobs"]]
    assert all(len(chunk["logprobs"]["tokens"]) == 1 for chunk in chunks)
    assert [chunk["logprobs"]["text_offset"][0] for chunk in chunks] == [0, 1, 1, 2]
    assert [chunk["text"] for chunk in chunks] == [chunk["logprobs"]["tokens"][0] for chunk in chunks]


async def test_echo_repeats_the_prompt() -> None:
    async with running() as api:
        assert (await api.ok(PATH, prompt="abc ", echo=True))["choices"][0]["text"] == "abc Hello world"
        assert (await api.ok(PATH, prompt=[97, 98], echo=True))["choices"][0]["text"] == "abHello world"
        assert texts(await api.events(PATH, prompt="abc ", echo=True)) == {0: "abc Hello world"}


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_with_logprobs_tells_those_of_the_prompt(stream: bool) -> None:
    async with running(text=FakeText(adds_bos=True)) as api:
        if stream:
            events = await api.events(PATH, prompt="ab", echo=True, logprobs=1, max_tokens=1)
            logprobs = events[0]["choices"][0]["logprobs"]
        else:
            choice = (await api.ok(PATH, prompt="ab", echo=True, logprobs=1, max_tokens=1))["choices"][0]
            logprobs = {name: values[:3] for name, values in choice["logprobs"].items()}
            assert choice["text"] == "abH"
    assert logprobs["tokens"] == ["<s>", "a", "b"]
    assert logprobs["token_logprobs"] == [None, -1.0, -1.0]
    assert logprobs["text_offset"] == [0, 0, 1]
    assert logprobs["top_logprobs"] == [None, {"a": -1.0}, {"b": -1.0}]


async def test_no_tokens_but_echo_scores_the_prompt() -> None:
    async with running() as api:
        answer = await api.ok(PATH, prompt="abc", echo=True, logprobs=1, max_tokens=0)
    assert answer["choices"][0]["text"] == "abc"
    assert answer["choices"][0]["logprobs"]["tokens"] == ["a", "b", "c"]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


async def test_best_of_keeps_the_likeliest() -> None:
    async with running(FakeEngine(["likely", "less", "least"])) as api:
        answer = await api.ok(PATH, prompt="a", n=2, best_of=3)
        assert [choice["text"] for choice in answer["choices"]] == ["likely", "less"]
        assert [choice["index"] for choice in answer["choices"]] == [0, 1]
        assert answer["choices"][0]["logprobs"] is None
        assert answer["usage"]["completion_tokens"] == 6 + 4 + 5
        assert api.engine.requests[0].n == 3


async def test_suffix_needs_infill_tokens() -> None:
    async with running() as api:
        error = await api.refused(PATH, {"prompt": "a", "suffix": "b"})
        assert (error["param"], error["code"]) == ("suffix", "unsupported")
    async with running(text=FakeText(has_infill=True)) as api:
        await api.ok(PATH, prompt="a", suffix="b")
        assert api.engine.requests[0].prompt == (1, 97, 2, 98, 3)


async def test_a_stream_ends_with_usage_and_done() -> None:
    async with running() as api:
        api.engine.cached_tokens = 2
        events = await api.events(PATH, prompt="abc", stream_options={"include_usage": True})
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 11,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert all(event["usage"] is None for event in events[:-2])
    assert len({event["id"] for event in events[:-1]}) == 1
    assert events[-3]["choices"][0]["finish_reason"] == "stop"
    assert "timings" in events[-3]


async def test_a_stream_without_the_option_carries_no_usage() -> None:
    async with running() as api:
        events = await api.events(PATH, prompt="abc")
    assert all("usage" not in event for event in events[:-1])
    assert [event["choices"][0]["finish_reason"] for event in events[-3:-1]] == [None, "stop"]


async def test_every_character_survives_the_envelope() -> None:
    answer = 'quote " backslash \\ newline \n separators \u2028\u2029 nul \x00 emoji 🙂'
    async with running(FakeEngine([answer])) as api:
        response = await api.post(PATH, {"prompt": "a", "stream": True})
        assert response.content.isascii()
        assert texts(await api.events(PATH, prompt="a")) == {0: answer}


async def test_an_empty_answer_is_an_answer() -> None:
    async with running(FakeEngine([""])) as api:
        assert (await api.ok(PATH, prompt="a"))["choices"][0]["text"] == ""
        events = await api.events(PATH, prompt="a")
        assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == ["stop"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [100_000]}, "prompt"),
        ({"prompt": [2**70]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "n": 10**9}, "n"),
        ({"prompt": "a", "n": "2"}, "n"),
        ({"prompt": "a", "best_of": 10**9}, "best_of"),
        ({"prompt": "a", "n": 3, "best_of": 2}, "best_of"),
        ({"prompt": "a", "best_of": 2, "stream": True}, "best_of"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens"),
        ({"prompt": "a", "n_predict": -3}, "n_predict"),
        ({"prompt": "a", "stop": 3}, "stop"),
        ({"prompt": "a", "stopping_strings": [3]}, "stopping_strings[0]"),
        ({"prompt": "a", "stream": "yes"}, "stream"),
        ({"prompt": "a", "stream_options": []}, "stream_options"),
        ({"prompt": "a", "logprobs": 129}, "logprobs"),
        ({"prompt": "a", "logprobs": -1}, "logprobs"),
        ({"prompt": "a", "logit_bias": {"100000": 1}}, "logit_bias"),
        ({"prompt": "a", "custom_token_bans": "100000"}, "custom_token_bans"),
        ({"prompt": "a", "grammar": "nonsense"}, "grammar"),
        ({"prompt": "a", "echo": 1}, "echo"),
        ({"prompt": [97], "suffix": "b"}, "suffix"),
        ({"prompt": "a", "json_schema": {"type": "nonsense"}}, "json_schema"),
        ({"prompt": "a", "json_schema": "{"}, "json_schema"),
        ({"prompt": "a", "guided_json": 3}, "guided_json"),
        ({"prompt": "a", "guided_choice": []}, "guided_choice"),
        ({"prompt": "a", "grammar": 'root ::= "a"', "json_schema": {"type": "object"}}, "json_schema"),
        ({"prompt": "a", "response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"prompt": "a", "response_format": 3}, "response_format"),
        ({"prompt": "a", "structured_outputs": {"choice": [1]}}, "structured_outputs.choice"),
        ({"prompt": "a", "banned_strings": [1]}, "banned_strings[0]"),
        ({"prompt": "a", "banned_phrases": 3}, "banned_phrases"),
        ({"prompt": "a", "banned_regex": ["("]}, "banned_regex"),
    ],
)
async def test_a_wrong_request_is_a_400_that_names_the_field(body: dict[str, Any], param: str) -> None:
    async with running() as api:
        error = await api.refused(PATH, body)
        assert error["param"] == param
        assert error["type"] == "invalid_request_error"
        assert api.engine.requests == []


@pytest.mark.parametrize("logprobs", [10, 128, False, True, None])
async def test_logprobs_that_are_fine(logprobs: Any) -> None:
    async with running() as api:
        await api.ok(PATH, prompt="a", logprobs=logprobs)


async def test_unknown_fields_are_no_error() -> None:
    async with running() as api:
        await api.ok(PATH, prompt="a", api_type="x", guidance_scale=1, response_format={"type": "text"}, tools=[])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(stream: bool) -> None:
    async with running(FakeEngine(n_ctx=16)) as api:
        error = await api.refused(PATH, {"prompt": "x" * 16, "stream": stream})
        assert error["code"] == "context_length_exceeded"
        assert "16 tokens" in error["message"]
        await api.ok(PATH, prompt="x" * 15)


async def refused_for_now(api: Api, stream: bool) -> dict[str, Any]:
    response = await api.post(PATH, {"prompt": ["a", "b"], "stream": stream})
    assert int(response.headers["retry-after"]) >= 1
    return error_of(response, 503)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_is_a_503_with_retry_after(stream: bool) -> None:
    async with running() as api:
        api.engine.refusal = QueueFull("the queue is full", retry_after_s=2.2)
        assert (await refused_for_now(api, stream))["code"] == "queue_full"


@pytest.mark.parametrize("stream", [False, True])
async def test_when_one_of_several_prompts_is_refused_the_others_are_aborted(stream: bool) -> None:
    async with running() as api:
        api.engine.refusal = QueueFull("the queue is full")
        api.engine.n_accepted = 1
        await refused_for_now(api, stream)
        assert api.engine.aborted == [api.engine.requests[0].request_id]


async def test_a_failure_is_a_500_in_the_error_shape() -> None:
    async with running() as api:
        api.engine.error = EngineFailure("broken")
        assert (await api.refused(PATH, {"prompt": "a"}, 500))["message"] == "broken"


@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
async def test_a_failure_midway_is_the_last_event(prompt: Any) -> None:
    async with running() as api:
        api.engine.error, api.engine.error_after = EngineFailure("broken"), 3
        events = await api.events(PATH, prompt=prompt)
        assert events[-1]["error"] == {
            "message": "broken",
            "type": "server_error",
            "param": None,
            "code": "engine_failure",
        }
        assert texts(events[:-1])[0] == "Hel"
        assert api.engine.open == set()


async def test_a_bug_midway_is_an_event_without_its_details() -> None:
    async with running() as api:
        api.engine.error, api.engine.error_after = ZeroDivisionError("secret"), 1
        events = await api.events(PATH, prompt="a")
        assert events[-1]["error"]["code"] == "internal_error"
        assert "secret" not in str(events)


async def test_a_bug_is_a_500_without_its_details() -> None:
    async with running() as api:
        api.engine.error = ZeroDivisionError("secret")
        error = await api.refused(PATH, {"prompt": "a"}, 500)
        assert "secret" not in error["message"]


async def test_while_the_model_loads_requests_are_refused() -> None:
    async with running() as api:
        api.engine.ready = None
        response = await api.post(PATH, {"prompt": "a"})
        assert error_of(response, 503)["code"] == "engine_down"
        assert "retry-after" in response.headers


async def test_a_scored_prompt_has_one_entry_more_even_when_the_model_ends() -> None:
    """lm-evaluation-harness leaves out the last, as what was generated."""
    async with running(FakeEngine([""])) as api:
        answer = await api.ok(PATH, prompt=[97, 98], echo=True, logprobs=1, max_tokens=1)
        logprobs = answer["choices"][0]["logprobs"]
        assert [len(values) for values in logprobs.values()] == [3, 3, 3, 3]
        assert logprobs["tokens"] == ["a", "b", "</s>"]
        assert answer["choices"][0]["text"] == "ab"
        answer = await api.ok(PATH, prompt=[97, 98], logprobs=1, max_tokens=1)
        assert answer["choices"][0]["logprobs"]["tokens"] == []
