"""Mixtures of experts in F16 and the eight usual quantisations: they load, serve, and say what llama.cpp says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from ggufd.engine.builder import Backend, build_engine
from ggufd.engine.messages.events import Output
from ggufd.engine.queueing.queue import RequestQueue
from ggufd.engine.scheduling.scheduler import Scheduler
from ggufd.errors import ConfigError, ModelError
from ggufd.llama.context.context import Context
from ggufd.llama.model.model import Model
from ggufd.llama.params import ContextParams, ModelParams
from ggufd.models import hub
from ggufd.settings import engine_settings, model_files, sources
from tests.support.fakes.fake_llama import FakeGrammars, make_request, no_vectors
from tests.support.models.franken_moe import write_franken_moe
from tests.support.models.quantised import F16, FTYPES, quantise
from tests.support.models.tiny_model import EXPERTS, WIDE, write_tiny_model

ALL = {"F16": F16, **FTYPES}
PROMPT = [int(token) for token in np.random.default_rng(5).integers(0, 256, 40)]
N_TOKENS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("moe")


@pytest.fixture(scope="module")
def mixtures(folder: Path) -> dict[str, Path]:
    """Four experts that differ, in every type."""
    source = write_tiny_model(folder / "experts.gguf", size=EXPERTS)
    return {name: quantise(source, folder / f"experts-{name}.gguf", ftype) for name, ftype in ALL.items()}


@pytest.fixture(scope="module")
def families(folder: Path) -> dict[str, tuple[Path, Path]]:
    """A dense model and the mixture of four times itself, in every type."""
    source = write_tiny_model(folder / "dense.gguf", size=WIDE)
    found = {}
    for name, ftype in ALL.items():
        dense = quantise(source, folder / f"dense-{name}.gguf", ftype)
        found[name] = (dense, write_franken_moe(dense, folder / f"franken-{name}.gguf"))
    return found


@contextmanager
def opened(path: Path, **params: object) -> Iterator[Context]:
    model = Model(ModelParams(str(path), **params))  # type: ignore[arg-type]
    context = Context(model, ContextParams(n_ctx=256, n_slots=2, n_ubatch=64, n_threads=1, flash_attn="off"))
    yield context
    context.close()
    model.close()


def logits_of(path: Path, **params: object) -> np.ndarray:
    """After every token of the prompt, read at once; shape `[n, n_vocab]`."""
    with opened(path, **params) as context:
        context.batch.clear()
        context.batch.add(0, PROMPT, 0, len(PROMPT))
        context.decode()
        return context.logits().copy()


def served(path: Path) -> list[int]:
    """What the engine says to the prompt, greedily."""
    with opened(path) as context:
        scheduler = Scheduler(n_batch=context.n_batch, n_ubatch=64, n_outputs_max=64, max_gap_ms=1e6)
        backend = Backend(context, context.model.vocabulary, FakeGrammars())
        engine = build_engine(backend, RequestQueue(60.0), scheduler, no_vectors())
        engine.add(make_request(1, PROMPT, max_tokens=N_TOKENS, ignore_eos=True))
        tokens: list[int] = []
        while engine.has_work:
            tokens += [token for event in engine.step() if isinstance(event, Output) for token in event.tokens]
        return tokens


def said_by_llama_cpp(path: Path) -> list[int]:
    """The same by llama-cpp-python's own `Llama`: the prompt in one piece, then token by token."""
    llama = llama_cpp.Llama(str(path), n_ctx=256, n_batch=64, n_threads=1, logits_all=True, verbose=False)
    llama.eval(PROMPT)
    tokens: list[int] = []
    eog = {token for token in range(llama.n_vocab()) if llama_cpp.llama_vocab_is_eog(llama._model.vocab, token)}
    while len(tokens) < N_TOKENS:
        row = np.array(llama.scores[llama.n_tokens - 1])
        row[list(eog)] = -np.inf
        tokens.append(int(row.argmax()))
        llama.eval(tokens[-1:])
    llama.close()
    return tokens


@pytest.mark.parametrize("name", ALL)
def test_differing_experts_say_what_llama_cpp_python_says(mixtures: dict[str, Path], name: str) -> None:
    tokens = served(mixtures[name])
    # The last ones are not told when they end within a character.
    assert tokens == said_by_llama_cpp(mixtures[name])[: len(tokens)]
    assert len(tokens) > N_TOKENS - 4


def test_the_experts_do_differ(mixtures: dict[str, Path]) -> None:
    """Else a router that is read wrongly would not be seen."""
    whole = logits_of(mixtures["F16"])
    one = logits_of(mixtures["F16"], metadata=(("llama.expert_used_count", 1),))
    assert np.abs(whole - one).max() > 0.5


TOLERANCE = 0.05
"""Of logits whose standard deviation is 3. Measured with AVX-512: 0.007 in F16, at most 0.000004 in the others."""


@pytest.mark.parametrize("name", ALL)
def test_identical_experts_say_what_their_parent_says(families: dict[str, tuple[Path, Path]], name: str) -> None:
    dense, mixture = families[name]
    assert np.abs(logits_of(dense) - logits_of(mixture)).max() < TOLERANCE
    if name == "F16":
        assert served(mixture) == served(dense)


class TestOverrides:
    def test_the_number_of_experts_used_is_what_was_asked_for(self, folder: Path, mixtures: dict[str, Path]) -> None:
        written = quantise(write_tiny_model(folder / "3.gguf", size=EXPERTS, n_used=3), folder / "3-F16.gguf", F16)
        asked = logits_of(mixtures["F16"], metadata=(("llama.expert_used_count", 3),))
        assert np.array_equal(asked, logits_of(written))

    def test_every_type_of_value_is_read(self) -> None:
        text = "a.b=int:-3,c=float:1.5e-5,d=bool:true,e=str:x:y=z"
        config = sources.load(None, {"override_kv": text}, {})
        assert engine_settings.metadata_of(config) == {"a.b": -3, "c": 1.5e-5, "d": True, "e": "x:y=z"}
        assert dict(engine_settings.engine_config(config, hub.ModelFile(Path("m"), 0)).model.metadata) == {
            "a.b": -3,
            "c": 1.5e-5,
            "d": True,
            "e": "x:y=z",
        }

    @pytest.mark.parametrize("text", ["a", "a=3", "a=int:x", "a=bool:1", "a=float:", "=int:3", f"a=str:{'x' * 128}"])
    def test_what_cannot_be_read_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigError, match="override"):
            sources.load(None, {"override_kv": text}, {})

    def test_what_no_model_could_be_is_refused_by_the_header(self, mixtures: dict[str, Path]) -> None:
        flags = {"model": str(mixtures["Q8_0"]), "override_kv": "llama.expert_used_count=int:5"}
        with pytest.raises(ModelError, match="5 of 4 experts are used"):
            model_files.find_model(sources.load(None, flags, {}))
