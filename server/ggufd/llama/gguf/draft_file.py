"""Check of a draft model's file against the target model: both must have the same vocabulary.

The rules are those of llama.cpp's own speculative decoding (common/speculative.cpp). Knows no llama_cpp and no numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ggufd.errors import ModelError
from ggufd.llama.gguf import gguf_header
from ggufd.llama.gguf.shape import Shape

_MAX_DIFFERENCE = 128
"""Vocabularies are padded to a round number, each model's to another one."""

_FIRST_COMPARED = 5
"""The first tokens are special ones, which files of one family name differently."""


def check_draft(draft: Shape, model: Shape) -> None:
    """Compare vocabularies. Raises ModelError, one line, where `draft` cannot propose tokens for `model`."""
    for shape in (draft, model):
        if shape.is_recurrent:
            raise ModelError(
                f"{shape.gguf.name}: is a {shape.architecture} model with recurrent state, which cannot take back a "
                "rejected draft; leave --model-draft out, or use it with models without such state"
            )
    why = _difference(draft.gguf, model.gguf)
    if why:
        raise ModelError(
            f"{draft.gguf.name}: cannot draft for {model.gguf.name}: {why}; a draft model must have the same "
            "vocabulary, as a smaller one of the same family has"
        )


def _difference(draft: gguf_header.Gguf, model: gguf_header.Gguf) -> str:
    """First difference of the vocabularies; empty where they agree."""
    kinds = [one.text("tokenizer.ggml.model", "no") for one in (draft, model)]
    if kinds[0] != kinds[1]:
        return f"it has a vocabulary of kind {kinds[0]}, not {kinds[1]}"
    for name, is_added in (("bos", kinds[0] == "llama"), ("eos", False)):
        ours, theirs = (_added(one, name, is_added) for one in (draft, model))
        if ours != theirs:
            return f"its texts have {_token(ours)} as {name.upper()}, not {_token(theirs)}"
    return _different_token(*(gguf_header.read_tokens(Path(one.name)) for one in (draft, model)))


def _added(one: gguf_header.Gguf, name: str, is_added: bool) -> int | None:
    """Token that tokenizing adds around a text; None where it adds none."""
    if not one.metadata.get(f"tokenizer.ggml.add_{name}_token", is_added):
        return None
    return one.integer(f"tokenizer.ggml.{name}_token_id")


def _token(number: int | None) -> str:
    return "none" if number is None else f"token {number}"


def _different_token(ours: Sequence[bytes], theirs: Sequence[bytes]) -> str:
    if abs(len(ours) - len(theirs)) > _MAX_DIFFERENCE:
        return f"it has {len(ours):,} tokens, not {len(theirs):,}"
    pairs = enumerate(zip(ours, theirs, strict=False))
    for number, (own, other) in pairs:
        if own != other and number >= _FIRST_COMPARED:
            return f"its token {number} is {_shown(own)}, not {_shown(other)}"
    return ""


def _shown(token: bytes) -> str:
    return repr(token.decode("utf-8", "replace")[:40])
