"""The real context for vectors: llama-cpp-python's own vectors of the same file, however inputs are cut and mixed."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from gguf import GGUFReader

from ggufd.engine import loader
from ggufd.engine.embeddings.embedding import Embedder, EmbedderParams
from ggufd.engine.loader import load
from ggufd.engine.loading import context_params
from ggufd.engine.messages.config import EngineConfig
from ggufd.engine.messages.events import Embedding, Failed
from ggufd.engine.messages.reports import Event, Notice
from ggufd.engine.messages.requests import EmbedRequest
from ggufd.engine.queueing.waiting_list import WaitingList
from ggufd.errors import ModelError
from ggufd.llama.context.embedding import EmbeddingContext
from ggufd.llama.model.model import Model
from ggufd.llama.params import ContextParams, ControlVector, EmbeddingParams, ModelParams, Pooling
from tests.support.fakes.fake_llama import make_request
from tests.support.models.lora_files import pairs_of, write_control_vector, write_lora
from tests.support.models.tiny_bert import N_CTX_TRAIN, N_EMBD, write_tiny_bert
from tests.support.models.tiny_model import N_EMBD as TINY_N_EMBD
from tests.support.models.tiny_model import quiet_llama

pytestmark = pytest.mark.usefixtures("quiet_log_afterwards")

TEXTS = ["hello world", "a", "the cat sat on the mat, and the dog ran. " * 2, "abc 123", "who is it? it is i"]
POOLING_TYPES: dict[str, int] = {"none": 0, "mean": 1, "cls": 2, "last": 3}


@pytest.fixture(scope="module")
def berts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    quiet_llama()
    folder = tmp_path_factory.mktemp("berts")
    return {pooling: write_tiny_bert(folder / f"{pooling}.gguf", pooling) for pooling in ("mean", "cls", "rank")}


class Rig:
    """Our vectors of one file, beside llama-cpp-python's."""

    def __init__(self, path: Path, pooling: Pooling, loaded: dict[str, Any] | None = None, **changes: Any) -> None:
        self.path, self.pooling = path, pooling
        self.model = Model(ModelParams(str(path), **(loaded or {})))
        numbers = {"n_ctx": 128, "n_threads": 1, "flash_attn": "off", "n_inputs": 3} | changes
        self.context = EmbeddingContext(self.model, EmbeddingParams(pooling=pooling, **numbers))
        params = EmbedderParams(pooling, self.context.n_ctx, self.model.vocabulary.n_vocab, len(self.model.adapters))
        self.embedder = Embedder(params, lambda: self.context, WaitingList(600.0))

    def close(self) -> None:
        self.context.close()
        self.model.close()

    def ours(self, *, pause_s: float | None = None, norm: int = 2) -> list[np.ndarray]:
        return self.ours_under([()], pause_s=pause_s, norm=norm)[0]

    def ours_under(
        self, sets: list[tuple[float, ...]], *, pause_s: float | None = None, norm: int = 2
    ) -> list[list[np.ndarray]]:
        """The vectors under each of these sets of adapters, asked for at once."""
        inputs = [tuple(self.model.vocabulary.tokenize(text, add_special=True, parse_special=True)) for text in TEXTS]
        for number, scales in enumerate(sets):
            self.embedder.add(EmbedRequest(number, tuple(inputs), norm=norm, adapters=scales))
        found: dict[tuple[int, int], np.ndarray] = {}
        while self.embedder.has_work:
            for event in self.embedder.step(pause_s):
                assert not isinstance(event, Failed), event
                if isinstance(event, Embedding):
                    found[event.request_id, event.index] = np.frombuffer(event.data, "<f4").reshape(-1, event.width)
                    assert event.n_tokens == len(inputs[event.index])
            self.embedder.check_integrity()
        return [[found[number, index] for index in range(len(TEXTS))] for number in range(len(sets))]

    def theirs(
        self, *, normalize: bool = True, direction: tuple[int, np.ndarray] | None = None, **more: Any
    ) -> list[np.ndarray]:
        """`direction` is added to what leaves a layer; `more` are llama-cpp-python's own options."""
        options: dict[str, Any] = {"n_ctx": 128, "n_threads": 1, "flash_attn": False, "verbose": False, **more}
        if self.pooling != "rank":
            options["pooling_type"] = POOLING_TYPES[self.pooling]
        peer = llama_cpp.Llama(str(self.path), embedding=True, **options)
        if direction is not None:
            _add_direction(peer, *direction)
        vectors = [np.array(peer.embed(text, normalize=normalize), np.float32) for text in TEXTS]
        peer.close()
        return [vector if vector.ndim == 2 else vector[None] for vector in vectors]


def _add_direction(peer: llama_cpp.Llama, layer: int, direction: np.ndarray) -> None:
    data = np.zeros((layer, len(direction)), np.float32)
    data[layer - 1] = direction
    pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    assert llama_cpp.llama_set_adapter_cvec(peer.ctx, pointer, data.size, len(direction), layer, layer) == 0


@pytest.fixture
def make_rig() -> Iterator[Any]:
    made: list[Rig] = []

    def make(*arguments: Any, **changes: Any) -> Rig:
        made.append(Rig(*arguments, **changes))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


def assert_same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for one, two in zip(ours, theirs, strict=True):
        assert one == pytest.approx(two[: len(one)], abs=2e-3)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_berts_vectors(make_rig: Any, berts: dict[str, Path], pooling: Pooling) -> None:
    rig = make_rig(berts[pooling], pooling)
    ours = rig.ours()
    assert [one.shape for one in ours] == [(1, N_EMBD)] * len(TEXTS)
    assert_same(ours, rig.theirs())
    assert not np.allclose(ours[0], ours[2], atol=0.01), "texts have vectors of their own"


@pytest.mark.parametrize("pooling", ["mean", "last", "cls", "none"])
@pytest.mark.parametrize("pause_s", [None, 1e-9], ids=["whole", "in pieces"])
def test_a_writers_vectors(make_rig: Any, tiny_model: Path, pooling: Pooling, pause_s: float | None) -> None:
    rig = make_rig(tiny_model, pooling)
    ours = rig.ours(pause_s=pause_s, norm=-1 if pooling == "none" else 2)
    assert_same(ours, rig.theirs(normalize=pooling != "none"))


def test_a_rerankers_scores(make_rig: Any, berts: dict[str, Path]) -> None:
    rig = make_rig(berts["rank"], "rank")
    ours = rig.ours()
    assert [one.shape for one in ours] == [(1, 1)] * len(TEXTS)
    # llama-cpp-python reads as many numbers as the model is wide; the first is the score.
    theirs = [vector[:, :1] for vector in rig.theirs(normalize=False)]
    assert [float(one[0, 0]) for one in ours] == pytest.approx([float(two[0, 0]) for two in theirs], abs=5e-3)
    assert len({round(float(one[0, 0]), 3) for one in ours}) == len(TEXTS)


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pause_s", [None, 1e-9], ids=["whole", "in pieces"])
def test_a_writers_vectors_under_adapters(
    make_rig: Any, tiny_model: Path, tmp_path: Path, pause_s: float | None
) -> None:
    loras = [str(write_lora(tmp_path / f"{n}.gguf", pairs_of(tiny_model), seed=n)) for n in (1, 2)]
    rig = make_rig(tiny_model, "mean", {"loras": tuple(loras)})
    sets = [(), (1.0, 0.0), (0.0, 0.5), (1.0, 0.0), ()]
    base, one, two, one_again, base_again = rig.ours_under(sets, pause_s=pause_s)
    assert_same(base, rig.theirs())
    assert_same(one, rig.theirs(lora_path=loras[0]))
    assert_same(two, rig.theirs(lora_path=loras[1], lora_scale=0.5))
    assert_same(one_again, one)
    assert_same(base_again, base)
    assert_differ(base, one, two)


@pytest.mark.parametrize("pooling", ["cls", "rank"])
def test_a_berts_vectors_and_scores_under_an_adapter(
    make_rig: Any, berts: dict[str, Path], tmp_path: Path, pooling: Pooling
) -> None:
    pairs = pairs_of(berts[pooling], names=("attn_q", "attn_output", "ffn_down"))
    lora = str(write_lora(tmp_path / "bert.gguf", pairs, architecture="bert"))
    rig = make_rig(berts[pooling], pooling, {"loras": (lora,)})
    base, adapted = rig.ours_under([(), (1.0,)])
    theirs = rig.theirs(normalize=pooling != "rank", lora_path=lora)
    for one, two in zip(adapted, theirs, strict=True):
        assert one == pytest.approx(two[:, : one.shape[1]], abs=5e-3)
    assert_differ(base, adapted)


def test_control_vectors_are_added_to_what_becomes_a_vector(make_rig: Any, tiny_model: Path, tmp_path: Path) -> None:
    path = write_control_vector(tmp_path / "cv.gguf", (1,), TINY_N_EMBD)
    direction = GGUFReader(path).tensors[0].data
    rig = make_rig(tiny_model, "mean", {"control_vectors": (ControlVector(str(path), 0.5),)})
    ours = rig.ours()
    assert_same(ours, rig.theirs(direction=(1, 0.5 * direction)))
    assert_differ(rig.theirs(), ours)


def assert_differ(*sets: list[np.ndarray]) -> None:
    for place, one in enumerate(sets):
        for other in sets[:place]:
            assert all(np.abs(a - b).max() > 0.01 for a, b in zip(one, other, strict=True))


# --- an engine from a file --------------------------------------------------------------------------------------------


def config_of(path: Path, **changes: Any) -> EngineConfig:
    context = {"n_ctx": 256, "n_slots": 2, "n_batch": 64, "n_ubatch": 32, "n_threads": 1, "flash_attn": "off"}
    context |= changes.pop("context", {})
    return EngineConfig(ModelParams(str(path)), ContextParams(**context), **changes)


def answers(engine: Any) -> list[Event]:
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
        engine.check_integrity()
    return events


def test_a_file_that_names_a_pooling_serves_vectors_only(berts: dict[str, Path]) -> None:
    ready, engine = (loaded := load(config_of(berts["cls"]), lambda event: None)).ready, loaded.engine
    assert (ready.writes, ready.n_ctx, ready.model.architecture) == (False, N_CTX_TRAIN, "bert")
    assert (ready.embedding.pooling, ready.embedding.width, ready.embedding.n_ctx) == ("cls", N_EMBD, N_CTX_TRAIN)
    assert ready.memory_bytes > 0
    engine.add(EmbedRequest(1, ((2, 9, 3),)))
    engine.add(make_request(2, b"abc"))
    vectors = [event for event in answers(engine) if isinstance(event, Embedding)]
    assert np.linalg.norm(np.frombuffer(vectors[0].data, "<f4")) == pytest.approx(1, abs=1e-5)


def test_a_reranker_gives_scores_as_they_are(berts: dict[str, Path]) -> None:
    loaded = load(config_of(berts["rank"]), lambda event: None)
    assert (loaded.ready.embedding.pooling, loaded.ready.embedding.width) == ("rank", 1)
    loaded.engine.add(EmbedRequest(1, ((2, 9, 3, 12, 3),)))
    (score,) = [event for event in answers(loaded.engine) if isinstance(event, Embedding)]
    assert abs(abs(np.frombuffer(score.data, "<f4")[0]) - 1) > 1e-3, "it was scaled"


@pytest.mark.parametrize("at_start", [True, False])
def test_a_writer_makes_its_second_context_when_it_is_wanted(tiny_model: Path, at_start: bool) -> None:
    told: list[Any] = []
    loaded = load(config_of(tiny_model, embeddings=at_start), told.append)
    notices = [event.message for event in told if isinstance(event, Notice)]
    assert len(notices) == at_start
    assert loaded.ready.writes
    info = loaded.ready.embedding
    assert (info.pooling, info.width, info.n_ctx, info.is_asked_for) == ("mean", TINY_N_EMBD, 256, at_start)
    loaded.engine.add(make_request(1, b"hello", max_tokens=9, ignore_eos=True))
    loaded.engine.add(EmbedRequest(2, (tuple(b"hello"),)))
    done = answers(loaded.engine)
    assert any(isinstance(event, Embedding) for event in done)
    notices = [event.message for event in told if isinstance(event, Notice)]
    assert len(notices) == 1
    assert "MiB" in notices[0]


@pytest.mark.parametrize(
    ("wanted", "n_short", "is_on", "why"),
    [
        ("auto", 512, False, "texts are short"),
        ("auto", 64, True, "texts may be long"),
        ("off", 64, False, "as configured"),
        ("on", 512, True, "as configured"),
    ],
)
def test_flash_attention_goes_by_the_length_of_texts(
    berts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, wanted: str, n_short: int, is_on: bool, why: str
) -> None:
    monkeypatch.setattr(loader.system, "gpu_devices", lambda: ())
    monkeypatch.setattr(context_params, "SHORT_TEXT", n_short)
    loaded = load(config_of(berts["mean"], context={"flash_attn": wanted}), lambda event: None)
    assert (loaded.ready.flash_attn, loaded.ready.flash_attn_why) == (is_on, why)
    loaded.engine.add(EmbedRequest(1, ((2, 9, 3),)))
    assert any(isinstance(event, Embedding) for event in answers(loaded.engine))


def test_the_pooling_may_be_set(berts: dict[str, Path]) -> None:
    loaded = load(config_of(berts["mean"], pooling="last"), lambda event: None)
    assert loaded.ready.embedding.pooling == "last"


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_engine_of_either_kind_knows_its_adapters(
    berts: dict[str, Path], tiny_model: Path, tmp_path: Path, pooling: Pooling
) -> None:
    path, architecture = (tiny_model, "llama") if pooling == "mean" else (berts["cls"], "bert")
    pairs = pairs_of(path, names=("attn_q", "ffn_down"))
    lora = str(write_lora(tmp_path / "a.gguf", pairs, architecture=architecture))
    config = config_of(path)
    engine = load(dataclasses.replace(config, model=ModelParams(str(path), loras=(lora,))), lambda event: None).engine
    for number, scales in enumerate([(), (1.0,), (1.0, 1.0)]):
        engine.add(EmbedRequest(number, ((2, 9, 3),), adapters=scales))
    done = answers(engine)
    vectors = {event.request_id: event.data for event in done if isinstance(event, Embedding)}
    assert vectors.keys() == {0, 1}
    assert vectors[0] != vectors[1]
    assert [event.param for event in done if isinstance(event, Failed)] == ["lora"]


def test_scores_need_a_classifier(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="no classifier"):
        load(config_of(tiny_model, pooling="rank"), lambda event: None)
