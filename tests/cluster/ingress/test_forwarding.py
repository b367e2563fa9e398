"""Forwarding through a real ingress to paced replicas, over real sockets."""

from __future__ import annotations

import concurrent.futures
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from ggufd.cluster.routing.hints import hint_of
from tests.support.fakes.ingress_server import IngressServer, ingress_server
from tests.support.fakes.paced_replica import SHAPES, Death, PacedReplica, serving

STREAMS = ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/api/chat", "/api/generate"]
STREAMS += ["/api/extra/generate/stream", "/completion"]
PINGED = [path for path in STREAMS if not path.startswith(("/api/chat", "/api/generate"))]
WHOLE = [path for path in SHAPES if path != "/api/extra/generate/stream"]

Serve = Callable[..., IngressServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(*replicas: PacedReplica, **options: object) -> IngressServer:
            stack.enter_context(serving(*replicas))
            urls = {replica.name: replica.url for replica in replicas}
            return stack.enter_context(ingress_server(urls, **options))

        yield start


def post(url: str, path: str, body: object = None, **more: object) -> httpx.Response:
    sent = {"stream": True} if body is None else body
    return httpx.post(f"{url}{path}", json=sent, timeout=30, trust_env=False, **more)


def until(is_so: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if is_so():
            return True
        time.sleep(0.01)
    return False


def without_comments(body: bytes) -> bytes:
    return b"".join(line for line in body.splitlines(keepends=True) if not line.startswith(b":")).lstrip()


class TestWhatGoesThrough:
    @pytest.mark.parametrize("path", STREAMS)
    def test_a_stream_has_the_same_bytes_as_without_an_ingress(self, serve: Serve, path: str) -> None:
        replica = PacedReplica("a")
        server = serve(replica)
        direct, through = post(replica.url, path), post(server.url, path)
        assert through.content == direct.content
        assert b" a4" in through.content
        assert through.headers["content-type"] == direct.headers["content-type"]

    @pytest.mark.parametrize("path", WHOLE)
    def test_an_answer_at_once_is_the_same(self, serve: Serve, path: str) -> None:
        replica = PacedReplica("a")
        server = serve(replica)
        direct, through = post(replica.url, path, {"stream": False}), post(server.url, path, {"stream": False})
        assert through.content == direct.content
        assert "a0 a1 a2 a3 a4" in through.text

    def test_a_replica_is_told_the_request_as_it_came(self, serve: Serve) -> None:
        replica = PacedReplica("a", token="secret")
        server = serve(replica, token="secret")
        sent = {
            "authorization": "Bearer k",
            "x-forwarded-for": "1.2.3.4",
            "x-ggufd-peer": "guess",
            "x-custom": "kept",
            "connection": "close, x-hop",
            "x-hop": "dropped",
        }
        body = b'{"stream": true,  "odd":"\xc3\xa4"}'
        httpx.post(f"{server.url}/v1//chat%2Fx/?a=1&b=%2F", content=body, headers=sent, trust_env=False)
        (asked,) = replica.asked
        assert (asked.method, asked.target, asked.body) == ("POST", "/v1//chat%2Fx/?a=1&b=%2F", body)
        told = asked.headers
        assert (told["authorization"], told["x-custom"]) == ("Bearer k", "kept")
        assert (told["x-forwarded-for"], told["x-forwarded-proto"]) == ("127.0.0.1", "http")
        assert told["x-ggufd-peer"] == "secret"
        assert "x-hop" not in told
        assert told["host"] == server.url.removeprefix("http://")

    @pytest.mark.parametrize(("trusted", "told"), [(["127.0.0.1"], "1.2.3.4"), (["10.0.0.0/8"], "127.0.0.1")])
    def test_only_a_trusted_proxy_says_who_the_client_is(self, serve: Serve, trusted: list[str], told: str) -> None:
        replica = PacedReplica("a")
        server = serve(replica, trusted_proxies=trusted)
        post(server.url, "/v1/chat/completions", headers={"x-forwarded-for": "1.2.3.4", "x-forwarded-proto": "https"})
        assert replica.asked[0].headers["x-forwarded-for"] == told
        assert replica.asked[0].headers["x-forwarded-proto"] == ("https" if told == "1.2.3.4" else "http")

    def test_a_replica_is_told_which_chat_it_is_and_nothing_that_a_client_claims(self, serve: Serve) -> None:
        replica = PacedReplica("a")
        server = serve(replica, hint_of=hint_of)
        body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}
        post(server.url, "/v1/chat/completions", body, headers={"x-ggufd-chat": "0" * 32, "x-ggufd-odd": "1"})
        told = replica.asked[0].headers
        assert (
            told["x-ggufd-chat"]
            == hint_of("POST", "/v1/chat/completions", {}, replica.asked[0].body, "127.0.0.1").chat.hex()
        )
        assert "x-ggufd-odd" not in told

    def test_a_replica_that_has_another_token_is_passed_over(self, serve: Serve) -> None:
        wrong = {("POST", "/v1/chat/completions"): {}}
        server = serve(PacedReplica("a", token="other", answers=wrong), PacedReplica("b", token="mine"), token="mine")
        assert " b4" in post(server.url, "/v1/chat/completions").text

    def test_headers_are_told_once(self, serve: Serve) -> None:
        server = serve(PacedReplica("a"))
        answer = post(server.url, "/v1/chat/completions")
        names = [name.lower() for name, _ in answer.headers.multi_items()]
        assert len(names) == len(set(names))
        assert answer.headers["x-paced"] == "a"
        assert "2024" not in answer.headers["date"]
        assert answer.headers.get("server") != "paced"

    def test_what_the_server_around_it_tells_is_told_by_it_alone(self, serve: Serve) -> None:
        server = serve(PacedReplica("a"), told_by_server=("X-Paced",))
        assert "x-paced" not in post(server.url, "/v1/chat/completions").headers

    def test_a_request_without_an_id_gets_one_and_keeps_its_own(self, serve: Serve) -> None:
        replica = PacedReplica("a")
        server = serve(replica)
        post(server.url, "/v1/chat/completions")
        post(server.url, "/v1/chat/completions", headers={"x-request-id": "mine-1"})
        first, second = (asked.headers["x-request-id"] for asked in replica.asked)
        assert len(first) == 16
        assert second == "mine-1"

    def test_comments_are_sent_on_while_a_request_waits(self, serve: Serve) -> None:
        server = serve(PacedReplica("a", first_s=6.0, ping_s=0.05))
        begun = time.monotonic()
        with httpx.stream(
            "POST", f"{server.url}/v1/messages", json={"stream": True}, trust_env=False, timeout=60
        ) as answer:
            pieces = answer.iter_raw()
            first = next(pieces)
            heard_s = time.monotonic() - begun
            rest = b"".join(pieces)
        assert first.startswith(b"event: ping")
        assert heard_s < 5
        assert rest.index(b"message_start") < rest.index(b" a0")

    def test_a_client_that_leaves_is_gone_for_the_replica_at_once(self, serve: Serve) -> None:
        replica = PacedReplica("a", n_tokens=10_000, pace_s=0.01)
        server = serve(replica)
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json={"stream": True}, timeout=60) as answer:
            next(answer.iter_raw())
        assert until(lambda: replica.n_left == 1)
        assert replica.n_open == 0
        assert until(lambda: server.router.open["a"] == 0)

    def test_the_router_is_told_how_long_generations_took_and_of_nothing_else(self, serve: Serve) -> None:
        models = {("GET", "/v1/models"): {"data": []}}
        server = serve(
            PacedReplica("a", refuses=1.0, answers=models),
            PacedReplica("b", n_tokens=10, pace_s=0.02),
            hint_of=hint_of,
        )
        assert httpx.get(f"{server.url}/v1/models", trust_env=False).json() == {"data": []}
        asked = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}
        assert " b9" in post(server.url, "/v1/chat/completions", asked).text
        assert until(lambda: server.router.generations_s != [] and not any(server.router.open.values()))
        assert len(server.router.generations_s) == 1
        assert server.router.generations_s[0] >= 0.2

    def test_a_client_that_leaves_while_it_waits_is_gone_too(self, serve: Serve) -> None:
        replica = PacedReplica("a", hangs=True)
        server = serve(replica)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/chat/completions", json={}, timeout=0.5, trust_env=False)
        assert until(lambda: replica.n_left == 1)

    def test_a_slow_reader_holds_up_the_replica_and_fills_no_memory(self, serve: Serve) -> None:
        replica = PacedReplica("a", n_tokens=2000, pace_s=0.0, padding=50_000)
        server = serve(replica)
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json={"stream": True}, timeout=60) as answer:
            next(answer.iter_raw(100))
            written = -1
            while written != replica.n_written:
                written = replica.n_written
                time.sleep(0.3)
            assert written < 1000


class TestBodies:
    def test_a_body_over_the_limit_is_refused_in_the_shape_of_its_api(self, serve: Serve) -> None:
        replica = PacedReplica("a")
        server = serve(replica, max_body_bytes=1000)
        openai = post(server.url, "/v1/chat/completions", {"x": "y" * 2000})
        anthropic = post(server.url, "/v1/messages", {"x": "y" * 2000})
        assert (openai.status_code, anthropic.status_code) == (413, 413)
        assert openai.json()["error"]["code"] == "payload_too_large"
        assert anthropic.json()["type"] == "error"
        assert anthropic.json()["error"]["type"] == "request_too_large"
        assert openai.headers["x-request-id"]
        assert replica.asked == []

    def test_a_body_without_a_length_is_bounded_too(self, serve: Serve) -> None:
        server = serve(PacedReplica("a"), max_body_bytes=1000)
        pieces = (b"x" * 100 for _ in range(50))
        answer = httpx.post(f"{server.url}/v1/chat/completions", content=pieces, trust_env=False)
        assert answer.status_code == 413

    def test_a_file_is_sent_on_as_it_comes(self, serve: Serve) -> None:
        replica = PacedReplica("a", answers={("POST", "/v1/files"): {"id": "file-1"}})
        server = serve(replica, max_body_bytes=1000)
        answer = httpx.post(f"{server.url}/v1/files", content=b"x" * 500_000, trust_env=False)
        assert answer.json() == {"id": "file-1"}
        assert len(replica.asked[0].body) == 500_000


class TestBeforeTheFirstRealByte:
    @pytest.mark.parametrize("path", STREAMS)
    def test_a_stream_whose_replica_dies_before_its_head_is_served_elsewhere(self, serve: Serve, path: str) -> None:
        server = serve(PacedReplica("a", death=Death.BEFORE_HEAD), good := PacedReplica("b"))
        assert post(server.url, path).content == post(good.url, path).content

    @pytest.mark.parametrize("path", PINGED)
    def test_a_stream_of_which_only_comments_were_sent_is_served_elsewhere(self, serve: Serve, path: str) -> None:
        dying = PacedReplica("a", death=Death.AFTER_COMMENTS, first_s=0.1)
        server = serve(dying, good := PacedReplica("b"))
        got = post(server.url, path)
        assert got.status_code == 200
        pings = SHAPES[path].ping
        assert pings in got.content
        assert got.content.replace(pings, b"") == post(good.url, path).content
        assert len(dying.asked) == 1

    @pytest.mark.parametrize("path", WHOLE)
    def test_an_answer_at_once_that_broke_off_is_served_elsewhere(self, serve: Serve, path: str) -> None:
        server = serve(PacedReplica("a", death=Death.MID_STREAM), PacedReplica("b"))
        got = post(server.url, path, {"stream": False})
        assert got.status_code == 200
        assert " b0 b1 b2 b3 b4" in got.text
        assert " a" not in got.text

    def test_a_replica_that_is_not_there_is_passed_over(self, serve: Serve) -> None:
        gone = PacedReplica("a")
        server = serve(gone, PacedReplica("b"))
        gone.kill()
        assert " b4" in post(server.url, "/v1/chat/completions").text

    @pytest.mark.parametrize("path", STREAMS)
    def test_a_stream_that_begins_with_the_engine_being_down_is_served_elsewhere(self, serve: Serve, path: str) -> None:
        server = serve(PacedReplica("a", error_code="engine_down"), good := PacedReplica("b"))
        assert post(server.url, path).content == post(good.url, path).content

    @pytest.mark.parametrize("path", STREAMS)
    def test_a_stream_that_begins_with_a_fault_of_the_request_is_not(self, serve: Serve, path: str) -> None:
        server = serve(bad := PacedReplica("a", error_code="invalid_value"), other := PacedReplica("b"))
        assert post(server.url, path).content == post(bad.url, path).content
        assert other.asked == []

    def test_all_that_wait_at_a_replica_that_is_killed_are_served(self, serve: Serve) -> None:
        dying = PacedReplica("a", first_s=30.0)
        server = serve(dying, PacedReplica("b"))
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(post, server.url, path) for path in PINGED[:6]]
            assert until(lambda: dying.n_open == 6)
            time.sleep(0.1)
            dying.kill()
            answers = [one.result(30) for one in asked]
        assert [" b4" in answer.text for answer in answers] == [True] * 6

    def test_what_hangs_and_is_not_listed_any_more_is_asked_of_another(self, serve: Serve) -> None:
        hanging = PacedReplica("a", hangs=True)
        server = serve(hanging, PacedReplica("b"))
        server.ingress._exchanges._silent_s = 0.5

        def unlist() -> None:
            assert until(lambda: len(hanging.asked) == 1)
            server.replicas.listed = server.replicas.listed[1:]

        thread = threading.Thread(target=unlist)
        thread.start()
        assert " b4" in post(server.url, "/v1/chat/completions").text
        thread.join()
        assert until(lambda: hanging.n_left == 1)

    def test_a_request_that_may_have_had_its_effect_is_not_repeated(self, serve: Serve) -> None:
        server = serve(PacedReplica("a", death=Death.BEFORE_HEAD), PacedReplica("b"))
        got = post(server.url, "/v1/batches", {})
        assert got.status_code in (404, 503)


class TestFull:
    def test_another_is_asked_when_one_is_full(self, serve: Serve) -> None:
        server = serve(PacedReplica("a", refuses=9), PacedReplica("b"))
        got = post(server.url, "/v1/chat/completions")
        assert got.status_code == 200
        assert " b4" in got.text

    def test_only_one_other_is_asked_and_the_soonest_is_told(self, serve: Serve) -> None:
        server = serve(
            PacedReplica("a", refuses=9), PacedReplica("b", refuses=4), third := PacedReplica("c", refuses=1)
        )
        got = post(server.url, "/v1/chat/completions")
        assert (got.status_code, got.headers["retry-after"]) == (503, "4")
        assert got.json()["error"]["message"] == "b is full"
        assert third.asked == []

    def test_a_full_one_after_comments_were_sent_ends_the_stream_with_its_refusal(self, serve: Serve) -> None:
        server = serve(PacedReplica("a", first_s=0.1, death=Death.AFTER_COMMENTS), PacedReplica("b", refuses=4))
        got = post(server.url, "/v1/chat/completions")
        assert got.status_code == 200
        assert json.loads(without_comments(got.content).removeprefix(b"data: "))["error"]["message"] == "b is full"

    def test_replicas_that_are_not_listed_yet_are_waited_for(self, serve: Serve) -> None:
        server = serve(PacedReplica("a"), patience_s=60)
        listed, server.replicas.listed = server.replicas.listed, []
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            answer = pool.submit(post, server.url, "/v1/chat/completions")
            time.sleep(0.5)
            server.replicas.listed = listed
            assert " a4" in answer.result(30).text

    def test_those_that_came_after_the_list_was_told_are_waited_for(self, serve: Serve) -> None:
        """All that were listed are gone, and the list is old: whoever is there now is asked."""
        server = serve(gone := PacedReplica("a"), there := PacedReplica("b"), patience_s=60)
        every, server.replicas.listed = server.replicas.listed, server.replicas.listed[:1]
        gone.kill()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            answer = pool.submit(post, server.url, "/v1/chat/completions")
            time.sleep(0.5)
            assert there.asked == []
            server.replicas.listed = every
            assert " b4" in answer.result(30).text

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
    def test_without_a_replica_it_says_so_in_the_shape_of_the_api(self, serve: Serve, path: str) -> None:
        server = serve(gone := PacedReplica("a"), patience_s=0.1)
        gone.kill()
        got = post(server.url, path)
        assert (got.status_code, got.headers["retry-after"]) == (503, "2")
        assert "could be reached" in got.json()["error"]["message"]
        server.replicas.listed = []
        assert "No server is there" in post(server.url, path).text


class TestAfterTheFirstRealByte:
    @pytest.mark.parametrize("death", [Death.MID_STREAM, Death.MID_EVENT])
    @pytest.mark.parametrize("path", STREAMS)
    def test_a_stream_that_breaks_off_ends_in_an_error_of_its_own_shape(
        self, serve: Serve, path: str, death: Death
    ) -> None:
        server = serve(PacedReplica("a", death=death), other := PacedReplica("b"))
        got = post(server.url, path)
        assert got.status_code == 200
        assert other.asked == []
        is_lines = path in ("/api/chat", "/api/generate")
        *said, last = got.text.strip().split("\n" if is_lines else "\n\n")
        assert " a1" in said[-1]
        assert all(json.loads(one.split("data: ")[-1]) for one in said)
        error = json.loads(last.split("data: ")[-1])
        if is_lines:
            assert error["error"].startswith("The answer broke off")
        elif path == "/v1/messages":
            assert last.startswith("event: error\n")
            assert (error["type"], error["error"]["type"]) == ("error", "api_error")
        elif path == "/v1/responses":
            assert last.startswith("event: error\n")
            assert (error["type"], error["code"], error["sequence_number"]) == ("error", "replica_lost", 4)
        else:
            assert last.startswith("data: ")
            assert error["error"]["code"] == "replica_lost"

    def test_the_next_request_is_served(self, serve: Serve) -> None:
        dying = PacedReplica("a", death=Death.MID_STREAM)
        server = serve(dying)
        post(server.url, "/v1/chat/completions")
        dying.death = None
        assert " a4" in post(server.url, "/v1/chat/completions").text
