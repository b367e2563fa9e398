"""Files that requests may name, in one folder of the operator's (llama-server's --media-path)."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import unquote

from ggufd.errors import InvalidRequest
from ggufd.images.fetching.limits import too_large

_SCHEME_CHARS = len("file://")


def read_media_file(folder: Path, url: str, max_bytes: int) -> bytes:
    """Bytes of `file://NAME`, where the name is one in the folder or the whole path of one. Blocks.

    Raises InvalidRequest, in the same words whether a file lies elsewhere or is not there.
    """
    try:
        data = _read(_inside(folder, unquote(url[_SCHEME_CHARS:])), max_bytes + 1)
    except (OSError, ValueError):
        raise InvalidRequest("There is no such file in the folder of --media-path. Name it as file://NAME.") from None
    if len(data) > max_bytes:
        raise InvalidRequest(too_large(max_bytes))
    return data


def _read(path: Path, most: int) -> bytes:
    """The first bytes of a regular file. Raises OSError, or ValueError where it is of another kind."""
    # Opening a pipe would wait for who writes into it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(path)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(descriptor)


def _inside(folder: Path, name: str) -> Path:
    """Path of a name in the folder. Raises ValueError where it leads out, by its parts or by a link."""
    if ".." in Path(name).parts:
        raise ValueError(name)
    folder = folder.resolve()
    whole = Path(name)
    path = (whole if whole.is_relative_to(folder) else folder / name.lstrip("/\\")).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(name)
    return path
