"""The log: its levels and forms, one line a request with its id, and nothing in it that was said in confidence."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from ggufd import logs
from ggufd.api.http.record import RequestRecord
from ggufd.api.http.requestlog import fields_of, log_request
from ggufd.engine.messages.events import Usage
from ggufd.errors import ConfigError, EngineFailure, QueueFull
from ggufd.keys.ring import Role
from tests.support.fakes.api_client import Api, parse_events, ring_of, running
from tests.support.fakes.api_server import serving, wait_until
from tests.support.fakes.fake_engine import FakeEngine, FakeText
from tests.support.limits import ANSWER_S


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    yield
    root.setLevel(before[0])
    for handler in set(root.handlers) - set(before[1]):
        handler.close()
    root.handlers[:] = before[1]
    for name in ("llama.cpp", "uvicorn.error", "uvicorn.access", "asyncio", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.NOTSET)


class TestLevels:
    def test_llama_cpp_speaks_at_debug_only(self) -> None:
        logs.set_up("info")
        assert not logging.getLogger("llama.cpp").isEnabledFor(logging.ERROR)
        assert logging.getLogger("ggufd").isEnabledFor(logging.INFO)
        logs.set_up("debug")
        assert logging.getLogger("llama.cpp").isEnabledFor(logging.INFO)

    @pytest.mark.parametrize("level", ["info", "debug"])
    @pytest.mark.parametrize("client", ["httpx", "httpx2"])
    def test_addresses_that_are_fetched_are_signed_and_in_no_log(self, level: str, client: str) -> None:
        logs.set_up(level)
        assert not logging.getLogger(client).isEnabledFor(logging.INFO)

    def test_a_quiet_level_silences_our_own_lines(self) -> None:
        logs.set_up("error")
        assert not logging.getLogger("ggufd").isEnabledFor(logging.WARNING)


class TestFile:
    @pytest.mark.parametrize("form", ["text", "json"])
    def test_the_log_goes_to_a_file_as_well(
        self, form: Literal["text", "json"], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "log.txt"
        for _ in range(2):
            logs.set_up("info", form, str(file))
            logging.getLogger("ggufd").info("é")
        lines = file.read_text("utf-8").splitlines()
        assert [(json.loads(line)["message"] if form == "json" else line[-1]) for line in lines] == ["é", "é"]
        assert capsys.readouterr().err.count("\n") == 2

    def test_a_file_that_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"^--log-file .*: cannot be written: Is a directory$"):
            logs.set_up("info", "text", str(tmp_path))


class TestJson:
    def test_a_line_is_an_object(self, capsys: pytest.CaptureFixture[str]) -> None:
        logs.set_up("info", "json")
        logging.getLogger("ggufd").info("two\nlines of %s", "é", extra={"fields": {"n": 1}})
        (line,) = capsys.readouterr().err.splitlines()
        said = json.loads(line)
        assert (said["message"], said["level"], said["logger"], said["n"]) == ("two\nlines of é", "info", "ggufd", 1)
        assert said["time"].endswith("+00:00")

    def test_a_traceback_stays_in_its_line(self) -> None:
        try:
            raise ValueError("why")
        except ValueError:
            record = logging.LogRecord("ggufd", logging.ERROR, "f.py", 1, "bad", (), sys.exc_info())
        said = json.loads(logs.JsonFormatter().format(record))
        assert said["exception"].endswith("ValueError: why")


def words(line: str) -> list[str]:
    return line.split()


async def generate(api: Api, path: str = "/v1/completions", **body: Any) -> None:
    await api.post(path, {"prompt": "abc", **body}, headers={"x-api-key": "k"})


class TestRequestLine:
    async def test_it_says_whose_it_was_and_what_it_cost(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="ggufd")
        engine = FakeEngine()
        engine.cached_tokens = 2
        async with running(engine, keys=ring_of("k")) as api:
            response = await api.post("/v1/completions", {"prompt": "abc"}, headers={"x-api-key": "k"})
        (record,) = caplog.records
        said = words(record.getMessage())
        assert said[:7] == ["key-1", "3", "in", "2", "cached", "11", "out"]
        assert said[7:10] == ["queue", "0.01", "s"]
        assert (said[10], said[12:15]) == ("first", ["s", "100.0", "tok/s"])
        assert said[15:] == ["stop", "/v1/completions", "fake-model", response.headers["x-request-id"]]
        fields = record.fields  # type: ignore[attr-defined]
        assert (fields["prompt_tokens"], fields["cached_tokens"], fields["completion_tokens"]) == (3, 2, 11)
        assert fields["first_token_s"] > 0
        assert json.dumps(fields)

    @pytest.mark.parametrize("path", ["/v1/completions", "/completion", "/api/generate", "/v1/chat/completions"])
    @pytest.mark.parametrize("stream", [True, False])
    async def test_every_way_to_generate_is_one_line(
        self, caplog: pytest.LogCaptureFixture, path: str, stream: bool
    ) -> None:
        caplog.set_level(logging.INFO, logger="ggufd")
        async with running() as api:
            await generate(api, path, messages=[{"role": "user", "content": "a"}], stream=stream, model="fake-model")
        (line,) = caplog.messages
        assert "11 out" in line
        assert f"stop       {path}" in line

    async def test_vectors_are_work_too(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="ggufd")
        async with running() as api:
            await api.ok("/v1/embeddings", input=["ab", "cde"])
        (line,) = caplog.messages
        assert words(line)[2:7] == ["in", "0", "cached", "0", "out"]
        assert int(words(line)[1]) >= 5
        assert " stop " in line

    async def test_several_prompts_and_choices_add_up(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="ggufd")
        async with running() as api:
            await api.ok("/v1/completions", prompt=["ab", "c"], n=2, max_tokens=5)
        (line,) = caplog.messages
        assert words(line)[1:7] == ["3", "in", "0", "cached", "20", "out"]
        assert " length " in line

    @pytest.mark.parametrize(("n", "rate"), [(1, None), (2, 10.0), (11, 100.0)])
    def test_the_rate_is_that_of_the_tokens_after_the_first(self, n: int, rate: float | None) -> None:
        usage = Usage(5, n, 0, queue_s=0.0, prefill_s=0.2, decode_s=0.1)
        record = RequestRecord(completion_tokens=n, decoded_tokens=usage.decoded_tokens, decode_s=usage.decode_s)
        assert (record.tokens_per_s, usage.tokens_per_s) == (rate, rate or 0.0)

    async def test_columns_stand_under_each_other(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="ggufd")
        records = [
            RequestRecord(
                key="alice", prompt_tokens=1234, cached_tokens=1200, completion_tokens=56, queue_s=0.0, first_s=1.25
            ),
            RequestRecord(
                prompt_tokens=1,
                completion_tokens=12345,
                queue_s=600.0,
                decode_s=100.0,
                decoded_tokens=12344,
                reason="length",
            ),
        ]
        for record in records:
            record.is_work = True
            record.path = "/v1/completions"
            log_request(record)
        places = [[line.index(word) for word in (" in", " out", "queue", "first", "/v1")] for line in caplog.messages]
        assert places[0] == places[1]

    @pytest.mark.parametrize(
        ("error", "code"), [(EngineFailure("no room"), "engine_failure"), (QueueFull("full"), "queue_full")]
    )
    async def test_what_failed_is_said_by_its_code(
        self, caplog: pytest.LogCaptureFixture, error: Exception, code: str
    ) -> None:
        caplog.set_level(logging.INFO, logger="ggufd")
        for stream in (False, True):
            engine = FakeEngine()
            engine.error, engine.error_after = error, 2
            async with running(engine) as api:
                await generate(api, stream=stream)
        engine = FakeEngine()
        assert isinstance(error, (EngineFailure, QueueFull))
        engine.refusal = error
        async with running(engine) as api:
            await generate(api)
        assert len(caplog.messages) == 3
        assert all(f" {code} " in line for line in caplog.messages)

    async def test_a_refusal_is_said_without_what_was_refused(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="ggufd")
        async with running(keys=ring_of("user", role=Role.USER)) as api:
            headers = {"x-api-key": "user"}
            await api.post("/v1/completions", {"prompt": "a", "top_p": "canary"}, headers=headers)
            await api.http.get("/slots", headers=headers)
            await api.http.get("/v1/models", headers={"x-api-key": "canary"})
            await api.http.get("/nope%0Acanary?canary=1", headers=headers)
        said = [line.split(",")[0] for line in caplog.messages]
        assert said == [
            "key-1      POST /v1/completions: 400 invalid_value",
            "key-1      GET /slots: 403 admin_key_required",
            "-          GET /v1/models: 401 invalid_api_key",
            "key-1      GET /nope\\ncanary: 404 not_found",
        ]

    async def test_probes_and_pages_are_silent(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="ggufd")
        async with running() as api:
            api.engine.ready = None
            for path in ("/health", "/ready", "/v1/models", "/docs", "/"):
                await api.http.get(path)
        assert caplog.messages == []
        caplog.set_level(logging.DEBUG, logger="ggufd")
        async with running() as api:
            await api.http.get("/v1/models")
        assert "- GET /v1/models: 200," in " ".join(words(caplog.messages[-1]))

    def test_who_leaves_is_noticed(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="ggufd")
        engine = FakeEngine(["x" * 1000])
        engine.step_s = 0.01
        with serving(engine) as server:
            body = {"prompt": "abc", "stream": True}
            with httpx.stream(
                "POST", f"{server.url}/v1/completions", json=body, trust_env=False, timeout=ANSWER_S
            ) as response:
                next(response.iter_lines())
            wait_until(lambda: any("disconnect" in line for line in caplog.messages))
        line = next(line for line in caplog.messages if "disconnect" in line)
        assert words(line)[1:3] == ["3", "in"]

    def test_unknown_numbers_are_no_numbers(self) -> None:
        fields = fields_of(RequestRecord(is_work=True))
        assert (fields["queue_s"], fields["first_token_s"], fields["tokens_per_s"]) == (None, None, None)


class TestRequestId:
    async def test_the_clients_id_comes_back_and_others_get_one(self) -> None:
        async with running(keys=ring_of("k")) as api:
            ids = []
            for sent in ("abc-1.2_3", "a b", "x" * 65, "é", None):
                headers = {"x-api-key": "k"} | ({} if sent is None else {"x-request-id": sent})
                raw = {name: value.encode("latin-1") for name, value in headers.items()}
                ids.append((await api.http.get("/v1/models", headers=raw)).headers["x-request-id"])
            assert ids[0] == "abc-1.2_3"
            assert all(len(one) == 16 for one in ids[1:])
            assert len(set(ids)) == len(ids)

    async def test_every_answer_has_one(self) -> None:
        async with running(keys=ring_of("k"), allowed_hosts=("test",), cors_origins=("http://page",)) as api:
            for headers in ({}, {"host": "evil"}, {"origin": "http://page", "access-control-request-method": "POST"}):
                response = await api.http.options("/v1/models", headers=headers)
                assert response.headers["x-request-id"]
            assert (await api.http.get("/nope", headers={"x-api-key": "k"})).headers["x-request-id"]
            response = await api.post("/v1/completions", {"prompt": "a", "stream": True}, headers={"x-api-key": "k"})
            assert response.headers["x-request-id"]
            assert parse_events(response.text)[-1] == "[DONE]"

    async def test_a_crash_has_one_too(self, caplog: pytest.LogCaptureFixture) -> None:
        class Broken(FakeText):
            async def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
                raise KeyError(text)

        caplog.set_level(logging.INFO, logger="ggufd")
        async with running(text=Broken()) as api:
            response = await api.post("/v1/completions", {"prompt": "canary"}, headers={"x-request-id": "me"})
        assert (response.status_code, response.headers["x-request-id"]) == (500, "me")
        assert "KeyError at" in caplog.text
        assert "500 internal_error" in caplog.text


CANARIES = ("canaryprompt", "canarymessage", "canarykey", "canarywrongkey", "canarystop", "canaryban", "canaryanswer")


async def _everything(api: Api) -> None:
    """Requests of all kinds, good and bad, whole and streamed, with a canary in every text."""
    headers = {"authorization": "Bearer canarykey"}
    fields = {"stop": ["canarystop"], "banned_strings": ["canaryban"], "user": "canaryprompt"}
    messages = [{"role": "user", "content": "canarymessage"}, {"role": "user", "content": "canarymessage"}]
    bodies: list[tuple[str, Any]] = [
        ("/v1/completions", {"prompt": "canaryprompt", **fields}),
        ("/v1/completions", {"prompt": "canaryprompt" * 100}),
        ("/v1/completions", {"prompt": "canaryprompt", "canaryprompt": 1, "temperature": "canaryprompt"}),
        ("/v1/completions", {"prompt": "canaryprompt", "response_format": "canaryprompt"}),
        ("/v1/completions", {"prompt": "canaryprompt", "grammar": "canaryprompt"}),
        ("/v1/completions", {"prompt": {"canaryprompt": 1}}),
        ("/v1/chat/completions", {"messages": messages, **fields}),
        ("/v1/chat/completions", {"messages": [{"role": "canarymessage"}]}),
        ("/completion", {"prompt": "canaryprompt", "explain_cache": True}),
        ("/api/chat", {"messages": messages, "model": "fake-model"}),
        ("/api/v1/generate", {"prompt": "canaryprompt"}),
        ("/tokenize", {"content": "canaryprompt"}),
        ("/apply-template", {"messages": messages}),
    ]
    for path, body in bodies:
        for stream in (False, True):
            await api.post(path, {**body, "stream": stream}, headers=headers)
    await api.http.post("/v1/completions", content=b'{"prompt": "canaryprompt', headers=headers)
    await api.http.post("/v1/completions", json=bodies[0][1], headers={"x-api-key": "canarywrongkey"})
    await api.http.get("/v1/models?key=canarykey", headers=headers)
    await api.http.get("/v1/models/canarymodel?prompt=canaryprompt", headers=headers)


class TestConfidence:
    @pytest.mark.parametrize("form", ["text", "json"])
    @pytest.mark.parametrize(("level", "secrets"), [("info", CANARIES), ("debug", ("canarykey", "canarywrongkey"))])
    async def test_prompts_are_in_no_line_above_debug_and_keys_in_none(
        self, form: Any, level: str, secrets: tuple[str, ...], capsys: pytest.CaptureFixture[str]
    ) -> None:
        logs.set_up(level, form)
        for fault in (None, EngineFailure("no room"), KeyError("canaryprompt")):
            engine = FakeEngine(["canaryanswer"])
            engine.error, engine.error_after = fault, 3
            async with running(engine, keys=ring_of("canarykey")) as api:
                await _everything(api)
        said = capsys.readouterr().err
        assert said.count("/v1/completions") > 30, "the lines are there"
        assert [secret for secret in secrets if secret in said] == []
