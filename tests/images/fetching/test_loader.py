"""From what a request says to pixels."""

from __future__ import annotations

import pytest

from ggufd.errors import InvalidRequest
from ggufd.images.fetching.limits import ImageLimits
from ggufd.images.fetching.loader import ImageLoader
from ggufd.images.pixels import Pixels
from tests.support.models.image_files import FORMATS, RED, SVG, data_uri, image_bytes, patch_uri, patches

pytestmark = pytest.mark.e2e


async def test_a_reference_becomes_pixels_or_a_refusal_that_names_its_place() -> None:
    loader = ImageLoader(ImageLimits(max_pixels=10_000))
    loader.start()
    try:
        for name in FORMATS:
            pixels = await loader.load(patch_uri([RED], name, columns=1, patch=8), "x")
            assert (pixels.width, pixels.height, len(pixels.data)) == (8, 8, 192)
        # Bytes are believed, the media type is not.
        png = image_bytes(patches([RED], columns=1, patch=1))
        assert await loader.load(data_uri(png, "JPEG"), "x") == Pixels(1, 1, bytes(RED))
        for reference in (data_uri(SVG), patch_uri([RED], patch=101), ""):
            with pytest.raises(InvalidRequest) as caught:
                await loader.load(reference, "messages[1]")
            assert caught.value.param == "messages[1]"
            # Not every API tells the field beside the message.
            assert caught.value.message.startswith("'messages[1]': the ")
    finally:
        await loader.stop()
