"""Texts and token ids of a JSON value in their order: what a prompt is made of, however an API wraps it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

_NO_TEXT = frozenset(
    {"role", "type", "id", "cache_control", "status", "detail", "media_type", "tool_call_id", "call_id"}
)
"""Names of what is no text of the prompt. Agents set `cache_control` on another message at each turn."""

_MEDIA = frozenset({"image_url", "images", "image_data", "source", "multimodal_data", "input_audio", "file_data"})
"""Names of images and sounds."""

_MEDIA_BYTES = 4096
"""What a medium counts as in a prompt: about a thousand tokens."""

_TOKEN_BYTES = 4


class Leaf(NamedTuple):
    """One text or token id of a JSON value, and whether it is an image rather than words."""

    text: str
    is_media: bool = False

    @property
    def n_bytes(self) -> int:
        """Its part of a prompt, in bytes of text."""
        return _MEDIA_BYTES if self.is_media else len(self.text)


def leaves(value: Any) -> Iterator[Leaf]:
    """Every text and integer below a JSON value, in order.

    Walks without recursion: a body may be as deep as the parser lets it be. A message whose content is a text gives the
    same as one whose content is an array with that text, so clients may write one as the other from turn to turn.
    """
    stack: list[tuple[Any, bool]] = [(value, False)]
    while stack:
        one, is_media = stack.pop()
        if isinstance(one, str):
            yield Leaf(one, is_media)
        elif isinstance(one, int):
            yield Leaf(str(one))
        elif isinstance(one, list):
            stack.extend((item, is_media) for item in reversed(one))
        elif isinstance(one, dict):
            named = [(item, is_media or name in _MEDIA) for name, item in one.items() if name not in _NO_TEXT]
            stack.extend(reversed(named))


def n_bytes(value: Any) -> int:
    """Bytes of prompt below a JSON value; characters, which come close enough to bytes to tell costs by."""
    if isinstance(value, list) and value and isinstance(value[0], int):
        return _TOKEN_BYTES * len(value)
    return sum(leaf.n_bytes for leaf in leaves(value))


def digest(parts: Iterable[str]) -> bytes:
    """Digest of some texts, 16 bytes. Where one ends and the next begins counts."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        # JSON can spell half a surrogate pair, which UTF-8 cannot.
        raw = part.encode("utf-8", "surrogatepass")
        made.update(len(raw).to_bytes(8, "little"))
        made.update(raw)
    return made.digest()
