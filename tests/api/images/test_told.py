"""What clients and operators are told of images: capabilities as other servers tell them, and metrics."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families as families

from ggufd.engine.messages.reports import Spread
from ggufd.images.figures import ImageFigures
from tests.support.fakes.api_client import running
from tests.support.fakes.fake_images import FakeImages


@pytest.mark.parametrize("sees", [True, False])
async def test_the_capability_is_told_as_each_server_tells_it(sees: bool) -> None:
    async with running(images=FakeImages() if sees else None) as api:
        props = (await api.http.get("/props")).json()
        kobold = (await api.http.get("/api/extra/version")).json()
        (card,) = (await api.http.get("/v1/models")).json()["data"]
        shown = await api.ok("/api/show")
    assert props["modalities"] == {"vision": sees, "audio": False}
    assert card["architecture"]["input_modalities"] == (["text", "image"] if sees else ["text"])
    assert ("vision" in shown["capabilities"]) is sees
    assert kobold["vision"] is sees


async def test_metrics_count_what_became_of_images() -> None:
    images = FakeImages()
    images.figures = ImageFigures(5, 7, 1, 2, 4096, 3, Spread((0.1, 1.0), (2, 2, 1), 4.5))
    async with running(images=images) as api:
        text = (await api.http.get("/metrics")).text
    values = {(one.name, *one.labels.values()): one.value for family in families(text) for one in family.samples}
    told = {key: value for key, value in values.items() if key[0].startswith("ggufd_image")}
    assert told == {
        ("ggufd_images_total", "encoded"): 5,
        ("ggufd_images_total", "hit"): 7,
        ("ggufd_images_total", "failed"): 1,
        ("ggufd_image_encode_seconds_bucket", "0.1"): 2,
        ("ggufd_image_encode_seconds_bucket", "1.0"): 4,
        ("ggufd_image_encode_seconds_bucket", "+Inf"): 5,
        ("ggufd_image_encode_seconds_count",): 5,
        ("ggufd_image_encode_seconds_sum",): 4.5,
        ("ggufd_image_encoder_exits_total",): 3,
        ("ggufd_image_queue",): 2,
        ("ggufd_image_rows_bytes",): 4096,
    }


async def test_without_a_projector_there_are_no_metrics_of_images() -> None:
    async with running() as api:
        assert "ggufd_image" not in (await api.http.get("/metrics")).text
