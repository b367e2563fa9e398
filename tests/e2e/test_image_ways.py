"""The real server with a projector whose images say words: every way in answers as to the words typed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from ggufd.images.encoder.worker import NAME
from tests.support.models.image_files import PATCHES, data_uri, patch_file
from tests.support.models.projector_file import FAST, SLOW, write_projector
from tests.support.programs.live_server import LiveServer, live_server

WORDS = tuple("abcdefgh")
N_ANSWER = 12
GREEDY = {"temperature": 0, "repeat_penalty": 1}
RAW_LIMIT = {"n_predict": N_ANSWER}


class Image(NamedTuple):
    """An image that says these words, again and again, once a patch."""

    words: str

    def data(self, n_patches: int = FAST.n_rows) -> bytes:
        columns = int(n_patches**0.5)
        return patch_file([PATCHES[WORDS.index(word)] for word in self.typed(n_patches)], columns=columns)

    @property
    def url(self) -> str:
        return data_uri(self.data())

    @property
    def base64(self) -> str:
        return self.url.partition(",")[2]

    def typed(self, n_patches: int = FAST.n_rows) -> str:
        return (self.words * n_patches)[:n_patches]


Content = Sequence[str | Image]

RED, SKY, ROW = Image("b"), Image("fg"), Image("cdacbhg")

ARRANGEMENTS: Mapping[str, Content] = {
    "last": ("Look: ", SKY),
    "first": (ROW, " what is it?"),
    "alone": (RED,),
    "in the middle": ("One ", ROW, " of all"),
    "side by side": (SKY, RED, " which?"),
    "twice": (SKY, " and", ROW, " and", SKY, " or"),
    "every word": (Image("abcdefgh"), " x"),
}


def typed(content: Content) -> str:
    return "".join(part if isinstance(part, str) else part.typed() for part in content)


def openai(content: Content) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": part.url}}
        for part in content
    ]


def responses(content: Content) -> list[dict[str, Any]]:
    return [
        {"type": "input_text", "text": part}
        if isinstance(part, str)
        else {"type": "input_image", "image_url": part.url}
        for part in content
    ]


def anthropic(content: Content) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": part.base64}}
        for part in content
    ]


def media(content: Content) -> dict[str, Any]:
    """llama-server's prompt with markers."""
    text = "".join(part if isinstance(part, str) else "<__media__>" for part in content)
    return {"prompt_string": text, "multimodal_data": [part.base64 for part in content if isinstance(part, Image)]}


@pytest.fixture(scope="module")
def projector(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_projector(tmp_path_factory.mktemp("projector") / "mmproj.gguf", tiny_model, WORDS)


@pytest.fixture(scope="module")
def server(tiny_model: Path, projector: Path) -> Iterator[LiveServer]:
    arguments = ("--model", str(tiny_model), "--mmproj", str(projector), "--ctx-size", "4096", "--parallel", "4")
    with live_server(*arguments, "--flash-attn", "on") as server:
        yield server


class Client:
    """A client of every API family, which wants whole answers, or the texts of streams put together."""

    def __init__(self, server: LiveServer) -> None:
        self.http = httpx.Client(base_url=server.url, timeout=400, trust_env=False)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        response = self.http.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def events(self, path: str, body: Mapping[str, Any]) -> list[Any]:
        """The data of a stream of events, or of lines of JSON."""
        response = self.http.post(path, json={**body, "stream": True})
        assert response.status_code == 200, response.text
        lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line[:1] in ("d", "{")]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    def chat(self, content: Any, *, streams: bool = False, **more: Any) -> str:
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": N_ANSWER, **GREEDY, **more}
        if not streams:
            text: str = self.post("/v1/chat/completions", body)["choices"][0]["message"]["content"]
            return text
        events = self.events("/v1/chat/completions", body)
        return "".join(c["delta"].get("content") or "" for event in events for c in event["choices"])

    def respond(self, content: Any, *, streams: bool = False) -> str:
        body = {"input": [{"role": "user", "content": content}], "max_output_tokens": N_ANSWER, **GREEDY}
        if not streams:
            text: str = self.post("/v1/responses", body)["output"][0]["content"][0]["text"]
            return text
        events = self.events("/v1/responses", body)
        return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")

    def message(self, content: Any, *, streams: bool = False) -> str:
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": N_ANSWER, **GREEDY}
        if not streams:
            return "".join(block["text"] for block in self.post("/v1/messages", body)["content"])
        events = self.events("/v1/messages", body)
        return "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")

    def complete(self, prompt: Any, *, streams: bool = False) -> str:
        body = {"prompt": prompt, **RAW_LIMIT, **GREEDY}
        if not streams:
            text: str = self.post("/completion", body)["content"]
            return text
        return "".join(event["content"] for event in self.events("/completion", body))

    def kobold(self, *, streams: bool = False, **body: Any) -> str:
        body = {**body, "max_length": N_ANSWER, **GREEDY}
        if not streams:
            text: str = self.post("/api/v1/generate", body)["results"][0]["text"]
            return text
        return "".join(event["token"] for event in self.events("/api/extra/generate/stream", body))

    def ollama(self, path: str, *, streams: bool = False, **body: Any) -> str:
        body = {**body, "stream": streams, "options": {"num_predict": N_ANSWER, **GREEDY}}
        lines = self.events(path, body) if streams else [self.post(path, body)]
        return "".join(line.get("response") or line.get("message", {}).get("content", "") for line in lines)


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[Client]:
    client = Client(server)
    with client.http:
        yield client


@pytest.mark.parametrize("name", ARRANGEMENTS)
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
def test_an_arrangement_is_answered_as_its_words_are(client: Client, name: str, streams: bool) -> None:
    content = ARRANGEMENTS[name]
    expected = client.chat(typed(content))
    assert len(expected) >= 1
    for _ in range(2):  # the second time its prefix is cached
        assert client.chat(openai(content), streams=streams) == expected
        assert client.respond(responses(content), streams=streams) == expected
        assert client.message(anthropic(content), streams=streams) == expected
    raw = client.complete(typed(content))
    assert client.complete(media(content), streams=streams) == raw


def test_other_images_are_answered_otherwise(client: Client) -> None:
    answers = {client.chat(openai(content)) for content in ARRANGEMENTS.values()}
    assert len(answers) > len(ARRANGEMENTS) // 2


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
def test_images_before_the_text_are_answered_as_their_words_are(client: Client, streams: bool) -> None:
    words, images = " what is it?", [SKY, ROW]
    sent = [image.base64 for image in images]
    content: Content = (*images, words)
    expected = client.chat(typed(content))
    message = {"role": "user", "content": words, "images": sent}
    assert client.ollama("/api/chat", messages=[message], streams=streams) == expected
    assert client.ollama("/api/generate", prompt=words, images=sent, streams=streams) == expected
    raw = client.complete(typed(content))
    assert client.ollama("/api/generate", prompt=words, images=sent, raw=True, streams=streams) == raw
    assert client.kobold(prompt=words, images=sent, streams=streams) == raw
    remembered = client.complete("Memory." + typed(content))
    assert client.kobold(memory="Memory.", prompt=words, images=sent, streams=streams) == remembered


def test_the_forms_of_captions_are_answered_as_the_words_are(client: Client) -> None:
    expected = client.chat(typed((SKY,)))
    forms: list[dict[str, Any]] = [{"content": []}, {}, {"content": ""}, {"content": None}]
    for form in forms:
        message = {"role": "user", "image_url": SKY.url, **form}
        body = {"messages": [message], "max_tokens": N_ANSWER, **GREEDY}
        assert client.post("/v1/chat/completions", body)["choices"][0]["message"]["content"] == expected


def test_images_of_every_role_and_turn_are_answered_as_their_words_are(client: Client) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}

    def answer(of: Callable[[Content], Any]) -> Any:
        messages = [
            {"role": "system", "content": of(("S ", RED))},
            {"role": "user", "content": of((SKY, " one"))},
            {"role": "assistant", "content": of(("A ", ROW))},
            {"role": "user", "content": of((ROW, " two"))},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": of(("seen ", SKY))},
        ]
        body = {"messages": messages, "max_tokens": N_ANSWER, **GREEDY}
        return client.post("/v1/chat/completions", body)

    by_image, by_words = answer(openai), answer(typed)
    assert by_image["choices"][0]["message"] == by_words["choices"][0]["message"]
    assert by_image["usage"]["prompt_tokens"] == by_words["usage"]["prompt_tokens"]
    assert by_image["usage"]["prompt_tokens_details"]["image_tokens"] == 5 * FAST.n_rows


def test_a_stored_response_is_continued_with_its_images(client: Client) -> None:
    def second(of: Callable[[Content], Any]) -> str:
        limits = {"max_output_tokens": N_ANSWER, **GREEDY}
        first = client.post("/v1/responses", {"input": [{"role": "user", "content": of((SKY, " one"))}], **limits})
        body = {"input": "two", "previous_response_id": first["id"], **limits}
        text: str = client.post("/v1/responses", body)["output"][0]["content"][0]["text"]
        return text

    assert second(responses) == second(typed)


def test_beside_others_each_is_answered_as_alone(client: Client) -> None:
    contents = [*ARRANGEMENTS.values()] * 2
    expected = [client.chat(typed(content)) for content in contents]
    with ThreadPoolExecutor(6) as threads:
        told = list(threads.map(lambda content: client.chat(openai(content)), contents))
    assert told == expected


def test_several_choices_share_the_image(client: Client) -> None:
    body = {"max_tokens": N_ANSWER, "n": 3, **GREEDY}
    answers = [
        client.post("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": content}]})
        for content in (openai((ROW, " what")), typed((ROW, " what")))
    ]
    texts = [[choice["message"]["content"] for choice in answer["choices"]] for answer in answers]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 1


def test_counts_are_those_of_the_prompt(client: Client) -> None:
    content = ARRANGEMENTS["twice"]
    messages = [{"role": "user", "content": openai(content)}]
    answer = client.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1})
    n_tokens = answer["usage"]["prompt_tokens"]
    assert client.post("/v1/chat/completions/input_tokens", {"messages": messages})["input_tokens"] == n_tokens
    assert client.post("/tokenize", {"messages": messages})["count"] == n_tokens
    assert client.post("/apply-template", {"messages": messages})["n_tokens"] == n_tokens
    items = [{"role": "user", "content": responses(content)}]
    assert client.post("/v1/responses/input_tokens", {"input": items})["input_tokens"] == n_tokens
    blocks = [{"role": "user", "content": anthropic(content)}]
    assert client.post("/v1/messages/count_tokens", {"messages": blocks})["input_tokens"] == n_tokens
    whole = client.post("/tokenize", {"content": media(content)})["tokens"]
    assert whole.count(-1) == 3 * FAST.n_rows
    plain = client.post("/tokenize", {"content": typed(content)})["tokens"]
    assert len(whole) == len(plain)


def test_a_changed_image_is_named_where_the_cache_is_explained(client: Client) -> None:
    words = "A longer text that both prompts begin with, "
    client.chat(openai((words, SKY, " so")))
    body = {"messages": [{"role": "user", "content": openai((words, ROW, " so"))}], "explain_cache": True}
    told = client.post("/v1/chat/completions", {**body, "max_tokens": 1})["cache"]["first_difference"]
    assert (told["message"], told["role"]) == (0, "user")
    assert told["image"].startswith("<image ")
    assert told["image"] in told["prompt"]
    assert told["cached"].startswith(told["prompt"].partition("<image")[0] + "<image ")
    assert told["image"] not in told["cached"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png;base64,AAAA", "image"),
        ("https://example.com/a.png", "--image-hosts"),
        ("file:///etc/passwd", "--media-path"),
        ("", "URL"),
    ],
)
def test_what_is_no_image_is_refused_by_its_place(client: Client, url: str, words: str) -> None:
    content = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": url}}]
    response = client.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "messages[0].content[1].image_url")
    assert words in error["message"]


def test_a_body_of_some_megabytes_is_taken(client: Client) -> None:
    padded = data_uri(ROW.data() + b"\0" * 6_000_000)
    content = [{"type": "image_url", "image_url": {"url": padded}}, {"type": "text", "text": " what"}]
    assert client.chat(content) == client.chat(typed((ROW, " what")))


# --- an encoding that takes seconds -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow_server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    path = write_projector(tmp_path_factory.mktemp("slow") / "mmproj.gguf", tiny_model, WORDS, slow=True)
    arguments = ("--model", str(tiny_model), "--mmproj", str(path), "--ctx-size", "8192", "--parallel", "2")
    with live_server(*arguments, "--flash-attn", "on") as server:
        yield server


@pytest.fixture(scope="module")
def slow_client(slow_server: LiveServer) -> Iterator[Client]:
    client = Client(slow_server)
    with client.http:
        yield client


def slow_content(image: Image) -> list[dict[str, Any]]:
    url = data_uri(image.data(SLOW.n_rows))
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": " what"}]


def processor_s(server: LiveServer) -> float:
    """Processor time of the encoder process."""
    (encoder,) = [child for child in server.children() if child.name() == NAME]
    return encoder.cpu_times().user


def test_others_are_answered_while_an_image_is_encoded(slow_client: Client) -> None:
    told: list[str] = []
    images = [Image(f"ab{word}") for word in WORDS[:3]]
    content = [part for image in images for part in slow_content(image)]
    asking = threading.Thread(target=lambda: told.append(slow_client.chat(content)))
    asking.start()
    n_answered = 0
    # No more than a few: on a busy machine they would take the encoder its time, which has the lower priority.
    while asking.is_alive() and n_answered < 3:
        slow_client.chat("hello", n=1)
        n_answered += asking.is_alive()
    asking.join()
    assert n_answered >= 2
    assert told == [slow_client.chat("".join(f"{image.typed(SLOW.n_rows)} what" for image in images))]


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
def test_a_client_that_leaves_stops_the_encoding(slow_server: LiveServer, slow_client: Client, streams: bool) -> None:
    before_s = processor_s(slow_server)
    slow_client.chat(slow_content(Image("hhe" if streams else "hhf")))
    each_s = processor_s(slow_server) - before_s
    images = [Image(f"{'g' if streams else 'h'}{one}{other}") for one in WORDS for other in WORDS[:5]]
    content = [part for image in images for part in slow_content(image)]
    body = {"messages": [{"role": "user", "content": content}], "stream": streams}
    before_s = processor_s(slow_server)
    with pytest.raises(httpx.ReadTimeout):
        slow_client.http.post("/v1/chat/completions", json=body, timeout=1)
    wait_idle(slow_server)
    assert processor_s(slow_server) - before_s < len(images) * each_s / 2


def wait_idle(server: LiveServer) -> None:
    """Wait until the encoder has nothing to do."""
    now_s, before_s = processor_s(server), -1.0
    while now_s - before_s > 0.02:
        time.sleep(2)
        now_s, before_s = processor_s(server), now_s
