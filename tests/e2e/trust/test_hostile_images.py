"""Images that are meant to hurt, at the real server: a 400 within a second, little memory, and nobody else notices."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from ggufd.images.decoding.worker import NAME
from ggufd.models import hub
from tests.support.models.image_files import (
    BLUE,
    FORMATS,
    GREEN,
    RED,
    SVG,
    bmp_header,
    data_uri,
    gif_of_frames,
    image_bytes,
    jpeg_of_scans,
    patch_file,
    png_of_zeros,
    webp_canvas,
)
from tests.support.models.projector_file import write_projector
from tests.support.programs.live_server import LiveServer, live_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

GIF_BOMB = b"GIF89a\xff\xff\xff\xff" + patch_file([RED], "GIF")[10:]
NOISE = bytes(range(256)) * 64

FILES = {
    "a PNG of 16,000 x 16,000": png_of_zeros(16_000, 16_000),
    "a PNG that says so": png_of_zeros(1, 1, said=(16_000, 16_000)),
    "a PNG whose rows are missing": png_of_zeros(16, 16, said=(640, 640)),
    "a WebP of 16,384 x 16,384": webp_canvas(16_384, 16_384),
    "a BMP of 30,000 x 30,000": bmp_header(30_000, 30_000),
    "a BMP without pixels": bmp_header(300, 300),
    "a GIF of 65,535 x 65,535": GIF_BOMB,
    "a JPEG of a thousand scans": jpeg_of_scans(1000),
    "a JPEG of nothing but EXIF": b"\xff\xd8\xff\xe1\xff\xffExif\0\0MM\0*" + b"\xff" * 65_500,
    "SVG": SVG,
    "TIFF": image_bytes(Image.new("RGB", (4, 4)), "TIFF"),
    "ICO": image_bytes(Image.new("RGB", (16, 16)), "ICO"),
    "a PDF that is a JPEG too": b"%PDF-1.7\n" + patch_file([RED], "JPEG"),
    "a page that is a PNG too": b"<!DOCTYPE html><script>" + patch_file([RED]),
    "an archive": b"PK\3\4" + NOISE,
    "noise": NOISE,
    "noise that begins as a PNG": b"\x89PNG\r\n\x1a\n" + NOISE,
    "noise that begins as a JPEG": b"\xff\xd8\xff\xe0" + NOISE,
    "noise that begins as a WebP": b"RIFF\xff\xff\xff\x7fWEBPVP8X" + NOISE,
}

REFERENCES = (
    "file:///etc/passwd",
    "file://../secret.png",
    "file://%2e%2e/secret.png",
    "file://link.png",
    "file:///dev/zero",
    "file:///proc/self/mem",
    "http://127.0.0.1:{port}/health",
    "http://localhost:{port}/",
    "http://[::1]/",
    "http://[::ffff:7f00:1]/",
    "http://0/",
    "http://2130706433/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "https://user:word@example.com/",
    "http://127.0.0.1:22/",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "ftp://127.0.0.1/",
    "javascript:alert(1)",
    "data:image/png;base64,AAAA" + "!" * 9,
    "data:image/png",
    "data:" + "x" * 100_000,
    "%%%",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "media").mkdir()
    (folder / "secret.png").write_bytes(patch_file([RED]))
    (folder / "media" / "link.png").symlink_to(folder / "secret.png")
    (folder / "media" / "inside.png").write_bytes(patch_file([RED]))
    write_projector(folder / "mmproj.gguf", hub.find("").path)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LiveServer]:
    flags = ("--mmproj", str(folder / "mmproj.gguf"), "--image-hosts", "*", "--media-path", str(folder / "media"))
    with live_server("--ctx-size", "4096", "--parallel", "2", "--max-body-bytes", "30000000", *flags) as started:
        # The decoding process is there from now on.
        counted(started, data_uri(patch_file([RED])))
        yield started


def count(server: LiveServer, url: str) -> httpx.Response:
    """The answer to a question that has the image read and measured, and nothing computed."""
    source = {"type": "url", "url": url}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    body = {"model": "any", "messages": [{"role": "user", "content": content}]}
    return httpx.post(f"{server.url}/v1/messages/count_tokens", json=body, trust_env=False, timeout=60)


def counted(server: LiveServer, url: str) -> int:
    answer = count(server, url)
    assert answer.status_code == 200, answer.text
    n: int = answer.json()["input_tokens"]
    return n


class Watched:
    """What a server's processes take more than at the beginning, sampled on a thread; in MiB."""

    def __init__(self, server: LiveServer) -> None:
        self._processes = [psutil.Process(server.pid), *server.children()]
        self._before = self._taken()
        self.most = 0
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _taken(self) -> int:
        return sum(process.memory_info().rss for process in self._processes)

    def _watch(self) -> None:
        while not self._is_done.wait(0.005):
            self.most = max(self.most, (self._taken() - self._before) >> 20)

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_done.set()
        self._thread.join()


def decoder(server: LiveServer) -> psutil.Process:
    (found,) = [child for child in server.children() if child.name() == NAME]
    return found


def check_refused(answer: httpx.Response) -> str:
    assert answer.status_code == 400, answer.text
    said: dict[str, Any] = answer.json()["error"]
    assert said["type"] == "invalid_request_error"
    message: str = said["message"]
    assert message.startswith("'messages[0].content[0]")
    assert "Traceback" not in message
    return message


@pytest.mark.timed
def test_every_hostile_file_is_refused_at_once_and_nobody_else_notices(server: LiveServer) -> None:
    before = decoder(server).pid
    ended = threading.Event()
    gaps: list[float] = []
    stream = threading.Thread(target=read_stream, args=(server, ended, gaps))
    stream.start()
    took: dict[str, float] = {}
    try:
        wait_gaps(gaps, 3)
        with Watched(server) as watched:
            for name, data in FILES.items():
                uri = data_uri(data)
                begun_s = time.monotonic()
                check_refused(count(server, uri))
                took[name] = time.monotonic() - begun_s
        wait_gaps(gaps, len(gaps) + 3)
    finally:
        ended.set()
        stream.join()
    print({name: round(seconds, 2) for name, seconds in took.items()}, watched.most, round(max(gaps), 2))
    assert {name: seconds for name, seconds in took.items() if seconds > 1} == {}
    assert watched.most < 200
    assert decoder(server).pid == before, "a file ended the process"
    assert max(gaps) < 1


def wait_gaps(gaps: list[float], n: int) -> None:
    """Wait until the stream has gone on so far."""
    deadline_s = time.monotonic() + 60
    while len(gaps) < n:
        assert time.monotonic() < deadline_s, "the stream stands still"
        time.sleep(0.01)


def read_stream(server: LiveServer, ended: threading.Event, gaps: list[float]) -> None:
    """Read the tokens of an answer as long as it is wanted, and note the time between two."""
    body = {"prompt": "Once upon a time", "max_tokens": 4000, "stream": True, "ignore_eos": True}
    with (
        httpx.Client(trust_env=False, timeout=60) as client,
        client.stream("POST", f"{server.url}/v1/completions", json=body) as answer,
    ):
        last_s = None
        for line in answer.iter_lines():
            now_s = time.monotonic()
            if line.startswith("data: {"):
                if last_s is not None:
                    gaps.append(now_s - last_s)
                last_s = now_s
            if ended.is_set():
                return


@pytest.mark.timed
def test_every_hostile_reference_is_refused_at_once(server: LiveServer) -> None:
    port = server.url.rpartition(":")[2]
    took = {}
    for reference in REFERENCES:
        begun_s = time.monotonic()
        check_refused(count(server, reference.replace("{port}", port)))
        took[reference] = time.monotonic() - begun_s
    assert {reference: seconds for reference, seconds in took.items() if seconds > 1} == {}


def test_only_the_operators_folder_is_read(server: LiveServer) -> None:
    assert counted(server, "file://inside.png") > 16
    for name in ("../secret.png", "link.png", "missing.png"):
        assert "no such file in the folder" in check_refused(count(server, f"file://{name}"))


def test_the_first_frame_of_a_large_animation_is_read(server: LiveServer) -> None:
    assert counted(server, data_uri(gif_of_frames(16, 800_000), "GIF")) == counted(server, data_uri(patch_file([RED])))


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_anywhere_is_refused_or_read(server: LiveServer, name: str) -> None:
    data = patch_file([RED, BLUE] * 8, name)
    before = decoder(server).pid
    for length in {*range(0, len(data), max(1, len(data) // 25)), *range(len(data) - 4, len(data))}:
        answer = count(server, data_uri(data[:length], name))
        if answer.status_code != 200:
            check_refused(answer)
    assert decoder(server).pid == before


def test_a_decoder_that_is_killed_is_started_again(server: LiveServer) -> None:
    n = counted(server, data_uri(patch_file([RED])))
    before = decoder(server)
    before.kill()
    # Another image: one that was measured before is not decoded again.
    assert counted(server, data_uri(patch_file([GREEN]))) == n
    assert decoder(server).pid != before.pid
