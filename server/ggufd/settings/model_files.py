"""Model files of the settings: found, downloaded if need be, and checked before anything is loaded."""

from __future__ import annotations

import dataclasses

from ggufd.errors import ConfigError, ModelError
from ggufd.llama.gguf.draft_file import check_draft
from ggufd.llama.gguf.projector_file import ProjectorFile
from ggufd.models import hub, projectors
from ggufd.models.remote import OnProgress
from ggufd.settings import adapters
from ggufd.settings.config import Config
from ggufd.settings.engine_settings import metadata_of


def find_model(config: Config, *, may_fetch: bool = True, on_fetch: OnProgress | None = None) -> hub.ModelFile:
    """Model of the settings with its metadata overrides; adapters and draft model are checked.

    `on_fetch` gets the share of a download, 0 to 1: first the model's, then the draft model's.
    Raises ModelError, one line.
    """
    found = hub.find(config.model.model, may_fetch=may_fetch, on_fetch=on_fetch)
    model = hub.with_metadata(found, metadata_of(config))
    if may_fetch or model.path.exists():
        adapters.check(config, model)
    model = with_projector(config, model, may_fetch=may_fetch, on_fetch=on_fetch)
    return with_draft(config, model, may_fetch=may_fetch, on_fetch=on_fetch)


def with_projector(
    config: Config, model: hub.ModelFile, *, may_fetch: bool, on_fetch: OnProgress | None = None
) -> hub.ModelFile:
    """`model` with its image projector, the one of the settings or one that was published with it.

    Raises ModelError where that of the settings cannot be used, or does not fit.
    """
    if config.model.mmproj:
        found: ProjectorFile | None = projectors.named(
            config.model.mmproj, model, may_fetch=may_fetch, on_fetch=on_fetch
        )
    elif config.model.mmproj_auto:
        found = projectors.published(model, may_fetch=may_fetch, on_fetch=on_fetch)
    else:
        found = None
    return dataclasses.replace(model, projector=found)


def with_draft(
    config: Config, model: hub.ModelFile, *, may_fetch: bool, on_fetch: OnProgress | None = None
) -> hub.ModelFile:
    """`model` with the draft model of the settings. Raises ModelError for one that does not fit it."""
    if not config.model.model_draft:
        return model
    try:
        draft = hub.find(config.model.model_draft, may_fetch=may_fetch, on_fetch=on_fetch)
    except ModelError as error:
        raise ModelError(f"--model-draft: {error.message}") from None
    if draft.path.exists() and model.path.exists() and draft.shape is not None and model.shape is not None:
        check_draft(draft.shape, model.shape)
    return dataclasses.replace(model, draft=draft)


def chat_template(config: Config) -> str | None:
    """Chat template of the settings, by its text, its name or its file; None for the model's own.

    Raises ConfigError for two of them, ModelError for a file that cannot be read.
    """
    settings = config.model
    if not settings.chat_template:
        return hub.chat_template(settings.chat_template_file)
    if settings.chat_template_file:
        raise ConfigError(
            f"--chat-template and --chat-template-file {settings.chat_template_file} are both set; remove one of them"
        )
    if settings.chat_template == "chatml":
        from ggufd.chat.rendering.template import CHATML

        return CHATML
    return settings.chat_template
