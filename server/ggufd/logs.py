"""Logging setup: one handler, coloured on a terminal, plain lines or JSON elsewhere."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from rich.console import Console
from rich.logging import RichHandler

_QUIET = ("uvicorn.error", "uvicorn.access", "asyncio")
"""Loggers that are shown at debug level only: our own lines say the same."""

_LOGS_SIGNED_URLS = ("httpx", "httpx2")
"""HTTP clients of the hub: they log signed URLs, which must not reach any log."""

_LLAMA = "llama.cpp"
"""llama.cpp's log, shown at debug level only: what matters to a user is logged in our words."""


def set_up(level: str, form: Literal["text", "json"] = "text") -> None:
    """Configure logging to stderr: time of day on a terminal, date and time elsewhere."""
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=number, handlers=[_handler(form)], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(number if number <= logging.DEBUG else logging.WARNING)
    for name in _LOGS_SIGNED_URLS:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger(_LLAMA).setLevel(number if number <= logging.DEBUG else logging.CRITICAL)


def _handler(form: Literal["text", "json"]) -> logging.Handler:
    handler: logging.Handler
    if form == "json":
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
    elif sys.stderr.isatty():
        handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="[%X]", markup=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


class JsonFormatter(logging.Formatter):
    """Formatter of one JSON object per line: time, level, logger, message, and those of `extra={"fields": ...}`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
