"""Prompts of text completions: texts, token ids, or both in a row, and the BOS that each gets once at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from ggufd.api.services.services import Services
from ggufd.engine.queueing.validation import check_tokens
from ggufd.errors import Unsupported

MixedPrompt = tuple[str | int, ...]
"""One prompt of texts and token ids."""


async def encode_text(services: Services, prompt: str, *, add_bos: bool) -> list[int]:
    """A text's tokens. One that brings its own BOS does not get a second one."""
    services.require_ready()
    text = services.text
    has_bos = bool(text.info.bos_piece) and prompt.startswith(text.info.bos_piece)
    return await text.encode(prompt, add_special=add_bos and not has_bos)


async def encode_mixed(services: Services, prompt: MixedPrompt, *, add_bos: bool) -> list[int]:
    """A mixed prompt's tokens; only a text at its head gets a BOS, as in llama-server."""
    n_vocab = services.require_ready().model.n_vocab
    check_tokens([part for part in prompt if isinstance(part, int)], n_vocab, "prompt")
    tokens: list[int] = []
    for position, part in enumerate(prompt):
        if isinstance(part, int):
            tokens.append(part)
        else:
            tokens += await encode_text(services, part, add_bos=add_bos and position == 0)
    return tokens


def read_mixed_prompts(value: Any) -> tuple[MixedPrompt, ...]:
    """llama-server's prompts: one, or an array of several as soon as it holds only texts, or an array or object."""
    if isinstance(value, list) and value and _is_several(value):
        return tuple(_read_one(item) for item in value)
    return (_read_one(value),)


def _is_several(items: Sequence[Any]) -> bool:
    return any(isinstance(item, (list, Mapping)) for item in items) or all(isinstance(item, str) for item in items)


def _read_one(value: Any) -> MixedPrompt:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Mapping) and isinstance(value.get("prompt_string"), str):
        if value.get("multimodal_data"):
            raise Unsupported("'prompt': this server takes no images or audio. Send text only.", param="prompt")
        return (value["prompt_string"],)
    if isinstance(value, list) and all(_is_part(item) for item in value):
        return tuple(value)
    raise ValueError("expected a string, an array of strings and token ids, or an array of such prompts")


def _is_part(value: Any) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


MixedPrompts = Annotated[
    Any,
    BeforeValidator(read_mixed_prompts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array"}, {"type": "object"}]}),
]
