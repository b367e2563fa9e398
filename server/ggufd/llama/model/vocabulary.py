"""Vocabulary of a model: tokenizing, the bytes of each token, special tokens.

Untrusted text is tokenized in a process that may die: some tokenizers of llama.cpp overflow their stack on long
unbroken runs. Knows no weights and no metadata.
"""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import Any

import llama_cpp

from ggufd.llama.model import facts

_PIECE_BYTES = 256


class ModelVocabulary:
    """llama.cpp's vocabulary behind `handle`, which belongs to the model it was loaded with."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self._pieces: dict[tuple[int, bool], bytes] = {}

    n_vocab = facts.number(llama_cpp.llama_vocab_n_tokens)
    vocab_type = facts.number(llama_cpp.llama_vocab_type)
    """llama.cpp's number of the kind of tokenizer."""
    bos = facts.token(llama_cpp.llama_vocab_bos)
    eos = facts.token(llama_cpp.llama_vocab_eos)
    sep = facts.token(llama_cpp.llama_vocab_sep)
    adds_bos = facts.flag(llama_cpp.llama_vocab_get_add_bos)
    """Whether tokenizing with `add_special` puts a BOS in front."""
    adds_eos = facts.flag(llama_cpp.llama_vocab_get_add_eos)
    adds_sep = facts.flag(llama_cpp.llama_vocab_get_add_sep)
    """Whether a SEP stands between the two texts of a pair."""

    @property
    def has_tokenizer(self) -> bool:
        """False for a model whose file carries none."""
        return bool(self.vocab_type != llama_cpp.LLAMA_VOCAB_TYPE_NONE)

    @cached_property
    def eog_tokens(self) -> frozenset[int]:
        """Every token that ends generation."""
        is_eog = llama_cpp.llama_vocab_is_eog
        return frozenset(token for token in range(self.n_vocab) if is_eog(self.handle, token))

    @cached_property
    def suppressed_tokens(self) -> tuple[int, ...]:
        """Tokens that the file says are never to be generated."""
        count = ctypes.c_int32(0)
        tokens = llama_cpp.llama_vocab_get_suppress_tokens(self.handle, ctypes.byref(count))
        return tuple(tokens[i] for i in range(count.value))

    @cached_property
    def infill_tokens(self) -> tuple[int, int, int] | None:
        """`(prefix, suffix, middle)` for filling in the middle, or None when the model has none."""
        prefix = facts.token_or_none(llama_cpp.llama_vocab_fim_pre(self.handle))
        suffix = facts.token_or_none(llama_cpp.llama_vocab_fim_suf(self.handle))
        middle = facts.token_or_none(llama_cpp.llama_vocab_fim_mid(self.handle))
        if prefix is None or suffix is None or middle is None:
            return None
        return prefix, suffix, middle

    @cached_property
    def repository_tokens(self) -> tuple[int | None, int | None]:
        """`(repository, file)`: tokens that begin a repository and a file in infill prompts; None where missing."""
        repository = facts.token_or_none(llama_cpp.llama_vocab_fim_rep(self.handle))
        return repository, facts.token_or_none(llama_cpp.llama_vocab_fim_sep(self.handle))

    def is_control(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_control(self.handle, token))

    def is_special(self, token: int) -> bool:
        """Whether a token is special: a control token, or an added one that looks like one."""
        if self.is_control(token):
            return True
        attributes = llama_cpp.llama_vocab_get_attr(self.handle, token)
        piece = self.piece(token, special=True)
        is_added = bool(attributes & llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED)
        return is_added and piece.startswith(b"<") and piece.endswith(b">")

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`; `add_special` adds BOS/EOS as the model wants, `parse_special` reads `<|…|>` as tokens.

        Raises `ValueError` when llama.cpp refuses the text.
        """
        data = text.encode("utf-8")
        capacity = len(data) + 8
        for _ in range(2):
            tokens = (llama_cpp.llama_token * capacity)()
            n = llama_cpp.llama_tokenize(self.handle, data, len(data), tokens, capacity, add_special, parse_special)
            if n >= 0:
                return list(tokens[:n])
            capacity = -n
        raise ValueError("the text could not be tokenized")

    def piece(self, token: int, *, special: bool) -> bytes:
        """The bytes of one token, perhaps a part of a character; control tokens are empty unless `special`."""
        key = (token, special)
        piece = self._pieces.get(key)
        if piece is None:
            piece = self._pieces[key] = self._read_piece(token, special)
        return piece

    def _read_piece(self, token: int, special: bool) -> bytes:
        size = _PIECE_BYTES
        for _ in range(2):
            buffer = ctypes.create_string_buffer(size)
            n = llama_cpp.llama_token_to_piece(self.handle, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n
        raise ValueError(f"token {token} has no piece")
