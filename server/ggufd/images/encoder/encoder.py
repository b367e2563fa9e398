"""Encoder of images: what stands in a prompt in the place of an image, computed once.

Rows that were encoded before come from the store. Requests for the same image share one encoding; when nobody waits
for it any more, it is stopped. The rest waits for its turn, fairly by account. Lives on one event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ggufd.engine.kv_store.model_file import contents
from ggufd.engine.messages.images import ImageRows
from ggufd.engine.telemetry.counters import Histogram
from ggufd.errors import EngineDown, EngineFailure
from ggufd.images.encoded import EncodedImage
from ggufd.images.encoder.messages import EncoderParams, Layout
from ggufd.images.encoder.process import EncoderProcess
from ggufd.images.encoder.row_store import MAX_BYTES, RowStore
from ggufd.images.figures import ImageFigures
from ggufd.images.pixels import Pixels
from ggufd.images.turns import ImageTurns
from ggufd.keys.principal import Principal

_MAX_LAYOUTS = 4096
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 600.0)
_FLOAT_BYTES = 4


class _Key(NamedTuple):
    """An image in a cache scope."""

    scope: str
    digest: str


@dataclass(slots=True)
class _SharedEncoding:
    """Encoding that is under way, and how many wait for it."""

    task: asyncio.Task[None]
    n_waiting: int = 0


class ImageEncoder:
    """Encoder with a process of its own and a store of rows in `folder`; without one they are lost at the end."""

    def __init__(self, params: EncoderParams, folder: Path | None = None, max_bytes: int = MAX_BYTES) -> None:
        self.process = EncoderProcess(params)
        self.turns = ImageTurns("encoded")
        self.store: RowStore | None = None
        self._params = params
        self._folder = folder
        self._max_bytes = max_bytes
        self._layouts: dict[tuple[int, int], Layout] = {}
        self._shared: dict[_Key, _SharedEncoding] = {}
        self._seconds = Histogram(_SECONDS)
        self._n_encoded = self._n_hits = self._n_failed = 0

    async def start(self) -> None:
        """Load the projector. Raises ModelError where it cannot be used."""
        self._made_with = await asyncio.to_thread(_fingerprint, self._params)
        self.store = RowStore(self._folder, self._max_bytes)
        await self.process.start(self.store.temporary)

    async def stop(self) -> None:
        """End the process; encodings that are under way fail."""
        await self.process.stop()
        tasks = [one.task for one in self._shared.values()]
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.store is not None:
            self.store.close()

    @property
    def figures(self) -> ImageFigures:
        return ImageFigures(
            self._n_encoded,
            self._n_hits,
            self._n_failed,
            self.turns.n_waiting,
            0 if self.store is None else self.store.n_bytes,
            self.process.n_exits,
            self._seconds.spread,
        )

    def rest(self) -> None:
        """Unload the projector until the next image. Does nothing while one is encoded."""
        self.process.rest()

    async def measure(self, pixels: Pixels) -> EncodedImage:
        """Parts of an image whose rows have no files: nothing is encoded. Raises InvalidRequest or EngineDown."""
        digest = await self._digest(pixels)
        return _image(await self._layout(pixels), digest, lambda rows: "")

    async def encode(self, pixels: Pixels, principal: Principal) -> EncodedImage:
        """Parts of an image, with files of its rows. Cancelled, it is given up unless others wait for it.

        Raises InvalidRequest where the projector takes no such image, QueueFull, EngineFailure or EngineDown.
        """
        key = _Key(principal.cache_namespace, await self._digest(pixels))
        layout = await self._layout(pixels)
        found = self._find(key, layout)
        if found is None:
            await self._wait_encoded(key, pixels, layout, principal)
            found = self._find(key, layout)
        else:
            self._n_hits += 1
        if found is None:
            raise EngineFailure("The image's rows are gone, though they were encoded just now. Send it again.")
        return found

    @property
    def _open_store(self) -> RowStore:
        if self.store is None:
            raise EngineDown("The encoder of images has not been started yet.")
        return self.store

    def kept(self, image: EncodedImage, principal: Principal) -> EncodedImage | None:
        """A measured image with files of its rows, where all of them are there; that counts as a hit."""
        scope, row_bytes = principal.cache_namespace, self._params.projector.n_embd * _FLOAT_BYTES
        store = self._open_store
        paths = {rows.digest: store.find(scope, rows.digest, rows.n_rows * row_bytes) for rows in image.rows}
        if None in paths.values():
            return None
        self._n_hits += 1
        parts = [
            replace(part, path=str(paths[part.digest])) if isinstance(part, ImageRows) else part for part in image.parts
        ]
        return EncodedImage(tuple(parts))

    # --- what is known ------------------------------------------------------------------------------------------------

    async def _digest(self, pixels: Pixels) -> str:
        """Digest of an image and of all that its rows depend on; millions of pixels are hashed on a thread."""
        return await asyncio.to_thread(_digest, self._made_with, pixels)

    async def _layout(self, pixels: Pixels) -> Layout:
        size = pixels.width, pixels.height
        if size not in self._layouts:
            layout = await self.process.measure(*size)
            if len(self._layouts) >= _MAX_LAYOUTS:
                self._layouts.clear()
            self._layouts[size] = layout
        return self._layouts[size]

    def _find(self, key: _Key, layout: Layout) -> EncodedImage | None:
        """The image with files of its rows, where all of them are there."""
        store = self._open_store
        row_bytes = self._params.projector.n_embd * _FLOAT_BYTES
        paths = {digest: store.find(key.scope, digest, n_rows * row_bytes) for digest, n_rows in _tiles(key, layout)}
        if None in paths.values():
            return None
        return _image(layout, key.digest, lambda digest: str(paths[digest]))

    # --- encoding -----------------------------------------------------------------------------------------------------

    async def _wait_encoded(self, key: _Key, pixels: Pixels, layout: Layout, principal: Principal) -> None:
        shared = self._shared.get(key)
        if shared is None:
            task = asyncio.create_task(self._encode(key, pixels, layout, principal))
            shared = self._shared[key] = _SharedEncoding(task)
            task.add_done_callback(lambda _: self._end(key, task))
        shared.n_waiting += 1
        try:
            await asyncio.shield(shared.task)
        finally:
            shared.n_waiting -= 1
            if not shared.n_waiting:
                shared.task.cancel()
                self._forget(key, shared.task)

    def _end(self, key: _Key, task: asyncio.Task[None]) -> None:
        self._forget(key, task)
        if not task.cancelled() and task.exception() is not None:
            self._n_failed += 1

    def _forget(self, key: _Key, task: asyncio.Task[None]) -> None:
        """Nobody may wait for this encoding any more."""
        if key in self._shared and self._shared[key].task is task:
            del self._shared[key]

    async def _encode(self, key: _Key, pixels: Pixels, layout: Layout, principal: Principal) -> None:
        tiles, store = _tiles(key, layout), self._open_store
        async with self.turns.turn(principal, sum(n_rows for _, n_rows in tiles)):
            paths = tuple(str(store.path(key.scope, digest)) for digest, _ in tiles)
            done = await self.process.encode(pixels, paths)
            if done.layout != layout:
                raise EngineFailure("The image was encoded into other parts than its size promised.")
            for digest, _ in tiles:
                store.add(key.scope, digest)
        self._note(done.seconds)

    def _note(self, seconds: float) -> None:
        self._n_encoded += 1
        self._seconds.observe(seconds)
        self.turns.seconds_each = seconds


def _fingerprint(params: EncoderParams) -> str:
    """Digest of all that rows depend on besides pixels: the projector's weights, and limits of tokens.

    Not of where they are computed: rows of a CPU and a GPU differ as little as those of two GPUs.
    """
    projector = params.projector
    limits = f"{projector.min_tokens} {projector.max_tokens}"
    return f"{contents(Path(projector.path))} {projector.n_embd} {limits}"


def _digest(made_with: str, pixels: Pixels) -> str:
    digest = hashlib.sha256(f"{made_with} {pixels.width} {pixels.height} ".encode())
    digest.update(pixels.data)
    return digest.hexdigest()


def _tiles(key: _Key, layout: Layout) -> list[tuple[str, int]]:
    """Digest and number of rows of each tile."""
    return [(rows.digest, rows.n_rows) for rows in _image(layout, key.digest, lambda digest: "").rows]


def _image(layout: Layout, digest: str, path_of: Callable[[str], str]) -> EncodedImage:
    """Image of a layout: each of its tiles has a digest of its own, made of the whole one's."""
    parts: list[tuple[int, ...] | ImageRows] = []
    for number, part in enumerate(layout):
        if isinstance(part, tuple):
            parts.append(part)
        else:
            own = hashlib.sha256(f"{digest} {number}".encode()).hexdigest()
            parts.append(ImageRows(own, part, path_of(own)))
    return EncodedImage(tuple(parts))
