"""What the whole server says when a slot is full, when its model cannot go back, and when another model drafts."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.support.models.quantised import demo_pair
from tests.support.models.state_models import WRITERS
from tests.support.programs.live_server import live_server

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("flags", [[], ["--context-shift"]], ids=["off", "on"])
def test_the_real_server_goes_on_only_when_it_was_told_to(flags: list[str]) -> None:
    endless = {"prompt": "Once upon a time", "n_keep": 4, "ignore_eos": True}
    body = {**endless, "n_predict": 400}
    with live_server("--ctx-size", "256", "--parallel", "1", "--threads", "1", *flags) as server:
        answer = httpx.post(f"{server.url}/completion", json=body, timeout=120, trust_env=False).json()
        unbounded = httpx.post(f"{server.url}/completion", json=endless, timeout=120, trust_env=False).json()
        is_logged = "context shift" in "".join(server.log)
    assert (answer["tokens_predicted"] == 400) == bool(flags)
    assert unbounded["tokens_predicted"] == (256 if flags else 256 - unbounded["tokens_evaluated"])
    assert answer["truncated"]
    assert answer["timings"].get("dropped_tokens", 0) == (250 if flags else 0)
    assert is_logged == bool(flags)


@pytest.mark.parametrize("name", WRITERS)
def test_models_whose_cache_cannot_be_cut_back_are_served(tmp_path: Path, name: str) -> None:
    flags = ("-m", str(WRITERS[name](tmp_path / f"{name}.gguf")), "-c", "512", "-t", "1", "-fa", "off", "--no-swa-full")
    with live_server(*flags) as server, httpx.Client(base_url=server.url, trust_env=False, timeout=60) as http:
        body = {"prompt": "Once upon a time " * 10, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        first, second = (http.post("/v1/completions", json=body).json() for _ in range(2))
    assert first["choices"] == second["choices"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == first["usage"]["prompt_tokens"] - 1


def test_the_whole_server_guesses_sleeps_and_changes_its_model(tmp_path: Path, tiny_model: Path) -> None:
    model, draft = map(str, demo_pair(tmp_path))
    flags = ("-m", model, "-md", draft, "-t", "1", "-c", "1024", "--sleep-idle-seconds", "1", "-fa", "off")
    with live_server(*flags) as server, httpx.Client(base_url=server.url, trust_env=False, timeout=60) as http:
        assert "Draft model" in "".join(server.log)
        body = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0}
        for _ in range(2):
            answer = http.post("/v1/completions", json=body)
            assert answer.status_code == 200
            assert http.get("/props").json()["draft_model_path"] == draft
            while http.get("/health").json()["status"] != "sleeping":
                pass
        wrong = {"model": model, "model_draft": str(tiny_model), "stream": False}
        refused = http.post("/v1/models/load", json=wrong)
        assert refused.status_code == 400
        assert "cannot draft for" in refused.json()["error"]["message"]
        loaded = http.post("/v1/models/load", json={"model": draft, "model_draft": model, "stream": False})
        assert loaded.json()["meta"]["draft"]["size"] > loaded.json()["meta"]["size"]
        loaded = http.post("/v1/models/load", json={"model": draft, "stream": False})
        assert loaded.json()["meta"]["draft"] is None
