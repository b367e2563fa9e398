"""The real context for vectors: llama-cpp-python's own vectors of the same file, however inputs are cut and mixed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from server.engine import loader
from server.engine.embedding import Embedder, EmbedderParams
from server.engine.loader import load
from server.engine.messages import Embedding, EmbedRequest, EngineConfig, Event, Failed, Notice
from server.errors import ModelError
from server.llama.embedding import EmbeddingContext
from server.llama.model import Model
from server.llama.params import ContextParams, EmbeddingParams, ModelParams, Pooling
from tests.fake_llama import make_request
from tests.tiny_bert import N_CTX_TRAIN, N_EMBD, write_tiny_bert
from tests.tiny_model import N_EMBD as TINY_N_EMBD
from tests.tiny_model import quiet_llama

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

    def __init__(self, path: Path, pooling: Pooling, **changes: Any) -> None:
        self.path, self.pooling = path, pooling
        self.model = Model(ModelParams(str(path)))
        numbers = {"n_ctx": 128, "n_threads": 1, "flash_attn": "off", "n_inputs": 3} | changes
        self.context = EmbeddingContext(self.model, EmbeddingParams(pooling=pooling, **numbers))
        params = EmbedderParams(pooling, self.context.n_ctx, self.model.n_vocab)
        self.embedder = Embedder(params, lambda: self.context)

    def close(self) -> None:
        self.context.close()
        self.model.close()

    def ours(self, *, pause_s: float | None = None, norm: int = 2) -> list[np.ndarray]:
        inputs = [tuple(self.model.tokenize(text, add_special=True, parse_special=True)) for text in TEXTS]
        self.embedder.add(EmbedRequest(1, tuple(inputs), norm=norm))
        found: dict[int, np.ndarray] = {}
        while self.embedder.has_work:
            for event in self.embedder.step(pause_s):
                assert not isinstance(event, Failed), event
                if isinstance(event, Embedding):
                    found[event.index] = np.frombuffer(event.data, "<f4").reshape(-1, event.width)
                    assert event.n_tokens == len(inputs[event.index])
            self.embedder.check_integrity()
        return [found[index] for index in range(len(TEXTS))]

    def theirs(self, *, normalize: bool = True) -> list[np.ndarray]:
        options: dict[str, Any] = {"n_ctx": 128, "n_threads": 1, "flash_attn": False, "verbose": False}
        if self.pooling != "rank":
            options["pooling_type"] = POOLING_TYPES[self.pooling]
        peer = llama_cpp.Llama(str(self.path), embedding=True, **options)
        vectors = [np.array(peer.embed(text, normalize=normalize), np.float32) for text in TEXTS]
        peer.close()
        return [vector if vector.ndim == 2 else vector[None] for vector in vectors]


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
    monkeypatch.setattr(loader, "SHORT_TEXT", n_short)
    loaded = load(config_of(berts["mean"], context={"flash_attn": wanted}), lambda event: None)
    assert (loaded.ready.flash_attn, loaded.ready.flash_attn_why) == (is_on, why)
    loaded.engine.add(EmbedRequest(1, ((2, 9, 3),)))
    assert any(isinstance(event, Embedding) for event in answers(loaded.engine))


def test_the_pooling_may_be_set(berts: dict[str, Path]) -> None:
    loaded = load(config_of(berts["mean"], pooling="last"), lambda event: None)
    assert loaded.ready.embedding.pooling == "last"


def test_scores_need_a_classifier(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="no classifier"):
        load(config_of(tiny_model, pooling="rank"), lambda event: None)
