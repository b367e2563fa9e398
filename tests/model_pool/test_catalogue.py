"""Names of known models, and how long they are expected to take to load."""

from __future__ import annotations

import pytest

from ggufd.model_pool.catalogue import KnownModel, ModelCatalogue
from ggufd.model_pool.load_times import LoadTimes

CATALOGUE = ModelCatalogue(
    [
        KnownModel("mistral-7b", "models/mistral-7b.gguf", ("chat",), "mistral-7b.gguf"),
        KnownModel("nomic", "hf:owner/nomic", ("embed", "chat")),
        KnownModel("chat.gguf", "x.gguf"),
    ]
)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("mistral-7b", "mistral-7b"),
        ("mistral-7b.gguf", "mistral-7b"),
        ("chat", "mistral-7b"),
        ("embed:latest", "nomic"),
        ("mistral-7b+style", "mistral-7b"),
        ("chat.gguf", "chat.gguf"),
    ],
)
def test_a_model_goes_by_all_its_names(asked: str, name: str) -> None:
    found = CATALOGUE.find(asked)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("asked", [None, "", "any", "default", "gpt-4", "MISTRAL-7B", "mistral", "+style", ":latest"])
def test_other_names_mean_whichever_is_loaded(asked: str | None) -> None:
    assert CATALOGUE.find(asked) is None


def test_what_is_learned_of_a_model_takes_the_place_of_what_was_known() -> None:
    catalogue = ModelCatalogue(CATALOGUE)
    catalogue.add(KnownModel("nomic", "hf:owner/nomic", ("embed",), "nomic.gguf", 5))
    assert catalogue["nomic"].size_bytes == 5
    assert len(catalogue) == 3
    found = catalogue.find("nomic.gguf")
    assert found is not None
    assert found.name == "nomic"


class TestLoadTimes:
    small, large = KnownModel("s", "s", size_bytes=100 << 20), KnownModel("l", "l", size_bytes=10 << 30)

    def test_a_first_guess_grows_with_the_size(self) -> None:
        times = LoadTimes()
        assert times.forecast_s(self.large) > times.forecast_s(self.small) + 5

    def test_the_last_load_counts(self) -> None:
        times = LoadTimes()
        times.note(self.large, 40.0)
        times.note(self.large, 12.0)
        assert times.forecast_s(self.large) == 12.0

    def test_others_are_expected_as_quick_for_their_size(self) -> None:
        times = LoadTimes()
        times.note(self.small, 2.0)
        times.note(KnownModel("m", "m", size_bytes=1 << 30), 4.0)
        assert times.forecast_s(self.large) == pytest.approx(2.0 + 40.0)
