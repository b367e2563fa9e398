"""What `deterministic` asks of a request: a model and a prompt that can be computed so, and a seed."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from ggufd.api.http.record import RequestRecord
from ggufd.api.services.services import Services
from ggufd.engine.messages.sampling import SamplingParams
from ggufd.errors import Unsupported

_SEEDS = 2**31


def check_deterministic(services: Services, prompt: Sequence[int]) -> None:
    """Raises Unsupported where this model, or a prompt with images, cannot be computed deterministically."""
    if services.require_ready().provenance is None:
        raise Unsupported(
            "'deterministic': the cache of this model is a window, whose cells are used again in an order that depends "
            "on other requests. Leave it out, or start the server with --swa-full.",
            param="deterministic",
        )
    if any(token < 0 for token in prompt):
        raise Unsupported(
            "'deterministic': not for prompts with images. Leave it out, or send text only.", param="deterministic"
        )


def with_seed(sampling: SamplingParams, record: RequestRecord) -> SamplingParams:
    """The parameters with a seed: one is drawn for all prompts of a request that names none, and told."""
    if sampling.seed is not None:
        return sampling
    record.seed = random.SystemRandom().randrange(_SEEDS) if record.seed is None else record.seed
    return dataclasses.replace(sampling, seed=record.seed)
