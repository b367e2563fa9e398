"""Rights to have another model loaded by a request that names it."""

from __future__ import annotations

from starlette.requests import Request

from ggufd.api.http.auth import key_of
from ggufd.api.services.locality import is_of_this_machine
from ggufd.api.services.settings import ApiConfig
from ggufd.model_pool.catalogue import KnownModel


def may_swap(request: Request, config: ApiConfig, model: KnownModel) -> bool:
    """Whether this request may have the model loaded in place of another.

    Without keys everybody is an admin, but who is not on this machine may not keep it from serving those who are.
    """
    if config.swap_for == "nobody":
        return False
    if config.swap_for == "everybody" or "*" in config.swap_models:
        return True
    if any(name in config.swap_models for name in model.names):
        return True
    return key_of(request).is_admin if config.keys is not None else is_of_this_machine(request, config)
