"""Transfer of a chat from another server of the cluster into the folder of the disk cache. Blocks: for a thread.

Trusts nothing of what comes: neither length nor pace, neither bytes nor content. What fails leaves nothing behind, and
costs no more than that its chat is computed again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import http.client
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from ggufd.api.peers.gate import TOKEN_HEADER
from ggufd.api.peers.kept_files import path_of
from ggufd.engine.kv_store.state_head import BadStateFile, Head, read_head
from ggufd.engine.messages.config import DiskPlace

DIGEST_HEADER = "content-digest"
USED_HEADER = "x-ggufd-used"
"""Unix time of the chat's last use."""

_SILENCE_S = 5.0
"""A peer that says nothing for so long is given up."""

_PIECE_BYTES = 1 << 18


class TransferFailed(Exception):
    """Reason why a chat was not taken, in words for a log."""


class FetchedChat(NamedTuple):
    """A chat that lies in the folder now."""

    path: Path
    n_bytes: int
    used_s: float
    head: Head


class Source(NamedTuple):
    """A server of the cluster that has the chat `digest`, and the token that it asks for."""

    url: str
    digest: str
    token: str


def is_address(url: str) -> bool:
    """Whether a text is the address of a server: scheme, host and port, and nothing else."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    rest = (parts.path.rstrip("/"), parts.query, parts.fragment, parts.username or "", parts.password or "")
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not any(rest)


def fetch(source: Source, place: DiskPlace, timeout_s: float) -> FetchedChat:
    """Fetch a chat, check it, and put it into the folder. Raises TransferFailed."""
    deadline_s = time.monotonic() + timeout_s
    try:
        with closing(_connection(source.url, min(_SILENCE_S, timeout_s))) as connection:
            connection.request("GET", f"/peers/chats/{source.digest}", headers={TOKEN_HEADER: source.token})
            with connection.getresponse() as response:
                return _take(response, source, place, deadline_s)
    except http.client.HTTPException as error:
        raise TransferFailed(f"the peer does not speak HTTP: {type(error).__name__}") from None
    except OSError as error:
        raise TransferFailed(error.strerror or str(error) or type(error).__name__) from None


def _connection(url: str, timeout_s: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=timeout_s)


def _take(response: http.client.HTTPResponse, source: Source, place: DiskPlace, deadline_s: float) -> FetchedChat:
    """The answer of a peer as a file of the folder."""
    if response.status != 200:
        raise TransferFailed(f"the peer answered {response.status}")
    expected, n_bytes = _digest_in(response.getheader(DIGEST_HEADER, "")), response.length
    if expected is None or n_bytes is None:
        raise TransferFailed("the peer told neither length nor digest")
    if n_bytes > place.max_bytes:
        raise TransferFailed(f"it has {n_bytes} bytes, and no more than {place.max_bytes} are kept here")
    handle, name = tempfile.mkstemp(dir=place.folder, prefix=f".{path_of(place, source.digest).name}.")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            sha256 = hashlib.sha256()
            for piece in _pieces(response, deadline_s):
                sha256.update(piece)
                file.write(piece)
        if part.stat().st_size != n_bytes:
            raise TransferFailed(f"the peer broke off after {part.stat().st_size} of {n_bytes} bytes")
        if sha256.digest() != expected:
            raise TransferFailed("its bytes are not what the peer read")
        head = _checked(part, source.digest, place)
        used_s = _used_s(response.getheader(USED_HEADER, ""))
        os.utime(part, (used_s, used_s))
        path = path_of(place, source.digest)
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return FetchedChat(path, n_bytes, used_s, head)


def _pieces(response: http.client.HTTPResponse, deadline_s: float) -> Iterator[bytes]:
    # Not `read`: it waits for all that was asked for, however slowly it comes.
    while piece := response.read1(_PIECE_BYTES):
        if time.monotonic() > deadline_s:
            raise TransferFailed("the peer is too slow")
        yield piece


def _digest_in(header: str) -> bytes | None:
    """SHA-256 of a Content-Digest header (RFC 9530); None where there is none."""
    for part in header.split(","):
        name, _, value = part.strip().partition("=")
        if name == "sha-256" and len(value) > 1 and value[0] == value[-1] == ":":
            with suppress(binascii.Error):
                return base64.b64decode(value[1:-1], validate=True)
    return None


def digest_header(sha256: bytes) -> str:
    """The value of a Content-Digest header."""
    return f"sha-256=:{base64.b64encode(sha256).decode()}:"


def _checked(path: Path, digest: str, place: DiskPlace) -> Head:
    """The head of a file that is the chat which was asked for, and fits what is served here."""
    try:
        head = read_head(path)
    except BadStateFile as error:
        raise TransferFailed(f"it is no saved chat, or broken: {error}") from None
    if head.fingerprint != place.fingerprint:
        raise TransferFailed("it was computed by another model, under other settings or by another build")
    if head.digest != digest:
        raise TransferFailed("it is another chat than was asked for")
    return head


def _used_s(text: str) -> float:
    """Unix time of the last use by the word of the peer, which does not reach into the future."""
    now_s = time.time()
    try:
        told_s = float(text)
    except ValueError:
        return now_s
    return told_s if 0 < told_s < now_s else now_s
