"""The whole server over mixtures of experts and under adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.limits import ANSWER_S
from tests.support.models.lora_files import write_loras
from tests.support.models.quantised import FTYPES, quantise
from tests.support.models.tiny_model import EXPERTS, write_tiny_model
from tests.support.programs.live_server import live_server

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("moe")
    source = write_tiny_model(folder / "experts.gguf", size=EXPERTS)
    return {name: quantise(source, folder / f"experts-{name}.gguf", FTYPES[name]) for name in ("Q4_K_M", "Q8_0")}


@pytest.fixture(scope="module")
def loras(tiny_model: Path) -> tuple[str, str]:
    return write_loras(tiny_model)


class TestMixtures:
    def test_a_mixture_is_served_and_described(self, mixtures: dict[str, Path]) -> None:
        flags = ("-c", "256", "-t", "1", "-fa", "off", "--override-kv", "llama.expert_used_count=int:3")
        with live_server("-m", str(mixtures["Q4_K_M"]), *flags) as server:
            meta = httpx.get(f"{server.url}/v1/models", trust_env=False, timeout=ANSWER_S).json()["data"][0]["meta"]
            body = {"prompt": "Hello", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
            answer = httpx.post(f"{server.url}/v1/completions", json=body, trust_env=False, timeout=60).json()
        assert (meta["architecture"], meta["n_expert"], meta["n_expert_used"]) == ("llama", 4, 3)
        assert (meta["n_ctx"], meta["n_slots"], meta["n_layer"], meta["n_vocab"]) == (256, 4, 2, 263)
        assert "Q4_K" in meta["ftype"]
        assert answer["usage"]["completion_tokens"] == 8

    @pytest.mark.parametrize("change", ["llama.expert_used=int:3", "llama.rope.freq_base=int:3"])
    def test_a_key_that_nothing_reads_is_an_error(self, mixtures: dict[str, Path], change: str) -> None:
        with pytest.raises(RuntimeError, match="reads no such key of this model"):  # noqa: SIM117
            with live_server("-m", str(mixtures["Q8_0"]), "-c", "256", "--override-kv", change):
                pass


def test_the_whole_server_speaks_under_adapters(tiny_model: Path, loras: tuple[str, str]) -> None:
    flags = ("-m", str(tiny_model), "-c", "256", "-t", "1", "-fa", "off")
    body = {"prompt": "Hello", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    with (
        live_server(*flags, "--lora", loras[0], "--lora", loras[1], "--lora-init-without-apply") as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=60) as http,
    ):

        def text(**more: Any) -> str:
            response = http.post("/v1/completions", json=body | more)
            assert response.status_code == 200, response.text
            said: str = response.json()["choices"][0]["text"]
            return said

        base = text()
        style = text(model=f"{tiny_model.stem}+style")
        assert style != base
        assert text(lora=[{"id": 0, "scale": 1.0}]) == style
        http.post("/lora-adapters", json=[{"id": 0, "scale": 1.0}])
        assert text() == style
        assert text(lora=[]) == base

        def vector(**more: Any) -> list[float]:
            answer = http.post("/v1/embeddings", json={"input": "Hello", **more}).json()
            found: list[float] = answer["data"][0]["embedding"]
            return found

        plain = vector(lora=[])
        assert np.abs(np.array(vector()) - plain).max() > 0.01
        assert vector(model=f"{tiny_model.stem}+style") == vector()
