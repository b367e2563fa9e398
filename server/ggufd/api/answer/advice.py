"""Cache advice for a request that has ended: its prompt is compared with those before, by the owner of its key.

The log and the metrics get the cause and its place, never words.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ggufd.api.answer.explain import SentPrompt
from ggufd.api.services.caller import Caller
from ggufd.api.services.services import Services
from ggufd.chat.advice.advisor import LostPrefix
from ggufd.chat.advice.chats import PromptTurn
from ggufd.engine.messages.events import Usage

logger = logging.getLogger(__name__)


def note_prompt(
    services: Services, caller: Caller, prompt: SentPrompt, tokens: Sequence[int], answer: str, usage: Usage
) -> None:
    """Compare a prompt that was computed. One that was sent as tokens is not looked at."""
    if prompt.text is None or not services.config.cache_advice:
        return
    n_computed = usage.prompt_tokens - usage.cached_tokens
    turn = PromptTurn(prompt.text, tokens, answer, n_computed, usage.prefill_s, prompt.messages, prompt.tools)
    lost = services.advisor.observe(caller.owner, turn)
    if lost is not None:
        services.metrics.observe_lost_prefix(lost)
        _log(caller, lost)


def _log(caller: Caller, lost: LostPrefix) -> None:
    logger.log(
        logging.INFO if lost.is_news else logging.DEBUG,
        "%s: cache: %s at token %d of %d, %d tokens computed again in this turn. GET /v1/cache/advice says more",
        caller.principal.name or "-",
        lost.cause.value,
        lost.cost.position,
        lost.cost.prompt_tokens,
        lost.cost.tokens,
    )
