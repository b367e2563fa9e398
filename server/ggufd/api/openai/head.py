"""Common fields of every response and chunk of the OpenAI routes."""

from __future__ import annotations

import hashlib
import time
import uuid
from typing import Any

from ggufd.api.services.services import Services


def new_id(prefix: str) -> str:
    """A new id such as `chatcmpl-0123...`."""
    return f"{prefix}-{uuid.uuid4().hex}"


def fingerprint(services: Services) -> str:
    """The build and the model in a short name: the same name means the same program on the same weights."""
    ready = services.engine.ready
    parts = [services.config.build]
    if ready is not None:
        parts += [ready.build, ready.model.name, ready.model.ftype, str(ready.model.size_bytes)]
    return "fp_" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def head(services: Services, prefix: str, kind: str) -> dict[str, Any]:
    """`id`, `object`, `created`, `model`, `system_fingerprint`."""
    return {
        "id": new_id(prefix),
        "object": kind,
        "created": int(time.time()),
        "model": services.config.model_id,
        "system_fingerprint": fingerprint(services),
    }
