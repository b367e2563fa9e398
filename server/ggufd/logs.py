"""Logging setup: one handler, coloured on a terminal, plain lines or JSON elsewhere."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.logging import RichHandler

from ggufd.errors import ConfigError

_QUIET = ("uvicorn.error", "uvicorn.access", "asyncio")
"""Loggers that are shown at debug level only: our own lines say the same."""

_LOGS_SIGNED_URLS = ("httpx", "httpx2")
"""HTTP clients of the hub: they log signed URLs, which must not reach any log."""

_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_LLAMA = "llama.cpp"
"""llama.cpp's log, shown at debug level only: what matters to a user is logged in our words."""


def set_up(level: str, form: Literal["text", "json"] = "text", file: str = "") -> None:
    """Configure logging to stderr, and to `file`: time of day on a terminal, date and time elsewhere.

    Raises ConfigError for a file that cannot be written.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    handlers = [_handler(form), *([_file_handler(file, form)] if file else [])]
    logging.basicConfig(level=number, handlers=handlers, force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(number if number <= logging.DEBUG else logging.WARNING)
    for name in _LOGS_SIGNED_URLS:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger(_LLAMA).setLevel(number if number <= logging.DEBUG else logging.CRITICAL)


def _file_handler(file: str, form: Literal["text", "json"]) -> logging.Handler:
    try:
        handler = logging.FileHandler(Path(file).expanduser(), encoding="utf-8")
    except (OSError, ValueError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"--log-file {file}: cannot be written: {why}") from None
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(_LINE))
    return handler


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
        handler.setFormatter(logging.Formatter(_LINE))
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
