"""States on disk are taken by the server that they fit, and by no other."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.limits import ANSWER_S
from tests.support.models.tiny_model import write_tiny_model
from tests.support.programs.live_server import LiveServer, live_server

pytestmark = pytest.mark.timeout(300)

PROMPT = "AAAAA is how a long chat begins, and it goes on and on for ever. " * 6


def post(server: LiveServer, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=60, trust_env=False)


def answered(server: LiveServer) -> tuple[str, int]:
    """A text, and how many tokens of its prompt were at hand."""
    response = post(server, "/v1/completions", prompt=PROMPT, max_tokens=8, temperature=0, ignore_eos=True)
    assert response.status_code == 200, response.text
    answer = response.json()
    return answer["choices"][0]["text"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def metric(server: LiveServer, name: str) -> float:
    lines = httpx.get(server.url + "/metrics", trust_env=False, timeout=ANSWER_S).text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="moves the cache folder by XDG's variable")
def test_a_disk_cache_of_another_number_of_slots_or_another_attention_is_a_miss(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = ("-m", str(tiny_model), "-t", "1", "--cache-disk", "64", "--flash-attn")
    with live_server(*flags, "off", "-np", "2", "-c", "2048") as server:
        text, n_cached = answered(server)
        assert n_cached == 0
    for n_slots, attention in ((4, "off"), (2, "on")):
        with live_server(*flags, attention, "-np", str(n_slots), "-c", str(1024 * n_slots)) as server:
            assert answered(server) == (text, 0)
            assert metric(server, "ggufd_failed_restores_total") == 0
    with live_server(*flags, "off", "-np", "2", "-c", "2048") as server:
        again, n_cached = answered(server)
        assert again == text
        assert n_cached > 256
    files = list((tmp_path / "ggufd" / "prefixes").glob("*.npz"))
    assert len(files) == 3
    for path in files:
        path.write_bytes(path.read_bytes()[:-1000])
    with live_server(*flags, "off", "-np", "2", "-c", "2048") as server:
        assert answered(server) == (text, 0)
        assert metric(server, "ggufd_failed_restores_total") == 3


def test_a_saved_slot_is_taken_by_the_same_weights_alone(tmp_path: Path) -> None:
    """Name, size, type and parameters are the same; a copy under another name is the same model."""
    same, other = (write_tiny_model(tmp_path / name, seed=seed) for name, seed in (("a.gguf", 0), ("b.gguf", 1)))
    copy = tmp_path / "copy.gguf"
    shutil.copyfile(same, copy)
    assert same.stat().st_size == other.stat().st_size
    flags = ("-c", "1024", "-np", "1", "-t", "1", "--flash-attn", "off", "--slot-save-path", str(tmp_path / "slots"))
    with live_server("-m", str(same), *flags) as server:
        text, _ = answered(server)
        assert post(server, "/slots/0?action=save", filename="chat").status_code == 200
    for model, more in ((other, ()), (same, ("--rope-freq-scale", "0.5"))):
        with live_server("-m", str(model), *flags, *more) as server:
            refused = post(server, "/slots/0?action=restore", filename="chat")
            assert refused.status_code == 400
            assert "saved by another model or other weights" in refused.json()["error"]["message"]
            assert answered(server)[1] == 0
    with live_server("-m", str(copy), *flags) as server:
        assert post(server, "/slots/0?action=restore", filename="chat").status_code == 200
        again, n_cached = answered(server)
        assert (again, n_cached > 256) == (text, True)
