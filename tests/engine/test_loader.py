"""An engine from plain data: what it says of itself, what it refuses, how "auto" is decided."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llama_cpp
import pytest

from ggufd.engine import loader
from ggufd.engine.engine import Engine
from ggufd.engine.loader import load
from ggufd.engine.loading.context_params import fitting_n_ctx
from ggufd.engine.loading.load_log import LoadLog
from ggufd.engine.messages.config import EngineConfig, EngineRules
from ggufd.engine.messages.events import Finish, Output
from ggufd.engine.messages.provenance import FileDigest, Provenance
from ggufd.engine.messages.reports import LoadProgress, LogLine, Notice
from ggufd.errors import ModelError
from ggufd.llama.calibration.attention_model import AttentionShape, write_attention_model
from ggufd.llama.gguf import gguf_header, shape
from ggufd.llama.model import system
from ggufd.llama.model.model import Model
from ggufd.llama.params import ContextParams, ModelParams
from ggufd.placement import host
from tests.support.fakes.fake_llama import make_request
from tests.support.models import gguf_files
from tests.support.models.state_models import write_mamba, write_windowed
from tests.support.models.tiny_model import CHAT_TEMPLATE, N_CTX_TRAIN, N_VOCAB

CONTEXT = {"n_ctx": 256, "n_slots": 3, "n_batch": 64, "n_ubatch": 32, "n_threads": 1, "flash_attn": "off"}


pytestmark = pytest.mark.usefixtures("quiet_log_afterwards")


def config_of(path: Path, *, model: dict[str, Any] | None = None, **changes: Any) -> EngineConfig:
    own = {
        name: changes.pop(name)
        for name in ("cache_dir", "log_level", "max_queue", "cache_ram_bytes")
        if name in changes
    }
    return EngineConfig(ModelParams(str(path), **(model or {})), ContextParams(**(CONTEXT | changes)), **own)


def test_what_a_models_cache_cannot_do_is_told(tiny_model: Path, tmp_path: Path) -> None:
    rules = EngineRules(shifts_context=True, n_cache_reuse=64)

    def told_of(path: Path) -> list[str]:
        events: list[Any] = []
        load(dataclasses.replace(config_of(path), rules=rules), events.append)
        return [event.message.split()[0] for event in events if isinstance(event, Notice)]

    assert told_of(write_mamba(tmp_path / "mamba.gguf")) == ["context_shift", "cache_reuse"]
    assert told_of(tiny_model) == []


@pytest.mark.parametrize(("cache_ram_bytes", "reuse"), [(0, "whole"), (1 << 20, "snapshots")])
def test_of_a_model_with_a_sliding_window_only_whole_copies_are_reused(
    tmp_path: Path, cache_ram_bytes: int, reuse: str
) -> None:
    config = dataclasses.replace(config_of(write_windowed(tmp_path / "w.gguf")), cache_ram_bytes=cache_ram_bytes)
    assert load(config, lambda event: None).ready.reuse == reuse


def test_a_loaded_engine_says_what_its_texts_come_of(tiny_model: Path, tmp_path: Path) -> None:
    def made(path: Path, **changes: Any) -> Provenance:
        found = load(config_of(path, **changes), lambda event: None).ready.provenance
        assert found is not None
        return found

    first, copy = made(tiny_model), tmp_path / "copy.gguf"
    copy.write_bytes(tiny_model.read_bytes())
    assert first.model[0] == FileDigest(tiny_model.name, tiny_model.stat().st_size, first.model[0].digest)
    assert made(copy).model[0].digest == first.model[0].digest
    assert (first.adapters, first.devices, first.build) == ((), (), system.build())
    assert len(first.libraries) == len(first.model[0].digest) == 32
    settings = dict(first.settings)
    assert (settings["n_ctx"], settings["n_threads"], settings["n_threads_batch"]) == (256, 1, 1)
    assert (settings["flash_attn"], settings["n_gpu_layers"], settings["n_fixed"]) == ("off", 0, 32)
    assert made(tiny_model, n_slots=2) == first
    assert dict(made(tiny_model, n_threads=2).settings)["n_threads"] == 2
    data = bytearray(tiny_model.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    assert made(copy).model[0].digest != first.model[0].digest


def test_a_cache_that_is_a_window_makes_no_deterministic_text(tmp_path: Path) -> None:
    path = write_windowed(tmp_path / "w.gguf")
    assert load(config_of(path, swa_full=False), lambda event: None).ready.provenance is None
    assert load(config_of(path), lambda event: None).ready.provenance is not None


def test_a_loaded_engine_says_what_it_is_and_serves(tiny_model: Path) -> None:
    reports: list[LoadProgress | LogLine] = []
    loaded = load(config_of(tiny_model), reports.append)
    ready = loaded.ready
    assert (ready.n_ctx, ready.n_slots, ready.n_batch, ready.n_threads) == (256, 3, 64, 1)
    assert (ready.flash_attn, ready.flash_attn_why, ready.reuse) == (False, "as configured", "any")
    assert (ready.model.name, ready.model.n_vocab, ready.model.n_ctx_train) == ("tiny", N_VOCAB, N_CTX_TRAIN)
    assert ready.model.vocab_type == llama_cpp.LLAMA_VOCAB_TYPE_BPE
    assert (ready.model.bos_piece, ready.model.eos_piece) == ("<s>", "</s>")
    assert ready.model.chat_template == CHAT_TEMPLATE
    assert "tokenizer.chat_template" not in ready.model.metadata
    assert any("KV" in line for line in ready.buffers)
    assert ready.memory_bytes > 3 * 256 * 2 * 2 * 16 * 2
    fractions = [report.fraction for report in reports if isinstance(report, LoadProgress)]
    assert fractions[-1] == 1.0
    assert fractions == sorted(set(fractions))
    loaded.engine.add(make_request(1, b"hello", max_tokens=5, ignore_eos=True))
    finishes: list[Finish] = []
    while loaded.engine.has_work:
        finishes += [event.finish for event in loaded.engine.step() if isinstance(event, Output) and event.finish]
    assert [finish.usage.completion_tokens for finish in finishes] == [5]


@pytest.mark.parametrize(("level", "is_told"), [(logging.DEBUG, True), (logging.CRITICAL, False)])
def test_the_log_is_told_from_its_level_on(tiny_model: Path, level: int, is_told: bool) -> None:
    reports: list[LoadProgress | LogLine] = []
    load(config_of(tiny_model, log_level=level), reports.append)
    assert any(isinstance(report, LogLine) for report in reports) is is_told


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    write_attention_model(tmp_path / "layer.gguf", AttentionShape(2, 2, 32), 1)
    with pytest.raises(ModelError, match="has no tokenizer"):
        load(config_of(tmp_path / "layer.gguf"), lambda report: None)


def test_a_model_with_an_encoder_is_refused_by_name(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "has_encoder", property(lambda model: True))
    with pytest.raises(ModelError, match=r"is a llama model, .* as T5 does, .* one like BERT"):
        load(config_of(tiny_model), lambda report: None)


def test_half_biases_are_refused_where_the_cpu_would_add_them(tiny_model: Path, tmp_path: Path) -> None:
    metadata, tensors = gguf_files.llama()
    path = gguf_files.write(tmp_path / "m.gguf", metadata, [*tensors, ("blk.1.attn_k.bias", (32,), "f16")])
    config = dataclasses.replace(
        config_of(tiny_model, model={"n_gpu_layers": 0}), shape=shape.of(gguf_header.read([path]))
    )
    with pytest.raises(ModelError, match=r"'blk.1.attn_k.bias' is of type F16, expected F32 on a CPU"):
        load(config, lambda report: None)


def test_why_it_cannot_load_is_in_the_message(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("this is no model\n" * 100)
    with pytest.raises(ModelError, match=r"could not load .*: .*magic") as caught:
        load(config_of(path), lambda report: None)
    assert "\n" not in caught.value.message


def test_flash_attention_is_measured_on_a_cpu_and_remembered(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader.system, "gpu_devices", lambda: ())
    # However busy the machine is.
    monkeypatch.setattr("ggufd.llama.calibration.calibration._BUDGET_S", 60.0)
    monkeypatch.setattr("ggufd.llama.calibration.calibration._SPREAD", float("inf"))
    ready = load(config_of(tiny_model, flash_attn="auto", cache_dir=str(tmp_path)), lambda report: None).ready
    assert "on this CPU" in ready.flash_attn_why
    assert (tmp_path / "flash-attention.json").exists()
    # The contexts of the measurement are not counted: a slot of theirs is larger than all of ours.
    kv = [line for line in ready.buffers if " KV " in line]
    assert len(kv) == 1
    assert ready.memory_bytes < 4 << 20


@pytest.mark.parametrize(
    ("asked", "free", "expected"),
    [(None, 10 << 30, 1 << 30), (None, 50 << 20, 0), (5 << 20, 50 << 20, 5 << 20), (0, 10 << 30, 0)],
)
def test_a_small_container_leaves_little_for_chats_without_a_slot(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, asked: int | None, free: int, expected: int
) -> None:
    monkeypatch.setattr(host, "ram", lambda: host.Ram(free, free))
    loaded = load(config_of(tiny_model, cache_ram_bytes=asked), lambda report: None)
    assert loaded.ready.host_cache_bytes == expected
    assert isinstance(loaded.engine, Engine)
    assert loaded.engine._cache.host.max_bytes == expected


def test_flash_attention_is_on_where_layers_run_on_a_gpu(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader.system, "gpu_devices", lambda: ("a GPU",))
    ready = load(config_of(tiny_model, flash_attn="auto"), lambda report: None).ready
    assert (ready.flash_attn, ready.flash_attn_why) == (True, "layers run on a GPU")


@pytest.mark.parametrize(
    ("n_ctx_train", "available", "expected"),
    [
        (4096, 1e12, 4096),
        (131072, 1e12, 8192),
        (0, 1e12, 8192),
        (131072, 4 * 2048 * 1000 / 0.8, 2048),
        (131072, 4 * 2048 * 1000 / 0.8 - 1, 1024),
        (131072, 0, 512),
        (256, 0, 256),
    ],
)
def test_the_context_of_a_slot_fits_into_free_memory(
    monkeypatch: pytest.MonkeyPatch, n_ctx_train: int, available: float, expected: int
) -> None:
    monkeypatch.setattr(host, "ram", lambda: host.Ram(available, available))
    model: Any = SimpleNamespace(n_ctx_train=n_ctx_train, kv_bytes_per_token=1000)
    assert fitting_n_ctx(model, ContextParams(n_ctx=0, n_slots=4)) == expected


def test_no_context_size_means_that_of_the_model(tiny_model: Path) -> None:
    assert load(config_of(tiny_model, n_ctx=0), lambda report: None).ready.n_ctx == N_CTX_TRAIN


def test_the_log_is_searched_for_what_is_said_nowhere_else() -> None:
    log = LoadLog(logging.WARNING, lambda report: None)
    for line in (
        "load_tensors: offloaded 13/25 layers to GPU",
        "load_tensors:          CPU model buffer size =   100.50 MiB",
        "llama_kv_cache:        CPU KV buffer size =     8.00 MiB",
    ):
        log._receive(logging.INFO, line)
    assert (log.n_gpu_layers, log.memory_bytes) == (13, int(108.5 * 1024 * 1024))
    log.start_counting()
    assert log.memory_bytes == int(100.5 * 1024 * 1024)
    log._receive(logging.ERROR, "llama_model_load: error loading model: tensor is missing")
    log._receive(logging.ERROR, "llama_model_load_from_file_impl: failed to load model")
    assert log.explain("it failed") == "it failed: error loading model: tensor is missing"


@pytest.mark.parametrize(
    "line",
    [
        "warning: failed to mlock 104857600-byte buffer (after previously locking 0 bytes): Cannot allocate memory",
        "warning: failed to VirtualLock 104857600-byte buffer (after previously locking 0 bytes): no quota",
        "warning: mlock not supported on this system",
    ],
)
def test_a_model_that_could_not_be_locked_into_ram_is_told_once(line: str) -> None:
    events: list[Any] = []
    log = LoadLog(logging.CRITICAL, events.append)
    for _ in range(2):
        log._receive(logging.WARNING, line)
    failure = line.removeprefix("warning: ")
    (notice,) = events
    assert isinstance(notice, Notice)
    assert notice.message == f"mlock: the model may go to swap, {failure}; raise 'ulimit -l', or leave --mlock out"
