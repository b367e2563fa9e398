"""Prompts with images: each is measured to know how long the prompt is, and encoded once that is known to fit.

Knows no message and no template: it is given tokens and the places of images among them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ggufd.api.services.images import ImageService, LoadedImage
from ggufd.api.services.services import TextService
from ggufd.chat.images import ImagePart
from ggufd.chat.prompt import ImagePlace
from ggufd.engine.messages.images import ImageRows, ImageSpan, row_tokens
from ggufd.errors import InvalidRequest, Unsupported
from ggufd.images.encoded import EncodedImage
from ggufd.keys.principal import Principal

MAX_IMAGES = 500
"""Of one request: each costs a decoding, whatever its size."""

_MAX_KEPT_BYTES = 16 << 20
"""Of pixels that a request keeps until they are encoded; what is more is loaded again."""


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    """A prompt with images: all its tokens, those of rows being numbers below zero, and the `spans` of rows.

    `parts` are the images in the order of their numbers, and `texts` what stands for each where the prompt is shown.
    """

    tokens: tuple[int, ...]
    spans: tuple[ImageSpan, ...]
    parts: tuple[ImagePart, ...]
    texts: tuple[str, ...]
    images: RequestImages

    async def encoded(self) -> tuple[ImageSpan, ...]:
        """The spans with the files of their rows. Raises what refuses an image, and EngineFailure."""
        files: dict[str, ImageRows] = {}
        for part in {part.reference: part for part in self.parts}.values():
            encoded = await self.images.encode(part)
            files |= {rows.digest: rows for rows in encoded.rows}
            self._check(part, files)
        self.images.forget()
        return tuple(dataclasses.replace(span, rows=files[span.rows.digest]) for span in self.spans)

    def _check(self, part: ImagePart, files: dict[str, ImageRows]) -> None:
        """Raises InvalidRequest where an image was another one when it was read again."""
        if any(rows.digest not in files for rows in self.images.measured(part).rows):
            raise InvalidRequest(
                f"'{part.place}': the image changed while it was read. Send it again.", param=part.place
            )


class RequestImages:
    """Images of one HTTP request: each is loaded and measured once, however often its prompt is put together.

    They are read for `principal`.
    """

    def __init__(self, service: ImageService | None, text: TextService, principal: Principal) -> None:
        self._service = service
        self._text = text
        self._principal = principal
        self._measured: dict[str, EncodedImage] = {}
        self._kept: dict[str, LoadedImage] = {}

    async def place(
        self, tokens: Sequence[int], places: Sequence[ImagePlace], parts: Sequence[ImagePart]
    ) -> ImagePrompt:
        """The prompt of these tokens with images at these places. Raises what refuses an image."""
        await self._measure(parts)
        whole: list[int] = []
        spans: list[ImageSpan] = []
        done = 0
        for position, image in places:
            whole += tokens[done:position]
            own, its_spans = self.measured(parts[image]).prompt(len(whole))
            whole += own
            spans += its_spans
            done = position
        texts = [await self._shown(self.measured(part)) for part in parts]
        return ImagePrompt((*whole, *tokens[done:]), tuple(spans), tuple(parts), tuple(texts), self)

    def measured(self, part: ImagePart) -> EncodedImage:
        """What stands in a prompt in an image's place."""
        return self._measured[part.reference]

    async def encode(self, part: ImagePart) -> EncodedImage:
        """One image with the files of its rows."""
        image = self._kept.pop(part.reference, None) or await self._load(part)
        return await image.encode()

    def forget(self) -> None:
        """Drop the pixels that are kept: nothing more is encoded."""
        self._kept.clear()

    async def _measure(self, parts: Sequence[ImagePart]) -> None:
        if len(parts) > MAX_IMAGES:
            place = parts[MAX_IMAGES].place
            raise InvalidRequest(f"'{place}': expected at most {MAX_IMAGES} images in one request.", param=place)
        for part in parts:
            if part.reference in self._measured:
                continue
            image = await self._load(part)
            self._measured[part.reference] = await image.measure()
            if sum(kept.n_bytes for kept in self._kept.values()) + image.n_bytes <= _MAX_KEPT_BYTES:
                self._kept[part.reference] = image

    async def _load(self, part: ImagePart) -> LoadedImage:
        if self._service is None:
            raise Unsupported(
                f"'{part.place}': this server takes no images without an image projector. Start it with --mmproj FILE, "
                "or send text only.",
                param=part.place,
            )
        return await self._service.load(part.reference, part.place, self._principal)

    async def _shown(self, image: EncodedImage) -> str:
        pieces = [
            shown_rows(part) if isinstance(part, ImageRows) else await self._text.decode(part) for part in image.parts
        ]
        return "".join(pieces)


def shown_rows(rows: ImageRows) -> str:
    """Name of rows where a prompt is shown: the same image has the same one."""
    return shown_row(row_tokens(rows.digest, 1)[0])


def shown_row(token: int) -> str:
    """Name of the image whose first row stands in a prompt as this number."""
    return f"<image {-1 - token:08x}>"
