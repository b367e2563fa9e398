"""The known models that settings make: their names, their settings, and what is wrong with them."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from ggufd.daemon.known_models import KnownModels, find_known
from ggufd.errors import ConfigError, ModelError
from ggufd.settings import sources
from ggufd.settings.api_settings import api_config
from ggufd.settings.model_files import find_model

NAMES = ("a", "b", "split")


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    """Two models, one in a folder of its own, and a file that is none."""
    models = tmp_path / "models"
    (models / "split").mkdir(parents=True)
    shutil.copy(tiny_model, models / "b.gguf")
    shutil.copy(tiny_model, models / "a.gguf")
    shutil.copy(tiny_model, models / "split" / "whatever.gguf")
    (models / "broken.gguf").write_bytes(b"GGUF")
    return models


def known(toml: str = "", **flags: Any) -> KnownModels:
    if toml:
        Path("config.toml").write_text(toml, "utf-8")
    found = find_known(sources.load(None, flags, {}))
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("platformdirs.user_config_path", lambda name: tmp_path / "user" / name)


def names(found: KnownModels) -> list[str]:
    return [model.name for model in found.catalogue]


def test_one_model_is_no_pool(tiny_model: Path) -> None:
    assert find_known(sources.load(None, {"model": str(tiny_model)}, {})) is None


def test_a_folder_is_listed_without_what_is_no_model(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = known(models_dir=str(folder))
    assert names(found) == ["a", "b", "split"]
    assert found.first == "a"
    assert "broken.gguf" in caplog.text
    facts = found.catalogue["a"].facts
    assert facts is not None
    assert facts.architecture == "llama"
    assert found.catalogue["split"].size_bytes


def test_what_is_named_goes_first_and_is_known_once(folder: Path) -> None:
    found = known(models_dir=str(folder), model=str(folder / "b.gguf"), alias="chat,best")
    # As without other models, the first alias of the alphabet is the name.
    assert names(found) == ["best", "a", "split"]
    assert found.first == "best"
    asked = found.catalogue.find("chat")
    assert asked is not None
    assert asked.name == "best"


def test_several_are_named(folder: Path) -> None:
    found = known(model=str(folder / "b.gguf"), more_models=str(folder / "a.gguf"))
    assert names(found) == ["b", "a"]
    assert found.are_several


def test_shared_settings_hold_for_all_and_a_table_for_one(folder: Path) -> None:
    found = known(
        f"""
        [model]
        model = "{folder / "b.gguf"}"
        alias = "mine"
        [context]
        ctx_size = 512
        [pool]
        models_dir = "{folder}"
        [models.a]
        ctx_size = 256
        temperature = 0.5
        alias = "zeta, alpha"
        [models.extra]
        model = "{folder / "split"}"
        """
    )
    assert names(found) == ["mine", "extra", "a"]
    a, extra, mine = (found.configs[name] for name in ("a", "extra", "mine"))
    assert (a.context.ctx_size, extra.context.ctx_size, mine.context.ctx_size) == (256, 512, 512)
    assert (a.sampling.temperature, mine.sampling.temperature) == (0.5, None)
    api = api_config(a, find_model(a))
    assert (api.model_id, api.model_aliases) == ("a", ("alpha", "zeta"))
    # What belonged to the first model is not inherited.
    assert extra.model.alias == ""
    assert api_config(extra, find_model(extra)).model_id == "extra"


def test_those_that_stay_are_not_the_one_to_begin_with(folder: Path) -> None:
    found = known(
        f"""
        [model]
        sleep_idle_seconds = 60
        [context]
        cache_disk = 100
        [pool]
        models_dir = "{folder}"
        [models.a]
        keep_loaded = true
        [models.split]
        keep_loaded = true
        cache_ram = 50
        """
    )
    assert (names(found), found.first, found.kept) == (["a", "b", "split"], "b", ("a", "split"))
    a, split = found.kept_configs.values()
    assert (a.model.sleep_idle_seconds, a.context.cache_disk, a.context.cache_ram) == (None, 0, 0)
    assert split.context.cache_ram == 50
    assert found.configs["b"].context.cache_disk == 100


def test_a_table_may_be_of_the_only_model(folder: Path) -> None:
    found = known(f'[model]\nmodel = "{folder / "a.gguf"}"\n[models.a]\nctx_size = 64\n')
    assert not found.are_several
    assert found.configs["a"].context.ctx_size == 64


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('[pool]\nmodels_dir = "nowhere"\n', "--models-dir nowhere: there is no such folder"),
        ('[pool]\nmodels_dir = "FOLDER"\n[models.aa]\nctx_size = 1\n', "did you mean [models.a]?"),
        ('[pool]\nmodels_dir = "FOLDER"\n[models.zzz]\nctx_size = 1\n', 'as in model = "FILE.gguf"'),
        (
            "".join(["[pool]\nmodels_dir = 'FOLDER'\n", *(f"[models.{one}]\nkeep_loaded = true\n" for one in NAMES)]),
            "[models.a] keep_loaded: all known models are kept loaded; take keep_loaded from the one",
        ),
        (
            '[pool]\nmodels_dir = "FOLDER"\n[models.a]\nkeep_loaded = true\ncache_disk = 9\n',
            "[models.a] cache_disk: the folder of chats on disk belongs to the model that is swapped; remove it, or "
            "keep_loaded",
        ),
    ],
)
def test_what_is_wrong_is_said(folder: Path, toml: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        known(toml.replace("FOLDER", str(folder)))
    assert words in caught.value.message


def test_a_folder_without_any_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no model in this folder can be used"):
        known(models_dir=str(tmp_path / "empty"))


def test_a_model_that_is_named_and_missing_is_an_error(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing\.gguf"):
        known(model=str(folder / "a.gguf"), more_models="nothing.gguf")
