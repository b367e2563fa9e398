"""Embeddings and reranking over the fakes: every family's shape, and what each refuses."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

import pytest

from ggufd.api.embeddings.matryoshka import is_matryoshka
from ggufd.api.embeddings.vectors import MAX_INPUTS
from ggufd.errors import EngineFailure, QueueFull
from tests.support.fakes.api_client import running
from tests.support.fakes.fake_engine import EOS, FakeEngine

UNIT_AB = [3 / (9 + 97**2 + 25) ** 0.5, 97 / (9 + 97**2 + 25) ** 0.5]
"""How the vector of "ab" begins: three tokens with the EOS, of which the first is 97."""


async def test_openai() -> None:
    async with running() as api:
        answer = await api.ok("/v1/embeddings", input=["ab", "c"], model="any", user="me")
        assert (answer["object"], answer["model"]) == ("list", "fake-model")
        assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
        assert [(one["object"], one["index"]) for one in answer["data"]] == [("embedding", 0), ("embedding", 1)]
        vector = answer["data"][0]["embedding"]
        assert len(vector) == 4
        assert vector[:2] == pytest.approx(UNIT_AB)
        assert sum(number**2 for number in vector) == pytest.approx(1)
        assert api.engine.embeds[0].inputs == ((97, 98, EOS), (99, EOS))


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ("ab", [[97, 98, EOS]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
        (["a", [98]], [[97, EOS], [98]]),
        ("", [[EOS]]),
        ({"prompt_string": "ab"}, [[97, 98, EOS]]),
        (
            [{"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "c"],
            [[97, 98, EOS], [99, EOS]],
        ),
    ],
)
async def test_every_form_of_input(given: Any, tokens: list[list[int]]) -> None:
    async with running() as api:
        answer = await api.ok("/v1/embeddings", input=given)
        assert [list(one) for one in api.engine.embeds[0].inputs] == tokens
        assert len(answer["data"]) == len(tokens)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"content": "string"}, "invalid_value"),
        ({"content": []}, "invalid_value"),
        ({"content": [{"type": "unknown"}]}, "invalid_value"),
        ({"content": [3]}, "invalid_value"),
        ({}, "invalid_value"),
        ({"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}, "unsupported"),
        (["a", {"prompt_string": "<__media__>", "multimodal_data": ["AAAA"]}], "unsupported"),
    ],
)
async def test_an_object_that_is_no_text_is_refused(given: Any, code: str) -> None:
    async with running() as api:
        error = await api.refused("/v1/embeddings", {"input": given})
        assert (error["param"], error["code"]) == ("input", code)


async def test_base64_is_the_same_floats() -> None:
    async with running() as api:
        numbers = (await api.ok("/v1/embeddings", input="ab"))["data"][0]["embedding"]
        text = (await api.ok("/v1/embeddings", input="ab", encoding_format="base64"))["data"][0]["embedding"]
        assert list(struct.unpack("<4f", base64.b64decode(text))) == pytest.approx(numbers, rel=1e-7)


async def test_a_long_answer_is_whole_too() -> None:
    async with running() as api:
        answer = await api.ok("/v1/embeddings", input=["ab"] * MAX_INPUTS + [], encoding_format="float")
        assert len(answer["data"]) == MAX_INPUTS
        many = (await api.ok("/embedding", content=["ab"] * MAX_INPUTS))[-1]
        assert many["index"] == MAX_INPUTS - 1


async def test_dimensions_are_for_models_that_were_trained_for_them() -> None:
    async with running() as api:
        assert len((await api.ok("/v1/embeddings", input="a", dimensions=4))["data"][0]["embedding"]) == 4
        error = await api.refused("/v1/embeddings", {"input": "a", "dimensions": 2})
        assert (error["code"], error["param"]) == ("unsupported", "dimensions")
        assert api.engine.ready is not None
        api.engine.ready.model.metadata["general.name"] = "Nomic Embed Text v1.5"
        vector = (await api.ok("/v1/embeddings", input="ab", dimensions=2))["data"][0]["embedding"]
        assert sum(number**2 for number in vector) == pytest.approx(1)
        assert len(vector) == 2
        assert (await api.refused("/v1/embeddings", {"input": "a", "dimensions": 5}))["param"] == "dimensions"


@pytest.mark.parametrize(
    ("architecture", "name", "is_one"),
    [
        ("gemma-embedding", "", True),
        ("qwen3", "Qwen3 Embedding 0.6b", True),
        ("bert", "Mxbai Embed Large v1", True),
        ("nomic-bert", "nomic-embed-text-v1.5", True),
        ("nomic-bert", "nomic-embed-text-v1", False),
        ("qwen3", "Qwen3 0.6B Instruct", False),
        ("bert", "Bge Small En v1.5", False),
    ],
)
def test_who_may_be_cut(architecture: str, name: str, is_one: bool) -> None:
    assert is_matryoshka(architecture, {"general.name": name}) is is_one


async def test_without_the_prefix_the_field_tells_the_family() -> None:
    async with running() as api:
        assert (await api.ok("/embeddings", input="ab"))["object"] == "list"
        assert (await api.ok("/embeddings", content="ab"))[0]["index"] == 0


async def test_llama_server() -> None:
    async with running() as api:
        (answer,) = await api.ok("/embedding", content="ab")
        assert answer["index"] == 0
        assert answer["embedding"][0][:2] == pytest.approx(UNIT_AB)
        raw = await api.ok("/embedding", input=["ab", "c"], embd_normalize=-1)
        assert [one["embedding"] for one in raw] == [[[3, 97, 3, 4]], [[2, 99, 3, 4]]]
        assert (await api.refused("/embedding", {"content": "a", "embd_normalize": -2}))["param"] == "embd_normalize"
        assert (await api.refused("/embedding", {}))["param"] == "content"
        assert (await api.refused("/embedding", {"input": {"a": 1}}))["param"] == "input"


async def test_vectors_of_every_token_are_llama_servers_alone() -> None:
    async with running(FakeEngine(pooling="none")) as api:
        (answer,) = await api.ok("/embedding", content="ab")
        assert [row[1] for row in answer["embedding"]] == [97, 98, EOS], "neither pooled nor scaled"
        for path, body in (("/v1/embeddings", {"input": "a"}), ("/api/embed", {"input": "a"})):
            error = await api.refused(path, body)
            assert "--pooling mean" in error["message"]


async def test_ollama() -> None:
    async with running() as api:
        answer = await api.ok("/api/embed", model="any", input=["ab", "c"], keep_alive="5m", truncate=True)
        assert [len(one) for one in answer["embeddings"]] == [4, 4]
        assert (answer["model"], answer["prompt_eval_count"]) == ("fake-model", 5)
        assert answer["total_duration"] > 0
        assert (await api.ok("/api/embed", input=[]))["embeddings"] == []
        assert (await api.ok("/api/embeddings", prompt="ab"))["embedding"][:2] == pytest.approx(UNIT_AB)
        assert (await api.ok("/api/embeddings"))["embedding"] == []
        assert (await api.refused("/api/embeddings", {"prompt": 3}))["param"] == "prompt"


@pytest.mark.parametrize(
    ("path", "body", "is_cut"),
    [
        ("/v1/embeddings", {"input": "x" * 40}, False),
        ("/api/embed", {"input": ["x" * 40, "y"]}, True),
        ("/api/embed", {"input": "x" * 40, "truncate": False}, False),
        ("/api/embeddings", {"prompt": "x" * 40}, True),
        ("/api/extra/embeddings", {"input": ["x" * 40]}, True),
        ("/api/extra/embeddings", {"input": [120] * 40}, True),
    ],
)
async def test_what_is_too_long_is_cut_where_the_family_does(path: str, body: dict[str, Any], is_cut: bool) -> None:
    async with running() as api:
        if is_cut:
            await api.ok(path, **body)
            assert len(api.engine.embeds[0].inputs[0]) == 16
        else:
            error = await api.refused(path, body)
            assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
            assert "at most 16" in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a", 3.5]}, "input"),
        ({"input": [{"text": "a"}]}, "input"),
        ({"input": ["a", [258]]}, "input[1]"),
        ({"input": [-1]}, "input"),
        ({"input": ["a", "x" * 40]}, "input[1]"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": "many"}, "dimensions"),
    ],
)
async def test_wrong_input_is_named(body: dict[str, Any], param: str) -> None:
    async with running() as api:
        assert (await api.refused("/v1/embeddings", body))["param"] == param


async def test_a_full_queue_and_a_failure_are_told() -> None:
    engine = FakeEngine()
    engine.refusal = QueueFull("full", retry_after_s=7)
    async with running(engine) as api:
        response = await api.post("/v1/embeddings", {"input": "a"})
        assert (response.status_code, response.headers["retry-after"]) == (503, "7")
        engine.refusal, engine.error = None, EngineFailure("broken")
        assert (await api.refused("/v1/embeddings", {"input": "a"}, 500))["code"] == "engine_failure"
        assert not engine.open


async def test_who_leaves_is_forgotten() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    async with running(engine) as api:
        asking = asyncio.create_task(api.post("/v1/embeddings", {"input": "a"}))
        for _ in range(500):
            await asyncio.sleep(0.01 if not engine.open else 0)
        assert engine.open
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert not engine.open
        assert engine.aborted


async def test_a_model_that_writes_nothing_says_so() -> None:
    async with running(FakeEngine(writes=False)) as api:
        await api.ok("/v1/embeddings", input="a")
        hello = [{"role": "user", "content": "Hi"}]
        for path, body in (
            ("/v1/completions", {"prompt": "a"}),
            ("/v1/chat/completions", {"messages": hello}),
            ("/completion", {"prompt": "a"}),
            ("/api/generate", {"prompt": "a"}),
        ):
            error = await api.refused(path, body)
            assert error["code"] == "unsupported"
            assert "/v1/embeddings" in error["message"]
        assert (await api.ok("/api/show"))["capabilities"] == ["embedding"]


# --- reranking --------------------------------------------------------------------------------------------------------

QUESTION = {"query": "q", "documents": ["a", "ccc", {"text": "bb"}]}


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v1/reranking", "/reranking", "/v2/rerank"])
async def test_rerank(path: str) -> None:
    async with running(FakeEngine(pooling="rank", writes=False)) as api:
        answer = await api.ok(path, **QUESTION, model="any")
        assert answer["results"] == [
            {"index": 1, "relevance_score": 6},
            {"index": 2, "relevance_score": 5},
            {"index": 0, "relevance_score": 4},
        ]
        assert (answer["object"], answer["model"]) == ("list", "fake-model")
        assert answer["usage"] == {"prompt_tokens": 15, "total_tokens": 15}
        best = await api.ok(path, **QUESTION, top_n=1, return_documents=True)
        assert best["results"] == [{"index": 1, "relevance_score": 6, "document": {"text": "ccc"}}]


async def test_rerank_in_teis_shape() -> None:
    async with running(FakeEngine(pooling="rank", writes=False)) as api:
        answer = await api.ok("/rerank", query="q", texts=["a", "bb"], return_text=True)
        assert answer == [{"index": 1, "score": 5, "text": "bb"}, {"index": 0, "score": 4, "text": "a"}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": 3, "documents": ["a"]}, "query"),
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "texts": []}, "texts"),
        ({"query": "q", "documents": "a"}, "documents"),
        ({"query": "q", "documents": ["a", 3]}, "documents[1]"),
        ({"query": "q", "documents": ["a", {"title": "x"}]}, "documents[1]"),
        ({"query": "q", "documents": ["a", "x" * 40]}, "documents[1]"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
    ],
)
async def test_a_wrong_question_is_named(body: dict[str, Any], param: str) -> None:
    async with running(FakeEngine(pooling="rank", writes=False)) as api:
        assert (await api.refused("/v1/rerank", body))["param"] == param


async def test_each_model_names_the_others_route() -> None:
    async with running() as api:
        error = await api.refused("/v1/rerank", QUESTION)
        assert error["code"] == "unsupported"
        assert "reranker" in error["message"]
    async with running(FakeEngine(pooling="rank", writes=False)) as api:
        assert "/v1/rerank" in (await api.refused("/v1/embeddings", {"input": "a"}))["message"]
