"""Refusals of requests for a model that is not loaded."""

from __future__ import annotations

from ggufd.errors import Forbidden, Unavailable


class ModelNotLoaded(Forbidden):
    """Model that is known and not loaded, and that this key may not have loaded."""

    code = "model_not_loaded"


class ModelLoadFailed(Unavailable):
    """Model that could not be loaded when it was asked for; another one is served."""

    code = "model_load_failed"
