"""Files of the operator's folder, and nothing beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ggufd.errors import InvalidRequest
from ggufd.images.fetching.limits import ImageLimits
from ggufd.images.fetching.source import ImageSource


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path.resolve() / "media"
    (folder / "sub").mkdir(parents=True)
    (folder / "a b.png").write_bytes(b"image")
    (folder / "sub" / "c.png").write_bytes(b"other")
    (folder / "large").write_bytes(bytes(101))
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "in").symlink_to(folder / "sub" / "c.png")
    os.mkfifo(folder / "pipe")
    return folder


def source(folder: Path) -> ImageSource:
    return ImageSource(ImageLimits(media_path=folder, max_bytes=100))


@pytest.mark.parametrize(
    "url", ["file://sub/c.png", "file:///sub/c.png", "file:////sub//c.png", "FILE://sub/./c.png", "file://in"]
)
async def test_files_of_the_folder_are_read(folder: Path, url: str) -> None:
    assert await source(folder).read(url, "x") == b"other"


async def test_a_name_may_be_quoted_and_a_path_whole(folder: Path) -> None:
    assert await source(folder).read("file://a%20b.png", "x") == b"image"
    assert await source(folder).read(f"file://{folder}/sub/c.png", "x") == b"other"


OUTSIDE = (
    "file:///etc/passwd",
    "file://../secret",
    "file://sub/../../secret",
    "file://%2e%2e/secret",
    "file://..%2fsecret",
    "file://out",
    "file://missing",
    "file://sub",
    "file://",
    "file://pipe",
    "file://a%00b",
    "file:///dev/zero",
    "file:///proc/self/environ",
    "file://localhost/etc/passwd",
    "file://" + "x" * 5000,
)


@pytest.mark.parametrize("url", OUTSIDE)
async def test_nothing_else_is(folder: Path, url: str) -> None:
    with pytest.raises(InvalidRequest, match="there is no such file in the folder"):
        await source(folder).read(url, "x")


async def test_a_file_may_be_too_large_and_a_url_malformed(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="larger than 100 bytes"):
        await source(folder).read("file://large", "x")
    with pytest.raises(InvalidRequest, match="file://NAME was expected"):
        await source(folder).read("file:a%20b.png", "x")
