"""Ends of lines of `pixtral`, where libmtmd reads memory that nobody filled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggufd.llama.projector.line_ends import repaired
from tests.support.models.projector_file import embeddings_of
from tests.support.models.projector_kinds import BREAK, FAMILIES, write_kind, write_text_model
from tests.support.models.tiny_model import N_EMBD

N_LINES, N_COLUMNS = 3, 4
ENDS = [4, 9]


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("line_ends") / "model.gguf")


def projector_of(kind: str, text_model: Path) -> str:
    (family,) = [one for one in FAMILIES if one.kind == kind]
    return str(write_kind(text_model.with_name(f"{kind}.gguf"), family, text_model))


def image() -> np.ndarray:
    """Rows of three lines of four; two have an end."""
    return np.arange((N_LINES * (N_COLUMNS + 1) - 1) * N_EMBD, dtype=np.float32).reshape(-1, N_EMBD)


@pytest.mark.parametrize("broken", [[4], [9], [4, 9]])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_ends_of_lines_that_are_no_numbers_are_what_the_file_says(
    text_model: Path, broken: list[int], value: float
) -> None:
    rows = image()
    rows[broken, 1] = value
    said = repaired(rows, projector_of("pixtral", text_model))
    expected = image()
    expected[broken] = embeddings_of(text_model, (BREAK,))[0]
    assert np.array_equal(said, expected)


@pytest.mark.parametrize("broken", [[0], [3], [4, 5], [4, 8], list(range(14))])
def test_what_is_no_number_elsewhere_stays_so(text_model: Path, broken: list[int]) -> None:
    rows = image()
    rows[broken] = np.nan
    assert not np.isfinite(repaired(rows, projector_of("pixtral", text_model))[broken]).any()


def test_another_type_has_no_ends_of_lines(text_model: Path) -> None:
    rows = image()
    rows[ENDS] = np.nan
    assert not np.isfinite(repaired(rows, projector_of("lfm2", text_model))[ENDS]).any()


def test_numbers_are_left_alone(text_model: Path) -> None:
    rows = image()
    assert repaired(rows, "there is no such file") is rows
