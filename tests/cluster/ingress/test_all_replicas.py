"""Routes that all replicas answer together, and things that only one of them has, over real sockets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.support.fakes.ingress_server import IngressServer, ingress_server
from tests.support.fakes.paced_replica import PacedReplica, serving

Serve = Callable[..., IngressServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(*replicas: PacedReplica, **options: object) -> IngressServer:
            stack.enter_context(serving(*replicas))
            urls = {replica.name: replica.url for replica in replicas}
            return stack.enter_context(ingress_server(urls, **options))

        yield start


def ask(server: IngressServer, path: str, method: str = "GET", **more: Any) -> httpx.Response:
    return httpx.request(method, f"{server.url}{path}", timeout=30, trust_env=False, **more)


def a_queue(*ids: int, waiting: int = 0) -> dict[str, Any]:
    entries = [{"id": number, "status": "running", "key": "k"} for number in ids]
    return {"object": "list", "slots": 4, "running": len(ids), "waiting": waiting, "data": entries, "batches": []}


class TestTogether:
    def test_the_queue_is_that_of_all_and_names_each_request_once(self, serve: Serve) -> None:
        server = serve(
            PacedReplica("a", answers={("GET", "/v1/queue"): a_queue(1, 2, waiting=3)}),
            PacedReplica("b", answers={("GET", "/v1/queue"): a_queue(1)}),
        )
        told = ask(server, "/v1/queue").json()
        assert (told["slots"], told["running"], told["waiting"]) == (8, 3, 3)
        assert [one["id"] for one in told["data"]] == ["1@a", "2@a", "1@b"]
        assert told["data"][2]["replica"] == "b"

    def test_a_model_is_listed_once(self, serve: Serve) -> None:
        both = {"object": "list", "data": [{"id": "m", "object": "model"}]}
        more = {"object": "list", "data": [{"id": "m", "object": "model"}, {"id": "n", "object": "model"}]}
        tags = {"models": [{"name": "m"}]}
        ollama = {("GET", "/api/tags"): tags, ("GET", "/api/ps"): tags}
        server = serve(
            PacedReplica("a", answers={("GET", "/v1/models"): both, **ollama}),
            PacedReplica("b", answers={("GET", "/v1/models"): more, **ollama}),
        )
        assert [one["id"] for one in ask(server, "/v1/models").json()["data"]] == ["m", "n"]
        assert ask(server, "/api/tags").json() == tags
        assert ask(server, "/api/ps").json() == tags

    def test_every_slot_says_whose_it_is(self, serve: Serve) -> None:
        slots = [{"id": 0}, {"id": 1}]
        server = serve(*(PacedReplica(name, answers={("GET", "/slots"): slots}) for name in "ab"))
        found = [(one["replica"], one["id"]) for one in ask(server, "/slots").json()]
        assert found == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]

    def test_metrics_have_the_replica_as_a_label(self, serve: Serve) -> None:
        page = (
            "# HELP ggufd_x_total Things, with a \\\\ in it.\n# TYPE ggufd_x_total counter\n"
            'ggufd_x_total{of="a \\"b\\""} 3.0\n'
            "# HELP ggufd_s_seconds Times.\n# TYPE ggufd_s_seconds histogram\n"
            'ggufd_s_seconds_bucket{le="0.5"} 1.0\nggufd_s_seconds_bucket{le="+Inf"} 2.0\n'
            "ggufd_s_seconds_count 2.0\nggufd_s_seconds_sum 1.25\n"
        )
        server = serve(*(PacedReplica(name, answers={("GET", "/metrics"): page}) for name in "ab"))
        answer = ask(server, "/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        lines = answer.text.splitlines()
        assert lines[:2] == page.splitlines()[:2]
        assert 'ggufd_x_total{replica="a",of="a \\"b\\""} 3.0' in lines
        assert 'ggufd_x_total{replica="b",of="a \\"b\\""} 3.0' in lines
        assert 'ggufd_s_seconds_bucket{replica="b",le="+Inf"} 2.0' in lines
        assert 'ggufd_s_seconds_sum{replica="a"} 1.25' in lines
        assert sum(line.startswith("# TYPE") for line in lines) == 2

    def test_it_is_healthy_as_long_as_one_replica_is(self, serve: Serve) -> None:
        gone, other = PacedReplica("a"), PacedReplica("b")
        server = serve(gone, other)
        assert ask(server, "/health").json()["replicas"] == {"a": "ok", "b": "ok"}
        gone.kill()
        answer = ask(server, "/ready")
        assert answer.status_code in (200, 503)
        answer = ask(server, "/health")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok", "replicas": {"b": "ok", "a": "gone"}})
        other.kill()
        answer = ask(server, "/health")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_replica")
        assert ask(server, "/health/live").status_code == 200

    def test_what_one_refuses_all_refuse(self, serve: Serve) -> None:
        server = serve(PacedReplica("a", token="x"), PacedReplica("b", token="x"))
        answer = ask(server, "/v1/queue")
        assert answer.status_code == 401

    def test_adapters_are_set_in_all(self, serve: Serve) -> None:
        done = {("POST", "/lora-adapters"): {"success": True}}
        a, b = PacedReplica("a", answers=done), PacedReplica("b", answers=done)
        server = serve(a, b)
        assert ask(server, "/lora-adapters", "POST", json=[{"id": 0, "scale": 0.5}]).json() == {"success": True}
        assert a.asked[0].json == b.asked[0].json == [{"id": 0, "scale": 0.5}]

    def test_an_order_that_one_refuses_says_so(self, serve: Serve) -> None:
        server = serve(PacedReplica("a", answers={("POST", "/lora-adapters"): {"success": True}}), PacedReplica("b"))
        answer = ask(server, "/lora-adapters", "POST", json=[])
        assert (answer.status_code, answer.json()["error"]["message"]) == (404, "b: no such route")

    def test_an_abort_ends_what_runs_anywhere(self, serve: Serve) -> None:
        path = "/api/extra/abort"
        server = serve(
            PacedReplica("a", answers={("POST", path): {"success": False, "n_aborted": 0}}),
            PacedReplica("b", answers={("POST", path): {"success": True, "n_aborted": 1}}),
        )
        assert ask(server, path, "POST", json={"genkey": "k"}).json() == {"success": True, "n_aborted": 1}

    def test_a_check_tells_the_text_of_the_one_that_writes(self, serve: Serve) -> None:
        path = "/api/extra/generate/check"
        server = serve(
            PacedReplica("a", answers={("POST", path): {"results": [{"text": ""}]}}),
            PacedReplica("b", answers={("POST", path): {"results": [{"text": "so far"}]}}),
        )
        assert ask(server, path, "POST", json={}).json()["results"][0]["text"] == "so far"

    def test_only_the_head_may_be_asked_for(self, serve: Serve) -> None:
        files = {"object": "list", "data": [{"id": "file-1", "created_at": 1}]}
        answers = {("GET", "/v1/queue"): a_queue(1), ("GET", "/v1/files"): files, ("GET", "/metrics"): "a 1.0\n"}
        server = serve(PacedReplica("a", answers=answers))
        for path in ("/v1/queue", "/v1/files", "/metrics", "/health"):
            answer = ask(server, path, "HEAD")
            assert (answer.status_code, answer.content) == (200, b"")

    def test_what_nobody_expected_is_an_error_of_the_ingress(self, serve: Serve) -> None:
        server = serve(PacedReplica("a", answers={("GET", "/v1/queue"): "no JSON"}))
        answer = ask(server, "/v1/queue")
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        assert "log of its ingress" in answer.text

    def test_the_page_of_the_live_view_comes_from_one_of_them(self, serve: Serve) -> None:
        page = {("GET", "/live"): "<html>"}
        server = serve(*(PacedReplica(name, answers=page) for name in "ab"))
        assert ask(server, "/live").text == "<html>"

    def test_no_client_reaches_what_is_for_peers(self, serve: Serve) -> None:
        replica = PacedReplica("a", token="x")
        server = serve(replica, token="x")
        for path in ("/peers/load", "//peers/load", "/v1/peers/chats", "/%70eers/load", "/x/peers/"):
            assert ask(server, path).status_code == 404
        assert replica.asked == []


class TestModels:
    def test_a_model_is_loaded_in_one_replica_after_the_other(self, serve: Serve) -> None:
        loaded = {("POST", "/v1/models/load"): {"id": "new", "object": "model"}}
        a, b = PacedReplica("a", answers=loaded), PacedReplica("b", answers=loaded)
        server = serve(a, b)
        answer = ask(server, "/v1/models/load", "POST", json={"model": "new.gguf"})
        events = [json.loads(one[6:]) for one in answer.text.strip().split("\n\n") if one.startswith("data: ")]
        assert [one["status"] for one in events] == ["loading in a", "loading in b", "ready"]
        assert events[-1]["model"]["id"] == "new"
        assert a.asked[0].json == b.asked[0].json == {"model": "new.gguf", "stream": False}
        whole = ask(server, "/v1/models/load", "POST", json={"model": "new.gguf", "stream": False})
        assert whole.json()["id"] == "new"

    def test_a_change_that_stops_half_way_says_where(self, serve: Serve) -> None:
        loaded = {("POST", "/v1/models/load"): {"id": "new", "object": "model"}}
        server = serve(PacedReplica("a", answers=loaded), PacedReplica("b"))
        answer = ask(server, "/v1/models/load", "POST", json={"model": "new.gguf", "stream": False})
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "partly_changed")
        assert "'b' did not change its model" in answer.text
        assert "These have it: a." in answer.text

    def test_the_first_refusal_is_told_as_it_is(self, serve: Serve) -> None:
        server = serve(PacedReplica("a"), b := PacedReplica("b"))
        answer = ask(server, "/v1/models/load", "POST", json={"model": "new.gguf"})
        assert answer.status_code == 404
        assert b.asked == []


class TestOneReplicaHasIt:
    def test_a_stored_response_is_found_wherever_it_is(self, serve: Serve) -> None:
        a = PacedReplica("a")
        b = PacedReplica("b", answers={("GET", "/v1/responses/resp_1"): {"id": "resp_1"}})
        server = serve(a, b)
        assert ask(server, "/v1/responses/resp_1").json() == {"id": "resp_1"}
        assert [one.method for one in a.asked] == ["HEAD"]
        n_asked = len(a.asked)
        assert ask(server, "/v1/responses/resp_1").json() == {"id": "resp_1"}
        assert len(a.asked) == n_asked
        assert ask(server, "/v1/responses/resp_2").status_code == 404

    def test_a_response_goes_on_where_the_one_before_it_is(self, serve: Serve) -> None:
        b = PacedReplica("b", answers={("GET", "/v1/responses/resp_1"): {"id": "resp_1"}})
        server = serve(PacedReplica("a"), b)
        body = {"stream": True, "previous_response_id": "resp_1"}
        assert " b4" in ask(server, "/v1/responses", "POST", json=body).text

    def test_a_response_that_was_made_here_is_remembered(self, serve: Serve) -> None:
        a, b = PacedReplica("a"), PacedReplica("b")
        server = serve(a, b)
        ask(server, "/v1/responses", "POST", json={"stream": True})
        ask(server, "/v1/responses/resp_a1", "DELETE")
        assert [(one.method, one.path) for one in a.asked][1:] == [("DELETE", "/v1/responses/resp_a1")]
        assert b.asked == []

    def test_a_batch_is_made_where_its_file_is(self, serve: Serve) -> None:
        b = PacedReplica(
            "b",
            answers={("GET", "/v1/files/file-1"): {"id": "file-1"}, ("POST", "/v1/batches"): {"id": "batch_1"}},
        )
        server = serve(a := PacedReplica("a"), b)
        assert ask(server, "/v1/batches", "POST", json={"input_file_id": "file-1"}).json() == {"id": "batch_1"}
        assert [one.method for one in a.asked] == ["HEAD"]

    def test_files_of_all_are_one_list_in_pages(self, serve: Serve) -> None:
        def files(*times: int) -> dict[str, Any]:
            data = [{"id": f"file-{one}", "created_at": one} for one in times]
            return {"object": "list", "data": data, "first_id": None, "last_id": None, "has_more": False}

        server = serve(
            PacedReplica("a", answers={("GET", "/v1/files"): files(1, 4)}),
            PacedReplica("b", answers={("GET", "/v1/files"): files(2, 3)}),
        )
        page = ask(server, "/v1/files?limit=2").json()
        assert [one["id"] for one in page["data"]] == ["file-4", "file-3"]
        assert page["has_more"] is True
        page = ask(server, f"/v1/files?limit=2&after={page['last_id']}").json()
        assert [one["id"] for one in page["data"]] == ["file-2", "file-1"]
        assert page["has_more"] is False

    def test_a_conversation_is_read_where_its_newest_stream_is(self, serve: Serve) -> None:
        def streams(begun: int) -> Any:
            return [{"conversation_id": "c", "started_at": begun, "is_done": False}]

        path = ("POST", "/v1/streams/lookup")
        server = serve(
            PacedReplica("a", answers={path: streams(1), ("GET", "/v1/stream"): {"of": "a"}}),
            PacedReplica("b", answers={path: streams(2), ("GET", "/v1/stream"): {"of": "b"}}),
        )
        assert ask(server, "/v1/stream?conv_id=c").json() == {"of": "b"}

    def test_a_request_is_ended_by_its_name_in_the_queue(self, serve: Serve) -> None:
        answers = {("DELETE", "/v1/requests/7"): {"ended": True}}
        a, b = PacedReplica("a", answers=answers), PacedReplica("b", answers=answers)
        server = serve(a, b)
        assert ask(server, "/v1/requests/7@b", "DELETE").json() == {"ended": True}
        assert (len(a.asked), b.asked[0].target) == (0, "/v1/requests/7")
        refused = ask(server, "/v1/requests/7", "DELETE")
        assert (refused.status_code, "12@a" in refused.text) == (400, True)
        unknown = ask(server, "/v1/requests/7@z", "DELETE")
        assert (unknown.status_code, "There are: a, b." in unknown.text) == (400, True)

    def test_a_slot_is_that_of_one_replica(self, serve: Serve) -> None:
        answers = {("POST", "/slots/0"): {"n_erased": 3}}
        a, b = PacedReplica("a", answers=answers), PacedReplica("b", answers=answers)
        server = serve(a, b)
        assert ask(server, "/slots/0?action=erase", "POST", json={}).status_code == 400
        assert ask(server, "/slots/0?action=erase&replica=b", "POST", json={}).json() == {"n_erased": 3}
        assert (len(a.asked), len(b.asked)) == (0, 1)
