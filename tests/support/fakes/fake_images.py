"""Images without pixels: what a client sends for one is all that it is.

An image is three rows between the bytes `[` and `]`. What the contract forbids is an AssertionError.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

from ggufd.engine.messages.images import ImageRows, row_tokens
from ggufd.errors import GgufdError, InvalidRequest
from ggufd.images.encoded import EncodedImage
from ggufd.images.figures import ImageFigures
from ggufd.keys.principal import Principal

N_ROWS = 3
OPENING, CLOSING = ord("["), ord("]")


def url_of(name: str) -> str:
    """An image of this name, as clients write it."""
    return f"data:image/png;base64,{name}"


def digest_of_image(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def rows_of(*names: str) -> list[int]:
    """What stands in a prompt for images of these names."""
    return [token for name in names for token in (OPENING, *row_tokens(digest_of_image(name), N_ROWS), CLOSING)]


@dataclass
class FakeImage:
    """One image that was loaded."""

    images: FakeImages
    name: str
    principal: Principal
    n_bytes: int = 12

    def _encoded(self, path: str) -> EncodedImage:
        rows = ImageRows(digest_of_image(self.name), N_ROWS, path)
        return EncodedImage(((OPENING,), rows, (CLOSING,)))

    async def measure(self) -> EncodedImage:
        self.images.measured.append(self.name)
        return self._encoded("")

    async def encode(self) -> EncodedImage:
        self.images.principals.append(self.principal)
        self.images.begun.set()
        try:
            await self.images.gate.wait()
        except asyncio.CancelledError:
            self.images.cancelled.append(self.name)
            raise
        if self.images.failure is not None:
            raise self.images.failure
        self.images.encoded.append(self.name)
        return self._encoded(f"/rows/{self.name}")


class FakeImages:
    """Loads what begins like a data URL, or is base64. `gate` holds encodings back; `failure` ends them.

    What was done is listed by the images' names.
    """

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = asyncio.Event()
        self.failure: GgufdError | None = None
        self.n_bytes = 12
        self.loaded: list[str] = []
        self.measured: list[str] = []
        self.encoded: list[str] = []
        self.cancelled: list[str] = []
        self.principals: list[Principal] = []
        self.figures = ImageFigures()

    async def load(self, reference: str, place: str, principal: Principal) -> FakeImage:
        name = reference.removeprefix("data:image/png;base64,")
        if not name.isalnum():
            raise InvalidRequest(f"'{place}': this is no image.", param=place)
        self.loaded.append(name)
        return FakeImage(self, name, principal, self.n_bytes)
