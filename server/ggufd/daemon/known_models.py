"""Known models from the settings: `-m`, further ones, a folder of them, and the tables [models.NAME].

Reads headers only, and asks no network: a model on a hub that was not downloaded yet is known by its name.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ggufd.daemon.served import NOT_INHERITED
from ggufd.errors import ConfigError, ModelError
from ggufd.llama.gguf.tensor_types import FILE_TYPES
from ggufd.model_pool.catalogue import KnownModel, ModelCatalogue, ModelFacts
from ggufd.models import hub
from ggufd.settings import api_settings, model_tables, sources
from ggufd.settings.config import Config

logger = logging.getLogger("ggufd")


@dataclass(frozen=True)
class KnownModels:
    """Catalogue of the known models, the settings of each by its name, and the name of the one to begin with.

    Those named `kept` stay loaded beside the one that is swapped.
    """

    catalogue: ModelCatalogue
    configs: Mapping[str, Config]
    first: str
    kept: tuple[str, ...] = ()

    @property
    def kept_configs(self) -> dict[str, Config]:
        """Settings of the models that stay loaded, by name."""
        return {name: self.configs[name] for name in self.kept}

    @property
    def are_several(self) -> bool:
        return len(self.catalogue) > 1


_NOT_KEPT = {
    "cache_disk": "the folder of chats on disk belongs to the model that is swapped",
    "sleep_idle_seconds": "a model that is kept loaded does not sleep",
}
"""Settings that a model which is kept loaded does not have, neither of its own nor shared; and why."""


class _Found(NamedTuple):
    """Model of the settings: its value of `model`, its name, and its file where that is on this machine."""

    source: str
    name: str
    file: hub.ModelFile | None
    config: Config | None = None


def find_known(config: Config) -> KnownModels | None:
    """The known models; None where the settings speak of one only.

    Raises ConfigError for a table of a model that there is none of, ModelError for a model that is named and unusable.
    """
    if not (config.pool.models_dir or config.pool.more_models or config.models):
        return None
    found = _unique([*_named(config), *_of_tables(config), *_in_folder(config)])
    if not found:
        raise ModelError(
            f"--models-dir {config.pool.models_dir}: no model in this folder can be used; put a .gguf file there, or "
            f"name one with --model FILE"
        )
    _check_tables(config, found)
    known = [_known(one, config) for one in found]
    configs = {model.name: _config_of(one, model.name, config) for one, model in zip(found, known, strict=True)}
    kept = tuple(model_tables.kept(config.models))
    first = next((model.name for model in known if model.name not in kept), None)
    if first is None:
        raise ConfigError(
            f"[models.{kept[0]}] keep_loaded: all known models are kept loaded; take keep_loaded from the one that "
            "is to answer requests without a known name, or name one more model with --model or --models-dir"
        )
    return KnownModels(ModelCatalogue(known), configs, first, kept)


def find_kept(config: Config) -> dict[str, Config]:
    """Settings of the models that stay loaded, by name. Raises as `find_known`."""
    known = find_known(config) if model_tables.kept(config.models) else None
    return {} if known is None else known.kept_configs


def _named(config: Config) -> Iterator[_Found]:
    """The model of `-m`, whose settings are those of [model], and further ones."""
    if config.model.model or not config.pool.models_dir:
        file = _file(config.model.model)
        name = _name_of(config.model.model, file, config)
        yield _Found(config.model.model, name, file, config)
    for source in config.pool.more_models:
        file = _file(source)
        yield _Found(source, _name_of(source, file), file)


def _of_tables(config: Config) -> Iterator[_Found]:
    for name, table in config.models.items():
        if source := table.get("model"):
            yield _Found(source, name, _file(source))


def _in_folder(config: Config) -> Iterator[_Found]:
    """Models of the folder; a folder in it holds one model, as where a split one has its own."""
    if not config.pool.models_dir:
        return
    folder = Path(config.pool.models_dir).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"--models-dir {folder}: there is no such folder")
    for path in _candidates(folder):
        try:
            file = hub.find(str(path), may_fetch=False)
        except ModelError as error:
            logger.warning("skipped in --models-dir: %s", error.message)
            continue
        yield _Found(str(path), path.name if path.is_dir() else file.path.stem, file)


def _candidates(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
        found = hub.find_all(str(folder), lambda error: logger.warning("skipped in --models-dir: %s", error.message))
    except OSError as error:
        raise ConfigError(f"--models-dir {folder}: cannot be read: {error.strerror or error}") from None
    except ModelError:
        # It may hold folders only.
        found = []
    yield from (one.path for one in found)
    yield from (path for path in entries if path.is_dir() and any(path.glob("*.gguf")))


def _unique(found: list[_Found]) -> list[_Found]:
    """Each file once, and each name: a file that is named goes before one that lies in a folder."""
    files, names, kept = set[Path](), set[str](), []
    for one in found:
        path = None if one.file is None else one.file.path.resolve()
        if path is not None and path in files and one.config is None:
            continue
        if one.name in names:
            logger.warning("another model is called %s already: %s is skipped", one.name, one.source)
            continue
        names.add(one.name)
        files |= {path} if path is not None else set()
        kept.append(one)
    return kept


def _file(source: str) -> hub.ModelFile | None:
    """Its file with its header; None where it would have to be downloaded first. Raises ModelError."""
    if not source.startswith("hf:"):
        return hub.find(source, may_fetch=False)
    from ggufd.models import remote

    cached = remote.find_cached(source)
    return None if cached is None else hub.find(str(cached), may_fetch=False)


def _name_of(source: str, file: hub.ModelFile | None, config: Config | None = None) -> str:
    if source.startswith("hf:"):
        own = next((alias for alias in (config.model.alias if config else "").split(",") if alias.strip()), "")
        return own.strip() or source.removeprefix("hf:").rpartition("/")[2].removesuffix(".gguf")
    assert file is not None
    if source.startswith("ollama:"):
        return source.removeprefix("ollama:")
    return file.path.stem if config is None else api_settings.model_id(config, file)


def _check_tables(config: Config, found: list[_Found]) -> None:
    """Raises ConfigError for a table whose name no model has."""
    names = [one.name for one in found]
    for name in config.models:
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean [models.{close[0]}]?" if close else 'give its file there, as in model = "FILE.gguf"'
            raise ConfigError(f"[models.{name}]: no known model is called so; {hint}")
    for name in model_tables.kept(config.models):
        if foreign := next((key for key in _NOT_KEPT if key in config.models[name]), None):
            raise ConfigError(f"[models.{name}] {foreign}: {_NOT_KEPT[foreign]}; remove it, or keep_loaded")


def _config_of(one: _Found, name: str, config: Config) -> Config:
    """The settings of one model: what is shared, and its own table."""
    table: dict[str, Any] = dict(config.models.get(name, {}))
    if table.get(model_tables.KEEP_LOADED):
        # What RAM is left is for the chats of the model that is swapped, unless the table says otherwise.
        table = {"cache_ram": 0, **table, **dict.fromkeys(_NOT_KEPT)}
    if one.config is not None:
        return sources.revise(one.config, table).model_copy(update={"name": name})
    changes = {**dict.fromkeys(NOT_INHERITED), **table, "model": one.source}
    return sources.revise(config, changes).model_copy(update={"name": name})


def _known(one: _Found, config: Config) -> KnownModel:
    alias = config.models.get(one.name, {}).get("alias", "") if one.config is None else one.config.model.alias
    aliases = tuple(name for part in str(alias).split(",") if (name := part.strip()) and name != one.name)
    return known_model(one.name, one.source, aliases, one.file)


def known_model(name: str, source: str, aliases: tuple[str, ...], file: hub.ModelFile | None) -> KnownModel:
    """A model as its file says it is."""
    if file is None or file.shape is None:
        return KnownModel(name, source, aliases)
    shape = file.shape
    facts = ModelFacts(
        architecture=shape.architecture,
        n_params=shape.n_params,
        n_layers=shape.n_layers,
        n_ctx_train=shape.n_ctx_train,
        width=shape.width,
        quantisation=FILE_TYPES.get(shape.gguf.integer("general.file_type", -1), ""),
        only_embeds=shape.only_embeds,
        chat_template=str(shape.gguf.metadata.get("tokenizer.chat_template", "")),
    )
    try:
        created = int(file.path.stat().st_mtime)
    except OSError:
        created = 0
    return KnownModel(name, source, aliases, file.path.name, file.size_bytes, facts, created)
