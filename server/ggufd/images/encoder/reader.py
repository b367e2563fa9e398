"""Reader of images: from what a request says to what stands in a prompt in its place."""

from __future__ import annotations

from ggufd.images.encoded import EncodedImage
from ggufd.images.encoder.encoder import ImageEncoder
from ggufd.images.fetching.loader import ImageLoader
from ggufd.images.figures import ImageFigures
from ggufd.images.pixels import Pixels
from ggufd.keys.principal import Principal


class DecodedImage:
    """Pixels of one image, and the encoder that takes them."""

    def __init__(self, pixels: Pixels, encoder: ImageEncoder) -> None:
        self._pixels = pixels
        self._encoder = encoder

    @property
    def n_bytes(self) -> int:
        """Bytes of its pixels."""
        return len(self._pixels.data)

    async def measure(self) -> EncodedImage:
        """What stands in a prompt in its place, without the files of its rows."""
        return await self._encoder.measure(self._pixels)

    async def encode(self, principal: Principal) -> EncodedImage:
        """The same with its rows. See `ImageEncoder.encode`."""
        return await self._encoder.encode(self._pixels, principal)


class ImageReader:
    """Loader and encoder of one model's images, with a process each."""

    def __init__(self, loader: ImageLoader, encoder: ImageEncoder) -> None:
        self._loader = loader
        self.encoder = encoder

    async def start(self) -> None:
        """Start both processes. Raises ModelError where the projector cannot be used."""
        self._loader.start()
        await self.encoder.start()

    async def stop(self) -> None:
        """End both."""
        await self._loader.stop()
        await self.encoder.stop()

    def rest(self) -> None:
        """Unload the projector until the next image."""
        self.encoder.rest()

    @property
    def figures(self) -> ImageFigures:
        return self.encoder.figures

    async def load(self, reference: str, place: str) -> DecodedImage:
        """The image that a client sent or named. Raises InvalidRequest about `place`."""
        return DecodedImage(await self._loader.load(reference, place), self.encoder)
