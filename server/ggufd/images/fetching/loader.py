"""Loader of images: from what a request says to pixels."""

from __future__ import annotations

from ggufd.images.decoding.decoder import ImageDecoder
from ggufd.images.fetching.limits import ImageLimits
from ggufd.images.fetching.network import Network
from ggufd.images.fetching.source import ImageSource
from ggufd.images.pixels import Pixels


class ImageLoader:
    """Loader within the operator's limits. Pixels take up to 12 MB: whoever loads several drops each when done."""

    def __init__(self, limits: ImageLimits, network: Network | None = None) -> None:
        self.source = ImageSource(limits, network)
        self.decoder = ImageDecoder(limits.decoding)

    def start(self) -> None:
        """Start the decoding process, so that the first image need not wait for it."""
        self.decoder.start()

    async def stop(self) -> None:
        """End; images under way raise EngineDown."""
        await self.decoder.stop()

    async def load(self, reference: str, place: str) -> Pixels:
        """Pixels of an image. Raises InvalidRequest for `place`."""
        return await self.decoder.decode(await self.source.read(reference, place), place)
