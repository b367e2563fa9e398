"""The largest request body: what is set, and what fits where nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggufd.images.fetching.limits import ImageLimits
from ggufd.llama.gguf.projector_file import ProjectorFile
from ggufd.models import hub
from ggufd.settings import api_settings, sources

PLAIN = hub.ModelFile(Path("m.gguf"), 0)
SEEING = hub.ModelFile(Path("m.gguf"), 0, projector=ProjectorFile(Path("mmproj.gguf"), "mlp", 64, 0))


@pytest.mark.parametrize(
    ("given", "model", "limit"),
    [
        ({}, PLAIN, 2_000_000),
        ({}, SEEING, 32_000_000),
        ({"max_body_bytes": 5000}, PLAIN, 5000),
        ({"max_body_bytes": 5000}, SEEING, 5000),
    ],
)
def test_a_model_that_reads_images_takes_larger_requests(
    given: dict[str, object], model: hub.ModelFile, limit: int
) -> None:
    made = api_settings.api_config(sources.load(None, given, {}), model)
    assert made.max_body_bytes == limit


def test_the_largest_image_fits_as_base64() -> None:
    made = api_settings.api_config(sources.load(None, {}, {}), SEEING)
    assert ImageLimits().max_bytes * 4 // 3 < made.max_body_bytes
