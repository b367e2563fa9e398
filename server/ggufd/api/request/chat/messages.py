"""Validation of OpenAI's chat messages; audio and files are refused.

Knows no template: what a role means to the model is chat/'s business. Images are only read when the prompt is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ggufd.api.images.references import read_image_block, read_image_url
from ggufd.api.request.chat.calls import read_calls, with_results_linked
from ggufd.api.request.validation import invalid_field
from ggufd.chat.images import ImagePart, image_part
from ggufd.errors import InvalidRequest, Unsupported

ROLES = ("system", "developer", "user", "assistant", "tool", "function")

_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGES = ("image_url", "input_image", "image")
_OTHER_PARTS = {
    "input_audio": "audio",
    "video_url": "video",
    "file": "files",
    "input_file": "files",
}
_KEPT = ("name", "tool_call_id", "reasoning_content", "reasoning")


def read_messages(value: Any, *, results_in_order: bool = False) -> tuple[dict[str, Any], ...]:
    """The messages with what a template can use. Raises InvalidRequest that names the place.

    `results_in_order` lets tool results without ids stand in the order of their calls.
    """
    if not isinstance(value, list) or not value:
        raise InvalidRequest("'messages': expected a non-empty array of messages.", param="messages")
    messages = [_read_message(message, index) for index, message in enumerate(value)]
    return tuple(with_results_linked(messages, in_order=results_in_order))


def _read_message(message: Any, index: int) -> dict[str, Any]:
    path = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise invalid_field(path, "expected an object with 'role' and 'content'")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid_field(f"{path}.role", f"expected one of {', '.join(ROLES)}")
    if message.get("function_call"):
        raise invalid_field(f"{path}.function_call", "this is the older form of 'tool_calls'. Send those")
    kept = {name: message[name] for name in _KEPT if message.get(name) is not None}
    _check_texts(kept, path)
    if role == "assistant" and message.get("tool_calls") not in (None, []):
        kept["tool_calls"] = read_calls(message["tool_calls"], f"{path}.tool_calls", index)
    image = _read_own_image(message, path)
    content = _read_content(message.get("content"), f"{path}.content", may_lack=role == "assistant" or bool(image))
    return {"role": role, "content": [*image, *_as_parts(content)] if image else content, **kept}


def _read_own_image(message: Mapping[str, Any], path: str) -> list[dict[str, str]]:
    """The image beside a message's content, before which it stands: text-generation-webui's form."""
    url = message.get("image_url")
    return [] if url in (None, "") else [image_part(*read_image_url(url, f"{path}.image_url"))]


def _as_parts(content: Any) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return list(content)


def _check_texts(kept: Mapping[str, Any], path: str) -> None:
    for name, value in kept.items():
        if not isinstance(value, str):
            raise invalid_field(f"{path}.{name}", "expected a string")


def _read_content(content: Any, path: str, *, may_lack: bool) -> Any:
    if isinstance(content, str):
        return content
    if content is None and may_lack:
        return ""
    if not isinstance(content, list):
        raise invalid_field(path, "expected a string or an array of content parts")
    return [_read_part(part, f"{path}[{index}]") for index, part in enumerate(content)]


def _read_part(part: Any, path: str) -> dict[str, str]:
    """A part as chat/ takes it. What another family's messages were made of may hold images that were read already."""
    if isinstance(part, ImagePart):
        return image_part(*part)
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(kind, str) and kind in _OTHER_PARTS:
        raise Unsupported(
            f"'{path}': this server takes no {_OTHER_PARTS[kind]} with this model. Send text parts only.", param=path
        )
    if kind in _IMAGES:
        return image_part(*read_image_block(part, path))
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return {"type": "text", "text": part["refusal"]}
    if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
        raise invalid_field(path, "expected a part of the form {'type': 'text', 'text': '...'}")
    return {"type": "text", "text": part["text"]}
