"""Pixels of an image file, decoded by Pillow. Runs in the decoding process only: it imports Pillow.

The order is what keeps a file from costing more than it may: format by magic, size by the header, then decoding (a JPEG
at the smallest scale that is enough), scaling down, and only then conversions, which copy.
"""

from __future__ import annotations

import io
import math
import warnings

import PIL.WebPImagePlugin  # noqa: F401 - Pillow looks for this one only where it may guess the format
from PIL import Image

from ggufd.errors import InvalidRequest
from ggufd.images.decoding.headers import TAKEN, has_too_many_scans, image_format, webp_size
from ggufd.images.decoding.limits import MOST_KEPT_PIXELS, DecodeLimits
from ggufd.images.pixels import Pixels

_ORIENTATION = 0x0112

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of EXIF's orientation."""

_DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")
"""Modes of 16 bits, which are all grey."""

_WEIGHTS = {"WEBP": 2}
"""Pixels of the formats that take several times the memory of others: two canvases, the frame and Pillow's copy."""


_MOST_STRETCHED = 200
"""How much longer one side may be. Projectors cut, pad and scale by the shape, and nobody sees anything on a line."""


def decode(data: bytes, limits: DecodeLimits) -> Pixels:
    """Pixels of a file. Raises InvalidRequest where it cannot be decoded or goes past a limit."""
    name = image_format(data)
    _check_cost(name, data, limits)
    # Pillow's own limit is for those who have none.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings(action="ignore"):
            return _pixels(data, name, limits)
    except (InvalidRequest, MemoryError):
        raise
    except Exception as error:
        # Of a broken file Pillow raises nearly anything: OSError, SyntaxError, ValueError, struct.error, IndexError.
        raise InvalidRequest(f"The {name} file is broken or cut short: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _check_cost(name: str, data: bytes, limits: DecodeLimits) -> None:
    if name == "WEBP" and (size := webp_size(data)) is not None:
        _check_size(*size, name, limits)
    if name == "JPEG" and has_too_many_scans(data):
        raise InvalidRequest("The JPEG file has more scans than an image needs. Save it again.")


def _pixels(data: bytes, name: str, limits: DecodeLimits) -> Pixels:
    with Image.open(io.BytesIO(data), formats=[name]) as image:
        _check_size(*image.size, name, limits)
        turn = _turn(image)
        width, height = kept_size(*image.size)
        # Only JPEG has scales to choose from, and the result is at least as large as asked for.
        image.draft(image.mode, (width, height))
        image.load()
        rgb = _rgb(_scaled(image, width, height))
        rgb = rgb if turn is None else rgb.transpose(turn)
        return Pixels(rgb.width, rgb.height, rgb.tobytes())


def _check_size(width: int, height: int, name: str, limits: DecodeLimits) -> None:
    if width < 1 or height < 1:
        raise InvalidRequest(f"The image has no pixels: it is {width} x {height}. {TAKEN}")
    most = limits.max_pixels // _WEIGHTS.get(name, 1)
    if width * height > most:
        raise InvalidRequest(
            f"The image has {width} x {height} pixels; of a {name} file at most {most:,} are taken. Send it smaller."
        )
    if max(width, height) > _MOST_STRETCHED * min(width, height):
        raise InvalidRequest(
            f"The image has {width} x {height} pixels; at most {_MOST_STRETCHED} times as many one way as the other "
            f"are taken. Send a part of it."
        )


def kept_size(width: int, height: int) -> tuple[int, int]:
    """Size that leaves the decoder: the image's own, or as much as may be kept of its shape."""
    scale = math.sqrt(MOST_KEPT_PIXELS / (width * height))
    return (width, height) if scale >= 1 else (max(1, int(width * scale)), max(1, int(height * scale)))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What turns the image upright. EXIF that cannot be read says nothing."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return None


def _scaled(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    # Palettes and single bits cannot be averaged; reducing keeps the copies small.
    if image.mode in ("P", "PA", "1"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)


def _rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode; what is transparent is white."""
    if image.mode in _DEEP:
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white
