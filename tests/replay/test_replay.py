"""`ggufd replay` without a server: receipts in files, their comparison, and what is printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ggufd.replay import command
from ggufd.replay.comparison import ReplayOutcome, compare
from ggufd.replay.receipt_file import ReceiptFile, ReplayError
from ggufd.replay.server import ReplayServer, flags_of

SETTINGS = {"n_ctx": 512, "n_threads": 1, "flash_attn": "on", "rope_scaling": "", "yarn_ext_factor": -1.0}


def receipt(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "version": 1,
        "request": {"path": "/v1/completions", "body": {"prompt": "Once", "deterministic": True, "seed": 7}},
        "computed_by": {
            "model": [{"name": "m.gguf", "bytes": 5, "digest": "d1"}],
            "template": "t",
            "adapters": [],
            "control_vectors": [],
            "settings": dict(SETTINGS),
            "build": {"ggufd": "1", "binding": "b1", "libraries": "l1"},
            "hardware": {"cpu": "AVX2 = 1", "devices": []},
        },
        "parameters": {"temperature": 0.5, "stop": []},
        "prompts": [{"n_tokens": 4, "digest": "p1"}],
        "choices": [
            {"index": 0, "seed": 7, "finish_reason": "stop", "n_tokens": 4, "digest": "c1", "tokens": [104, 101, 108]}
        ],
    }
    for name, value in changes.items():
        place = made
        *parents, last = name.split("__")
        for parent in parents:
            place = place[parent]
        place[last] = value
    return made


def choice(*tokens: int, finish_reason: str = "stop") -> dict[str, Any]:
    return {"index": 0, "seed": 7, "finish_reason": finish_reason, "tokens": list(tokens)}


def of(made: Any) -> ReceiptFile:
    return ReceiptFile.of(made, "here")


def text_of(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode()


def said(then: Any, now: Any) -> list[str]:
    return command.report(of(then), compare(of(then), of(now)), text_of)


class TestFile:
    @pytest.mark.parametrize(
        "wrapped",
        [
            receipt(),
            {"id": "x", "receipt": receipt()},
            [{"content": "x", "receipt": receipt()}, {"content": "y"}],
            {"results": [{"text": "x", "receipt": receipt()}]},
            {"custom_id": "1", "response": {"status_code": 200, "body": {"receipt": receipt()}}},
        ],
    )
    def test_a_receipt_is_found_in_whatever_answer_has_it(self, wrapped: Any, tmp_path: Path) -> None:
        path = tmp_path / "RECEIPT.json"
        path.write_text(json.dumps(wrapped))
        read = ReceiptFile.read(path)
        assert read == of(receipt())
        assert read.choices[0]["tokens"] == [104, 101, 108]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("no json", "is no JSON"),
            ("[" * 100_000, "is no JSON"),
            ('{"choices": []}', "has no receipt"),
            (json.dumps(receipt(version=9)), "is of version 9"),
            (json.dumps(receipt(choices=[{"tokens": "abc"}])), "is not whole"),
            (json.dumps(receipt(request={"path": "v1"})), "is not whole"),
            (json.dumps(receipt(request__path="v1")), "its path is none"),
            (json.dumps(receipt(prompts=5)), "is not whole"),
        ],
    )
    def test_what_is_none_is_refused_in_a_line(self, text: str, words: str, tmp_path: Path) -> None:
        path = tmp_path / "RECEIPT.json"
        path.write_text(text)
        with pytest.raises(ReplayError, match=words) as caught:
            ReceiptFile.read(path)
        assert str(path) in caught.value.message

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ReplayError, match="cannot be read: No such file"):
            ReceiptFile.read(tmp_path / "nothing")

    def test_the_request_asks_for_the_whole_answer(self) -> None:
        body = {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}, "timeout": 5, "seed": 1}
        made = receipt(request={"path": "/api/extra/generate/stream", "body": body})
        whole = {"prompt": "a", "seed": 1, "stream": False, "deterministic": True}
        assert of(made).request == ("/api/v1/generate", whole)
        made = receipt(request={"path": "/v1/responses", "body": {"input": "a", "store": True}})
        assert of(made).request[1]["store"] is False


class TestComparison:
    def test_the_same_tokens_are_the_same(self) -> None:
        assert compare(of(receipt()), of(receipt())).outcome is ReplayOutcome.SAME
        assert said(receipt(), receipt()) == ["same: 3 tokens"]

    def test_the_same_by_another_build_says_so(self) -> None:
        now = receipt(computed_by__build={"ggufd": "1", "binding": "b2", "libraries": "l1"})
        assert compare(of(receipt()), of(now)).outcome is ReplayOutcome.SAME
        assert said(receipt(), now) == [
            "same: 3 tokens",
            "though by other means:",
            "  build.binding: 'b1' then, 'b2' now",
        ]

    def test_the_place_where_the_texts_part_is_told_with_both(self) -> None:
        now = receipt(choices=[choice(104, 101, 121)])
        assert compare(of(receipt()), of(now)).outcome is ReplayOutcome.PARTED
        assert said(receipt(), now) == [
            "another text, by the same model, settings, hardware and build",
            "choice 0 parts at token 2",
            "  then: 'hel'",
            "  now:  'hey'",
        ]

    @pytest.mark.parametrize(
        ("changes", "what"),
        [
            ({"computed_by__hardware": {"cpu": "AVX512 = 1", "devices": []}}, "other hardware,"),
            ({"computed_by__build": {"ggufd": "2", "binding": "b1", "libraries": "l1"}}, "other build,"),
            ({"computed_by__settings": {**SETTINGS, "n_threads": 2}}, "other settings,"),
            ({"parameters": {"temperature": 0.7, "stop": []}}, "other settings,"),
            ({"computed_by__model": [{"name": "m.gguf", "bytes": 5, "digest": "d2"}]}, "other model,"),
            ({"computed_by__template": "u"}, "other model,"),
            (
                {
                    "computed_by__hardware": {"cpu": "x", "devices": []},
                    "computed_by__build": {"ggufd": "2", "binding": "b1", "libraries": "l1"},
                    "computed_by__settings": {**SETTINGS, "n_threads": 2},
                },
                "other settings, build and hardware,",
            ),
        ],
    )
    def test_what_is_other_promises_nothing_and_is_named(self, changes: dict[str, Any], what: str) -> None:
        now = receipt(**changes, choices=[choice(104, 101)])
        assert compare(of(receipt()), of(now)).outcome is ReplayOutcome.OTHER
        lines = said(receipt(), now)
        assert lines[0] == f"{what} which promises nothing"
        assert " then, " in lines[1]
        assert lines[-3:] == ["choice 0 parts at token 2", "  then: 'hel'", "  now:  'he'"]

    def test_an_end_is_a_place_too(self) -> None:
        now = receipt(choices=[choice(104, 101, 108, finish_reason="length")])
        assert said(receipt(), now)[1] == "choice 0 parts at token 3"
        assert said(receipt(), receipt(choices=[]))[1:] == [
            "choice 0 parts at token 0",
            "  then: 'hel'",
            "  now:  (nothing)",
        ]

    def test_another_prompt_is_told_before_the_text(self) -> None:
        now = receipt(prompts=[{"n_tokens": 5, "digest": "p2"}], choices=[choice(1)])
        assert compare(of(receipt()), of(now)).outcome is ReplayOutcome.PARTED
        assert "prompt 0 parts already: it had 4 tokens" in said(receipt(), now)[1]


class TestServer:
    def test_flags_are_the_settings_that_are_not_neutral(self) -> None:
        settings = {**SETTINGS, "yarn_beta_fast": 16.0, "kv_offload": False, "n_gpu_layers": 0, "unknown": 1}
        assert flags_of(settings) == [
            "--ctx-size=512",
            "--threads=1",
            "--flash-attn=on",
            "--yarn-beta-fast=16.0",
            "--no-kv-offload",
            "--n-gpu-layers=0",
        ]

    @pytest.mark.parametrize("url", ["", "ftp://x", "http://"])
    def test_a_url_that_is_none_is_refused(self, url: str) -> None:
        with pytest.raises(ReplayError, match="expected a server's address"):
            ReplayServer(url, None, 5)

    def test_nobody_there_is_told_in_a_line(self) -> None:
        with pytest.raises(ReplayError, match=r"127\.0\.0\.1:9 gives no answer"):
            ReplayServer("127.0.0.1:9/v1", None, 5).post("/v1/completions", {})


class TestCommand:
    def test_settings_go_with_no_url(self, tmp_path: Path) -> None:
        path = tmp_path / "r.json"
        path.write_text(json.dumps(receipt()))
        with pytest.raises(ReplayError, match="--model: goes with no --url"):
            command.run(path, "http://127.0.0.1:9", None, 5, ["--model", "x"])

    def test_the_exit_codes_are_apart(self) -> None:
        assert sorted(command.EXIT_CODES.values()) == [0, 3, 4]
