"""Files of the web page, read and compressed once: two pages, and the scripts and styles they load. Knows no route."""

from __future__ import annotations

import functools
import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

_MEDIA_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".html": "text/html; charset=utf-8",
}

_FOLDERS = ("chat", "facts", "live", "settings", "shared", "tokens", "vendor")
_PAGES = ("index.html", "live.html")

_VERSION = b"{{version}}"
"""Where a page names the version of the files it loads."""


@dataclass(frozen=True, slots=True)
class Asset:
    """File as it is sent, plain and compressed, with its type and a name of its content."""

    media_type: str
    etag: str
    plain: bytes
    compressed: bytes


@dataclass(frozen=True, slots=True)
class WebAssets:
    """All files of the web page. `version` names their content, and stands in their addresses."""

    version: str
    files: Mapping[str, Asset]
    pages: Mapping[str, Asset]


@functools.cache
def web_assets() -> WebAssets:
    """The files of the package: they do not change while it runs."""
    folder = files("ggufd") / "web"
    contents = {name: content for part in _FOLDERS for name, content in _contents(folder / part, f"{part}/")}
    version = _digest(b"".join(name.encode() + content for name, content in sorted(contents.items())))
    pages = {name: (folder / name).read_bytes().replace(_VERSION, version.encode()) for name in _PAGES}
    return WebAssets(version, _assets(contents), _assets(pages))


def _contents(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    """Every file of a type that is sent, by its path below the page's folder."""
    return [
        (prefix + entry.name, entry.read_bytes())
        for entry in folder.iterdir()
        if entry.is_file() and _suffix(entry.name) in _MEDIA_TYPES
    ]


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]


def _assets(contents: Mapping[str, bytes]) -> dict[str, Asset]:
    return {
        name: Asset(_MEDIA_TYPES[_suffix(name)], f'"{_digest(content)}"', content, gzip.compress(content, 9, mtime=0))
        for name, content in contents.items()
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
