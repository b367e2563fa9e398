"""Usage and timings of a request, as OpenAI and llama-server write them. Knows no route."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ggufd.engine.messages.events import Finish, FinishReason, Progress, Usage

_REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


def finish_reason(finish: Finish, *, has_calls: bool = False) -> str:
    """OpenAI's word. A text that was cut for the server's reasons is as incomplete as one that met its limit.

    `has_calls` says that there are calls, and that each can be made: a stop string may have cut one.
    """
    if has_calls and finish.reason is FinishReason.STOP:
        return "tool_calls"
    return _REASONS.get(finish.reason, "length")


def usage_json(
    usages: Sequence[Usage],
    n: int,
    *,
    reasoning_tokens: int | None = None,
    has_bans: bool = False,
    image_tokens: int = 0,
) -> dict[str, Any]:
    """OpenAI's `usage` over all sequences, `n` for each prompt: a prompt counts once, whatever `n` is.

    `reasoning_tokens` of the completion were reasoning; None where it is not parsed. With `has_bans` it tells how
    often a banned phrase was taken back. `image_tokens` of the prompts are rows of images, told where there are any.
    """
    firsts = usages[::n]
    prompt = sum(usage.prompt_tokens for usage in firsts)
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": sum(usage.cached_tokens for usage in firsts),
            **images_json(image_tokens),
            **_moved(firsts),
        },
        **({} if reasoning_tokens is None else {"completion_tokens_details": {"reasoning_tokens": reasoning_tokens}}),
        **_dropped(usages),
        **({"banned_rewinds": sum(usage.rewinds for usage in usages)} if has_bans else {}),
    }


def images_json(image_tokens: int) -> dict[str, int]:
    """How many of a prompt's tokens are rows of images, where any are."""
    return {"image_tokens": image_tokens} if image_tokens else {}


def _moved(usages: Sequence[Usage]) -> dict[str, int]:
    """How many of the cached tokens were moved within the cache, where any were."""
    moved = sum(usage.moved_tokens for usage in usages)
    return {"moved_tokens": moved} if moved else {}


def _dropped(usages: Sequence[Usage]) -> dict[str, int]:
    """How many tokens had to leave their slots for the text to go on, where any had."""
    dropped = sum(usage.dropped_tokens for usage in usages)
    return {"dropped_tokens": dropped} if dropped else {}


def timings_json(usage: Usage, *, has_bans: bool = False) -> dict[str, Any]:
    """llama-server's `timings` of one sequence; milliseconds, and tokens a second.

    Not rounded: clients work one of these numbers out from others. The first token came with the prompt, so the rate of
    decoding leaves it out.
    """
    computed = usage.prompt_tokens - usage.cached_tokens
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": usage.prefill_s * 1000,
        "prompt_per_token_ms": _share(usage.prefill_s * 1000, computed),
        "prompt_per_second": _share(computed, usage.prefill_s),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": usage.decode_s * 1000,
        "predicted_per_token_ms": _share(usage.decode_s * 1000, usage.decoded_tokens),
        "predicted_per_second": usage.tokens_per_s,
        "queue_ms": usage.queue_s * 1000,
        **_moved([usage]),
        **_dropped([usage]),
        **_drafted(usage),
        **({"banned_rewinds": usage.rewinds} if has_bans else {}),
    }


def _drafted(usage: Usage) -> dict[str, int]:
    """Draft tokens and accepted ones, in llama-server's names; empty without speculation."""
    if not usage.drafted_tokens:
        return {}
    return {"draft_n": usage.drafted_tokens, "draft_n_accepted": usage.accepted_tokens}


def progress_json(progress: Progress) -> dict[str, Any]:
    """llama-server's `prompt_progress`: tokens, and milliseconds."""
    return {
        "total": progress.total,
        "cache": progress.cached,
        "processed": progress.processed,
        "time_ms": round(progress.time_s * 1000),
    }


def _share(amount: float, parts: float) -> float:
    return amount / parts if parts > 0 else 0.0
