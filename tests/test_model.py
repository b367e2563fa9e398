"""A loaded model: its vocabulary, its facts, and files that are none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.errors import ModelError
from server.llama.model import Model
from server.llama.params import ModelParams
from tests.tiny_model import (
    BOS,
    CHAT_TEMPLATE,
    EOS,
    EOT,
    N_CTX_TRAIN,
    N_EMBD,
    N_HEAD,
    N_HEAD_KV,
    N_LAYER,
    N_VOCAB,
    SPECIALS,
    write_tiny_model,
)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Model]:
    loaded = Model(ModelParams(str(tiny_model)))
    yield loaded
    loaded.close()


@pytest.mark.parametrize("text", ["hello", "the thing\n\ther\x00 x", "é € 😀", "a" * 5000, ""])
def test_tokens_say_their_text_again(model: Model, text: str) -> None:
    tokens = model.tokenize(text, add_special=False, parse_special=False)
    assert b"".join(model.piece(token, special=False) for token in tokens) == text.encode()


def test_every_byte_is_a_piece(model: Model) -> None:
    assert {model.piece(token, special=False) for token in range(256)} == {bytes([byte]) for byte in range(256)}


def test_specials_are_read_when_asked_for(model: Model) -> None:
    assert model.tokenize("a</s>", add_special=False, parse_special=True) == [ord("a"), EOS]
    assert EOS not in model.tokenize("a</s>", add_special=False, parse_special=False)
    assert model.tokenize("", add_special=True, parse_special=False) == [BOS]


def test_control_tokens_have_a_piece_only_as_specials(model: Model) -> None:
    assert [model.piece(BOS + place, special=True).decode() for place in range(4)] == list(SPECIALS)
    assert [model.piece(BOS + place, special=False) for place in range(4)] == [b""] * 4
    assert model.is_control(EOT)
    assert not model.is_control(5)


def test_every_end_token_is_known(model: Model) -> None:
    assert model.eog_tokens == {EOS, EOT}
    assert (model.bos, model.eos) == (BOS, EOS)
    assert model.adds_bos
    assert not model.adds_eos
    assert model.infill_tokens is None
    assert model.suppressed_tokens == ()


def test_facts_are_those_of_the_file(model: Model) -> None:
    assert (model.n_vocab, model.n_ctx_train, model.n_embd, model.n_layer) == (N_VOCAB, N_CTX_TRAIN, N_EMBD, N_LAYER)
    assert (model.n_head, model.n_head_kv, model.head_width) == (N_HEAD, N_HEAD_KV, N_EMBD // N_HEAD)
    assert (model.architecture, model.ftype) == ("llama", "all F32")
    assert model.metadata["general.name"] == "tiny"
    assert model.chat_template == CHAT_TEMPLATE
    assert model.size_bytes == 4 * model.n_params
    assert model.kv_bytes_per_token == 2 * N_LAYER * N_HEAD_KV * 2 * (N_EMBD // N_HEAD)
    assert model.has_vocab
    assert model.has_decoder
    assert not model.has_encoder
    assert not model.is_recurrent
    assert model.n_swa == 0


def test_long_metadata_come_whole(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "x.gguf", metadata={"general.sampling.temp": 0.25})
    model = Model(ModelParams(str(path), vocab_only=True))
    assert float(model.metadata["general.sampling.temp"]) == 0.25
    model.close()


def test_a_vocabulary_alone_tokenizes(tiny_model: Path) -> None:
    model = Model(ModelParams(str(tiny_model), vocab_only=True))
    assert model.tokenize("the", add_special=False, parse_special=False) == [256, ord("e")]
    assert model.chat_template == CHAT_TEMPLATE
    model.close()
    model.close()


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
    assert model.n_vocab == N_VOCAB
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
@pytest.mark.parametrize("vocab_only", [True, False])
def test_what_is_no_model_is_a_model_error(tmp_path: Path, tiny_model: Path, kind: str, vocab_only: bool) -> None:
    path = broken(tmp_path, tiny_model, kind)
    with pytest.raises(ModelError, match="could not load"):
        Model(ModelParams(str(path), vocab_only=vocab_only))
