"""Inputs of OpenAI's and llama-server's embedding routes: prompts, and the objects that llama-server takes for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from ggufd.api.request.chat.schemas import Prompt, read_prompts
from ggufd.errors import Unsupported


def read_inputs(value: Any) -> tuple[Prompt, ...]:
    """One prompt, or an array of several; each may be an object with its text."""
    if isinstance(value, Mapping):
        return read_prompts(_text_of(value))
    if isinstance(value, list):
        return read_prompts([_text_of(item) if isinstance(item, Mapping) else item for item in value])
    return read_prompts(value)


def _text_of(entry: Mapping[str, Any]) -> str:
    """The text of `{"prompt_string": ...}`, or of the text parts of `{"content": [...]}`."""
    if isinstance(entry.get("prompt_string"), str):
        parts = [entry["prompt_string"]]
        has_media = bool(entry.get("multimodal_data"))
    else:
        content = entry.get("content")
        known = content if isinstance(content, list) and all(isinstance(part, Mapping) for part in content) else []
        parts = [part["text"] for part in known if part.get("type") == "text" and isinstance(part.get("text"), str)]
        has_media = any(str(part.get("type")).startswith(("image", "input_")) for part in known)
        if not known or (len(parts) != len(known) and not has_media):
            raise ValueError("expected an object with 'prompt_string', or with 'content', an array of text parts")
    if has_media:
        raise Unsupported("'input': this server takes no images or audio. Send text only.", param="input")
    return "".join(parts)


Inputs = Annotated[
    Any,
    BeforeValidator(read_inputs),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array"}, {"type": "object"}]}),
]
