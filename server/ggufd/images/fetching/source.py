"""Source of images: the bytes behind what a request says, by its kind."""

from __future__ import annotations

import asyncio
import re

from ggufd.errors import InvalidRequest
from ggufd.images.fetching.download import Downloader
from ggufd.images.fetching.inline import base64_bytes, data_uri
from ggufd.images.fetching.limits import ImageLimits
from ggufd.images.fetching.media_folder import read_media_file
from ggufd.images.fetching.network import Network
from ggufd.images.refusals import at_place
from ggufd.images.turns import ImageTurns
from ggufd.keys.principal import NOBODY, Principal

_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]*):", re.IGNORECASE)

_MOST_FETCHES = 4
"""Downloads and files that are read at once, fairly by account; who sends an image along waits for none of them."""


class ImageSource:
    """Source of images within the operator's limits."""

    def __init__(self, limits: ImageLimits, network: Network | None = None) -> None:
        self._limits = limits
        self._download = Downloader(limits, network or Network())
        self._fetches = ImageTurns("fetched", at_once=_MOST_FETCHES)

    def carries(self, reference: str) -> bool:
        """Whether it holds the image itself, so that it is the same one each time."""
        return _kind(reference) in (None, "data")

    async def read(self, reference: str, place: str, principal: Principal = NOBODY) -> bytes:
        """Bytes of an image. Raises InvalidRequest for `place` where they are not allowed or cannot be had.

        Raises QueueFull where too many are fetched.
        """
        try:
            return await self._read(reference, principal)
        except InvalidRequest as error:
            raise at_place(error, place) from None

    async def _read(self, reference: str, principal: Principal) -> bytes:
        match _kind(reference):
            case None:
                return await base64_bytes(reference, self._limits.max_bytes)
            case "data":
                return await data_uri(reference, self._limits.max_bytes)
            case "http" | "https":
                return await self._fetch(reference.strip(), principal)
            case "file":
                return await self._file(reference.strip(), principal)
            case _:
                raise InvalidRequest(
                    "The image's URL is of a kind that is not read here: a data URI (data:image/png;base64,...) was "
                    "expected."
                )

    async def _fetch(self, url: str, principal: Principal) -> bytes:
        if not self._limits.hosts:
            raise InvalidRequest(
                "Images are not fetched from the network here: send the image as a data URI "
                "(data:image/png;base64,...), or allow hosts by --image-hosts."
            )
        async with self._fetches.turn(principal, 1):
            return await self._download.get(url)

    async def _file(self, url: str, principal: Principal) -> bytes:
        folder = self._limits.media_path
        if folder is None:
            raise InvalidRequest(
                "Files of the server's machine are not read here: send the image as a data URI "
                "(data:image/png;base64,...), or allow a folder by --media-path."
            )
        if not url.lower().startswith("file://"):
            raise InvalidRequest("The image's URL is malformed: file://NAME was expected.")
        async with self._fetches.turn(principal, 1):
            return await asyncio.to_thread(read_media_file, folder, url, self._limits.max_bytes)


def _kind(reference: str) -> str | None:
    """Scheme of a URL; None for what is none, which is base64."""
    found = _SCHEME.match(reference)
    return found[1].lower() if found else None
