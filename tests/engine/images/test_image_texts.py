"""The real context: an image whose rows are those of words says what the typed words say, however it comes to be read.

On a tiny F32 model `token_embd` rows are exact, so that both are the same numbers to the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ggufd.engine.builder import Backend, build_engine
from ggufd.engine.messages.config import DiskPlace, EngineRules
from ggufd.engine.messages.events import Admitted, Failed, Finish, Output
from ggufd.engine.messages.images import ImageRows
from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.queueing.queue import RequestQueue
from ggufd.engine.scheduling.scheduler import Scheduler
from ggufd.errors import EngineFailure
from ggufd.llama.context.batch import Vectors
from ggufd.llama.context.context import Context
from ggufd.llama.model.model import Model
from ggufd.llama.params import ContextParams, ModelParams
from tests.support.fakes.fake_llama import FakeGrammars, make_image_request, make_request, no_vectors
from tests.support.models.tiny_model import N_EMBD

RED, GREEN = b"a red rose, red red red", b"green gras"
TEXT = bytes(range(97, 123)) * 2

Part = bytes | ImageRows


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Model]:
    loaded = Model(ModelParams(str(tiny_model)))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def embeddings(tiny_model: Path) -> Vectors:
    """The model's `token_embd`, shape `[n_vocab, n_embd]`."""
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tiny_model).tensors}
    return np.array(tensors["token_embd.weight"], np.float32).reshape(-1, N_EMBD)


class WordImages:
    """Images that say words."""

    def __init__(self, folder: Path, embeddings: Vectors) -> None:
        self._folder = folder
        self._embeddings = embeddings

    def of(self, words: bytes) -> ImageRows:
        path = self._folder / f"{words.hex()}.rows"
        path.write_bytes(self._embeddings[list(words)].tobytes())
        return ImageRows(hashlib.sha256(words).hexdigest(), len(words), str(path))


@pytest.fixture
def images(tmp_path: Path, embeddings: Vectors) -> WordImages:
    return WordImages(tmp_path, embeddings)


def make_context(model: Model, **changes: Any) -> Context:
    numbers = {"n_ctx": 256, "n_slots": 4, "n_batch": 256, "n_ubatch": 64, "n_threads": 1, "flash_attn": "off"}
    return Context(model, ContextParams(**(numbers | changes)))


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    made = make_context(model)
    yield made
    made.close()


class ImageRig:
    """The engine over the real context; integrity is checked after every step."""

    def __init__(self, context: Context, **rules: Any) -> None:
        scheduler = Scheduler(
            n_batch=context.n_batch, n_ubatch=64, n_outputs_max=context.n_outputs_max, max_gap_ms=100.0
        )
        backend = Backend(context, context.model.vocabulary, FakeGrammars())
        self.engine = build_engine(backend, RequestQueue(60.0), scheduler, no_vectors(), EngineRules(**rules))
        self.tokens: dict[tuple[int, int], list[int]] = {}
        self.cached: dict[int, int] = {}
        self.failed: list[Failed] = []
        self.finishes: dict[int, Finish] = {}

    def step(self) -> None:
        for event in self.engine.step():
            match event:
                case Output():
                    self.tokens.setdefault((event.request_id, event.index), []).extend(event.tokens)
                    if event.finish is not None:
                        self.finishes[event.request_id] = event.finish
                case Admitted():
                    self.cached[event.request_id] = event.cached_tokens
                case Failed():
                    self.failed.append(event)
        self.engine.check_integrity()

    def run(self, *requests: EngineRequest) -> None:
        for request in requests:
            self.engine.add(request)
        while self.engine.has_work:
            self.step()
        assert not self.failed


def asked(request_id: int, parts: Sequence[Part], **changes: Any) -> EngineRequest:
    return make_image_request(request_id, parts, **({"max_tokens": 24, "ignore_eos": True} | changes))


def typed(model: Model, *words: bytes, n: int = 24) -> list[int]:
    """What the model says to the same words as text, alone."""
    context = make_context(model, n_slots=1)
    rig = ImageRig(context)
    rig.run(make_request(1, b"".join(words), max_tokens=n, ignore_eos=True))
    context.close()
    return rig.tokens[1, 0]


def test_logits_behind_rows_are_bitwise_those_behind_the_tokens(context: Context, embeddings: Vectors) -> None:
    context.batch.clear()
    context.batch.add(0, list(RED), 0, 1)
    context.decode()
    expected = context.logits()[-1].copy()
    context.batch.clear()
    context.batch.add_rows(1, [embeddings[list(RED[:9])], embeddings[list(RED[9:])]], 0, 1)
    context.decode()
    assert np.array_equal(context.logits()[-1], expected)
    context.batch.clear()
    context.batch.add(2, list(RED), 0, 1)
    context.decode()
    assert np.array_equal(context.logits()[-1], expected), "tokens are tokens again"


def test_a_mixed_batch_is_refused_before_c_sees_it(context: Context, embeddings: Vectors) -> None:
    context.batch.clear()
    context.batch.add(0, [97], 0, 1)
    context.batch.add_rows(1, [embeddings[[98]]], 0, 1)
    with pytest.raises(EngineFailure, match="cannot share a batch"):
        context.decode()


def test_images_say_what_their_words_say_in_any_arrangement(model: Model, context: Context, images: WordImages) -> None:
    red, green = images.of(RED), images.of(GREEN)
    for request_id, (parts, words) in enumerate(
        (
            ([red, b" what?"], (RED, b" what?")),
            ([b"look: ", red, b" and ", green, b" what?"], (b"look: ", RED, b" and ", GREEN, b" what?")),
            ([b"look: ", green, red, b" what?"], (b"look: ", GREEN, RED, b" what?")),
            ([b"look: ", red, red], (b"look: ", RED, RED)),
        )
    ):
        rig = ImageRig(context)
        rig.run(asked(request_id, parts))
        assert rig.tokens[request_id, 0] == typed(model, *words)
        for slot in range(4):
            context.trim(slot, 0)


def test_the_next_turn_is_cached_and_says_the_same(model: Model, context: Context, images: WordImages) -> None:
    rig = ImageRig(context)
    red, green = images.of(RED), images.of(GREEN)
    rig.run(asked(1, [TEXT, red, b" what?"]))
    answer = bytes(token for token in rig.tokens[1, 0] if token < 256)[:4]
    history: list[Part] = [TEXT, red, b" what?"]
    rig.run(asked(2, [*history, answer, b"and now?"]))
    assert rig.cached[2] >= len(TEXT) + len(RED) + 6
    assert rig.tokens[2, 0] == typed(model, TEXT, RED, b" what?", answer, b"and now?")
    rig.run(asked(3, [TEXT, green, b" what?"]))
    assert rig.cached[3] == len(TEXT)
    assert rig.tokens[3, 0] == typed(model, TEXT, GREEN, b" what?")
    rig.run(asked(4, [TEXT, red, b" what?"]))
    assert rig.tokens[4, 0] == typed(model, TEXT, RED, b" what?")


def test_beside_streams_all_say_what_they_say_alone(model: Model, context: Context, images: WordImages) -> None:
    rig = ImageRig(context)
    red, green = images.of(RED), images.of(GREEN)
    streams = [make_request(i, bytes([65 + i]) * 20, max_tokens=60, ignore_eos=True) for i in (1, 2)]
    for stream in streams:
        rig.engine.add(stream)
    for _ in range(8):
        rig.step()
    rig.run(asked(3, [TEXT, red, b" what?"]), asked(4, [green, TEXT, red, b"?"]))
    assert rig.tokens[3, 0] == typed(model, TEXT, RED, b" what?")
    assert rig.tokens[4, 0] == typed(model, GREEN, TEXT, RED, b"?")
    for stream in streams:
        assert rig.tokens[stream.request_id, 0] == typed(model, bytes(stream.prompt), n=60)


def test_two_choices_say_the_same(model: Model, context: Context, images: WordImages) -> None:
    rig = ImageRig(context)
    rig.run(asked(1, [TEXT, images.of(RED), TEXT, b"?"], n=2))
    assert rig.tokens[1, 0] == rig.tokens[1, 1] == typed(model, TEXT, RED, TEXT, b"?")
    assert rig.engine.stats().cached_tokens >= 2 * len(TEXT) + len(RED)


def test_a_preempted_sequence_goes_on_with_its_images(model: Model, images: WordImages) -> None:
    context = make_context(model, n_slots=1)
    rig = ImageRig(context, cache_ram_bytes=1 << 24)
    first = asked(1, [TEXT, images.of(RED), b" what?"], max_tokens=40)
    rig.engine.add(first)
    while len(rig.tokens.get((1, 0), ())) < 5:
        rig.step()
    (sequence,) = rig.engine._running
    assert rig.engine._lifecycle.preempt(sequence)
    second = asked(2, [images.of(GREEN), TEXT], priority=-1)
    rig.run(second)
    context.close()
    assert rig.engine.stats().preemptions == 1
    assert rig.tokens[1, 0] == typed(model, TEXT, RED, b" what?", n=40)
    assert rig.tokens[2, 0] == typed(model, GREEN, TEXT)


def test_a_preempted_sequence_whose_state_is_lost_reads_its_images_again(model: Model, images: WordImages) -> None:
    context = make_context(model, n_slots=1)
    rig = ImageRig(context)
    red = images.of(RED)
    rig.engine.add(asked(1, [TEXT, red, b" what?"], max_tokens=40))
    Path(red.path).unlink()
    while len(rig.tokens.get((1, 0), ())) < 5:
        rig.step()
    (sequence,) = rig.engine._running
    assert rig.engine._lifecycle.preempt(sequence)
    assert sequence.state is not None
    sequence.state = sequence.state[:40]
    rig.run()
    context.close()
    assert rig.tokens[1, 0] == typed(model, TEXT, RED, b" what?", n=40)


def test_chats_with_images_come_back_from_host_ram_and_from_disk(
    model: Model, images: WordImages, tmp_path: Path
) -> None:
    context = make_context(model, n_slots=1, n_ctx=512)
    disk = DiskPlace(str(tmp_path / "disk"), 1 << 26, "mark")
    long = TEXT * 5
    rig = ImageRig(context, cache_ram_bytes=1 << 24, disk=disk)
    red, green = images.of(RED), images.of(GREEN)
    rig.run(asked(1, [long, red, b" what?"]))
    rig.run(asked(2, [green, TEXT * 4]))
    rig.run(asked(3, [long, red, b" what now?"]))
    assert rig.engine.stats().restores == 1
    assert rig.cached[3] == len(long) + len(RED) + len(b" what")
    expected = rig.tokens[3, 0]
    rig.engine.close(30.0)
    for slot in range(context.n_slots):
        context.trim(slot, 0)
    again = ImageRig(context, cache_ram_bytes=1 << 24, disk=disk)
    again.run(asked(4, [long, red, b" what now?"]))
    assert again.cached[4] >= len(long) + len(RED)
    assert again.tokens[4, 0] == expected
    again.engine.close(5.0)
    context.close()


def test_prompt_lookup_drafts_change_nothing_beside_images(model: Model, images: WordImages) -> None:
    context = make_context(model, n_slots=1)
    rig = ImageRig(context, max_draft=16)
    red = images.of(RED)
    rig.run(asked(1, [TEXT, red, TEXT, red, b" what?"], max_tokens=60))
    context.close()
    assert rig.tokens[1, 0] == typed(model, TEXT, RED, TEXT, RED, b" what?", n=60)


@pytest.mark.parametrize("sampling", [{"repeat_penalty": 1.4}, {"repeat_penalty": 1.4, "dry_multiplier": 0.8}])
def test_penalties_ignore_the_rows(
    model: Model, context: Context, images: WordImages, sampling: dict[str, Any]
) -> None:
    """Without the words among its history a penalised text may differ from that of the typed words, so it is compared
    with one whose penalties look no further back than the text behind the image."""
    rig = ImageRig(context)
    near = {"repeat_last_n": len(b" what is this?"), "dry_penalty_last_n": len(b" what is this?")}
    rig.run(asked(1, [images.of(RED), b" what is this?"], max_tokens=1, **sampling, **near))
    rig.run(asked(2, [images.of(RED), b" what is this?"], max_tokens=1, **sampling, repeat_last_n=-1))
    assert rig.tokens[1, 0] == rig.tokens[2, 0]
