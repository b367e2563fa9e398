"""`logit_bias` of llama-server's own routes, where a bias may be of a text: each of its tokens gets it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ggufd.api.http.body import JsonObject
from ggufd.api.services.services import Services

_MAX_TEXTS = 1000


async def with_token_biases(services: Services, body: JsonObject) -> JsonObject:
    """The body with token ids for the texts of its biases; what is no bias of a text stays as it is."""
    biases = body.get("logit_bias")
    if isinstance(biases, Mapping):
        biases = [[int(key) if _is_id(key) else key, bias] for key, bias in biases.items()]
    if not isinstance(biases, list) or not any(map(_is_of_text, biases)) or len(biases) > _MAX_TEXTS:
        return body
    services.require_ready()
    found: list[Any] = []
    for entry in biases:
        if _is_of_text(entry):
            tokens = await services.text.encode(entry[0], add_special=False)
            found += [[token, entry[1]] for token in tokens]
        else:
            found.append(entry)
    return {**body, "logit_bias": found}


def _is_id(key: str) -> bool:
    text = key.strip()
    return text.isascii() and text.isdecimal() and len(text) < 20


def _is_of_text(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
