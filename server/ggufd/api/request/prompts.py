"""Prompts of text completions: texts, token ids, images, or all in a row, and the BOS that each gets once at most."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from ggufd.api.images.prompts import ImagePrompt, RequestImages
from ggufd.api.images.references import read_image_list, read_image_url
from ggufd.api.request.validation import invalid_field
from ggufd.api.services.services import Services
from ggufd.chat.images import ImagePart
from ggufd.chat.prompt import ImagePlace
from ggufd.engine.queueing.validation import check_tokens
from ggufd.keys.principal import Principal

MixedPrompt = tuple[str | int | ImagePart, ...]
"""One prompt of texts, token ids and images."""

MEDIA_MARKER = "<__media__>"
"""What stands in llama-server's `prompt_string` for each image of `multimodal_data`."""


_MARK = re.compile(r"\[img-(\d+)\]")


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as it is shown, its tokens, and its images, if it has any."""

    text: str
    tokens: Sequence[int]
    images: ImagePrompt | None = None


async def encode_text(services: Services, prompt: str, *, add_bos: bool) -> list[int]:
    """A text's tokens. One that brings its own BOS does not get a second one."""
    services.require_ready()
    text = services.text
    has_bos = bool(text.info.bos_piece) and prompt.startswith(text.info.bos_piece)
    return await text.encode(prompt, add_special=add_bos and not has_bos)


async def encode_mixed(
    services: Services, prompt: MixedPrompt, principal: Principal, *, add_bos: bool
) -> EncodedPrompt:
    """A mixed prompt with its tokens; a text or an image at its head gets a BOS, as in llama-server."""
    n_vocab = services.require_ready().model.n_vocab
    check_tokens([part for part in prompt if isinstance(part, int)], n_vocab, "prompt")
    if prompt and isinstance(prompt[0], ImagePart):
        prompt = ("", *prompt)
    tokens: list[int] = []
    images: list[ImagePart] = []
    places: list[ImagePlace] = []
    for position, part in enumerate(prompt):
        if isinstance(part, ImagePart):
            places.append(ImagePlace(len(tokens), len(images)))
            images.append(part)
        elif isinstance(part, int):
            tokens.append(part)
        else:
            tokens += await encode_text(services, part, add_bos=add_bos and position == 0)
    if not images:
        return EncodedPrompt(await _text_of(services, prompt, tokens, ()), tokens)
    placed = await RequestImages(services.images, services.text, principal).place(tokens, places, images)
    return EncodedPrompt(await _text_of(services, prompt, tokens, placed.texts), placed.tokens, placed)


async def _text_of(services: Services, prompt: MixedPrompt, tokens: Sequence[int], images: Sequence[str]) -> str:
    """A prompt as it is shown: as it was sent, with names for its images."""
    if not any(isinstance(part, int) for part in prompt):
        names = iter(images)
        return "".join(next(names) if isinstance(part, ImagePart) else str(part) for part in prompt)
    return await services.text.decode(tokens)


def read_mixed_prompts(value: Any, name: str = "prompt") -> tuple[MixedPrompt, ...]:
    """llama-server's prompts: one, or an array of several as soon as it holds only texts, or an array or object."""
    if isinstance(value, list) and value and _is_several(value):
        return tuple(_read_one(item, f"{name}[{index}]") for index, item in enumerate(value))
    return (_read_one(value, name),)


def _is_several(items: Sequence[Any]) -> bool:
    return any(isinstance(item, (list, Mapping)) for item in items) or all(isinstance(item, str) for item in items)


def _read_one(value: Any, path: str) -> MixedPrompt:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Mapping) and isinstance(value.get("prompt_string"), str):
        return read_media_prompt(value, path)
    if isinstance(value, list) and all(_is_part(item) for item in value):
        return tuple(value)
    raise ValueError("expected a string, an array of strings and token ids, or an array of such prompts")


def read_media_prompt(value: Mapping[str, Any], path: str) -> MixedPrompt:
    """The text of `prompt_string` with the images of `multimodal_data` at its markers. Raises InvalidRequest."""
    place = f"{path}.multimodal_data"
    images = read_image_list(value.get("multimodal_data"), place)
    text: str = value["prompt_string"]
    if not images:
        return (text,)
    first, *others = text.split(MEDIA_MARKER)
    if len(others) != len(images):
        raise invalid_field(
            place,
            f"expected as many images as there are {MEDIA_MARKER} in 'prompt_string', which is {len(others)}, got "
            f"{len(images)}",
        )
    return (first, *(part for pair in zip(images, others, strict=True) for part in pair))


def with_image_data(prompts: tuple[MixedPrompt, ...], value: Any) -> tuple[MixedPrompt, ...]:
    """Prompts with the images of `image_data` at their marks, such as `[img-1]`. Raises InvalidRequest.

    That is llama-server's older form, which SillyTavern 1.12 sends.
    """
    if not isinstance(value, list):
        raise invalid_field("image_data", "expected an array of objects with 'id' and 'data'")
    images = dict(_read_image_data(one, f"image_data[{index}]") for index, one in enumerate(value))
    wanted = {mark for prompt in prompts for part in prompt if isinstance(part, str) for mark in _MARK.findall(part)}
    for mark, image in images.items():
        if mark not in wanted:
            raise invalid_field(image.place, f"expected [img-{mark}] in 'prompt', where the image belongs")
    return tuple(tuple(piece for part in prompt for piece in _split(part, images)) for prompt in prompts)


def _read_image_data(entry: Any, path: str) -> tuple[str, ImagePart]:
    mark = entry.get("id") if isinstance(entry, Mapping) else None
    if not isinstance(mark, int) or isinstance(mark, bool):
        raise invalid_field(path, "expected an object with 'id', a number, and 'data'")
    return str(mark), read_image_url(entry.get("data"), f"{path}.data")


def _split(part: str | int | ImagePart, images: Mapping[str, ImagePart]) -> Iterator[str | int | ImagePart]:
    """A text with its images; a mark of none stays text."""
    if not isinstance(part, str):
        yield part
        return
    text = ""
    for position, piece in enumerate(_MARK.split(part)):
        if position % 2 and piece in images:
            yield from (text, images[piece])
            text = ""
        else:
            text += f"[img-{piece}]" if position % 2 else piece
    yield text


def _is_part(value: Any) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


MixedPrompts = Annotated[
    Any,
    BeforeValidator(read_mixed_prompts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array"}, {"type": "object"}]}),
]
