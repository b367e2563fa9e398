"""Images as clients write them: URLs, base64, and blocks with a source. Knows no pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from ggufd.chat.images import ImagePart
from ggufd.errors import InvalidRequest, Unsupported

_EXPECTED = "expected an image as a URL, such as 'data:image/png;base64,...'"
_DATA_URL = "data:{media_type};base64,{data}"


def read_image_url(value: Any, place: str) -> ImagePart:
    """A URL, or an object with one in `url`, as OpenAI's clients send it. Raises InvalidRequest."""
    url = value.get("url") if isinstance(value, Mapping) else value
    return ImagePart(_text(url, place, _EXPECTED), place)


def read_image_source(source: Any, place: str) -> ImagePart:
    """The source of an image block, as Anthropic's clients send it. Raises InvalidRequest."""
    kind = source.get("type") if isinstance(source, Mapping) else None
    if kind == "url":
        return ImagePart(_text(source.get("url"), place, _EXPECTED), place)
    if kind == "file":
        raise Unsupported(f"'{place}': this server stores no images. Send the image itself as base64.", param=place)
    if kind != "base64":
        raise _invalid(place, "expected a source of the type base64 or url")
    data = _text(source.get("data"), place, "expected base64 in 'data'")
    media_type = _text(source.get("media_type"), place, "expected a type such as image/png in 'media_type'")
    return ImagePart(_DATA_URL.format(media_type=media_type, data=data), place)


def read_image_block(part: Mapping[str, Any], path: str) -> ImagePart:
    """Any part of a message that is an image. Raises InvalidRequest."""
    if "source" in part or ("image_url" not in part and part.get("type") == "image"):
        return read_image_source(part.get("source"), f"{path}.source")
    if part.get("file_id") is not None and part.get("image_url") is None:
        raise Unsupported(
            f"'{path}.file_id': this server stores no images. Send the image itself as a data URL.",
            param=f"{path}.file_id",
        )
    return read_image_url(part.get("image_url"), f"{path}.image_url")


def read_image_list(value: Any, path: str) -> tuple[ImagePart, ...]:
    """Images in a list, as base64 mostly: Ollama's and KoboldCpp's `images`. Raises InvalidRequest."""
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _invalid(path, "expected an array of images as base64")
    places = [f"{path}[{index}]" for index in range(len(value))]
    found = zip(value, places, strict=True)
    return tuple(ImagePart(_text(one, place, "expected an image as base64"), place) for one, place in found)


ImageList = Annotated[
    Any,
    BeforeValidator(lambda value: read_image_list(value, "images")),
    WithJsonSchema({"type": "array", "items": {"type": "string"}}),
]


def _text(value: Any, place: str, expected: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _invalid(place, expected)
    return value


def _invalid(place: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"'{place}': {expected}.", param=place)
