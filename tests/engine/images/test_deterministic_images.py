"""Deterministic requests with images: chunks end where images do, and nothing that is reused is cut within one."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggufd.engine.messages.images import ImageRows
from ggufd.engine.messages.requests import EngineRequest
from tests.engine.test_deterministic import CHUNK, ShapedDecoder, alone, request, rig_of, steps
from tests.support.fakes.fake_llama import Rig, make_image, make_image_request, make_request

BEFORE = bytes(range(97, 97 + 20))
BEHIND = bytes(range(65, 65 + 30))


@pytest.fixture
def image(tmp_path: Path) -> ImageRows:
    """An image of 40 rows: at token 20 it reaches over two boundaries of chunks."""
    return make_image(tmp_path, "red", 40)


def asked_of(request_id: int, image: ImageRows, behind: bytes = BEHIND) -> EngineRequest:
    parts = [BEFORE, image, behind]
    return make_image_request(request_id, parts, is_deterministic=True, seed=5, max_tokens=4, ignore_eos=True)


def decodes_of(rig: Rig, asked: EngineRequest) -> list[tuple[int, int]]:
    """First position and length of each decode of the prompt, each of which it must have for itself."""
    decoder = rig.decoder
    assert isinstance(decoder, ShapedDecoder)
    n_before = len(decoder.shapes)
    rig.add(asked)
    rig.step()
    slot = next(one.slot for one in rig.engine.stats().slots if one.request_id == asked.request_id)
    rig.run()
    own = [slots for slots, _ in decoder.shapes[n_before:] if slot in slots]
    assert all(len(slots) == 1 for slots in own)
    found = [(slots[slot][0], len(slots[slot])) for slots in own]
    return [(first, n) for first, n in found if first < len(asked.prompt)]


def test_chunks_end_at_fixed_positions_and_where_images_begin_and_end(image: ImageRows) -> None:
    rig = rig_of()
    rig.add(*(make_request(i, bytes([65 + i]) * 40, max_tokens=60, ignore_eos=True) for i in range(3)))
    steps(rig, 9)
    assert decodes_of(rig, asked_of(9, image)) == [
        (0, 16), (16, 4), (20, 12), (32, 16), (48, 12), (60, 4), (64, 16), (80, 10),
    ]  # fmt: skip


def test_an_image_is_reused_with_all_that_stands_before_the_next_boundary(image: ImageRows) -> None:
    rig = rig_of()
    rig.add(asked_of(1, image))
    rig.run()
    for request_id, behind, n_cached in ((2, BEHIND, 80), (3, BEHIND[:8] + b"but other", 64), (4, b"?" + BEHIND, 16)):
        asked = asked_of(request_id, image, behind)
        rig.add(asked)
        collected = rig.run()[request_id]
        assert collected.finishes[0].usage.cached_tokens == n_cached
        assert n_cached % CHUNK == 0
        assert collected.texts == alone(asked).texts


def test_a_changed_image_ends_what_is_reused(image: ImageRows, tmp_path: Path) -> None:
    rig = rig_of()
    rig.add(asked_of(1, image))
    rig.run()
    other = asked_of(2, make_image(tmp_path, "green", 40))
    rig.add(other)
    collected = rig.run()[2]
    assert collected.finishes[0].usage.cached_tokens == 16
    assert collected.texts == alone(other).texts


def test_a_prompt_of_words_reuses_nothing_of_the_image(image: ImageRows) -> None:
    rig = rig_of()
    rig.add(asked_of(1, image))
    rig.run()
    asked = request(2, BEFORE + BEHIND)
    rig.add(asked)
    assert rig.run()[2].finishes[0].usage.cached_tokens == 16
