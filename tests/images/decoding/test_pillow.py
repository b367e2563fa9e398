"""What becomes of image files: upright, opaque, 8 bits; or a reason why not."""

from __future__ import annotations

import contextlib
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ggufd.errors import InvalidRequest
from ggufd.images.decoding.limits import MOST_KEPT_PIXELS, DecodeLimits
from ggufd.images.decoding.pillow import decode
from ggufd.images.pixels import Pixels
from tests.support.models.image_files import (
    BLUE,
    FORMATS,
    GREEN,
    PATCHES,
    RED,
    SVG,
    WHITE,
    Colour,
    bmp_header,
    gif_of_frames,
    image_bytes,
    jpeg_of_scans,
    patch_file,
    patches,
    png_of_zeros,
    webp_canvas,
)
from tests.support.pages import ROOT

LIMITS = DecodeLimits()


def colours(pixels: Pixels, patch: int = 16) -> list[Colour]:
    """The middle pixel of each patch, rounded to a corner of the RGB cube."""
    array = np.frombuffer(pixels.data, np.uint8).reshape(pixels.height, pixels.width, 3)
    middles = array[patch // 2 :: patch, patch // 2 :: patch].reshape(-1, 3)
    return [(int(r > 127) * 255, int(g > 127) * 255, int(b > 127) * 255) for r, g, b in middles]


def middle(pixels: Pixels) -> Colour:
    at = 3 * (pixels.height // 2 * pixels.width + pixels.width // 2)
    return pixels.data[at], pixels.data[at + 1], pixels.data[at + 2]


def refusal(data: bytes, limits: DecodeLimits = LIMITS) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decode(data, limits)
    return caught.value.message


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_the_same_patches(name: str) -> None:
    pixels = decode(patch_file(PATCHES, name), LIMITS)
    assert (pixels.width, pixels.height, len(pixels.data)) == (64, 32, 64 * 32 * 3)
    assert colours(pixels) == list(PATCHES)


@pytest.mark.parametrize("name", ["PNG", "BMP", "WEBP"])
def test_files_without_loss_lose_nothing(name: str) -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (13, 7, 3), np.uint8)
    pixels = decode(image_bytes(Image.fromarray(noise), name), LIMITS)
    assert pixels == Pixels(7, 13, noise.tobytes())


MODES: dict[str, tuple[Callable[[], Image.Image], str, Colour]] = {
    "grey": (lambda: Image.new("L", (8, 8), 100), "PNG", (100, 100, 100)),
    "grey of 16 bits": (lambda: Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)), "PNG", (100, 100, 100)),
    "white of 16 bits": (lambda: Image.fromarray(np.full((8, 8), 65535, np.uint16)), "PNG", WHITE),
    "one bit": (lambda: Image.new("1", (8, 8), 1), "PNG", WHITE),
    "grey and alpha": (lambda: Image.new("LA", (8, 8), (0, 0)), "PNG", WHITE),
    "alpha": (lambda: Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG", WHITE),
    "half": (lambda: Image.new("RGBA", (8, 8), (255, 0, 0, 128)), "PNG", (255, 127, 127)),
    "alpha in WebP": (lambda: Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "WEBP", WHITE),
    "palette": (lambda: Image.new("RGB", (8, 8), GREEN).convert("P"), "PNG", GREEN),
    "CMYK": (lambda: Image.new("CMYK", (8, 8), (255, 255, 0, 0)), "JPEG", BLUE),
    "grey JPEG": (lambda: Image.new("L", (8, 8), 100), "JPEG", (100, 100, 100)),
}


@pytest.mark.parametrize("kind", MODES)
def test_every_mode_becomes_opaque_rgb(kind: str) -> None:
    make, name, expected = MODES[kind]
    pixels = decode(image_bytes(make(), name), LIMITS)
    assert max(abs(a - b) for a, b in zip(middle(pixels), expected, strict=True)) <= 1


def test_a_transparent_colour_of_a_palette_is_white() -> None:
    image = Image.new("RGB", (8, 8), RED).convert("P")
    data = image_bytes(image, "GIF", transparency=image.getpixel((0, 0)))
    assert middle(decode(data, LIMITS)) == WHITE


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_an_image_stands_upright_whatever_exif_says(name: str, orientation: int) -> None:
    upright = patches([RED, GREEN, BLUE, WHITE, RED, RED], columns=3)
    lying = upright
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what a camera that was held so would have stored
    if orientation > 1:
        lying = upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(image_bytes(lying, name, exif=exif), LIMITS)
    assert (pixels.width, pixels.height) == upright.size
    assert colours(pixels) == [RED, GREEN, BLUE, WHITE, RED, RED]


@pytest.mark.parametrize(
    "junk", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\1" * 99]
)
def test_exif_that_is_junk_says_nothing(junk: bytes) -> None:
    data = patch_file(PATCHES, "JPEG")
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(junk) + 2) + junk + data[2:]
    assert colours(decode(data, LIMITS)) == list(PATCHES)


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    for name in ("GIF", "WEBP", "PNG"):
        data = image_bytes(frames[0], name, save_all=True, append_images=frames[1:])
        assert colours(decode(data, LIMITS)) == [RED], name


def test_of_a_photo_with_a_second_one_behind_it_the_first_counts() -> None:
    """Telephones write such files (MPO), which begin as a JPEG."""
    photos = [patches([colour] * 4, columns=2) for colour in (RED, GREEN)]
    data = image_bytes(photos[0], "MPO", save_all=True, append_images=photos[1:])
    assert colours(decode(data, LIMITS)) == [RED] * 4


def test_a_fresh_process_knows_every_format() -> None:
    """And hardly any beside them."""
    files = {name: patch_file([RED], name) for name in FORMATS}
    program = (
        "import pickle, sys\n"
        "from ggufd.images.decoding.pillow import Image, decode\n"
        "from ggufd.images.decoding.limits import DecodeLimits\n"
        "files = pickle.load(sys.stdin.buffer)\n"
        "print(*(decode(data, DecodeLimits()).width for data in files.values()), len(Image.OPEN))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(files), capture_output=True, check=True, cwd=ROOT / "server"
    )
    *widths, n_formats = map(int, done.stdout.split())
    assert widths == [64] * len(FORMATS)
    assert n_formats < 2 * len(FORMATS)


def test_a_large_image_leaves_the_decoder_smaller_and_in_its_shape() -> None:
    for name in ("JPEG", "PNG", "GIF"):
        pixels = decode(image_bytes(Image.new("RGB", (6000, 1500), RED), name), LIMITS)
        assert pixels.width * pixels.height <= MOST_KEPT_PIXELS
        assert pixels.width * pixels.height > 0.99 * MOST_KEPT_PIXELS
        assert pixels.width / pixels.height == pytest.approx(4, rel=0.01)
        assert colours(Pixels(pixels.width, 1, pixels.data[: 3 * pixels.width]), 1)[0] == RED


@pytest.mark.parametrize(("width", "height"), [(17_000_000, 1), (1, 201), (201 * 64, 64)])
def test_a_line_is_no_image(width: int, height: int) -> None:
    assert "at most 200 times as many one way as the other" in refusal(png_of_zeros(width, height))


def test_a_long_page_is_one() -> None:
    pixels = decode(png_of_zeros(400, 40_000), LIMITS)
    assert (pixels.width, pixels.height) == (204, 20_480)
    assert decode(png_of_zeros(200, 1), LIMITS).width == 200


OTHERS = {
    "SVG": SVG,
    "TIFF": image_bytes(Image.new("RGB", (4, 4)), "TIFF"),
    "ICO": image_bytes(Image.new("RGB", (16, 16)), "ICO"),
    "PDF": b"%PDF-1.7\n" + patch_file([RED], "JPEG"),
    "HTML or XML": b"<!DOCTYPE html><html>" + patch_file([RED]),
    "ZIP": b"PK\3\4" + patch_file([RED]),
    "AVIF": b"\0\0\0\x20ftypavif",
    "HEIC": b"\0\0\0\x18ftypheic",
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_formats_are_named(what: str) -> None:
    assert (
        refusal(OTHERS[what]) == f"The file is {what}, which is not read here. PNG, JPEG, WebP, GIF and BMP are taken."
    )


def test_what_is_no_image_is_said_to_be_none() -> None:
    assert refusal(b"") == "The image is empty. PNG, JPEG, WebP, GIF and BMP are taken."
    assert refusal(b"hello") == "The file is no image. PNG, JPEG, WebP, GIF and BMP are taken."


def test_what_stands_behind_an_image_is_not_looked_at() -> None:
    """A photo of a telephone may have a film behind it."""
    for name in FORMATS:
        data = patch_file(PATCHES, name)
        assert decode(data + b"PK\3\4<script>" * 99, LIMITS) == decode(data, LIMITS), name


BOMBS = {
    "PNG": png_of_zeros(1, 1, said=(16_000, 16_000)),
    "PNG of the largest size": png_of_zeros(1, 1, said=(2**31 - 1, 2**31 - 1)),
    "WebP": webp_canvas(16_384, 16_384),
    "BMP": bmp_header(30_000, 30_000),
    "JPEG": patch_file([RED], "JPEG").replace(struct.pack(">HH", 16, 64), b"\xff\xdc\xff\xdc"),
    "GIF": b"GIF89a\xff\xff\xff\xff" + patch_file([RED], "GIF")[10:],
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb_is_refused_by_its_header(what: str) -> None:
    assert "pixels; of a" in refusal(BOMBS[what])


def test_what_takes_more_memory_may_have_fewer_pixels() -> None:
    image = Image.new("RGB", (40, 30))
    limits = DecodeLimits(max_pixels=1_500)
    assert decode(image_bytes(image, "PNG"), limits).width == 40
    assert refusal(image_bytes(image, "WEBP"), limits) == (
        "The image has 40 x 30 pixels; of a WEBP file at most 750 are taken. Send it smaller."
    )


def test_a_header_that_lies_is_not_believed() -> None:
    assert refusal(png_of_zeros(16, 16, said=(640, 640))).startswith("The PNG file is broken or cut short")


def test_rows_that_a_png_leaves_out_are_black_and_nobodys_memory() -> None:
    pixels = decode(png_of_zeros(16, 16, said=(16, 640)), LIMITS)
    assert not any(pixels.data)


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    assert refusal(jpeg_of_scans(1000)) == "The JPEG file has more scans than an image needs. Save it again."
    assert colours(decode(jpeg_of_scans(1), LIMITS)) == list(PATCHES)


def test_frames_behind_the_first_are_not_decoded() -> None:
    data = gif_of_frames(16, 1_000_000)
    assert len(data) > 20_000_000
    assert decode(data, LIMITS).width == 16


@cache
def whole(name: str) -> tuple[bytes, Pixels]:
    data = patch_file(PATCHES, name, patch=4)
    return data, decode(data, LIMITS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_at_any_length_is_refused_or_whole(name: str) -> None:
    data, pixels = whole(name)
    n_refused = 0
    for length in range(len(data)):
        try:
            assert decode(data[:length], LIMITS) == pixels, length
        except InvalidRequest:
            n_refused += 1
    # What is missing at the end may hold no pixel.
    assert n_refused >= len(data) - 40


@given(name=st.sampled_from(FORMATS), data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_file_with_broken_bytes_is_refused_or_read(name: str, data: st.DataObject) -> None:
    raw = bytearray(whole(name)[0])
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=8)):
        raw[place] = data.draw(st.integers(0, 255))
    try:
        pixels = decode(bytes(raw), LIMITS)
    except InvalidRequest:
        return
    assert len(pixels.data) == 3 * pixels.width * pixels.height


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBPVP8X"]),
)
@settings(max_examples=300, deadline=None)
def test_bytes_without_meaning_are_refused(data: bytes, magic: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        decode(magic + data, LIMITS)
