"""Engine configuration from the settings."""

from __future__ import annotations

import logging
from collections.abc import Callable

import platformdirs

from ggufd.engine.messages.config import DiskPlace, DraftConfig, EngineConfig, EngineRules
from ggufd.llama.gguf.gguf_header import Scalar
from ggufd.llama.gguf.shape import MAX_LAYERS
from ggufd.llama.params import ContextParams, ModelParams
from ggufd.models import hub
from ggufd.placement import projector_plan
from ggufd.placement.projector_plan import ProjectorUse
from ggufd.settings import adapters, encoder_settings
from ggufd.settings.config import Config

DEFAULT_SLOTS = 4


_NOT_IN_PARAMS = {
    "embeddings",
    "pooling",
    "reranking",
    "ctx_size",
    "parallel",
    "batch_size",
    "ubatch_size",
    "threads",
    "threads_batch",
    "cpus",
    "cache_reuse",
    "context_shift",
    "cache_ram",
    "cache_disk",
    "cache_disk_path",
    "cache_sharing",
    "cache_repairs",
    "cache_advice",
    "slot_save_path",
    "spec_draft_n_max",
    "spec_draft_p_min",
    "pre_roll",
}
"""Context settings that have another name in `ContextParams`, or are not part of it."""


def metadata_of(config: Config) -> dict[str, Scalar]:
    """Metadata overrides by key, from KEY=TYPE:VALUE, whose form the config has checked."""
    read: dict[str, Callable[[str], Scalar]] = {
        "int": int,
        "float": float,
        "bool": lambda text: text == "true",
        "str": str,
    }
    found = {}
    for one in config.model.override_kv:
        key, _, value = one.partition("=")
        kind, _, text = value.partition(":")
        found[key] = read[kind](text)
    return found


def _disk_place(config: Config) -> DiskPlace | None:
    if not config.context.cache_disk:
        return None
    folder = config.context.cache_disk_path or str(platformdirs.user_cache_path("ggufd") / "prefixes")
    return DiskPlace(folder, config.context.cache_disk << 20)


def engine_config(config: Config, model: hub.ModelFile) -> EngineConfig:
    """Engine configuration for one model."""
    return EngineConfig(
        model=_model_params(config, model),
        context=context_params(config),
        shape=model.shape,
        max_queue=config.queue.max_queue,
        max_queue_wait_s=config.queue.max_queue_wait_s,
        max_gap_ms=config.queue.max_gap_ms,
        max_gap_steps=config.queue.max_gap_steps,
        max_gap_full_ms=config.queue.max_gap_full_ms,
        text_interval_ms=config.server.text_interval_ms,
        prompt_cost=config.queue.prompt_cost,
        priority_aging_s=config.queue.priority_aging_s,
        step_timeout_s=config.queue.step_timeout_s,
        rules=EngineRules(
            n_cache_reuse=config.context.cache_reuse,
            shifts_context=config.context.context_shift,
            disk=_disk_place(config),
            max_draft=config.context.spec_draft_n_max,
            pre_rolls=config.context.pre_roll,
            n_reserved=config.queue.reserved_slots,
            short_tokens=config.queue.short_tokens,
            preempts=config.queue.preempt,
        ),
        draft=_draft(config, model),
        beside=projector_use(config, model),
        require_gpu=config.model.require_gpu,
        numa=config.model.numa,
        cpus=encoder_settings.cpus_of(config.context.cpus),
        pooling="rank" if config.context.reranking else config.context.pooling or None,
        embeddings=config.context.embeddings,
        cache_ram_bytes=None if config.context.cache_ram == "auto" else config.context.cache_ram << 20,
        cache_dir=str(platformdirs.user_cache_path("ggufd")),
        sleep_idle_s=config.model.sleep_idle_seconds,
        log_level=logging.getLevelNamesMapping()[config.server.log_level.upper()],
    )


def projector_use(config: Config, model: hub.ModelFile) -> ProjectorUse:
    """Memory of the model's image projector, on a GPU where the model's layers may be there."""
    return projector_plan.use_of(model.projector, uses_gpu=encoder_settings.may_use_gpu(config))


def _draft(config: Config, model: hub.ModelFile) -> DraftConfig | None:
    if model.draft is None:
        return None
    return DraftConfig(draft_params(config, model.draft), config.context.spec_draft_p_min, model.draft.shape)


def draft_params(config: Config, draft: hub.ModelFile) -> ModelParams:
    """Load parameters of the draft model: the large model's, without overrides of its tensors and metadata."""
    settings = config.model
    return ModelParams(
        path=str(draft.path),
        n_gpu_layers=None if settings.n_gpu_layers_draft == "auto" else settings.n_gpu_layers_draft,
        split_mode=settings.split_mode,
        main_gpu=settings.main_gpu,
        devices=settings.device,
        mmap=settings.mmap,
        mlock=settings.mlock,
    )


def _model_params(config: Config, model: hub.ModelFile) -> ModelParams:
    settings = config.model
    return ModelParams(
        path=str(model.path),
        n_gpu_layers=None if settings.n_gpu_layers == "auto" else settings.n_gpu_layers,
        split_mode=settings.split_mode,
        main_gpu=settings.main_gpu,
        tensor_split=settings.tensor_split,
        mmap=settings.mmap,
        mlock=settings.mlock,
        n_cpu_moe=n_cpu_moe(config),
        overrides=tuple(_override(one) for one in settings.override_tensor),
        devices=settings.device,
        rpc=settings.rpc,
        metadata=tuple(metadata_of(config).items()),
        loras=tuple(one.path for one in adapters.loras_of(config)),
        control_vectors=adapters.control_vectors_of(config),
        control_layers=settings.control_vector_layer_range,
    )


def n_cpu_moe(config: Config) -> int | None:
    """Number of layers whose experts stay in RAM; None for the automatic choice."""
    return MAX_LAYERS if config.model.cpu_moe else config.model.n_cpu_moe


def _override(text: str) -> tuple[str, str]:
    pattern, _, buffer = text.rpartition("=")
    return pattern, buffer


def context_params(config: Config) -> ContextParams:
    """Context parameters. As in llama-server, ctx_size is the total if parallel is set too, else each slot's."""
    settings = config.context
    unchanged = settings.model_dump(exclude=_NOT_IN_PARAMS)
    return ContextParams(
        n_ctx=settings.ctx_size // (settings.parallel or 1),
        n_slots=settings.parallel or DEFAULT_SLOTS,
        n_batch=settings.batch_size,
        n_ubatch=settings.ubatch_size,
        n_threads=settings.threads,
        n_threads_batch=settings.threads_batch,
        **unchanged,
    )
