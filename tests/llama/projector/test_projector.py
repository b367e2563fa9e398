"""The projector as libmtmd loads it: rows are what they must be, and nothing comes of a file that it cannot load."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ggufd.errors import EngineFailure, ModelError
from ggufd.llama.gguf import projector_file
from ggufd.llama.model.model import GgufModel
from ggufd.llama.params import ProjectorParams
from ggufd.llama.projector.binding import ProjectorLog
from ggufd.llama.projector.projector import EncodingStopped, Part, Projector
from tests.llama.gguf import test_projector_file
from tests.support.models.projector_file import COLOURS, embeddings_of, picture, write_projector
from tests.support.models.tiny_model import N_EMBD

WORDS = tuple("abcdefgh")
NAMES = list(COLOURS)


@functools.cache
def quiet_log() -> ProjectorLog:
    """A log that stays for good: C must not call a function that is gone."""
    return ProjectorLog(lambda level, line: None)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[GgufModel]:
    quiet_log().install()
    model = GgufModel(str(tiny_model))
    yield model
    model.close()


@pytest.fixture(scope="module")
def path(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_projector(tmp_path_factory.mktemp("projector") / "mmproj.gguf", tiny_model, WORDS)


@pytest.fixture(scope="module")
def projector(model: GgufModel, path: Path) -> Iterator[Projector]:
    projector = Projector(model, ProjectorParams(str(path), N_EMBD))
    yield projector
    projector.close()


def rows_of(parts: tuple[Part, ...]) -> np.ndarray:
    """The rows of an image that is nothing but rows."""
    assert len(parts) == 1
    assert isinstance(parts[0], np.ndarray)
    return parts[0]


def test_the_file_that_the_tests_write_passes_the_checks(path: Path) -> None:
    assert projector_file.read(path).n_embd == N_EMBD


@pytest.mark.parametrize("name", NAMES)
def test_an_image_of_one_colour_is_one_word_in_every_row(projector: Projector, tiny_model: Path, name: str) -> None:
    rows = rows_of(projector.encode(*picture([[name] * 4] * 4)))
    word = embeddings_of(tiny_model, WORDS)[NAMES.index(name)]
    assert rows.shape == (16, N_EMBD)
    assert np.array_equal(rows, np.tile(word, (16, 1)))


def test_patches_become_rows_from_left_to_right_and_top_to_bottom(projector: Projector, tiny_model: Path) -> None:
    order = list(itertools.islice(itertools.cycle([3, 1, 4, 1, 5, 2, 6, 0, 7]), 16))
    names = [[NAMES[i] for i in order[start : start + 4]] for start in range(0, 16, 4)]
    rows = rows_of(projector.encode(*picture(names)))
    assert np.array_equal(rows, embeddings_of(tiny_model, WORDS)[order])


def test_a_size_tells_the_parts_without_pixels(projector: Projector) -> None:
    assert projector.layout(64, 64) == (16,)
    assert projector.layout(3000, 20) == (16,)


def test_pixels_of_another_number_than_the_size_says_are_refused(projector: Projector) -> None:
    width, height, rgb = picture([["red"] * 4] * 4)
    with pytest.raises(EngineFailure, match="came with 12287 bytes"):
        projector.encode(width, height, rgb[:-1])


def test_no_pixels_are_refused(projector: Projector) -> None:
    with pytest.raises(EngineFailure, match="takes no image of 0 x 0 pixels"):
        projector.layout(0, 0)


def test_an_encoding_that_may_not_go_on_ends_and_the_next_one_is_whole(
    model: GgufModel, path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggufd.llama.projector.projector._NODES_A_PIECE", 2)
    answers = iter([True, False])
    stopping = Projector(model, ProjectorParams(str(path), N_EMBD), lambda: next(answers, True))
    red = picture([["red"] * 4] * 4)
    with pytest.raises(EncodingStopped):
        stopping.encode(*red)
    assert np.array_equal(rows_of(stopping.encode(*red))[0], embeddings_of(tiny_model, WORDS)[1])
    stopping.close()


def test_a_file_that_cannot_be_loaded_is_an_error(model: GgufModel, tmp_path: Path, path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelError, match=f"could not load the projector {damaged}"):
        Projector(model, ProjectorParams(str(damaged), N_EMBD))


@pytest.mark.parametrize("kind", ["idefics3", "lfm2"])
def test_a_projector_whose_tokens_the_vocabulary_lacks_is_of_another_model(
    model: GgufModel, tmp_path: Path, kind: str
) -> None:
    path = test_projector_file.write(tmp_path / "mmproj.gguf", kind)
    with pytest.raises(ModelError) as caught:
        Projector(model, ProjectorParams(str(path), N_EMBD))
    assert caught.value.message == (
        f"{path}: puts tokens around images that this model's vocabulary has not; it belongs to another model"
    )


def test_a_build_without_libmtmd_says_so(model: GgufModel, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llama_cpp.mtmd_cpp", None)
    monkeypatch.delattr("llama_cpp.mtmd_cpp", raising=False)
    with pytest.raises(ModelError, match="build it again without -DLLAVA_BUILD=OFF"):
        Projector(model, ProjectorParams(str(path), N_EMBD))
