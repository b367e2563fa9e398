"""The log: one handler for everything, coloured on a terminal, plain lines or JSON elsewhere. Knows no line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from rich.console import Console
from rich.logging import RichHandler

_QUIET = ("uvicorn.error", "uvicorn.access", "asyncio")
"""Loggers whose info is our debug: our own lines say it already."""

_SECRET = ("httpx", "httpx2")
"""The hub's client: the addresses that it writes down are signed, and so no log's at any level."""

_LLAMA = "llama.cpp"
"""llama.cpp's own log, of every level: what of it matters to a user comes in our words."""


def set_up(level: str, form: Literal["text", "json"] = "text") -> None:
    """Write the log to stderr. Terminals get the time of day, files the date."""
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=number, handlers=[_handler(form)], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(number if number <= logging.DEBUG else logging.WARNING)
    for name in _SECRET:
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
    """An object a line. What a line gives as `extra={"fields": ...}` stands beside time, level, logger and message."""

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
