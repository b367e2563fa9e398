"""Download of an image over http or https, from a host that may be hostile.

Each hop is checked by itself: the URL against the operator's hosts, then every address of its name, and the connection
goes to an address that was checked, so that a second answer of the name server changes nothing. Bytes and time are
bounded while they pass; what the host says of its content is not believed.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import NamedTuple
from urllib.parse import urljoin

import h11

from ggufd import __version__
from ggufd.errors import InvalidRequest
from ggufd.images.fetching.hosts import ImageUrl, check_host
from ggufd.images.fetching.limits import ImageLimits, too_large
from ggufd.images.fetching.network import Network

_MOST_REDIRECTS = 3
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_HEAD_BYTES = 32 << 10
_READ_BYTES = 64 << 10


class _Answer(NamedTuple):
    """Answer of a host: its body, or where to go instead."""

    body: bytes
    location: str | None = None


class Downloader:
    """Downloader of images from the hosts that the operator allows."""

    def __init__(self, limits: ImageLimits, network: Network) -> None:
        self._limits = limits
        self._network = network
        self._tls: ssl.SSLContext | None = None

    async def get(self, url: str) -> bytes:
        """Bytes at a URL. Raises InvalidRequest where it is not allowed, cannot be had, or is too large or slow."""
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                return await self._follow(url)
        except TimeoutError:
            raise InvalidRequest(
                f"The image could not be fetched within {self._limits.timeout_s:g} s. Send it as a data URI."
            ) from None

    async def _follow(self, url: str) -> bytes:
        for _ in range(_MOST_REDIRECTS + 1):
            answer = await self._hop(ImageUrl.parse(url))
            if answer.location is None:
                return answer.body
            url = urljoin(url, answer.location)
        raise InvalidRequest(f"The image's URL leads to more than {_MOST_REDIRECTS} others.")

    async def _hop(self, url: ImageUrl) -> _Answer:
        check_host(url, self._limits.hosts)
        addresses = await self._addresses(url)
        try:
            reader, writer = await self._connect(url, addresses)
        except OSError:  # a certificate that is not the host's, too
            raise InvalidRequest(f"{url.authority} cannot be reached, or not over {url.scheme}.") from None
        try:
            return await _exchange(url, reader, writer, self._limits.max_bytes)
        except (OSError, h11.RemoteProtocolError):
            raise InvalidRequest(f"{url.authority} broke off its answer, or it is not HTTP.") from None
        finally:
            writer.transport.abort()

    async def _addresses(self, url: ImageUrl) -> list[str]:
        """Addresses of a host. Raises InvalidRequest if it has none, or one that is not public."""
        try:
            addresses = await self._network.resolve(url.host, url.port)
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise InvalidRequest(f"{url.host} has no address.")
        if not all(self._network.is_allowed(address) for address in addresses):
            raise InvalidRequest(f"{url.host} has no public address: images are fetched from the internet only.")
        return addresses

    async def _connect(self, url: ImageUrl, addresses: list[str]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connection to the first address that takes one. Raises OSError."""
        tls = await self._context() if url.scheme == "https" else None
        for address in addresses[:-1]:
            try:
                return await _open(address, url, tls)
            except OSError:
                continue
        return await _open(addresses[-1], url, tls)

    async def _context(self) -> ssl.SSLContext:
        # Reading the certificates of all authorities takes tens of milliseconds.
        if self._tls is None:
            self._tls = await asyncio.to_thread(self._network.tls)
        return self._tls


async def _open(
    address: str, url: ImageUrl, tls: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    # The certificate must be the name's, not the address's.
    name = url.host if tls is not None else None
    return await asyncio.open_connection(address, url.port, ssl=tls, server_hostname=name, limit=_READ_BYTES)


async def _exchange(
    url: ImageUrl, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, max_bytes: int
) -> _Answer:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)
    for event in (_request(url), h11.EndOfMessage()):
        writer.write(connection.send(event) or b"")
    body = bytearray()
    async for received in _events(connection, reader):
        if isinstance(received, h11.Response):
            if (location := _location(received)) is not None:
                return _Answer(b"", location)
            _check_head(url, received, max_bytes)
        elif isinstance(received, h11.Data):
            body += received.data
            if len(body) > max_bytes:
                raise InvalidRequest(too_large(max_bytes))
    return _Answer(bytes(body))


def _request(url: ImageUrl) -> h11.Request:
    headers = [
        ("Host", url.authority),
        ("User-Agent", f"ggufd/{__version__}"),
        ("Accept", "image/*"),
        # What is compressed could be a bomb.
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
    ]
    return h11.Request(method="GET", target=url.target, headers=headers)


async def _events(connection: h11.Connection, reader: asyncio.StreamReader) -> AsyncIterator[h11.Event]:
    """Events of the answer up to its end. Raises RemoteProtocolError."""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)) or event is h11.PAUSED:
            return
        else:
            assert isinstance(event, h11.Event)
            yield event


def _header(response: h11.Response, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in response.headers if key == name), "")


def _location(response: h11.Response) -> str | None:
    return _header(response, b"location") if response.status_code in _REDIRECTS else None


def _check_head(url: ImageUrl, response: h11.Response, max_bytes: int) -> None:
    if response.status_code != 200:
        raise InvalidRequest(f"{url.authority} answered with status {response.status_code} instead of an image.")
    if _header(response, b"content-encoding").lower() not in ("", "identity"):
        raise InvalidRequest(f"{url.authority} sent the image compressed once more, which is not read here.")
    length = _header(response, b"content-length")
    if length.isdigit() and int(length[:20]) > max_bytes:
        raise InvalidRequest(too_large(max_bytes))
