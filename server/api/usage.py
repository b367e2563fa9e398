"""What a request cost, as OpenAI and llama-server write it. Knows no route."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.engine.messages import Finish, FinishReason, Usage

_REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


def finish_reason(finish: Finish) -> str:
    """OpenAI's word. A text that was cut for the server's reasons is as incomplete as one that met its limit."""
    return _REASONS.get(finish.reason, "length")


def usage_json(usages: Sequence[Usage], n: int) -> dict[str, Any]:
    """OpenAI's `usage` over all sequences, `n` for each prompt: a prompt counts once, whatever `n` is."""
    firsts = usages[::n]
    prompt = sum(usage.prompt_tokens for usage in firsts)
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in firsts)},
    }


def timings_json(usage: Usage) -> dict[str, Any]:
    """llama-server's `timings` of one sequence; milliseconds, and tokens a second."""
    computed = usage.prompt_tokens - usage.cached_tokens
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": _ms(usage.prefill_s),
        "prompt_per_second": _rate(computed, usage.prefill_s),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": _ms(usage.decode_s),
        "predicted_per_second": _rate(usage.completion_tokens, usage.decode_s),
        "queue_ms": _ms(usage.queue_s),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _rate(tokens: int, seconds: float) -> float:
    return round(tokens / seconds, 3) if seconds > 0 else 0.0
