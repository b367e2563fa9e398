"""Batches on the real server with OpenAI's client: whatever is killed or full meanwhile, each line is told once."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from openai.types import Batch

from tests.support.limits import ANSWER_S
from tests.support.programs.live_server import LiveServer, live_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

WAIT_S = 180
FLAGS = ("-c", "2048", "-np", "4")


def client(server: LiveServer, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def lines(n: int, max_tokens: int = 4, **changes: Any) -> bytes:
    """Lines of greedy chat, each with a prompt of its own."""
    bodies = [
        {"messages": [{"role": "user", "content": f"Say {number}."}], "max_tokens": max_tokens, "temperature": 0}
        for number in range(n)
    ]
    asked = [
        {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body | changes}
        for number, body in enumerate(bodies)
    ]
    return b"".join(json.dumps(one).encode() + b"\n" for one in asked)


def start(api: openai.OpenAI, content: bytes) -> str:
    file = api.files.create(file=("in.jsonl", content), purpose="batch")
    return api.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"of": "test"}
    ).id


def until(api: openai.OpenAI, batch_id: str, is_so: Callable[[Batch], bool]) -> Batch:
    deadline = time.monotonic() + WAIT_S
    while not is_so(batch := api.batches.retrieve(batch_id)):
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
    return batch


def n_told(batch: Batch) -> int:
    counts = batch.request_counts
    assert counts is not None
    return counts.completed + counts.failed


def done(api: openai.OpenAI, batch_id: str, status: str = "completed") -> Batch:
    return until(api, batch_id, lambda batch: batch.status == status)


def results(api: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    """Lines of a result; each is there once."""
    if file_id is None:
        return {}
    found = [json.loads(text) for text in api.files.content(file_id).text.splitlines()]
    assert len({one["custom_id"] for one in found}) == len(found)
    return {one["custom_id"]: one for one in found}


def text_of(result: Any) -> str:
    text: str = result["response"]["body"]["choices"][0]["message"]["content"]
    return text


def test_a_batch_from_upload_to_result(tmp_path: Path) -> None:
    with live_server("--batch-dir", str(tmp_path / "b"), *FLAGS) as server:
        api = client(server)
        wrong = b'{"custom_id": "wrong", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}\n'
        batch_id = start(api, lines(6) + wrong)
        batch = done(api, batch_id)
        assert batch.request_counts is not None
        assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (7, 6, 1)
        assert batch.metadata == {"of": "test"}
        output, errors = results(api, batch.output_file_id), results(api, batch.error_file_id)
        assert list(output) == [f"line-{number}" for number in range(6)]
        assert errors["wrong"]["response"]["status_code"] == 400
        live = api.chat.completions.create(
            model="any", messages=[{"role": "user", "content": "Say 3."}], max_tokens=4, temperature=0
        )
        assert text_of(output["line-3"]) == live.choices[0].message.content
        assert [one.id for one in api.batches.list()] == [batch_id]
        assert {one.purpose for one in api.files.list()} == {"batch", "batch_output"}
        with pytest.raises(openai.BadRequestError, match="it is completed"):
            api.batches.cancel(batch_id)
        for file in api.files.list():
            assert api.files.delete(file.id).deleted
        assert list((tmp_path / "b" / "files").iterdir()) == []


def test_a_killed_server_a_killed_engine_and_a_stopped_server_lose_no_line(tmp_path: Path) -> None:
    """And the answers are those of a server that nothing happened to."""
    flags = ("--batch-dir", str(tmp_path / "b"), *FLAGS)
    n = 24
    with live_server(*flags) as server:
        batch_id = start(client(server), lines(n))
        until(client(server), batch_id, lambda batch: n_told(batch) >= 3)
        children = server.children()
        os.kill(server.pid, signal.SIGKILL)
        psutil.wait_procs(children, 30)
    with live_server(*flags) as server:
        found = until(client(server), batch_id, lambda batch: n_told(batch) >= 8)
        assert found.status == "in_progress"
        server.engine.kill()
        until(client(server), batch_id, lambda batch: n_told(batch) >= 12)
        start_s = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        while server.exit_code is None and time.monotonic() - start_s < 20:
            time.sleep(0.05)
        assert server.exit_code == 0
    with live_server(*flags) as server:
        batch = done(client(server), batch_id)
        output = results(client(server), batch.output_file_id)
        assert list(output) == [f"line-{number}" for number in range(n)]
        assert batch.error_file_id is None
        again = results(client(server), done(client(server), start(client(server), lines(n))).output_file_id)
        assert [text_of(one) for one in output.values()] == [text_of(one) for one in again.values()]


@pytest.mark.skipif(not hasattr(psutil, "RLIMIT_FSIZE"), reason="Linux only")
def test_a_disk_that_takes_no_more_pauses_a_batch_and_loses_nothing(tmp_path: Path) -> None:
    with live_server("--batch-dir", str(tmp_path / "b"), *FLAGS) as server:
        api, process = client(server), psutil.Process(server.pid)
        batch_id = start(api, lines(24))
        until(api, batch_id, lambda batch: n_told(batch) >= 2)
        # A write beyond that fails, as it does on a full disk.
        process.rlimit(psutil.RLIMIT_FSIZE, (1, -1))
        deadline = time.monotonic() + 60
        while "batches pause" not in "".join(server.log) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "batches pause" in "".join(server.log)
        with pytest.raises(openai.APIStatusError, match="could not be stored"):
            api.files.create(file=("in.jsonl", b"x" * 100_000), purpose="batch")
        assert httpx.get(f"{server.url}/health", trust_env=False, timeout=ANSWER_S).status_code == 200
        process.rlimit(psutil.RLIMIT_FSIZE, (-1, -1))
        batch = done(api, batch_id)
        assert list(results(api, batch.output_file_id)) == [f"line-{number}" for number in range(24)]
        assert batch.error_file_id is None
        assert "batches go on" in "".join(server.log)


def test_two_keys_a_cancel_and_a_live_answer_meanwhile(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-alice\nsk-bob\n")
    keys.chmod(0o600)
    with live_server("--batch-dir", str(tmp_path / "b"), "--api-key-file", str(keys), *FLAGS) as server:
        alice, bob = client(server, "sk-alice"), client(server, "sk-bob")
        batch_id = start(alice, lines(40, 60, ignore_eos=True))
        until(alice, batch_id, lambda batch: batch.status == "in_progress")
        for ask in (bob.batches.retrieve, bob.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                ask(batch_id)
        with pytest.raises(openai.NotFoundError):
            bob.files.content(alice.batches.retrieve(batch_id).input_file_id)
        said = bob.chat.completions.create(model="any", messages=[{"role": "user", "content": "Hello"}], max_tokens=4)
        assert said.choices[0].message.content
        headers = {"x-api-key": "sk-alice"}
        queue = httpx.get(f"{server.url}/v1/queue", headers=headers, trust_env=False, timeout=ANSWER_S).json()
        assert (queue["data"], [one["id"] for one in queue["batches"]]) == ([], [batch_id])
        alice.batches.cancel(batch_id)
        batch = done(alice, batch_id, "cancelled")
        told = results(alice, batch.output_file_id) | results(alice, batch.error_file_id)
        assert len(told) == 40
