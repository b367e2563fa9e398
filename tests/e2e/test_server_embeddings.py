"""The real server as a maker of vectors, through the official client: beside a chat, alone, and as a reranker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import llama_cpp
import numpy as np
import openai
import pytest

from ggufd.models import hub
from tests.support.limits import ANSWER_S
from tests.support.models.tiny_bert import N_CTX_TRAIN, N_EMBD, write_tiny_bert
from tests.support.programs.live_server import LiveServer, live_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

TEXTS = ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose by half a point."]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server("--ctx-size", "2048", "--parallel", "2", "--threads", "1") as running:
        yield running


def client_of(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


def ask(server: LiveServer, path: str, status: int = 200, **body: Any) -> Any:
    response = httpx.post(server.url + path, json=body, timeout=120, trust_env=False)
    assert response.status_code == status, response.text
    return response.json()


def test_the_demo_models_vectors_are_llama_cpp_pythons(server: LiveServer) -> None:
    with client_of(server) as client:
        answer = client.embeddings.create(model="any", input=TEXTS)
    assert answer.usage.prompt_tokens > 15
    ours = np.array([one.embedding for one in answer.data])
    assert np.linalg.norm(ours, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    path = str(hub.find("").path)
    peer = llama_cpp.Llama(path, embedding=True, pooling_type=1, n_ctx=256, n_threads=1, verbose=False)
    theirs = np.array([peer.embed(text, normalize=True) for text in TEXTS])
    peer.close()
    assert (ours * theirs).sum(axis=1) == pytest.approx([1, 1, 1], abs=2e-3)
    assert ours[0] @ ours[1] > ours[0] @ ours[2], "the two about cats are nearer"


def test_the_second_context_is_told_of_once(server: LiveServer) -> None:
    with client_of(server) as client:
        for _ in range(2):
            client.embeddings.create(model="any", input="a")
    told = [line for line in server.log if "context for embeddings takes" in line]
    assert len(told) == 1
    assert "MiB" in told[0]


def test_a_chat_goes_on_while_many_texts_become_vectors(server: LiveServer) -> None:
    """Neither waits for the end of the other."""
    done: list[float] = []

    def embed() -> None:
        ask(server, "/v1/embeddings", input=["Some words of a longer text, and more of them. " * 8] * 12)
        done.append(time.monotonic())

    with client_of(server) as client:
        stream = client.completions.create(
            model="any", prompt="Once", max_tokens=100, stream=True, temperature=0, extra_body={"ignore_eos": True}
        )
        arrivals = []
        beside = threading.Thread(target=embed)
        for number, _ in enumerate(stream):
            arrivals.append(time.monotonic())
            if number == 3:
                beside.start()
        beside.join()
    assert len(arrivals) > 20
    assert sum(at < done[0] for at in arrivals) > 6, "the texts came first"


def test_a_client_that_leaves_gives_its_turn_back(server: LiveServer) -> None:
    with pytest.raises(httpx.TimeoutException):
        httpx.post(
            f"{server.url}/v1/embeddings",
            json={"input": ["many words " * 200] * 400},
            timeout=0.5,
            trust_env=False,
        )
    start = time.monotonic()
    ask(server, "/v1/embeddings", input="short")
    assert time.monotonic() - start < 20
    assert server.wait_running(0, 10)


def test_an_embedding_model_serves_vectors_only(tmp_path: Path) -> None:
    path = write_tiny_bert(tmp_path / "bert.gguf", "cls")
    with live_server("--model", str(path), "--embedding") as server:
        assert any("32 dimensions, cls pooling" in line for line in server.log)
        with client_of(server) as client:
            answer = client.embeddings.create(model="any", input=["hello world", "abc"])
            assert [len(one.embedding) for one in answer.data] == [N_EMBD, N_EMBD]
            with pytest.raises(openai.BadRequestError, match="embedding model"):
                client.chat.completions.create(model="any", messages=[{"role": "user", "content": "Hi"}])
        error = ask(server, "/v1/embeddings", 400, input="a " * 200)["error"]
        assert f"at most {N_CTX_TRAIN}" in error["message"]
        assert len(ask(server, "/api/embed", input="a " * 200)["embeddings"][0]) == N_EMBD
        assert httpx.get(f"{server.url}/props", trust_env=False, timeout=ANSWER_S).json()["total_slots"] == 4
        assert len(httpx.get(f"{server.url}/slots", trust_env=False, timeout=ANSWER_S).json()) == 4


def test_a_reranker_ranks(tmp_path: Path) -> None:
    path = write_tiny_bert(tmp_path / "ranker.gguf", "rank")
    documents = ["the cat", "a whale in the sea", "three"]
    with live_server("--model", str(path)) as server:
        answer = ask(server, "/v1/rerank", query="who lives in the sea?", documents=documents, top_n=2)
        scores = [one["relevance_score"] for one in answer["results"]]
        assert len(scores) == 2
        assert scores == sorted(scores, reverse=True)
        alone = ask(server, "/rerank", query="who lives in the sea?", documents=documents[1:2])
        best = {
            one["index"]: one["relevance_score"]
            for one in ask(server, "/rerank", query="who lives in the sea?", documents=documents)["results"]
        }
        assert alone["results"][0]["relevance_score"] == pytest.approx(best[1], abs=5e-3)
        assert "rank" in ask(server, "/v1/embeddings", 400, input="a")["error"]["message"]


def test_a_chat_model_says_that_it_is_no_reranker(server: LiveServer) -> None:
    assert "no reranker" in ask(server, "/v1/rerank", 400, query="q", documents=["a"])["error"]["message"]
