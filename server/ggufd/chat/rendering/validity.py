"""Validation of a finished text against its JSON schema.

The grammar's mask has enforced the schema already. This is a second check, by an independent library: a text that it
refuses is not returned as an answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from ggufd.errors import EngineFailure
from ggufd.llama.grammar.schema import Subschema, name_dialect, places, refused

if TYPE_CHECKING:
    from jsonschema_rs import Validator

_MAX_DIGITS = 1000
"""Of whole numbers that are taken as such."""

_NOTES = ("contentEncoding", "contentMediaType")
"""Of drafts 6 and 7 the library would hold them, as those allow; the grammar does not."""


@lru_cache(maxsize=64)
def validator_of(schema: str) -> Validator:
    """Validator of a JSON schema. Raises InvalidRequest for an invalid schema.

    Formats are left to the grammar, encodings to the client: to the specification they are notes. Patterns are matched
    in linear time.
    """
    # Here: the text process is started before anybody sends a schema.
    from jsonschema_rs import RegexOptions, ValidationError, validator_for

    parsed = json.loads(schema)
    if isinstance(parsed, dict):
        name_dialect(parsed)
        for place in places(Subschema("#", parsed)):
            for note in _NOTES:
                place.schema.pop(note, None)
    try:
        return validator_for(parsed, offline=True, pattern_options=RegexOptions(), validate_formats=False)
    except ValidationError as error:
        # Of a schema, the instance is the schema.
        raise refused(f"'{_pointer(error.instance_path)}': {error.message[:300]}.") from None
    except ValueError as error:
        raise refused(f"{str(error)[:300]}.") from None


def check_json(schema: str, text: str) -> None:
    """Check of a text against a schema. Raises EngineFailure, which does not quote the text."""
    from jsonschema_rs import ValidationError

    try:
        validator_of(schema).validate(json.loads(text, parse_int=_number, parse_float=_number))
    except ValidationError as error:
        raise _failure(f"it does not satisfy '{_pointer(error.schema_path)}'") from None
    except ValueError:
        raise _failure("it is no JSON") from None


def _number(text: str) -> int | float:
    """Number of a JSON text; one too large for Python becomes its largest."""
    if len(text) <= _MAX_DIGITS and text.lstrip("-").isdecimal():
        return int(text)
    return max(-sys.float_info.max, min(sys.float_info.max, float(text)))


def _failure(reason: str) -> EngineFailure:
    return EngineFailure(
        f"The finished text is not what its JSON schema asks for: {reason}. Send the request again; if that is no "
        "help, report the schema."
    )


def _pointer(path: Iterable[str | int]) -> str:
    return "/".join(["#", *(str(part).replace("~", "~0").replace("/", "~1") for part in path)])
