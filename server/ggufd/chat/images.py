"""Images in a conversation: a marker stands for each, in the prompt's text too, until its rows take that place.

A marker is a text that nobody can foresee, so that what somebody types is never taken for an image. Knows no pixels, no
rows and no tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ggufd.chat.prompt import Message

IMAGE = "image"
"""Type of a part that is an image."""

_DIGEST_BYTES = 16


class ImagePart(NamedTuple):
    """Image in a message: what the client sent for it, and where in the request."""

    reference: str
    place: str


def image_part(reference: str, place: str) -> dict[str, str]:
    """Part of a message's content that is an image."""
    return {"type": IMAGE, "reference": reference, "place": place}


def images_of(messages: Sequence[Message]) -> Iterator[ImagePart]:
    """Images of a conversation, in order."""
    for message in messages:
        for part in _parts(message):
            if _is_image(part):
                yield ImagePart(part["reference"], part["place"])


def with_markers(messages: Sequence[Message], key: bytes) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """Messages in which a marker stands for each image, and the markers.

    They depend on a secret `key` and on all the messages: the same conversation has the same ones, which makes its
    rendering worth remembering, and who has seen some cannot write a message that has them.
    """
    bare = [_replaced(message, iter(lambda: "", None)) for message in messages]
    digest = hashlib.blake2b(json.dumps(bare).encode(), key=key, digest_size=_DIGEST_BYTES).hexdigest()
    markers = tuple(f"ggufdImage{digest}n{index}e" for index, _ in enumerate(images_of(messages)))
    names = iter(markers)
    return tuple(_replaced(message, names) for message in messages), markers


def with_texts(messages: Sequence[Message], texts: Sequence[str]) -> tuple[Message, ...]:
    """Messages in which a text stands for each image."""
    shown = iter(texts)
    return tuple(_replaced(message, shown) for message in messages)


def marker_of(part: Any) -> str | None:
    """The marker that a part of a content is; None for any other part."""
    return part.get("marker") if isinstance(part, Mapping) and part.get("type") == IMAGE else None


def _replaced(message: Message, markers: Iterator[str]) -> Message:
    if not any(map(_is_image, _parts(message))):
        return message
    parts = [{"type": IMAGE, "marker": next(markers)} if _is_image(part) else part for part in _parts(message)]
    return {**message, "content": parts}


def _parts(message: Message) -> Sequence[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else ()


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == IMAGE and "reference" in part


class ImageMarkers:
    """Markers of one conversation, and their places in texts."""

    def __init__(self, markers: Sequence[str] = ()) -> None:
        self._index = {marker: index for index, marker in enumerate(markers)}
        self._any = re.compile(f"({'|'.join(map(re.escape, markers))})") if markers else None

    def __bool__(self) -> bool:
        return self._any is not None

    def split(self, text: str) -> list[str]:
        """Texts and markers in turn: a text, maybe empty, is first and last."""
        return [text] if self._any is None else self._any.split(text)

    def texts(self, text: str) -> list[str]:
        """The texts around the markers."""
        return self.split(text)[::2]

    def indexes(self, text: str) -> list[int]:
        """Numbers of the images whose markers stand in a text, in order."""
        return [self._index[marker] for marker in self.split(text)[1::2]]

    def replaced(self, text: str, by: Sequence[str]) -> str:
        """A text in which another text stands for each image, by its number."""
        return text if self._any is None else self._any.sub(lambda match: by[self._index[match[0]]], text)

    def as_parts(self, text: str) -> list[dict[str, str]]:
        """Content for a template that knows images: each image, and its marker before the text behind it."""
        first, *others = self.split(text)
        parts = [{"type": "text", "text": first}] if first else []
        for marker, behind in zip(others[::2], others[1::2], strict=True):
            parts += [{"type": IMAGE}, {"type": "text", "text": marker + behind}]
        return parts

    def without_placeholders(self, text: str, placeholder: str) -> str | None:
        """A rendered text without the template's placeholder before each marker; None where it is not before all."""
        if self._any is None:
            return text
        pattern = re.compile(rf"{re.escape(placeholder)}(\s*){self._any.pattern}")
        bare, n_gone = pattern.subn(r"\2\1", text)
        return bare if n_gone == len(self.indexes(text)) else None


NO_IMAGES = ImageMarkers()
