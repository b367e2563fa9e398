"""`ggufd bench cluster --chats`: the load is growing chats, and what is said of it is what the servers said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from ggufd.bench.app import app
from ggufd.bench.beside.compare import DeployedCluster
from ggufd.bench.beside.growing_chats import ChatLoad, PlayedLoad, cached_share, play
from ggufd.bench.measure.client import BenchError, Client, TimedAnswer
from ggufd.cluster.serving.serve_config import ClusterOptions, serve_config
from tests.support.fakes.bench_server import FakeServer, serving_here
from tests.support.virtual_time import virtual_time

WAIT_S = 60.0
LOAD = ChatLoad(n_chats=3, n_turns=3, n_clients=1, opening=20, message=8, answer=4)


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    found = FakeServer(step_s=0.1)
    with virtual_time():
        async with serving_here(found):
            yield found


def an_answer(prompt: int | None, cached: int | None, wait_s: float = 0.1) -> TimedAnswer:
    return TimedAnswer(1.0, (1.0 + wait_s, 2.0), "text", prompt, 4, cached)


async def test_each_chat_grows_by_the_answers_and_all_take_turns(fake: FakeServer) -> None:
    played = await play(Client(fake.url), LOAD, 7)
    assert (len(played.answers), len(played.first), played.errors) == (9, 3, [])
    openings = [body["messages"][0]["content"] for body in fake.bodies]
    assert len(set(openings)) == 3
    assert openings == openings[:3] * 3
    chats: dict[str, list[list[dict[str, str]]]] = defaultdict(list)
    for opening, body in zip(openings, fake.bodies, strict=True):
        chats[opening].append(body["messages"])
    for number, turns in enumerate(chats.values()):
        assert [len(messages) for messages in turns] == [1, 3, 5]
        assert turns[2][:3] == turns[1]
        assert [turns[2][i]["content"] for i in (1, 3)] == [played.answers[number + 3 * i].text for i in (0, 1)]
    assert {(body["max_tokens"], body["temperature"], body["stream"]) for body in fake.bodies} == {(4, 0, True)}


async def test_the_same_seed_says_the_same_and_another_does_not(fake: FakeServer) -> None:
    for seed in (1, 1, 2):
        await play(Client(fake.url), ChatLoad(2, 1, 1), seed)
    said = [body["messages"][0]["content"] for body in fake.bodies]
    assert said[:2] == said[2:4]
    assert not {*said[:2]} & {*said[4:]}


async def test_so_many_clients_ask_at_once(fake: FakeServer) -> None:
    one = await play(Client(fake.url), ChatLoad(4, 2, 1, answer=11), 1)
    four = await play(Client(fake.url), ChatLoad(4, 2, 4, answer=11), 2)
    assert one.seconds == pytest.approx(8.0, rel=0.1)
    assert four.seconds == pytest.approx(2.0, rel=0.1)


async def test_what_fails_is_counted_and_ends_nothing(fake: FakeServer) -> None:
    fake.break_after = 1
    played = await play(Client(fake.url), LOAD, 7)
    assert (played.answers, len(played.errors)) == ([], 9)
    with pytest.raises(BenchError, match="broke off"):
        played.figures("chats", LOAD.case)


def test_figures_are_over_all_tokens_and_completed_requests() -> None:
    first = [an_answer(100, 0, 0.3)]
    later = [an_answer(200, 150, 0.1), an_answer(300, 270, 0.2)]
    found = PlayedLoad([*first, *later], first, ["it failed"], 2.0).figures("chats", LOAD.case)
    assert {one.metric.quantity: pytest.approx(one.value) for one in found} == {
        "prompt tokens from the cache": 70.0,
        "the same, after first turns": 84.0,
        "requests completed": 1.5,
        "requests failed": 1.0,
        "TTFT, p50": 200.0,
        "TTFT, p95": 300.0,
    }
    assert {one.metric.case for one in found} == {"3 chats, 3 turns, 1 clients"}


@pytest.mark.parametrize("answer", [an_answer(None, 3), an_answer(10, None)])
def test_a_server_that_does_not_count_is_no_zero(answer: TimedAnswer) -> None:
    with pytest.raises(BenchError, match="usage"):
        cached_share([an_answer(10, 5), answer])


def details(**http: Any) -> dict[str, Any]:
    """What Ray's dashboard tells of a cluster as it is deployed, where one has been added by its load since."""
    options = ClusterOptions(n_replicas=2, n_gpus=0.5, tables={"context": {"parallel": 2}}, folder="/f", **http)
    config = serve_config(options)
    engines = config["applications"][0]
    deployments = {"engine": {"target_num_replicas": 3}}
    return {
        "http_options": config["http_options"],
        "applications": {engines["name"]: {"deployed_app_config": engines, "deployments": deployments}},
    }


def test_what_the_cluster_runs_is_read_from_what_is_deployed() -> None:
    found = DeployedCluster.of(details(host="0.0.0.0", port=81))
    assert found == DeployedCluster("http://127.0.0.1:81", 3, 0.5, {"context": {"parallel": 2}}, "/f")


@pytest.mark.parametrize("told", [{}, {"applications": {}}, {"applications": {"ggufd-engines": {}}}])
def test_without_a_cluster_it_is_said_how_to_start_one(told: dict[str, Any]) -> None:
    with pytest.raises(BenchError, match="ggufd cluster serve"):
        DeployedCluster.of(told)


def test_without_ray_it_is_one_line() -> None:
    done = CliRunner().invoke(app, ["cluster", "--chats", "2", "--dashboard", "http://127.0.0.1:9"])
    assert done.exit_code == 1
    assert "127.0.0.1:9" in done.output
    assert "Traceback" not in done.output


_THROUGH_PLAIN_SERVE = """
import asyncio, json, sys
from ray import serve
from starlette.requests import Request
from ggufd.bench.beside.plain_serve import PREFIX, PlainEngine, PlainEntry

tables = {"context": {"parallel": 1, "ctx_size": 512, "threads": 1, "flash_attn": "on"}}
entry, engine = serve.deployment(PlainEntry, name="entry"), serve.deployment(PlainEngine, name="engine")
handle = serve.run(entry.bind(engine.bind(tables, "")), _local_testing_mode=True)
body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "stream": True}
body = json.dumps(body | {"stream_options": {"include_usage": True}}).encode()

async def receive():
    return {"type": "http.request", "body": body, "more_body": False}

async def ask():
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": PREFIX + "/v1/chat/completions", "headers": headers}
    response = await handle.remote(Request(scope, receive))
    return [response.status_code, response.headers["content-type"], [part async for part in response.body_iterator]]

for _ in range(2):
    status, kind, parts = asyncio.run(ask())
    print(json.dumps([status, kind, len(parts), b"".join(parts).decode()]))
"""
"""In Ray's local testing mode, which needs no Ray to run: the same classes, called within one process."""


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_plain_serve_streams_what_its_server_says_and_ends_it(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "GGUFD_CTX_SIZE": "not for it",
        "LLAMA_ARG_CTX_SIZE": "neither",
    }
    done = subprocess.run(
        [sys.executable, "-c", _THROUGH_PLAIN_SERVE], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[200")]
    assert len(answers) == 2, done.stdout
    for (_, kind, n_parts, text), least_cached in zip(answers, (0, 1), strict=True):
        assert kind.startswith("text/event-stream")
        assert n_parts > 1
        *_, usage, end = [event.removeprefix("data: ") for event in text.split("\n\n") if event.startswith("data: ")]
        assert end == "[DONE]"
        assert json.loads(usage)["usage"]["prompt_tokens_details"]["cached_tokens"] >= least_cached
    own = [one for one in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(one.info["cmdline"] or ())]
    assert psutil.wait_procs(own, WAIT_S)[1] == []
