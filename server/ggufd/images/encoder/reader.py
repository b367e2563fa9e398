"""Reader of images: from what a request says to what stands in a prompt in its place.

Every turn of a chat sends its images again. What a file was measured as is remembered by its bytes, or by the text that
carried it, apart for each cache scope, so that it is only decoded where its rows are not there any more. Hashing that
text takes a third of the time of decoding its base64.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import NamedTuple

from ggufd.images.encoded import EncodedImage
from ggufd.images.encoder.encoder import ImageEncoder
from ggufd.images.fetching.loader import ImageLoader
from ggufd.images.figures import ImageFigures
from ggufd.images.pixels import Pixels
from ggufd.images.turns import ImageTurns
from ggufd.keys.principal import Principal

_MAX_MEASURED = 4096
_PIECE_CHARS = 1 << 20


class _FileKey(NamedTuple):
    """A file in a cache scope. `digest` is that of its bytes, or of the text that carried it."""

    scope: str
    digest: bytes


class _SentFile(NamedTuple):
    """A file as it was sent: its bytes, or None where `reference` carries them and they were not needed yet."""

    reference: str
    data: bytes | None
    place: str
    principal: Principal


class SentImage:
    """File of one image, which is decoded where it must be."""

    def __init__(self, reader: ImageReader, file: _SentFile, key: _FileKey) -> None:
        self._reader = reader
        self._file = file
        self._key = key
        self._pixels: Pixels | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of the file, if it was fetched, and of its pixels, if it was decoded."""
        return len(self._file.data or b"") + (0 if self._pixels is None else len(self._pixels.data))

    async def measure(self) -> EncodedImage:
        """What stands in a prompt in its place, without the files of its rows."""
        measured = self._reader.measured(self._key)
        if measured is None:
            measured = await self._reader.encoder.measure(await self._decoded())
            self._reader.remember(self._key, measured)
        return measured

    async def encode(self) -> EncodedImage:
        """The same with its rows. See `ImageEncoder.encode`."""
        measured = self._reader.measured(self._key)
        kept = None if measured is None else self._reader.encoder.kept(measured, self._file.principal)
        if kept is not None:
            return kept
        return await self._reader.encoder.encode(await self._decoded(), self._file.principal)

    async def _decoded(self) -> Pixels:
        if self._pixels is None:
            self._pixels = await self._reader.decode(self._file)
        return self._pixels


class ImageReader:
    """Loader and encoder of one model's images, with a process each."""

    def __init__(self, loader: ImageLoader, encoder: ImageEncoder) -> None:
        self.loader = loader
        self.encoder = encoder
        self._turns = ImageTurns("decoded")
        self._measured: OrderedDict[_FileKey, EncodedImage] = OrderedDict()

    async def start(self) -> None:
        """Start both processes. Raises ModelError where the projector cannot be used."""
        self.loader.start()
        await self.encoder.start()

    async def stop(self) -> None:
        """End both."""
        await self.loader.stop()
        await self.encoder.stop()

    def rest(self) -> None:
        """Unload the projector until the next image."""
        self.encoder.rest()

    @property
    def figures(self) -> ImageFigures:
        return self.encoder.figures

    async def load(self, reference: str, place: str, principal: Principal) -> SentImage:
        """The image that a client sent or named. Raises InvalidRequest about `place`, and so does measuring it."""
        data = None
        if self.loader.source.carries(reference):
            digest = await asyncio.to_thread(_text_digest, reference)
        else:
            # What is at an address may be another file now.
            data = await self.loader.source.read(reference, place, principal)
            digest = await asyncio.to_thread(_digest, data)
        key = _FileKey(principal.cache_namespace, digest)
        return SentImage(self, _SentFile(reference, data, place, principal), key)

    async def decode(self, file: _SentFile) -> Pixels:
        """Pixels of a file, when it is the turn of who sent it: one is decoded at a time."""
        async with self._turns.turn(file.principal, 1):
            data = file.data
            if data is None:
                data = await self.loader.source.read(file.reference, file.place, file.principal)
            return await self.loader.decoder.decode(data, file.place)

    def measured(self, key: _FileKey) -> EncodedImage | None:
        """What a file was measured as before."""
        if key not in self._measured:
            return None
        self._measured.move_to_end(key)
        return self._measured[key]

    def remember(self, key: _FileKey, image: EncodedImage) -> None:
        """Remember what a file was measured as; the least recently used make room."""
        self._measured[key] = image
        while len(self._measured) > _MAX_MEASURED:
            self._measured.popitem(last=False)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _text_digest(text: str) -> bytes:
    """Digest of a text that carries a file; in pieces, so that other threads have their turn."""
    digest = hashlib.sha256(b"text ")
    for start in range(0, len(text), _PIECE_CHARS):
        digest.update(text[start : start + _PIECE_CHARS].encode("utf-8", "surrogatepass"))
    return digest.digest()
