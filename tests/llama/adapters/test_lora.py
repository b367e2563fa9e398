"""LoRA adapters and control vectors, from the file to the answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st

from ggufd.api.services.settings import LoraAdapter
from ggufd.engine.builder import Backend, build_engine
from ggufd.engine.engine import Engine
from ggufd.engine.kv_store.fingerprint import fingerprint
from ggufd.engine.messages.events import Output
from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.queueing.queue import RequestQueue
from ggufd.engine.scheduling.scheduler import Scheduler
from ggufd.errors import ConfigError, ModelError
from ggufd.llama.context.context import Context
from ggufd.llama.gguf import adapter_files, gguf_header
from ggufd.llama.model.model import Model
from ggufd.llama.params import ContextParams, ControlVector, ModelParams
from ggufd.models import hub
from ggufd.settings import adapters, api_settings, engine_settings, sources
from tests.support.fakes.api_client import Api, error_of, ring_of, running
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.fakes.fake_llama import FakeGrammars, Rig, make_engine, make_request, no_vectors, run_alone
from tests.support.models.lora_files import pairs_of, write_control_vector, write_lora, write_loras
from tests.support.models.tiny_model import N_EMBD, N_VOCAB

BASE, MUCH, LITTLE = (), (1.0, 0.0), (0.0, 0.5)


@pytest.fixture(scope="module")
def loras(tiny_model: Path) -> tuple[str, str]:
    return write_loras(tiny_model)


@pytest.fixture(scope="module")
def model(tiny_model: Path, loras: tuple[str, str]) -> Iterator[Model]:
    loaded = Model(ModelParams(str(tiny_model), loras=loras))
    yield loaded
    loaded.close()


def make_context(model: Model) -> Context:
    params = ContextParams(n_ctx=256, n_slots=4, n_batch=128, n_ubatch=64, n_threads=1, flash_attn="off")
    return Context(model, params)


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    made = make_context(model)
    yield made
    made.close()


def logits_of(context: Context, scales: tuple[float, ...], slot: int = 0) -> np.ndarray:
    """Of the last token of a fixed prompt, under these adapters."""
    context.trim(slot, 0)
    context.set_adapters(scales)
    context.batch.clear()
    context.batch.add(slot, [72, 101, 108, 108, 111], 0, 1)
    context.decode()
    return context.logits()[-1].copy()


# --- over llama.cpp ---------------------------------------------------------------------------------------------------


def test_a_scale_of_nothing_is_the_model_itself_and_more_is_not(context: Context) -> None:
    base = logits_of(context, BASE)
    assert np.array_equal(logits_of(context, (0.0, 0.0)), base)
    seen = [logits_of(context, scales) for scales in (MUCH, LITTLE, (1.0, 0.5), (0.5, 0.0), (-1.0, 0.0))]
    for i, one in enumerate(seen):
        assert np.abs(one - base).max() > 0.01
        assert not any(np.array_equal(one, other) for other in seen[:i])
    assert np.array_equal(logits_of(context, BASE), base)


def test_an_adapter_adds_what_its_matrices_say(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    """By hand: the output matrix and an adapter of it alone, on the same last state."""
    pairs = {"output.weight": ((2, N_EMBD), (N_VOCAB, 2))}
    path = write_lora(tmp_path / "head.gguf", pairs)
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    weights = {tensor.name: tensor.data for tensor in GGUFReader(tiny_model).tensors}
    a, b = tensors["output.weight.lora_a"], tensors["output.weight.lora_b"]
    model = Model(ModelParams(str(tiny_model), loras=(str(path),)))
    made = make_context(model)
    base, adapted = logits_of(made, BASE), logits_of(made, (0.5,))
    state = np.linalg.lstsq(weights["output.weight"], base, rcond=None)[0]
    # alpha 4 over rank 2
    assert np.allclose(adapted, base + 0.5 * 4 / 2 * b @ (a @ state), atol=1e-3)
    made.close()
    model.close()


def make_real_engine(model: Model, context: Context) -> Engine:
    scheduler = Scheduler(n_batch=context.n_batch, n_ubatch=64, n_outputs_max=context.n_outputs_max, max_gap_ms=1e6)
    backend = Backend(context, model.vocabulary, FakeGrammars())
    return build_engine(backend, RequestQueue(600.0), scheduler, no_vectors())


def texts_of(engine: Engine, requests: list[EngineRequest]) -> dict[int, str]:
    texts = {request.request_id: "" for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, Output):
                texts[event.request_id] += event.text
        engine.check_integrity()
    return texts


def test_users_with_different_adapters_together_say_what_each_says_alone(model: Model, context: Context) -> None:
    prompt = b"The same beginning of forty characters ..."
    sets = [BASE, MUCH, LITTLE, MUCH, (1.0, 0.5), BASE]
    requests = [
        make_request(i, prompt + bytes([65 + i % 2]), adapters=scales, max_tokens=24, ignore_eos=True)
        for i, scales in enumerate(sets)
    ]
    alone = {}
    for request in requests:
        fresh = make_context(model)
        alone |= texts_of(make_real_engine(model, fresh), [request])
        fresh.close()
    engine = make_real_engine(model, context)
    assert texts_of(engine, requests) == alone
    assert len(set(alone.values())) > 3
    # And once more, from what the slots hold now.
    assert texts_of(engine, requests) == alone
    assert engine.stats().cached_tokens > 0


def test_control_vectors_are_added_to_their_layers(tiny_model: Path, tmp_path: Path) -> None:
    first = str(write_control_vector(tmp_path / "first.gguf", (1,), N_EMBD))
    both = str(write_control_vector(tmp_path / "both.gguf", (1, 2), N_EMBD, seed=2))

    def logits(*vectors: ControlVector, layers: tuple[int, int] | None = None) -> np.ndarray:
        model = Model(ModelParams(str(tiny_model), control_vectors=vectors, control_layers=layers))
        context = make_context(model)
        found = logits_of(context, ())
        context.close()
        model.close()
        return found

    base = logits()
    assert np.array_equal(logits(ControlVector(first, 0.0)), base)
    once, twice = logits(ControlVector(first)), logits(ControlVector(first, 2.0))
    assert np.abs(once - base).max() > 0.01
    assert np.array_equal(logits(ControlVector(first), ControlVector(first)), twice)
    assert not np.array_equal(once, twice)
    # Layer 2 of two layers is past the last one that anything is added to.
    assert not np.array_equal(logits(ControlVector(both)), logits(ControlVector(both), layers=(2, 2)))


# --- turns ------------------------------------------------------------------------------------------------------------


def test_groups_take_turns_and_a_group_shares_its_steps() -> None:
    rig = make_engine(n_slots=4, n_adapters=2)
    steps: list[tuple[tuple[float, ...], int]] = []
    rig.decoder.before_decode = lambda: steps.append((rig.decoder.adapters, rig.decoder.batch.n_rows))
    for i, scales in enumerate([MUCH, BASE, MUCH, LITTLE]):
        rig.add(make_request(i, bytes([65 + i]), adapters=scales, max_tokens=12, ignore_eos=True))
    rig.run()
    in_the_middle = steps[6:30]
    assert {scales for scales, _ in in_the_middle} == {BASE, MUCH, LITTLE}
    for k in range(0, 24, 3):
        assert len({scales for scales, _ in in_the_middle[k : k + 3]}) == 3
    assert all(n_rows == (2 if scales == MUCH else 1) for scales, n_rows in in_the_middle)


def test_newcomers_with_ever_other_adapters_do_not_keep_anybody_waiting() -> None:
    rig = make_engine(n_slots=2, n_adapters=2)
    rig.add(make_request(0, b"a", max_tokens=20, ignore_eos=True))
    waits, wait = [], 0
    next_id = 1
    for _ in range(60):
        if len(rig.engine._running) < 2:
            rig.add(make_request(next_id, b"b", adapters=(next_id / 100, 0.0), max_tokens=1, ignore_eos=True))
            next_id += 1
        events = rig.step()
        wait += 1
        if any(isinstance(event, Output) and event.request_id == 0 for event in events):
            waits.append(wait)
            wait = 0
    assert next_id > 15
    assert max(waits) <= 3


def test_a_prompt_is_read_in_small_pieces_while_another_group_writes() -> None:
    rig = make_engine(n_slots=2, n_ctx=2048, n_batch=512, n_adapters=2, row_s=0.002)
    rig.add(make_request(0, b"a", max_tokens=60, ignore_eos=True))
    for _ in range(20):
        rig.step()
    rig.add(make_request(1, b"b" * 900, adapters=MUCH, max_tokens=4, ignore_eos=True))
    rows: list[int] = []
    rig.decoder.before_decode = lambda: rows.append(rig.decoder.batch.n_rows)
    rig.run()
    # 100 ms are 50 rows of 2 ms.
    assert 16 <= max(rows[2:]) <= 50


SETS = st.sampled_from([BASE, MUCH, LITTLE, (1.0, 0.5)])


@given(st.lists(st.tuples(SETS, st.sampled_from([b"the same head", b"the same", b"another"])), min_size=1, max_size=8))
def test_no_cache_is_mixed_whoever_comes_after_whom(asked: list[tuple[tuple[float, ...], bytes]]) -> None:
    rig = make_engine(n_slots=2, n_adapters=2, cache_ram_bytes=10_000)
    requests = [
        make_request(i, head + b" of all that is said here, and more", adapters=scales)
        for i, (scales, head) in enumerate(asked)
    ]
    rig.add(*requests)
    found = rig.run()
    for request in requests:
        assert found[request.request_id].texts == run_alone(request, n_adapters=2).texts


def test_an_engine_without_these_adapters_refuses() -> None:
    rig: Rig = make_engine(n_adapters=1)
    rig.add(make_request(0, b"a", adapters=MUCH))
    failure = rig.run()[0].failure
    assert failure is not None
    assert (failure.code, failure.param) == ("invalid_value", "lora")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"general_type": "model"}, "not a LoRA adapter"),
        ({"adapter_type": "other"}, "not a LoRA adapter"),
        ({"architecture": "qwen2"}, "an adapter for qwen2 models"),
        ({"invocation": (5, 6)}, "an activated LoRA"),
        ({"pairs": {}}, "has no tensors"),
        ({"pairs": {"blk.9.attn_q.weight": ((2, 32), (32, 2))}}, "the model has no tensor blk.9.attn_q.weight"),
        ({"pairs": {"blk.0.attn_q.weight": ((2, 32), (16, 2))}}, "do not match its shape"),
        ({"pairs": {"blk.0.attn_q.weight": ((2, 32), (32, 3))}}, "do not match its shape"),
        ({"pairs": {"token_embd.weight": ((N_VOCAB, 2), (32, 3))}}, "do not match its shape"),
        ({"pairs": {"blk.0.attn_q.weight": ((3, 2, 32), (3, 32, 2))}}, "do not match its shape"),
    ],
)
def test_what_is_no_adapter_of_this_model_is_said_in_one_line(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    pairs = changes.pop("pairs", pairs_of(tiny_model))
    path = write_lora(tmp_path / "bad.gguf", pairs, **changes)
    config = sources.load(None, {"lora": str(path)}, {})
    with pytest.raises(ModelError, match=words) as caught:
        adapters.check(config, hub.find(str(tiny_model)))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("flag", ["lora", "control_vector"])
@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "a\0b", "x" * 300])
def test_a_name_that_no_file_can_have_is_said_in_one_line(tiny_model: Path, flag: str, name: str) -> None:
    config = sources.load(None, {flag: name}, {})
    with pytest.raises(ModelError, match=r"not a valid file name|cannot be read") as caught:
        adapters.check(config, hub.find(str(tiny_model)))
    assert "\n" not in caught.value.message


def test_half_an_adapter_and_a_foreign_tensor_are_named(tiny_model: Path, tmp_path: Path) -> None:
    model = gguf_header.read([tiny_model])
    write_lora(tmp_path / "one.gguf", {"blk.0.attn_q.weight": ((2, 32), (32, 2))})
    whole = (tmp_path / "one.gguf").read_bytes()
    for old, new, words in [
        (b".lora_b", b".lora_x", "not part of a LoRA"),
        (b"0.attn_q.weight.lora_b", b"1.attn_q.weight.lora_b", "one of the two LoRA matrices"),
    ]:
        (tmp_path / "bad.gguf").write_bytes(whole.replace(old, new))
        with pytest.raises(ModelError, match=words):
            adapter_files.check_lora(str(tmp_path / "bad.gguf"), model)


def test_what_is_no_control_vector_is_said_in_one_line(tiny_model: Path, tmp_path: Path) -> None:
    wide = write_control_vector(tmp_path / "wide.gguf", (1,), 64)
    lora = write_lora(tmp_path / "lora.gguf", pairs_of(tiny_model))
    for path, words in (
        (wide, "needs 32 floats"),
        (lora, "not a control vector"),
        (tiny_model, "not a control vector"),
    ):
        config = sources.load(None, {"control_vector_scaled": f"{path}:0.5"}, {})
        with pytest.raises(ModelError, match=words):
            adapters.check(config, hub.find(str(tiny_model)))


@pytest.mark.parametrize("setting", ["lora", "lora_scaled", "control_vector", "control_vector_scaled"])
def test_a_missing_file_is_said_with_the_option_that_named_it(tiny_model: Path, tmp_path: Path, setting: str) -> None:
    scale = ":0.5" if setting.endswith("scaled") else ""
    for path, words in ((tmp_path / "none.gguf", "no such file"), (tmp_path, "is a folder")):
        config = sources.load(None, {setting: f"{path}{scale}"}, {})
        flag = f"--{setting.removesuffix('_scaled').replace('_', '-')}"
        with pytest.raises(ModelError, match=f"{words}; {flag} wants the path of a GGUF file"):
            adapters.check(config, hub.find(str(tiny_model)))


@pytest.mark.parametrize(("layers", "is_fine"), [("1,1", True), ("1,2", True), ("2,2", False), ("1,3", False)])
def test_the_layers_of_control_vectors_are_held_against_the_model(
    tiny_model: Path, tmp_path: Path, layers: str, is_fine: bool
) -> None:
    """The tiny model has two; nothing is added to the last one's output."""
    vector = write_control_vector(tmp_path / "v.gguf", (1,), N_EMBD)
    config = sources.load(None, {"control_vector": str(vector), "control_vector_layer_range": layers}, {})
    model = hub.find(str(tiny_model))
    if is_fine:
        adapters.check(config, model)
        return
    with pytest.raises(ModelError, match="has 2 layers; expected a first one of 1 to 1"):
        adapters.check(config, model)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_settings_name_files_and_scales() -> None:
    flags = {
        "lora": "a.gguf,b/c.gguf",
        "lora_scaled": "d.gguf:0.5",
        "control_vector": "v.gguf",
        "control_vector_scaled": "C:\\w.gguf:-1",
        "control_vector_layer_range": "2,5",
    }
    config = sources.load(None, flags, {})
    model = hub.ModelFile(Path("m.gguf"), 0)
    assert api_settings.api_config(config, model, None).adapters == (
        LoraAdapter("a", "a.gguf", 1.0),
        LoraAdapter("c", "b/c.gguf", 1.0),
        LoraAdapter("d", "d.gguf", 0.5),
    )
    params = engine_settings.engine_config(config, model).model
    assert params.loras == ("a.gguf", "b/c.gguf", "d.gguf")
    assert params.control_vectors == (ControlVector("v.gguf"), ControlVector("C:\\w.gguf", -1.0))
    assert params.control_layers == (2, 5)


def test_adapters_may_wait_for_who_asks() -> None:
    config = sources.load(None, {"lora": "a.gguf", "lora_init_without_apply": True}, {})
    assert adapters.loras_of(config)[0].scale == 0.0


@pytest.mark.parametrize(
    "flags",
    [{"lora_scaled": "a.gguf"}, {"lora_scaled": "a.gguf:much"}, {"control_vector_layer_range": "3"}],
)
def test_what_is_no_scale_or_range_is_refused(flags: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        sources.load(None, flags, {})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"control_vector": "v.gguf", "control_vector_layer_range": "2,1"}, "2,1: the first layer is greater"),
        ({"control_vector_layer_range": "1,2"}, "1,2: no control vector is set"),
        ({"lora_scaled": "a.gguf:-100.5"}, "a.gguf:-100.5: expected a scale of -100 to 100"),
        ({"lora_scaled": f"a.gguf:{'9' * 400}"}, "a.gguf:inf: expected a scale"),
    ],
)
def test_settings_that_make_no_sense_with_any_model_are_refused(
    tiny_model: Path, flags: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        adapters.check(sources.load(None, flags, {}), hub.find(str(tiny_model)))


def test_two_adapters_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="called a"):
        adapters.loras_of(sources.load(None, {"lora": "x/a.gguf,y/a.gguf"}, {}))


def test_an_adapter_in_the_home_folder_has_a_fingerprint(
    tiny_model: Path, loras: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(Path(loras[0]).parent))
    context = ContextParams(n_ctx=64, n_slots=1)
    named = [fingerprint(ModelParams(str(tiny_model), loras=(path,)), context) for path in (loras[0], "~/style.gguf")]
    assert named[0] == named[1]


# --- the API ----------------------------------------------------------------------------------------------------------

LOADED = (LoraAdapter("style", "style.gguf", 1.0), LoraAdapter("topic", "topic.gguf", 0.0))


async def scales_of(api: Api, path: str = "/v1/completions", **body: Any) -> tuple[float, ...]:
    await api.ok(path, **({"prompt": "a"} | body))
    return api.engine.requests[-1].adapters


async def test_a_request_says_how_much_of_each_it_wants() -> None:
    async with running(adapters=LOADED) as api:
        assert await scales_of(api) == (1.0, 0.0)
        assert await scales_of(api, lora=[{"id": 1, "scale": 0.5}]) == (0.0, 0.5)
        assert await scales_of(api, lora=[{"id": 1, "scale": 2}, {"id": 0, "scale": -1}]) == (-1.0, 2.0)
        assert await scales_of(api, lora=[]) == ()
        assert await scales_of(api, lora=[{"id": 0, "scale": 0}]) == ()
        messages = [{"role": "user", "content": "a"}]
        assert await scales_of(api, "/v1/chat/completions", messages=messages, lora=[{"id": 1, "scale": 1}]) == (0, 1)
        assert await scales_of(api, "/completion", lora=[{"id": 1, "scale": 1}]) == (0, 1)


async def test_a_models_name_says_it_too() -> None:
    async with running(adapters=LOADED) as api:
        assert await scales_of(api, model="fake-model+style") == (1.0, 0.0)
        assert await scales_of(api, model="fake-model+topic") == (0.0, 1.0)
        assert await scales_of(api, model="fake-model+topic+style") == (1.0, 1.0)
        assert await scales_of(api, model="any+thing") == (1.0, 0.0)
        assert await scales_of(api, "/v1/responses", input="a", prompt=None, model="fake-model+topic") == (0.0, 1.0)
        message = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 5}
        assert await scales_of(api, "/v1/messages", **message, model="fake-model+topic") == (0.0, 1.0)
        assert await scales_of(api, model="fake-model+style", lora=[]) == ()
        error = await api.refused("/v1/completions", {"prompt": "a", "model": "fake-model+x"}, 404)
        assert error["param"] == "model"
        assert "style, topic" in error["message"]


async def test_an_adapter_with_a_plus_in_its_name_is_asked_for_as_it_is_listed() -> None:
    async with running(adapters=(*LOADED, LoraAdapter("a+b", "a+b.gguf", 1.0))) as api:
        assert await scales_of(api, model="fake-model+a+b") == (0.0, 0.0, 1.0)


VECTOR_ROUTES = {
    "/v1/embeddings": {"input": "a"},
    "/embeddings": {"content": "a"},
    "/embedding": {"content": "a"},
    "/api/extra/embeddings": {"input": "a"},
    "/api/embed": {"input": ["a", "b"]},
    "/api/embeddings": {"prompt": "a"},
    "/v1/rerank": {"query": "q", "documents": ["a"]},
    "/rerank": {"query": "q", "texts": ["a"]},
}


@pytest.mark.parametrize("path", VECTOR_ROUTES)
async def test_a_request_for_vectors_says_it_as_one_for_text_does(path: str) -> None:
    fake = FakeEngine(pooling="rank" if "rerank" in path else "mean")
    async with running(fake, adapters=LOADED) as api:

        async def scales(**more: Any) -> tuple[float, ...]:
            await api.ok(path, **VECTOR_ROUTES[path], **more)
            return fake.embeds[-1].adapters

        assert await scales() == (1.0, 0.0)
        assert await scales(lora=[{"id": 1, "scale": 0.5}]) == (0.0, 0.5)
        assert await scales(lora=[]) == ()
        assert await scales(model="fake-model+topic") == (0.0, 1.0)
        assert await scales(model="text-embedding-3-small") == (1.0, 0.0)
        assert await scales(model=["no", "name"]) == (1.0, 0.0)
        for lora, param in (([{"id": 2, "scale": 1}], "lora[0].id"), ([{"id": 0, "scale": "x"}], "lora[0].scale")):
            error = error_of(await api.post(path, VECTOR_ROUTES[path] | {"lora": lora}), 400)
            assert error["param"] == param
        error = error_of(await api.post(path, VECTOR_ROUTES[path] | {"model": "fake-model+x"}), 404)
        assert "style, topic" in error["message"]
        await api.post("/lora-adapters", [{"id": 1, "scale": 2}])
        assert await scales() == (0.0, 2.0)


async def test_the_models_are_listed_with_their_adapters() -> None:
    async with running(adapters=LOADED) as api:
        models = (await api.http.get("/v1/models")).json()["data"]
        assert [model["id"] for model in models] == ["fake-model", "fake-model+style", "fake-model+topic"]
        assert models[1]["parent"] == "fake-model"
        assert (await api.http.get("/v1/models/fake-model+topic")).json()["id"] == "fake-model+topic"
        assert (await api.http.get("/v1/internal/model/info")).json()["lora_names"] == ["style", "topic"]


async def test_the_default_can_be_changed() -> None:
    async with running(adapters=LOADED) as api:
        assert (await api.http.get("/lora-adapters")).json() == [
            {"id": 0, "name": "style", "path": "style.gguf", "scale": 1.0},
            {"id": 1, "name": "topic", "path": "topic.gguf", "scale": 0.0},
        ]
        assert (await api.post("/lora-adapters", [{"id": 1, "scale": 0.5}])).json() == {"success": True}
        assert await scales_of(api) == (0.0, 0.5)
        await api.post("/lora-adapters", [])
        assert await scales_of(api) == ()
        assert [one["scale"] for one in (await api.http.get("/lora-adapters")).json()] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ([{"id": 2, "scale": 1}], "lora[0].id"),
        ([{"id": 0, "scale": 1}, {"id": -1, "scale": 1}], "lora[1].id"),
        ([{"id": 0}], "lora[0].scale"),
        ([{"id": 0, "scale": 1e9}], "lora[0].scale"),
        ([{"id": 0, "scale": "much"}], "lora[0].scale"),
        ("style", "lora"),
        ([1], "lora[0]"),
    ],
)
async def test_a_wrong_wish_is_refused_and_named(wish: Any, param: str) -> None:
    async with running(adapters=LOADED) as api:
        assert (await api.refused("/v1/completions", {"prompt": "a", "lora": wish}))["param"] == param
        error = error_of(await api.post("/lora-adapters", wish), 400)
        if isinstance(wish, list):
            assert error["param"] == param.removeprefix("lora")
            assert error["message"].startswith(f"'{error['param']}': ")


async def test_the_default_is_an_admins() -> None:
    from ggufd.keys.ring import Role

    for role, status in ((Role.USER, 403), (Role.ADMIN, 200)):
        async with running(adapters=LOADED, keys=ring_of("k", role=role)) as api:
            response = await api.post("/lora-adapters", [], headers={"x-api-key": "k"})
            assert response.status_code == status
            response = await api.post("/v1/models/load", {"model": "x"}, headers={"x-api-key": "k"})
            assert response.status_code == (status if status == 403 else 400)


async def test_where_none_is_loaded_it_says_so() -> None:
    async with running() as api:
        assert (await api.http.get("/lora-adapters")).json() == []
        error = await api.refused("/v1/completions", {"prompt": "a", "lora": [{"id": 0, "scale": 1}]})
        assert "none is loaded" in error["message"]
