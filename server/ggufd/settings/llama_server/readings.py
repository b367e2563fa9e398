"""Values of llama-server's flags as values of our settings. Each raises ValueError in words that follow "expected"."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ggufd import text_files
from ggufd.engine.messages.sampling import SAMPLER_LETTERS

TRUE = ("on", "enabled", "true", "1")
FALSE = ("off", "disabled", "false", "0")
_AUTO = ("auto", "-1")


def is_on(value: str) -> bool:
    """A truth value as llama-server reads one."""
    if value in TRUE:
        return True
    if value in FALSE:
        return False
    raise ValueError(f"one of {', '.join((*TRUE, *FALSE))}")


def on_off_auto(value: str) -> str:
    """`on`, `off` or `auto` under any of their names."""
    for word, names in (("on", TRUE), ("off", FALSE), ("auto", _AUTO)):
        if value in names:
            return word
    raise ValueError("on, off or auto")


def row(value: str) -> list[str]:
    """Values between commas, of which a quoted one may hold commas, and a doubled quote is one."""
    fields, field, quoted = [], "", False
    rest = iter(range(len(value)))
    for i in rest:
        char = value[i]
        if char == '"' and quoted and value[i + 1 : i + 2] == '"':
            field += char
            next(rest)
        elif char == '"' and (quoted or not field):
            quoted = not quoted
        elif char == "," and not quoted:
            fields.append(field)
            field = ""
        else:
            field += char
    return [*fields, field]


def names(value: str) -> list[str]:
    """Non-empty values between commas, without blanks around them."""
    return [one.strip() for one in row(value) if one.strip()]


def one_of(meanings: Mapping[str, Any]) -> Callable[[str], Any]:
    """Reading of a value that must be one of the keys of `meanings`."""

    def read(value: str) -> Any:
        if value not in meanings:
            raise ValueError(f"one of {', '.join(meanings)}")
        return meanings[value]

    return read


def unless(words: Mapping[str, Any]) -> Callable[[str], Any]:
    """Reading of a value that is passed on, but for some words."""
    return lambda value: words.get(value, value)


def number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError("a number") from None


def whole(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError("a whole number") from None


def inverse(value: str) -> float:
    """Reciprocal of a factor: RoPE's scale as llama.cpp's frequency scale."""
    factor = number(value)
    if factor <= 0:
        raise ValueError("a number above 0")
    return 1 / factor


def shares(value: str) -> list[float]:
    """Numbers separated by commas or slashes."""
    return [number(part) for part in re.split("[,/]+", value)]


def file_text(value: str) -> str:
    try:
        return text_files.read(Path(value).expanduser())
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"a readable file ({getattr(error, 'strerror', None) or error})") from None


_INFILL = ("infill", "i")
_LETTERS = {letter: name for letter, name in SAMPLER_LETTERS.items() if letter not in _INFILL}
_OTHER_NAMES = {"temp": "temperature", "nucleus": "top_p", "typ": "typ_p"}


def sampler_names(value: str) -> list[str]:
    """Samplers by name, separated by semicolons; case, dashes and underscores do not matter."""
    known = {name.replace("_", ""): name for name in _LETTERS.values()} | _OTHER_NAMES
    wanted = [part.strip().lower() for part in re.split("[;,]", value) if part.strip()]
    found = [known.get(re.sub("[-_]", "", name)) for name in wanted if name not in _INFILL]
    if not found or None in found:
        raise ValueError(f"names of samplers, separated by semicolons: {', '.join(_LETTERS.values())}")
    return [name for name in found if name is not None]


def sampler_letters(value: str) -> list[str]:
    """Samplers as llama.cpp's letters."""
    if not value or any(letter not in _LETTERS for letter in value if letter not in _INFILL):
        raise ValueError(f"letters of samplers: {', '.join(f'{key} {name}' for key, name in _LETTERS.items())}")
    return [_LETTERS[letter] for letter in value if letter not in _INFILL]


def bias(value: str) -> list[str]:
    """A token and its bias, as in `15043+1`."""
    found = re.fullmatch(r"\s*(\d+)\s*([+-])\s*(\d+(?:\.\d*)?|\.\d+|inf)\s*", value)
    if found is None:
        raise ValueError("a token id, + or -, and a number, as in 15043-1")
    token, sign, size = found.groups()
    return [f"{int(token)}={'-' if sign == '-' else ''}{size}"]


def json_object(value: str) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError("a JSON object")
    return found


def cpu_list(value: str) -> str:
    """CPUs as a list of numbers and ranges, from the bits of a hexadecimal mask."""
    if re.fullmatch(r"(0[xX])?[0-9a-fA-F]{1,256}", value) is None or not int(value, 16):
        raise ValueError("a hexadecimal mask of CPUs, as in 0xF0")
    bits = int(value, 16)
    return ",".join(str(cpu) for cpu in range(bits.bit_length()) if bits >> cpu & 1)


def cpu_range(value: str) -> str:
    """CPUs of a range whose ends may be left out, as in 0-3."""
    found = re.fullmatch(r"(\d{1,5})?-(\d{1,5})?", value)
    if found is None:
        raise ValueError("a range of CPUs, as in 0-3")
    return f"{found[1] or 0}-{found[2] or 1023}"


def dense_layers(value: str) -> list[str]:
    """Overrides that keep the dense feed-forward weights of the first layers in RAM."""
    count = whole(value)
    if count < 0:
        raise ValueError("a number of layers from 0")
    layers = "|".join(map(str, range(count)))
    return [rf"blk\.({layers})\.ffn_(up|down|gate)\.=CPU"] if count else []


_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "'": "'", '"': '"', "\\": "\\"}


def unescaped(text: str) -> str:
    """`text` with the escape sequences that llama-server knows replaced."""
    pattern = r"\\(?:x([0-9a-fA-F]{2})|([nrt'\"\\]))"
    return re.sub(pattern, lambda found: chr(int(found[1], 16)) if found[1] else _ESCAPES[found[2]], text)
