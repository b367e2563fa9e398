"""Interface of what reads images: loads, measures and encodes them."""

from __future__ import annotations

from typing import Protocol

from ggufd.images.encoded import EncodedImage
from ggufd.images.figures import ImageFigures
from ggufd.keys.principal import Principal


class LoadedImage(Protocol):
    """Image that was read, and holds `n_bytes`. It is measured as what it is encoded to, but for the files."""

    @property
    def n_bytes(self) -> int: ...
    async def measure(self) -> EncodedImage:
        """What stands in a prompt in its place, without the files of its rows."""

    async def encode(self) -> EncodedImage:
        """The same with its rows. Raises EngineFailure, or QueueFull where too many wait. Cancelled, it is given up."""


class ImageService(Protocol):
    """Interface of the loader and the encoder of images."""

    @property
    def figures(self) -> ImageFigures: ...

    async def load(self, reference: str, place: str, principal: Principal) -> LoadedImage:
        """The image that a client sent or named. Raises InvalidRequest about `place`, and so does measuring it."""
