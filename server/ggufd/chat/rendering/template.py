"""Jinja chat template, compiled and rendered as in transformers.

The environment is that of transformers (`apply_chat_template`): sandboxed and immutable, blocks trimmed, loop controls,
`raise_exception`, `strftime_now`, a `tojson` that leaves non-ASCII alone, `{% generation %}`. A template comes out of
a file from the internet, so it is treated as hostile: no attribute tricks, a bound on what it writes. Time and
memory are bounded by whoever runs this process. Knows nothing of roles.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_RENDERED_CHARS = 16_000_000

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""What stands in for a model without a template."""

_FILE = "<template>"


class TemplateError(Exception):
    """Template that cannot be compiled, or refuses its input. `line` is the template's, from 1, if known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line

    def __str__(self) -> str:
        return self.message if self.line is None else f"{self.message} (template line {self.line})"


class TemplateOverflowError(TemplateError):
    """Template that exceeds its output or memory limit; not worth another attempt."""


class Template:
    """One compiled template. `source` is the text it was made of.

    Raises TemplateError for invalid Jinja.
    """

    def __init__(self, source: str, *, max_chars: int = MAX_RENDERED_CHARS) -> None:
        self.source = source
        self._max_chars = max_chars
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"The chat template is no valid Jinja: {error.message}", error.lineno) from None
        except (RecursionError, MemoryError, ValueError, OverflowError, TypeError, ArithmeticError) as error:
            raise TemplateError(f"The chat template cannot be compiled: {type(error).__name__}") from None

    def render(self, variables: Mapping[str, Any]) -> str:
        """Rendered text.

        Raises TemplateError with the template's own words when it refuses or is stopped by the sandbox.
        """
        try:
            return self._collect(variables)
        except TemplateError:
            raise
        except MemoryError:
            raise TemplateOverflowError("The chat template needs more memory than it may use.") from None
        except Exception as error:
            raise TemplateError(str(error) or type(error).__name__, _line(error)) from None

    def _collect(self, variables: Mapping[str, Any]) -> str:
        written: list[str] = []
        n_chars = 0
        for piece in self._template.generate(variables):
            n_chars += len(piece)
            if n_chars > self._max_chars:
                raise TemplateOverflowError(f"The chat template writes more than {self._max_chars} characters.")
            written.append(piece)
        return "".join(written)


def _line(error: BaseException) -> int | None:
    """Jinja rewrites the traceback so that frames of the template carry its own line numbers."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == _FILE]
    return lines[-1] if lines else None


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}`, which marks the text to train on; only its body is rendered."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    # Nothing is escaped here; Jinja's own makes a text that escapes what is added to it.
    environment.filters["safe"] = str
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as the models saw it in training: Jinja's own filter escapes `<`, `>`, `&` and `'`, which they never saw."""
    if isinstance(value, Iterator):
        # What a filter such as `map` gives; llama.cpp's own reader of templates takes it for a list.
        value = list(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
