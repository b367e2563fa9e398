"""Scoring prompts as lm-evaluation-harness does (`local-completions`): its requests, and llama.cpp's own sums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import llama_cpp
import numpy as np
import pytest

from ggufd.models import hub
from tests.support.limits import ANSWER_S
from tests.support.programs.live_server import LiveServer, live_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

QUESTIONS = {
    "The capital of France is": [" Paris", " Berlin", " banana"],
    "The sun rises in the": [" east", " soup", " yesterday"],
    "Bonjour, ça va ? Très": [" bien, et toi ? 🙂", " cement"],
}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server("--ctx-size", "1024", "--parallel", "4", "--threads", "1") as running:
        yield running


@pytest.fixture(scope="module")
def peer() -> Iterator[llama_cpp.Llama]:
    llama = llama_cpp.Llama(str(hub.find("").path), n_ctx=256, logits_all=True, n_threads=1, verbose=False)
    yield llama
    llama.close()


def get(server: LiveServer, path: str) -> Any:
    return httpx.get(server.url + path, trust_env=False, timeout=ANSWER_S).raise_for_status().json()


def post(server: LiveServer, path: str, body: Any) -> Any:
    return httpx.post(server.url + path, json=body, timeout=120, trust_env=False).raise_for_status().json()


def encode(server: LiveServer, text: str) -> list[int]:
    tokens: list[int] = post(server, "/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
    return tokens


def score(server: LiveServer, prompts: list[list[int]], **changes: Any) -> list[Any]:
    """What the harness sends for a batch, and the choices in the order it puts them."""
    body = {
        "model": "SmolLM2",
        "prompt": prompts,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    answer = post(server, "/v1/completions", body | changes)
    return sorted(answer["choices"], key=lambda choice: int(choice["index"]))


def own_logprobs(peer: llama_cpp.Llama, tokens: list[int]) -> np.ndarray:
    """llama.cpp's natural logs of every token after the first."""
    peer.reset()
    peer.eval(tokens)
    logits = peer.scores[: len(tokens) - 1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found: np.ndarray = logs[np.arange(len(tokens) - 1), tokens[1:]]
    return found


def test_the_harness_can_tokenize_by_the_server(server: LiveServer) -> None:
    info = get(server, "/tokenizer_info")
    assert info["eos_token"] == "<|im_end|>"
    assert "im_start" in info["chat_template"]
    tokens = encode(server, "The capital")
    assert post(server, "/detokenize", {"tokens": tokens})["prompt"] == "The capital"
    assert len(encode(server, info["eos_token"])) == 1


def test_sums_of_continuations_are_llama_cpps_own(server: LiveServer, peer: llama_cpp.Llama) -> None:
    prompts, begins = [], []
    for question, continuations in QUESTIONS.items():
        context = encode(server, question)
        for continuation in continuations:
            prompts.append([*context, *encode(server, continuation)])
            begins.append(len(context))
    ours, theirs = [], []
    for choice, prompt, begin in zip(score(server, prompts), prompts, begins, strict=True):
        logprobs = choice["logprobs"]["token_logprobs"]
        assert len(logprobs) == len(prompt) + 1, "the prompt's tokens, and one that is dropped"
        assert logprobs[0] is None
        assert len(choice["logprobs"]["top_logprobs"]) == len(logprobs)
        ours.append(sum(logprobs[begin:-1]))
        theirs.append(own_logprobs(peer, prompt)[begin - 1 :].sum())
    # Other batches move the logits of quantised weights a little.
    assert ours == pytest.approx(theirs, rel=0.05, abs=0.3)
    assert np.argmax(ours[:3]) == np.argmax(ours[3:6]) == 0


def test_whether_a_continuation_is_greedy(server: LiveServer) -> None:
    """The harness compares for equality: the best alternative must be there, unrounded."""
    context = encode(server, "The capital of France is")
    for continuation, is_greedy in ((" Paris", True), (" banana", False)):
        (choice,) = score(server, [[*context, *encode(server, continuation)]])
        token, top = (choice["logprobs"][name][len(context)] for name in ("token_logprobs", "top_logprobs"))
        assert (token == max(top.values())) is is_greedy


def test_one_more_entry_is_there_even_where_the_model_ends(server: LiveServer, peer: llama_cpp.Llama) -> None:
    tokens = encode(server, "The capital of France is Paris.")
    end = encode(server, get(server, "/tokenizer_info")["eos_token"])[0]
    (choice,) = score(server, [tokens], logit_bias={str(end): 100})
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == "The capital of France is Paris."
    logprobs = choice["logprobs"]["token_logprobs"]
    assert len(logprobs) == len(tokens) + 1
    assert sum(logprobs[1:-1]) == pytest.approx(own_logprobs(peer, tokens).sum(), rel=0.05)
