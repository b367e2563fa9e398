"""Two real servers with the demo model behind one ingress, through the real clients of three APIs."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import anthropic
import httpx
import ollama
import openai
import psutil
import pytest

from ggufd.cluster.ingress.places import PlaceMemory
from ggufd.cluster.routing.hints import hint_of
from ggufd.cluster.routing.router import Router
from tests.support.fakes.ingress_server import IngressServer, ingress_server
from tests.support.programs.live_server import LiveServer, live_server

pytestmark = pytest.mark.e2e

TOKEN = "a-token-of-a-cluster-of-two-servers-only"
WAIT_S = 120


class Cluster(NamedTuple):
    """Servers by name, and the ingress before them."""

    servers: dict[str, LiveServer]
    ingress: IngressServer

    @property
    def url(self) -> str:
        return self.ingress.url


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    token_file = tmp_path_factory.mktemp("cluster") / "token"
    token_file.write_text(TOKEN)
    token_file.chmod(0o600)
    options = ("--peer-token-file", str(token_file), "--parallel", "2", "--ctx-size", "4096")
    with ExitStack() as stack:
        servers = {}
        for name in "ab":
            folder: Path = tmp_path_factory.mktemp(name)
            batches = ("--batch-dir", str(folder))
            servers[name] = stack.enter_context(live_server(*options, *batches))
        urls = {name: server.url for name, server in servers.items()}
        ingress = stack.enter_context(ingress_server(urls, router=Router(), token=TOKEN, hint_of=hint_of))
        yield Cluster(servers, ingress)


def client_of(url: str, **headers: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=WAIT_S, default_headers=headers)


def asked(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[openai.OpenAI]:
    with client_of(cluster.url) as made:
        yield made


def said(client: openai.OpenAI, text: str, n: int = 12) -> str:
    stream = client.chat.completions.create(model="any", messages=asked(text), max_tokens=n, temperature=0, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_openai_clients_read_the_words_that_a_server_writes(cluster: Cluster, client: openai.OpenAI) -> None:
    text = "Name three colours."
    through = said(client, text)
    assert len(through) > 5
    direct = set()
    for server in cluster.servers.values():
        with client_of(server.url, **{"x-ggufd-peer": TOKEN}) as other:
            direct.add(said(other, text))
    assert through in direct


def test_a_server_of_a_cluster_answers_nobody_else(cluster: Cluster) -> None:
    with client_of(cluster.servers["a"].url) as stranger, pytest.raises(openai.AuthenticationError):
        said(stranger, "Hello")


def test_anthropics_client_reads_a_stream_and_an_answer(cluster: Cluster) -> None:
    with anthropic.Anthropic(base_url=cluster.url, api_key="none", max_retries=0, timeout=WAIT_S) as client:
        _ask_anthropic(client)


def _ask_anthropic(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="any", max_tokens=8, messages=asked("Say a word.")) as stream:
        streamed = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert streamed
    assert message.usage.output_tokens > 0
    whole = client.messages.create(model="any", max_tokens=8, messages=asked("Say a word."))
    assert whole.content[0].type == "text"
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model="any", max_tokens=-3, messages=asked("Say a word."))


def test_ollamas_client_reads_a_stream_and_the_list(cluster: Cluster) -> None:
    with contextlib.closing(ollama.Client(host=cluster.url, timeout=WAIT_S)) as client:
        _ask_ollama(client)


def _ask_ollama(client: ollama.Client) -> None:
    options = {"num_predict": 8}
    parts = list(client.chat(model="any", messages=asked("Say a word."), stream=True, options=options))
    assert parts[-1].done
    assert "".join(part.message.content or "" for part in parts)
    assert len(client.list().models) == 1


def test_a_chat_of_six_turns_stays_warm(cluster: Cluster, client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "system", "content": "You tell stories. " * 20}]
    before = 0
    for turn in range(6):
        messages.append({"role": "user", "content": f"Go on, part {turn}."})
        answer = client.chat.completions.create(model="any", messages=messages, max_tokens=8, temperature=0)
        usage = answer.usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        cached = usage.prompt_tokens_details.cached_tokens or 0
        assert cached >= 0.9 * before, f"turn {turn}"
        before = usage.prompt_tokens
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})


def test_chats_are_spread_over_both(cluster: Cluster, client: openai.OpenAI) -> None:
    for number in range(12):
        said(client, f"Chat number {number}.", n=1)
    page = httpx.get(f"{cluster.url}/metrics", timeout=WAIT_S, trust_env=False).text
    served = {
        name: sum(
            float(line.rpartition(" ")[2])
            for line in page.splitlines()
            if line.startswith("ggufd_requests_total") and f'replica="{name}"' in line
        )
        for name in "ab"
    }
    assert min(served.values()) > 0


def test_responses_go_on_from_each_other(cluster: Cluster, client: openai.OpenAI) -> None:
    for _ in range(3):
        first = client.responses.create(model="any", input="Say a word.", max_output_tokens=8)
        second = client.responses.create(
            model="any", input="Another.", previous_response_id=first.id, max_output_tokens=8
        )
        assert client.responses.retrieve(second.id).previous_response_id == first.id
        client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(first.id)


def test_files_are_found_by_their_ids_and_listed_together(cluster: Cluster, client: openai.OpenAI) -> None:
    line = {
        "custom_id": "x",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "any", "messages": asked("Hi"), "max_tokens": 2},
    }
    made = [client.files.create(file=("lines.jsonl", json.dumps(line).encode()), purpose="batch") for _ in range(3)]
    assert {one.id for one in client.files.list()} >= {one.id for one in made}
    cluster.ingress.ingress._places.memory = PlaceMemory()
    assert client.files.content(made[0].id).content == json.dumps(line).encode()
    batch = client.batches.create(input_file_id=made[0].id, endpoint="/v1/chat/completions", completion_window="24h")
    assert client.batches.retrieve(batch.id).input_file_id == made[0].id


def test_a_resumable_stream_goes_on_wherever_it_is(cluster: Cluster) -> None:
    for number in range(3):
        body = {"prompt": f"Story {number}.", "max_tokens": 20, "stream": True, "resumable": True, "temperature": 0}
        with httpx.stream("POST", f"{cluster.url}/v1/completions", json=body, timeout=WAIT_S) as answer:
            name = answer.headers["x-ggufd-stream"]
            next(answer.iter_raw())
        again = httpx.get(f"{cluster.url}/v1/streams/{name}", timeout=WAIT_S, trust_env=False)
        assert again.text.rstrip().endswith("data: [DONE]")
        assert again.text.startswith("id: 0\n")
        listed = httpx.get(f"{cluster.url}/v1/streams", timeout=WAIT_S, trust_env=False).json()
        assert name in {one["id"] for one in listed["data"]}


def test_kobolds_abort_ends_what_its_genkey_started(cluster: Cluster) -> None:
    body = {"prompt": "Once", "max_length": 3000, "genkey": "KCPP1", "ignore_eos": True}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        url = f"{cluster.url}/api/extra/generate/stream"
        answer = pool.submit(lambda: httpx.post(url, json=body, timeout=WAIT_S, trust_env=False).text)
        check = f"{cluster.url}/api/extra/generate/check"
        _wait_for(lambda: httpx.post(check, json={"genkey": "KCPP1"}, timeout=WAIT_S).json()["results"][0]["text"])
        abort = httpx.post(f"{cluster.url}/api/extra/abort", json={"genkey": "KCPP1"}, timeout=WAIT_S).json()
        assert abort == {"success": True, "n_aborted": 1}
        assert "event: message" in answer.result(WAIT_S)
        other = httpx.post(f"{cluster.url}/api/extra/abort", json={"genkey": "KCPP2"}, timeout=WAIT_S).json()
        assert other == {"success": False, "n_aborted": 0}


def test_the_live_view_shows_both(cluster: Cluster) -> None:
    with httpx.stream("GET", f"{cluster.url}/v1/live", timeout=WAIT_S, trust_env=False) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        told = [json.loads(next(lines)[6:]) for _ in range(3)]
    assert [one["object"] for one in told] == ["live.snapshot", "live.update", "live.update"]
    assert [one["id"] for one in told[-1]["server"]["replicas"]] == ["a", "b"]
    assert told[-1]["totals"]["slots"] == 4


def test_a_request_is_ended_by_its_name_in_the_queue(cluster: Cluster, client: openai.OpenAI) -> None:
    def endless() -> str:
        try:
            return said(client, "Count.", n=3000)
        except openai.APIError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(endless)
        name = _wait_for(lambda: [one["id"] for one in _queue(cluster)["data"]])[0]
        ended = httpx.delete(f"{cluster.url}/v1/requests/{name}", timeout=WAIT_S, trust_env=False)
        assert ended.status_code == 200
        assert "This request was ended" in answer.result(WAIT_S)


def test_nothing_that_waits_is_lost_when_a_server_is_killed(cluster: Cluster, client: openai.OpenAI) -> None:
    """The last test: it leaves one server."""

    def ask(number: int) -> tuple[str, str]:
        text = ""
        try:
            stream = client.chat.completions.create(
                model="any",
                messages=asked(f"Tell of the number {number}."),
                max_tokens=60,
                temperature=0,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            for chunk in stream:
                text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        except openai.APIError as error:
            return text, str(error)
        return text, ""

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(ask, number) for number in range(12)]
        _wait_for(lambda: _queue(cluster)["waiting"] >= 4)
        processes = [psutil.Process(cluster.servers["a"].pid), *cluster.servers["a"].children()]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        told = [answer.result(WAIT_S) for answer in answers]
    # A server has two slots: no more than these can have begun.
    assert sum(error != "" for _, error in told) <= 2
    assert {error[:20] for _, error in told} <= {"", "The answer broke off"}
    assert all(text for text, _ in told)
    assert httpx.get(f"{cluster.url}/health", timeout=WAIT_S, trust_env=False).json()["replicas"]["a"] == "gone"
    assert said(client, "And on it goes.", n=2)


def _queue(cluster: Cluster) -> Any:
    return httpx.get(f"{cluster.url}/v1/queue", timeout=WAIT_S, trust_env=False).json()


def _wait_for(find: Any) -> Any:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if found := find():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come")
