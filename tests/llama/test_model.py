"""A loaded model: its facts, a file without its weights, and files that are no models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ggufd.errors import ModelError
from ggufd.llama.model.model import GgufModel, Model
from ggufd.llama.params import ModelParams
from tests.support.models.tiny_model import (
    CHAT_TEMPLATE,
    N_CTX_TRAIN,
    N_EMBD,
    N_HEAD,
    N_HEAD_KV,
    N_LAYER,
    N_VOCAB,
    write_tiny_model,
)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Model]:
    loaded = Model(ModelParams(str(tiny_model)))
    yield loaded
    loaded.close()


def test_facts_are_those_of_the_file(model: Model) -> None:
    assert (model.vocabulary.n_vocab, model.n_ctx_train, model.n_embd, model.n_layer) == (
        N_VOCAB,
        N_CTX_TRAIN,
        N_EMBD,
        N_LAYER,
    )
    assert (model.n_head, model.n_head_kv, model.head_width) == (N_HEAD, N_HEAD_KV, N_EMBD // N_HEAD)
    assert (model.architecture, model.ftype) == ("llama", "all F32")
    assert model.metadata["general.name"] == "tiny"
    assert model.chat_template == CHAT_TEMPLATE
    assert model.size_bytes == 4 * model.n_params
    assert model.kv_bytes_per_token == 2 * N_LAYER * N_HEAD_KV * 2 * (N_EMBD // N_HEAD)
    assert model.has_decoder
    assert not model.has_encoder
    assert not model.is_recurrent
    assert model.n_swa == 0


def test_long_metadata_come_whole(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "x.gguf", metadata={"general.sampling.temp": 0.25})
    file = GgufModel(str(path))
    assert float(file.metadata["general.sampling.temp"]) == 0.25
    file.close()


def test_a_file_without_its_weights_has_vocabulary_and_template(tiny_model: Path) -> None:
    file = GgufModel(str(tiny_model))
    assert file.vocabulary.tokenize("the", add_special=False, parse_special=False) == [256, ord("e")]
    assert file.chat_template == CHAT_TEMPLATE
    file.close()
    file.close()


def test_loading_tells_its_progress_and_can_be_stopped(tiny_model: Path) -> None:
    seen: list[float] = []
    model = Model(ModelParams(str(tiny_model)), lambda fraction: not seen.append(fraction))  # type: ignore[func-returns-value]
    model.close()
    assert seen[-1] == 1.0
    assert seen == sorted(seen)
    with pytest.raises(ModelError):
        Model(ModelParams(str(tiny_model)), lambda fraction: False)


@pytest.mark.parametrize("changes", [{"mmap": False}, {"tensor_split": (1.0,)}, {"split_mode": "none"}])
def test_ways_to_load(tiny_model: Path, changes: dict[str, object]) -> None:
    model = Model(ModelParams(str(tiny_model), **changes))  # type: ignore[arg-type]
    assert model.vocabulary.n_vocab == N_VOCAB
    model.close()


def broken(tmp_path: Path, tiny_model: Path, kind: str) -> Path:
    path = tmp_path / "broken.gguf"
    data = tiny_model.read_bytes()
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_bytes(b"this is no model at all\n" * 100)
        case "header":
            path.write_bytes(data[:100])
        case "weights":
            path.write_bytes(data[: len(data) // 2])
        case "folder":
            path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "header", "weights", "folder"])
@pytest.mark.parametrize("opened", [GgufModel, lambda path: Model(ModelParams(path))], ids=["vocabulary", "weights"])
def test_what_is_no_model_is_a_model_error(
    tmp_path: Path, tiny_model: Path, kind: str, opened: Callable[[str], GgufModel]
) -> None:
    path = broken(tmp_path, tiny_model, kind)
    with pytest.raises(ModelError, match="could not load"):
        opened(str(path))
