"""A vocabulary without weights: text to tokens and back, special tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ggufd.llama.model.model import GgufModel
from ggufd.llama.model.vocabulary import ModelVocabulary
from tests.support.models.tiny_model import BOS, EOS, EOT, N_VOCAB, SPECIALS


@pytest.fixture(scope="module")
def vocabulary(tiny_model: Path) -> Iterator[ModelVocabulary]:
    file = GgufModel(str(tiny_model))
    yield file.vocabulary
    file.close()


@pytest.mark.parametrize("text", ["hello", "the thing\n\ther\x00 x", "é € 😀", "a" * 5000, ""])
def test_tokens_say_their_text_again(vocabulary: ModelVocabulary, text: str) -> None:
    tokens = vocabulary.tokenize(text, add_special=False, parse_special=False)
    assert b"".join(vocabulary.piece(token, special=False) for token in tokens) == text.encode()


def test_every_byte_is_a_piece(vocabulary: ModelVocabulary) -> None:
    assert {vocabulary.piece(token, special=False) for token in range(256)} == {bytes([byte]) for byte in range(256)}


def test_specials_are_read_when_asked_for(vocabulary: ModelVocabulary) -> None:
    assert vocabulary.tokenize("a</s>", add_special=False, parse_special=True) == [ord("a"), EOS]
    assert EOS not in vocabulary.tokenize("a</s>", add_special=False, parse_special=False)
    assert vocabulary.tokenize("", add_special=True, parse_special=False) == [BOS]


def test_control_tokens_have_a_piece_only_as_specials(vocabulary: ModelVocabulary) -> None:
    assert [vocabulary.piece(BOS + place, special=True).decode() for place in range(4)] == list(SPECIALS)
    assert [vocabulary.piece(BOS + place, special=False) for place in range(4)] == [b""] * 4
    assert vocabulary.is_control(EOT)
    assert not vocabulary.is_control(5)


def test_every_end_token_is_known(vocabulary: ModelVocabulary) -> None:
    assert vocabulary.eog_tokens == {EOS, EOT}
    assert (vocabulary.bos, vocabulary.eos) == (BOS, EOS)
    assert vocabulary.adds_bos
    assert not vocabulary.adds_eos
    assert vocabulary.infill_tokens is None
    assert vocabulary.suppressed_tokens == ()
    assert vocabulary.has_tokenizer
    assert vocabulary.n_vocab == N_VOCAB
