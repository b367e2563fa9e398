"""Plain wording for pydantic's error messages. Knows no field."""

from __future__ import annotations

import re

_PLAIN = (
    (r"a valid integer", "a whole number"),
    (r"a valid number", "a number"),
    (r"a valid string", "a string"),
    (r"a valid boolean", "true or false"),
    (r"a valid (tuple|list)", "an array"),
    (r"a valid dictionary( or instance of \w+)?", "an object"),
    (r"less than or equal to", "at most"),
    (r"greater than or equal to", "at least"),
    (r"greater than", "more than"),
)


def plain(message: str) -> str:
    """`message` with pydantic's technical phrases replaced, such as `a valid integer`."""
    for pattern, replacement in _PLAIN:
        message = re.sub(pattern, replacement, message)
    return message
