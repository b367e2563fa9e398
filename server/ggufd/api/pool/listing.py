"""List of the known models, each with its state and its plan, as the model lists of the APIs show it.

Without several models it is the one that is served.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from ggufd.api.answer.model_card import model_json
from ggufd.api.pool.beside import state_of
from ggufd.api.pool.rights import may_swap
from ggufd.api.services.services import Services, services_of
from ggufd.model_pool.catalogue import KnownModel
from ggufd.model_pool.pool import ModelPool

_BESIDE = {"ready": "loaded", "draining": "loaded", "failed": "unloaded"}
"""What states of a model that stays loaded are called; the others pass."""


def model_cards(request: Request) -> list[dict[str, Any]]:
    """All models as OpenAI lists them; which is loaded, as llama-server's router tells it."""
    services = services_of(request)
    if services.pool is None:
        return [model_json(services)]
    return [_card(request, services.pool, known) for known in services.pool.catalogue]


def model_card(request: Request, asked: str) -> dict[str, Any] | None:
    """The entry of one model, by any of its names; None where there is none."""
    services = services_of(request)
    if services.pool is None or (known := services.pool.catalogue.find(asked)) is None:
        return model_json(services) if asked in services.config.model_names else None
    return _card(request, services.pool, known)


def others(services: Services) -> list[KnownModel]:
    """Known models that are not loaded."""
    loaded = [one.config.model_id for one in services.instances]
    return [known for known in services.pool.catalogue if known.name not in loaded] if services.pool else []


def find_other(services: Services, asked: object) -> KnownModel | None:
    """The known model of this name, where it is not loaded."""
    return next((known for known in others(services) if isinstance(asked, str) and asked in _spellings(known)), None)


def _spellings(known: KnownModel) -> list[str]:
    return [spelling for name in known.names for spelling in (name, f"{name}:latest")]


def _card(request: Request, pool: ModelPool, known: KnownModel) -> dict[str, Any]:
    """`may_load`: whether this request's key may have it loaded; `load_s`: seconds that its load takes."""
    services = services_of(request)
    served = next((one for one in services.instances if one.config.model_id == known.name), None)
    card = _other_json(known) if served is None else model_json(served)
    return {
        **card,
        "status": status_json(services, pool, known),
        "capabilities": _capabilities(served, known),
        "may_load": may_swap(request, services.config, known),
        "load_s": round(pool.times.forecast_s(known), 1),
        "plan": _plan_json(pool, known),
    }


def _capabilities(served: Services | None, known: KnownModel) -> list[str] | None:
    """What a model is for, in Ollama's words; None where neither an engine nor a header says it."""
    ready = None if served is None else served.engine.ready
    if ready is None and known.facts is None:
        return None
    embeds = known.facts is not None and known.facts.only_embeds if ready is None else not ready.writes
    return ["embedding"] if embeds else ["completion"]


def status_json(services: Services, pool: ModelPool, known: KnownModel) -> dict[str, Any]:
    """State of a model in llama-server's words: loaded, loading or unloaded, and whether its last load failed.
    `keep_loaded` stands at those that stay loaded.
    """
    value = _status(services, pool, known)
    if known.name in services.beside:
        trouble = services.beside[known.name].engine.trouble
        return {"value": value, "keep_loaded": True, **({"failed": True, "reason": trouble} if trouble else {})}
    why = pool.failures.get(known.name) if value == "unloaded" else None
    return {"value": value} if why is None else {"value": value, "failed": True, "exit_code": 1, "reason": why}


def _status(services: Services, pool: ModelPool, known: KnownModel) -> str:
    if known.name in services.beside:
        return _BESIDE.get(state_of(services.beside[known.name]), "loading")
    if pool.is_swapping:
        return "loading" if known.name == pool.target else "unloaded"
    if known.name != pool.loaded:
        return "unloaded"
    return {"sleeping": "unloaded", "waking": "loading"}.get(services.engine.state.name.lower(), "loaded")


def _other_json(known: KnownModel) -> dict[str, Any]:
    """A model that is not loaded, as far as its header says."""
    return {
        "id": known.name,
        "object": "model",
        "created": known.created,
        "owned_by": "ggufd",
        "aliases": [name for name in known.names if name != known.name],
        "tags": [],
        "meta": _meta(known),
    }


def _meta(known: KnownModel) -> dict[str, Any] | None:
    facts = known.facts
    if facts is None:
        return None
    return {
        "architecture": facts.architecture,
        "ftype": facts.quantisation,
        "size": known.size_bytes,
        "n_params": facts.n_params,
        "n_embd": facts.width,
        "n_layer": facts.n_layers,
        "n_ctx_train": facts.n_ctx_train,
    }


def _plan_json(pool: ModelPool, known: KnownModel) -> dict[str, Any] | None:
    """The most important numbers of the plan, in bytes, tokens and layers; None before it was made."""
    plan = pool.plans.get(known.name)
    if plan is None or "best" not in plan:
        return plan
    best = plan["best"]
    return {
        "fits": best["fits"],
        "why": best["why"],
        "ram_needed": best["ram"]["needed"],
        "vram": best["vram"]["total"],
        "n_gpu_layers": best["n_gpu_layers"],
        "slots": best["slots"],
        "tokens_each": best["tokens_each"],
    }
