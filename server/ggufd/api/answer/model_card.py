"""Model card: the model's entry in OpenAI's list of models."""

from __future__ import annotations

from typing import Any

from ggufd.api.services.services import Services
from ggufd.engine.messages.reports import DraftInfo


def model_json(services: Services) -> dict[str, Any]:
    """The model as OpenAI lists it; `meta` as llama-server does and some more, once it is loaded."""
    config = services.config
    return {
        "id": config.model_id,
        "object": "model",
        "created": config.created,
        "owned_by": "ggufd",
        "aliases": list(config.model_aliases),
        "tags": list(config.model_tags),
        "architecture": {
            "input_modalities": ["text"] if services.images is None else ["text", "image"],
            "output_modalities": ["text"],
        },
        "meta": _meta(services),
    }


def _meta(services: Services) -> dict[str, Any] | None:
    ready = services.engine.ready
    if ready is None:
        return None
    model = ready.model
    return {
        "name": model.name,
        "architecture": model.architecture,
        "ftype": model.ftype,
        "size": model.size_bytes,
        "n_params": model.n_params,
        "vocab_type": model.vocab_type,
        "n_vocab": model.n_vocab,
        "n_embd": model.n_embd,
        "n_layer": model.n_layer,
        "n_expert": model.number("expert_count"),
        "n_expert_used": model.number("expert_used_count"),
        "n_ctx": ready.n_ctx,
        "n_ctx_train": model.n_ctx_train,
        "n_slots": ready.n_slots,
        "draft": _draft_json(ready.draft),
    }


def _draft_json(draft: DraftInfo | None) -> dict[str, Any] | None:
    """The draft model; None without one."""
    if draft is None:
        return None
    return {
        "name": draft.name,
        "ftype": draft.ftype,
        "size": draft.size_bytes,
        "n_params": draft.n_params,
        "n_ctx": draft.n_ctx,
        "n_gpu_layers": draft.n_gpu_layers,
    }
