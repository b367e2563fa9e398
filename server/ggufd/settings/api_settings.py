"""API configuration from the settings."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufd import __version__
from ggufd.engine.messages.sampling import Grammar, GrammarKind
from ggufd.errors import ConfigError
from ggufd.keys.ring import Limits
from ggufd.models import hub
from ggufd.settings import access, adapters, listen
from ggufd.settings.config import Config

if TYPE_CHECKING:
    from ggufd.api.services.settings import ApiConfig, StreamLimits
    from ggufd.batches.files import StorageLimits
    from ggufd.settings.access import Access

_MAX_BYTES = 2_000_000
_MAX_BYTES_WITH_IMAGES = 32_000_000
"""Bytes of a request body, where no setting says."""


def model_id(config: Config, model: hub.ModelFile) -> str:
    """Model name in the API: its name among several, else the first alias, the file's stem, or its name in ollama."""
    if config.name:
        return config.name
    own = model.source.removeprefix("ollama:") if model.source.startswith("ollama:") else model.path.stem
    return next(iter(_aliases(config)), own)


def _aliases(config: Config) -> list[str]:
    """Names of --alias. Where there are several, the first of the alphabet is the model's, as in llama-server."""
    return sorted({name for part in config.model.alias.split(",") if (name := part.strip())})


def api_config(config: Config, model: hub.ModelFile, keys: Access | None = None) -> ApiConfig:
    """API configuration for one model."""
    from ggufd.api.services.settings import ApiConfig, OutputDefaults

    given = {key: value for key, value in config.sampling.model_dump().items() if value is not None}
    max_tokens = given.pop("max_tokens", None)
    return ApiConfig(
        model_id=model_id(config, model),
        model_aliases=tuple(one for one in _aliases(config) if one != config.name) or (model.path.name,),
        model_file=model.path.name,
        model_tags=config.model.tags,
        adapters=adapters.loras_of(config),
        keys=None if keys is None else keys.ring,
        cache_sharing=config.context.cache_sharing,
        cache_advice=config.context.cache_advice,
        cache_repairs=config.context.cache_repairs,
        metrics_for=config.server.metrics_for,
        ready_when_full=config.server.ready_when_full,
        max_body_bytes=_max_body_bytes(config, model),
        ping_s=config.server.ping_s,
        sampling=given | _constraint(config),
        output=OutputDefaults(**config.output.model_dump(include={field.name for field in fields(OutputDefaults)})),
        max_tokens=max_tokens,
        template_kwargs=json.loads(config.model.chat_template_kwargs or "{}"),
        ui=config.server.ui,
        slots=config.server.slots,
        swap_for=config.pool.swap_for,
        swap_models=config.pool.swap_models,
        reasoning_format=config.reasoning.reasoning_format,
        reasoning_budget=config.reasoning.reasoning_budget,
        share_by_address=config.queue.share_by_address,
        limits=_key_limits(config),
        root_path=config.server.root_path,
        cors_origins=config.server.cors_origins,
        allowed_hosts=_allowed_hosts(config, keys),
        listens_beyond=_listens_beyond(config),
        trusts_proxies=bool(config.server.trusted_proxies or config.server.peer_token_file),
        peer_token=access.peer_token(config.server),
        slot_save_path=_folder(config.context.slot_save_path),
        responses_path=Path(config.responses.responses_path) if config.responses.responses_path else None,
        max_responses=config.responses.max_responses,
        max_responses_bytes=config.responses.max_responses_mib << 20,
        streams=_stream_limits(config),
        batch_dir=Path(config.batches.batch_dir).absolute() if config.batches.batch_dir else None,
        batch_limits=_storage_limits(config),
        batch_keep_s=config.batches.batch_keep_days * 24 * 3600,
        logs_cache=logging.getLevelNamesMapping()[config.server.log_level.upper()] <= logging.DEBUG,
        is_verbose=config.server.log_level == "debug",
        build=f"ggufd {__version__}, llama-cpp-python {importlib.metadata.version('llama-cpp-python')}",
    )


def _max_body_bytes(config: Config, model: hub.ModelFile) -> int:
    """Largest body of a request: with a projector, the largest image that is decoded fits into it as base64."""
    if config.server.max_body_bytes is not None:
        return config.server.max_body_bytes
    return _MAX_BYTES_WITH_IMAGES if model.projector is not None else _MAX_BYTES


def _key_limits(config: Config) -> Limits:
    """Limits of keys that were granted no other."""
    return Limits(
        max_running=config.queue.max_running_per_key,
        max_waiting=config.queue.max_waiting_per_key,
        tokens_per_minute=config.queue.tokens_per_minute_per_key,
    )


def _storage_limits(config: Config) -> StorageLimits:
    """Limits of the files of batches."""
    from ggufd.batches.files import StorageLimits

    return StorageLimits(
        max_bytes=config.batches.batch_max_mib << 20,
        max_file_bytes=config.batches.batch_max_file_mib << 20,
        max_files=config.batches.batch_max_files_per_key,
    )


def _stream_limits(config: Config) -> StreamLimits:
    """Limits of resumable streams."""
    from ggufd.api.services.settings import StreamLimits

    streams = config.streams
    return StreamLimits(
        is_default=streams.resumable,
        max_streams=streams.max_streams,
        max_streams_per_key=streams.max_streams_per_key,
        max_bytes=streams.max_streams_mib << 20,
        max_bytes_per_key=streams.max_streams_per_key_mib << 20,
        max_bytes_each=streams.max_stream_mib << 20,
        unread_s=streams.stream_unread_s,
        kept_s=streams.stream_kept_s,
    )


def _constraint(config: Config) -> dict[str, Any]:
    """The sampling defaults that requests override as a whole: constraint and biases. Raises ConfigError for two."""
    output, made = config.output, dict[str, Any]()
    if output.grammar and output.json_schema:
        raise ConfigError("grammar and json_schema are both set, and only one constraint can hold; remove one of them")
    if output.grammar:
        made["grammar"] = Grammar(GrammarKind.GBNF, output.grammar)
    if output.json_schema:
        made["grammar"] = Grammar(GrammarKind.JSON_SCHEMA, output.json_schema)
    if output.logit_bias:
        pairs = (one.split("=") for one in output.logit_bias)
        made["logit_bias"] = tuple((int(token), float(bias)) for token, bias in pairs)
    return made


def _allowed_hosts(config: Config, keys: Access | None) -> tuple[str, ...] | None:
    """Host names that requests must carry (DNS rebinding protection); None with keys, or when any name may reach us."""
    server = config.server
    is_guarded = bool(server.allowed_hosts) or listen.is_loopback(server.host)
    return server.allowed_hosts if keys is None and is_guarded else None


def _listens_beyond(config: Config) -> bool:
    """Whether requests may come from elsewhere, directly or through a proxy that some setting speaks of."""
    server = config.server
    has_front = bool(server.trusted_proxies or server.root_path or server.allowed_hosts or server.peer_token_file)
    return has_front or not listen.is_loopback(server.host)


def _folder(text: str) -> Path | None:
    """Resolved folder of --slot-save-path, created if missing. Raises ConfigError."""
    if not text:
        return None
    try:
        Path(text).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--slot-save-path {text}: cannot be created as a folder: {error.strerror}") from None
    return Path(text).resolve()
