"""Request log: one line a request with its key, usage, timings and end. Never any of its text."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from ggufd.api.http.auth import is_public
from ggufd.api.http.record import RequestRecord

logger = logging.getLogger("ggufd")

_NOTHING = "-"


def log_request(record: RequestRecord) -> None:
    """At info what the model worked for and what was refused; the rest, which probes ask for all day, at debug."""
    is_told = record.is_work or (record.status >= 400 and not is_public(record.path))
    level = logging.INFO if is_told else logging.DEBUG
    if logger.isEnabledFor(level):
        text = _generation(record) if record.is_work else _other(record)
        logger.log(level, "%s", text, extra={"fields": fields_of(record)})


def log_crash(where: logging.Logger, what: str, error: BaseException) -> None:
    """A fault of ours. Where it is goes to the log; its message, which may quote what somebody sent, at debug only."""
    if where.isEnabledFor(logging.DEBUG):
        where.error("%s", what, exc_info=error)
    else:
        frames = "".join(traceback.format_tb(error.__traceback__))
        where.error("%s: %s at\n%s", what, type(error).__name__, frames.rstrip())


def _generation(record: RequestRecord) -> str:
    """In columns, so that the eye finds what differs."""
    return (
        f"{record.key or _NOTHING:<10} {record.prompt_tokens:>6,} in {record.cached_tokens:>6,} cached "
        f"{record.completion_tokens:>6,} out  queue {_seconds(record.queue_s)}  first {_seconds(record.first_s)}  "
        f"{_rate(record.tokens_per_s)}  {record.reason:<10} {_path(record)}  {record.model}  {record.request_id}"
    )


def _other(record: RequestRecord) -> str:
    reason = f" {record.reason}" if record.reason else ""
    return (
        f"{record.key or _NOTHING:<10} {record.method} {_path(record)}: {record.status}{reason}, "
        f"{record.took_s * 1000:.0f} ms, {record.address}  {record.request_id}"
    )


def _path(record: RequestRecord) -> str:
    """Safe to print: a path may hold anything, line ends too."""
    return ascii(record.path[:60])[1:-1]


def _seconds(value: float | None) -> str:
    return f"{_NOTHING:>8}" if value is None else f"{value:>6.2f} s"


def _rate(value: float | None) -> str:
    return f"{_NOTHING:>12}" if value is None else f"{value:>6.1f} tok/s"


def fields_of(record: RequestRecord) -> dict[str, Any]:
    """The same for machines; times in seconds."""
    fields = {
        "message": "request",
        "request_id": record.request_id,
        "key": record.key or None,
        "address": record.address,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "reason": record.reason or None,
        "took_s": round(record.took_s, 6),
    }
    if record.is_work:
        fields |= {
            "model": record.model,
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_tokens,
            "completion_tokens": record.completion_tokens,
            "queue_s": _rounded(record.queue_s),
            "prefill_s": _rounded(record.prefill_s),
            "first_token_s": _rounded(record.first_s),
            "tokens_per_s": _rounded(record.tokens_per_s),
        }
    return fields


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
