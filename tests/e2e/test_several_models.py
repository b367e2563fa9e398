"""Several models in the real server: swaps for requests, crashes and failures while swapping, chats that come back."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from ggufd.engine.process import NAME
from tests.support.fakes.api_client import error_of, parse_events
from tests.support.limits import ANSWER_S
from tests.support.models.tiny_bert import write_tiny_bert
from tests.support.models.tiny_model import write_tiny_model
from tests.support.programs.live_server import LiveServer, live_server

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]

WAIT_S = 120.0
NAMES = ("tiny-a", "tiny-b", "tiny-c")
FLAGS = ("--ctx-size", "1024", "--parallel", "1", "--flash-attn", "off")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models that say different things, and one whose header is good and whose tensors are cut off."""
    models = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(NAMES):
        write_tiny_model(models / f"{name}.gguf", seed=seed)
    return models


@contextlib.contextmanager
def served(folder: Path, *flags: str) -> Iterator[tuple[LiveServer, httpx.Client]]:
    arguments = ("--models-dir", str(folder), *FLAGS, *flags)
    with live_server(*arguments) as server, client(server) as http:
        yield server, http


def client(server: LiveServer) -> httpx.Client:
    return httpx.Client(base_url=server.url, trust_env=False, timeout=WAIT_S)


def says(http: httpx.Client, model: str, **more: Any) -> tuple[str, str]:
    """The model that answered, and what it said."""
    body = {"model": model, "prompt": "Once", "max_tokens": 6, "temperature": 0, "ignore_eos": True, **more}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["model"], answer.json()["choices"][0]["text"]


def states(http: httpx.Client) -> dict[str, str]:
    return {one["id"]: one["status"]["value"] for one in http.get("/v1/models").json()["data"]}


def name_of(process: psutil.Process) -> str:
    """The name that a process goes by; none where it has just ended."""
    try:
        return process.name()
    except psutil.Error:
        return ""


def until(holds: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, why
        time.sleep(0.05)


class TestSwaps:
    def test_each_model_answers_for_itself_and_other_names_mean_the_loaded_one(self, folder: Path) -> None:
        with served(folder, "--swap-after-s", "0") as (server, http):
            assert states(http) == {"tiny-a": "loaded", "tiny-b": "unloaded", "tiny-c": "unloaded"}
            first = {name: says(http, name) for name in NAMES}
            assert {name: model for name, (model, _) in first.items()} == {name: name for name in NAMES}
            assert len({text for _, text in first.values()}) == 3, "the models say the same: nothing is shown"
            for name in ("any", "gpt-4", "default", ""):
                assert says(http, name) == first["tiny-c"]
            assert states(http)["tiny-c"] == "loaded"
            assert says(http, "tiny-a.gguf") == first["tiny-a"]
            # The engine, the text process, and the tracker of their resources: nothing is left of the others.
            until(lambda: len(server.children()) <= 3, "processes of earlier models are left")

    def test_two_users_who_want_different_models_are_both_served(self, folder: Path) -> None:
        swap_after_s, lasts_s = 4.0, 40.0
        keys = ("--api-key", "ann-key,bob-key", "--swap-after-s", str(swap_after_s))
        with served(folder, *keys) as (server, _):
            texts: dict[str, set[tuple[str, str]]] = {"tiny-a": set(), "tiny-b": set()}
            counts = dict.fromkeys(texts, 0)
            ends_s = time.monotonic() + lasts_s

            def ask(model: str, key: str) -> None:
                with client(server) as http:
                    http.headers["Authorization"] = f"Bearer {key}"
                    while time.monotonic() < ends_s:
                        texts[model].add(says(http, model))
                        counts[model] += 1

            with ThreadPoolExecutor() as threads:
                for work in [threads.submit(ask, "tiny-a", "ann-key"), threads.submit(ask, "tiny-b", "bob-key")]:
                    work.result()
        assert {model: {name for name, _ in said} for model, said in texts.items()} == {
            "tiny-a": {"tiny-a"},
            "tiny-b": {"tiny-b"},
        }
        assert all(len(said) == 1 for said in texts.values()), "an answer of another model, or half of one"
        assert min(counts.values()) > 0
        n_swaps = sum("swapping to" in line for line in server.log)
        # Whoever came last is still served after the end.
        assert 2 <= n_swaps <= lasts_s / swap_after_s + 2

    def test_a_stream_ends_before_its_model_goes_and_the_next_is_told_of_its_wait(self, folder: Path) -> None:
        with served(folder, "--swap-after-s", "0") as (_, http):
            body = {"model": "tiny-a", "prompt": "Once", "max_tokens": 600, "stream": True, "ignore_eos": True}
            lines: list[str] = []
            begun = threading.Event()

            def read() -> None:
                with http.stream("POST", "/v1/completions", json=body) as reply:
                    for line in reply.iter_lines():
                        lines.append(line)
                        begun.set()

            reader = threading.Thread(target=read)
            reader.start()
            assert begun.wait(WAIT_S)
            chat = {"model": "tiny-b", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
            with http.stream(
                "POST", "/v1/chat/completions", json={**chat, "stream": True, "report_queue": True}
            ) as reply:
                told = [line for line in reply.iter_lines() if line]
            reader.join(WAIT_S)
            last = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")][-1]
            assert last["choices"][0]["finish_reason"] == "length", "the stream was cut"
            assert lines[-2] == "data: [DONE]"
            assert told[0].startswith(": queue position=1 eta_s=")
            assert "waiting for model tiny-b, " in told[0]
            assert json.loads(told[-2].removeprefix("data: "))["model"] == "tiny-b"

    def test_a_stream_that_outlives_its_client_is_not_cut_for_a_swap(self, folder: Path) -> None:
        with served(folder, "--swap-after-s", "0") as (_, http):
            body = {"model": "tiny-a", "prompt": "Once", "max_tokens": 600, "stream": True, "ignore_eos": True}
            with http.stream("POST", "/v1/completions", json={**body, "resumable": True}) as reply:
                next(reply.iter_lines())
            assert says(http, "tiny-b")[0] == "tiny-b"
            (stream,) = http.get("/v1/streams").json()["data"]
            text = http.get(f"/v1/streams/{stream['id']}").text
            events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
            assert events[-1]["choices"][0]["finish_reason"] == "length"
            assert {event["model"] for event in events} == {"tiny-a"}

    def test_lines_of_a_batch_are_computed_by_their_models(self, folder: Path, tmp_path: Path) -> None:
        flags = ("--swap-after-s", "1", "--batch-dir", str(tmp_path / "batches"))
        with served(folder, *flags) as (server, http), httpx.Client(trust_env=False, timeout=ANSWER_S) as own:
            expected = {name: says(http, name) for name in NAMES}
            api = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=own, timeout=WAIT_S)
            body = {"prompt": "Once", "max_tokens": 6, "temperature": 0, "ignore_eos": True}
            lines = [
                {
                    "custom_id": f"{name}-{i}",
                    "method": "POST",
                    "url": "/v1/completions",
                    "body": {"model": name, **body},
                }
                for i in range(2)
                for name in NAMES[:2]
            ]
            data = "\n".join(json.dumps(line) for line in lines).encode()
            file = api.files.create(file=("lines.jsonl", data), purpose="batch")
            batch = api.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
            until(lambda: api.batches.retrieve(batch.id).status == "completed", "the batch does not end")
            output = api.batches.retrieve(batch.id).output_file_id
            assert output is not None
            for line in api.files.content(output).text.splitlines():
                told = json.loads(line)
                answer = told["response"]["body"]
                name = told["custom_id"].rpartition("-")[0]
                assert (answer["model"], answer["choices"][0]["text"]) == expected[name]

    def test_who_leaves_while_waiting_causes_no_swap(self, folder: Path) -> None:
        with served(folder, "--swap-after-s", "3") as (server, http):
            body = {"model": "tiny-a", "prompt": "Once", "max_tokens": 900, "ignore_eos": True, "stream": True}
            with http.stream("POST", "/v1/completions", json=body):
                with pytest.raises(httpx.ReadTimeout):
                    http.post("/v1/completions", json={"model": "tiny-b", "prompt": "x"}, timeout=0.5)
                until(lambda: http.get("/v1/queue").json()["waiting"] == 0, "who has left still waits")
            assert says(http, "any")[0] == "tiny-a"
            assert not [line for line in server.log if "swapping to" in line]


def long_chat(http: httpx.Client, model: str) -> tuple[str, int]:
    """What is said to a long prompt, and how many of its tokens were at hand."""
    prompt = "It begins so, and it goes on and on for ever. " * 9
    body = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    return answer.json()["choices"][0]["text"], usage["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.skipif(sys.platform != "linux", reason="moves the cache folder by XDG's variable")
class TestChats:
    def test_those_of_a_model_that_left_are_there_when_it_returns(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        with served(folder, "--swap-after-s", "0", "--cache-disk", "64") as (_, http):
            first = {name: long_chat(http, name) for name in ("tiny-a", "tiny-b")}
            assert [cached for _, cached in first.values()] == [0, 0], "a chat of another model was taken"
            for name, (text, _) in first.items():
                again, cached = long_chat(http, name)
                assert cached > 256
                assert again == text

    def test_a_disk_that_is_full_costs_the_chat_and_nothing_else(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        with contextlib.ExitStack() as stack:
            with small_files():
                _, http = stack.enter_context(
                    served(folder, "--swap-after-s", "0", "--cache-disk", "64", "--cache-ram", "0")
                )
            first = {name: long_chat(http, name) for name in ("tiny-a", "tiny-b")}
            assert {name: long_chat(http, name) for name in first} == first
            assert [cached for _, cached in first.values()] == [0, 0]
            assert states(http)["tiny-b"] == "loaded"
        assert list(tmp_path.rglob("*.npz")) == []


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """Processes that are started meanwhile cannot write a file beyond some kilobytes, as where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestKinds:
    def test_models_for_vectors_and_scores_are_models_like_others(self, folder: Path, tmp_path: Path) -> None:
        models = tmp_path / "models"
        models.mkdir()
        shutil.copy(folder / "tiny-a.gguf", models)
        write_tiny_bert(models / "vectors.gguf")
        write_tiny_bert(models / "scores.gguf", "rank")
        # Their context is smaller than that of the others.
        arguments = ("--models-dir", str(models), "-m", str(models / "tiny-a.gguf"), "--swap-after-s", "0")
        with live_server(*arguments, "--flash-attn", "off") as server, client(server) as http:
            text = says(http, "tiny-a")
            answer = http.post("/v1/embeddings", json={"model": "vectors", "input": "one two"})
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == "vectors"
            assert len(answer.json()["data"][0]["embedding"]) > 1
            ranked = http.post("/v1/rerank", json={"model": "scores", "query": "one", "documents": ["one", "two"]})
            assert ranked.status_code == 200, ranked.text
            assert len(ranked.json()["results"]) == 2
            refused = http.post("/v1/completions", json={"model": "any", "prompt": "x"})
            assert "embedding model" in error_of(refused, 400)["message"]
            assert says(http, "tiny-a") == text


class TestKept:
    """A model for vectors stays loaded beside two that are swapped."""

    @pytest.fixture
    def kept(self, folder: Path, tmp_path: Path) -> Iterator[tuple[LiveServer, httpx.Client]]:
        write_tiny_bert(tmp_path / "vectors.gguf")
        config = tmp_path / "kept.toml"
        config.write_text(f"""
            [context]
            ctx_size = 1024
            parallel = 1
            flash_attn = "off"
            [pool]
            models_dir = "{folder}"
            swap_after_s = 0
            [models.vectors]
            model = "{tmp_path / "vectors.gguf"}"
            keep_loaded = true
            ctx_size = 64
            """)
        with live_server("--config", str(config)) as server, client(server) as http:
            yield server, http

    def test_its_requests_wait_for_no_swap_and_cause_none(self, kept: tuple[LiveServer, httpx.Client]) -> None:
        server, http = kept
        assert states(http) == {"vectors": "loaded", "tiny-a": "loaded", "tiny-b": "unloaded", "tiny-c": "unloaded"}
        first = vectors(http)
        during: list[tuple[list[float], dict[str, str]]] = []
        with ThreadPoolExecutor() as threads:
            asked = threads.submit(says, http, "tiny-b")
            while not asked.done():
                during.append((vectors(http), states(http)))
        assert asked.result()[0] == "tiny-b"
        assert all(one == first for one, _ in during)
        assert any(state["tiny-b"] == "loading" for _, state in during), "nothing was embedded during the swap"
        assert {state["vectors"] for _, state in during} == {"loaded"}
        assert says(http, "any")[0] == "tiny-b"
        ps = [one["name"] for one in http.get("/api/ps").json()["models"]]
        assert ps == ["tiny-b", "vectors"]
        assert sum("swapping to" in line for line in server.log) == 1

    def test_a_crash_of_it_ends_nothing_of_the_other(self, kept: tuple[LiveServer, httpx.Client]) -> None:
        server, http = kept
        first = vectors(http)
        having = [one for one in server.children() if any("vectors.gguf" in part.path for part in one.memory_maps())]
        # A text process has its file mapped too.
        stays = max(having, key=lambda child: child.memory_info().rss)
        body = {"model": "tiny-a", "prompt": "Once", "max_tokens": 600, "stream": True, "ignore_eos": True}
        with http.stream("POST", "/v1/completions", json=body) as reply:
            lines = reply.iter_lines()
            next(lines)
            stays.kill()
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert events[-1]["choices"][0]["finish_reason"] == "length", "the stream was cut"
        until(lambda: http.get("/health").json()["beside"] == {"ready": 1}, "it does not come back")
        assert vectors(http) == first
        assert [line for line in server.log if "engine" in line and "ended unexpectedly" in line]

    def test_one_that_generates_stays_too_and_its_answers_end_before_the_server_does(
        self, folder: Path, tmp_path: Path
    ) -> None:
        config = tmp_path / "kept.toml"
        config.write_text(f"""
            [pool]
            models_dir = "{folder}"
            [models.tiny-a]
            keep_loaded = true
            """)
        with live_server("--config", str(config), *FLAGS) as server, client(server) as http:
            assert states(http) == {"tiny-a": "loaded", "tiny-b": "loaded", "tiny-c": "unloaded"}
            assert says(http, "any")[0] == "tiny-b"
            body = {"model": "tiny-a", "prompt": "Once", "max_tokens": 200, "stream": True, "ignore_eos": True}
            with http.stream("POST", "/v1/completions", json=body) as reply:
                lines = reply.iter_lines()
                next(lines)
                stopping = threading.Thread(target=server.stop)
                stopping.start()
                events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
            stopping.join(WAIT_S)
        assert {event["model"] for event in events} == {"tiny-a"}
        assert events[-1]["choices"][0]["finish_reason"] == "length", "the stream was cut"
        assert server.exit_code == 0


def vectors(http: httpx.Client) -> list[float]:
    answer = http.post("/v1/embeddings", json={"model": "vectors", "input": "one two"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "vectors"
    vector: list[float] = answer.json()["data"][0]["embedding"]
    return vector


class TestClients:
    def test_openais_lists_them_and_chooses_one(self, folder: Path) -> None:
        with (
            served(folder, "--swap-after-s", "0") as (server, _),
            httpx.Client(trust_env=False, timeout=ANSWER_S) as own,
        ):
            api = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=own, timeout=WAIT_S)
            assert [one.id for one in api.models.list()] == list(NAMES)
            answer = api.completions.create(model="tiny-b", prompt="Once", max_tokens=4, temperature=0)
            assert answer.model == "tiny-b"

    def test_ollamas_lists_them_and_chooses_one(self, folder: Path) -> None:
        ollama = pytest.importorskip("ollama")
        with served(folder, "--swap-after-s", "0") as (server, _):
            api = ollama.Client(host=server.url, trust_env=False, timeout=WAIT_S)
            assert [one.model for one in api.list().models] == list(NAMES)
            assert [one.model for one in api.ps().models] == ["tiny-a"]
            assert api.show("tiny-c").details.family == "llama"
            options = {"num_predict": 4, "temperature": 0}
            chat = api.chat("tiny-b", [{"role": "user", "content": "Hi"}], options=options)
            assert chat.model == "tiny-b"
            assert chat.load_duration > 0
            parts = list(api.generate("tiny-c", "Once", options=options, stream=True, raw=True))
            assert {part.model for part in parts} == {"tiny-c"}
            assert parts[-1].done
            assert [one.model for one in api.ps().models] == ["tiny-c"]
            api._client.close()

    def test_llama_servers_router_loads_and_unloads(self, folder: Path) -> None:
        with served(folder, "--no-models-autoload") as (_, http):
            refused = http.post("/v1/completions", json={"model": "tiny-b", "prompt": "x"})
            assert error_of(refused, 403)["code"] == "model_not_loaded"
            assert http.post("/models/load", json={"model": "tiny-b"}).json() == {"success": True}
            until(lambda: states(http)["tiny-b"] == "loaded", "it is not loaded")
            assert says(http, "tiny-b")[0] == "tiny-b"
            assert http.post("/models/unload", json={"model": "tiny-b"}).json() == {"success": True}
            until(lambda: set(states(http).values()) == {"unloaded"}, "it is not unloaded")
            assert says(http, "any")[0] == "tiny-b"
            assert error_of(http.post("/models/load", json={"model": "nothing.gguf"}), 400)["param"] == "model"

    def test_our_own_route_tells_the_steps_and_takes_settings(self, folder: Path) -> None:
        with served(folder) as (_, http):
            events = parse_events(http.post("/v1/models/load", json={"model": "tiny-c", "ctx_size": 256}).text)
            assert events[-1]["status"] == "ready"
            assert (events[-1]["model"]["id"], events[-1]["model"]["meta"]["n_ctx"]) == ("tiny-c", 256)
            assert states(http)["tiny-c"] == "loaded"


class TestLimits:
    def test_another_model_gives_a_key_no_new_tokens(self, folder: Path) -> None:
        with served(folder, "--swap-after-s", "0", "--tokens-per-minute-per-key", "10", "--api-key", "secret") as (
            _,
            http,
        ):
            http.headers["Authorization"] = "Bearer secret"
            body = {"prompt": "Once", "max_tokens": 30, "ignore_eos": True}
            assert http.post("/v1/completions", json={**body, "model": "tiny-a"}).status_code == 200
            for name in ("tiny-a", "tiny-b"):
                error = error_of(http.post("/v1/completions", json={**body, "model": name}), 429)
                assert "tokens per minute" in error["message"]
            assert states(http)["tiny-b"] == "loaded"


class TestFailures:
    def test_a_model_that_does_not_load_leaves_the_old_one(self, folder: Path, tmp_path: Path) -> None:
        models = tmp_path / "models"
        shutil.copytree(folder, models)
        with served(models, "--swap-after-s", "0", "--swap-retry-s", "3") as (server, http):
            first = says(http, "tiny-a")
            good = (models / "tiny-b.gguf").read_bytes()
            (models / "tiny-b.gguf").write_bytes(good[:-1000])
            error = error_of(http.post("/v1/completions", json={"model": "tiny-b", "prompt": "x"}), 503)
            assert error["code"] == "model_load_failed"
            assert "tiny-b.gguf" in error["message"]
            assert str(tmp_path) not in error["message"]
            assert says(http, "tiny-a") == says(http, "any") == first
            status = http.get("/v1/models/tiny-b").json()["status"]
            assert status["failed"]
            again = http.post("/v1/completions", json={"model": "tiny-b", "prompt": "x"})
            assert "not tried again for" in error_of(again, 503)["message"]
            (models / "tiny-b.gguf").write_bytes(good)
            time.sleep(3)
            assert says(http, "tiny-b")[0] == "tiny-b"
            assert "Traceback" not in "".join(server.log)

    def test_an_engine_that_is_killed_while_it_loads(self, folder: Path) -> None:
        with served(folder, "--swap-after-s", "0", "--swap-retry-s", "1") as (server, http):
            first = says(http, "tiny-a")
            seen = {child.pid for child in server.children()}
            engine = None
            with ThreadPoolExecutor() as threads:
                asked = threads.submit(http.post, "/v1/completions", json={"model": "tiny-b", "prompt": "x"})
                while engine is None and not asked.done():
                    new = [child for child in server.children() if child.pid not in seen]
                    engine = next((child for child in new if name_of(child) == NAME), None)
                    time.sleep(0.01)
                if engine is not None:
                    engine.kill()
                answer = asked.result()
            assert engine is not None, "there was no engine to kill"
            error = error_of(answer, 503)
            assert error["code"] == "model_load_failed"
            assert "the engine process ended unexpectedly" in error["message"]
            until(lambda: "loading" not in states(http).values(), "the server does not come back")
            assert says(http, "tiny-a") == first
            time.sleep(1)
            assert says(http, "tiny-b")[0] == "tiny-b"
