"""Loading of a model into an engine: one that generates text, or one for vectors only.

Built from plain data, in the engine's process. What is decided on the way is in `engine.loading`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from ggufd.engine.builder import Backend, build_engine
from ggufd.engine.costs.cost_file import CostFile
from ggufd.engine.costs.step_costs import StepCosts
from ggufd.engine.embeddings.embedding import MAX_OPEN, Embedder, EmbedderParams
from ggufd.engine.embeddings.vector_engine import VectorEngine
from ggufd.engine.engine import Engine
from ggufd.engine.kv_store.fingerprint import fingerprint
from ggufd.engine.loading import provenance
from ggufd.engine.loading.context_params import embedding_params, resolve, vector_flash_attention
from ggufd.engine.loading.load_log import LoadLog, Report
from ggufd.engine.loading.placing import place, with_host_cache
from ggufd.engine.loading.readiness import draft_info, embedding_info, ready_of
from ggufd.engine.messages.config import DraftConfig, EngineConfig, EngineRules
from ggufd.engine.messages.provenance import Provenance
from ggufd.engine.messages.reports import DraftInfo, LoadProgress, Placing, Ready
from ggufd.engine.queueing.fairness import Accounts
from ggufd.engine.queueing.queue import RequestQueue
from ggufd.engine.queueing.waiting_list import WaitingList
from ggufd.engine.sampling.constraint import GrammarCompiler
from ggufd.engine.scheduling.scheduler import Scheduler
from ggufd.engine.sequence.fixed_chunks import CPU_CHUNK
from ggufd.engine.speculation.draft_model import DraftModel
from ggufd.errors import ModelError, ModelTooLarge
from ggufd.llama.context.context import Context
from ggufd.llama.context.embedding import EmbeddingContext
from ggufd.llama.gguf.header_checks import refuse_half_biases
from ggufd.llama.log import LogCapture
from ggufd.llama.model import system
from ggufd.llama.model.model import Model
from ggufd.llama.model.placing import chosen_devices, refuse_cpu
from ggufd.llama.params import VECTOR_N_CTX, ContextParams, EmbeddingParams, ModelParams
from ggufd.placement import draft_plan, host

T = TypeVar("T")

_GPU_CHUNK = 512
"""Tokens of a fixed chunk where layers run on a GPU, which computes so many in little more time than a few."""


class Loaded(NamedTuple):
    """An engine that serves, its report, and the log that C writes to while it lives."""

    engine: Engine | VectorEngine
    ready: Ready
    log: LogCapture


def load(config: EngineConfig, report: Report) -> Loaded:
    """Engine of a configuration. Raises `ModelError` with one line that says why there can be none.

    First it is decided what goes to GPUs, then the weights are read, then contexts are made over them: of an embedding
    model one for vectors, of any other one for text, and one for vectors when that is wanted.
    """
    log = LoadLog(config.log_level, report)
    log.capture.install()
    try:
        loaded = _load(config, log, report)
        if config.require_gpu:
            refuse_cpu(loaded.ready.n_gpu_layers)
        return loaded
    except ModelError as error:
        message = log.explain(error.message)
        if log.is_out_of_memory:
            raise ModelTooLarge(message + _hint(config.model)) from None
        raise ModelError(message) from None


def _load(config: EngineConfig, log: LoadLog, report: Report) -> Loaded:
    host.bind_to(config.cpus)
    system.use_numa(config.numa)
    system.add_rpc_servers(config.model.rpc)
    ram = host.ram()
    devices = chosen_devices(config.model.devices, system.device_memory())
    placed, offload_why, vram_bytes = place(config, devices)
    if config.require_gpu:
        # Before the weights are read; what llama.cpp made of it is looked at when they are there.
        refuse_cpu((placed.model.n_gpu_layers or 0) if devices else 0)
    if config.shape is not None and (not devices or placed.model.n_gpu_layers == 0):
        refuse_half_biases(config.shape.gguf)
    if vram_bytes:
        report(Placing(vram_bytes))
    model = Model(placed.model, _progress(report))
    log.check_metadata(config.model.metadata)
    _refuse_unservable(model)
    if _only_embeds(model):
        # What was planned for a cache of slots is of no use to it.
        return _vector_engine(config, model, log)
    return _generating_engine(placed, model, log, offload_why, ram)


# --- an engine that generates text ------------------------------------------------------------------------------------


def _generating_engine(config: EngineConfig, model: Model, log: LoadLog, offload_why: str, ram: host.Ram) -> Loaded:
    """Engine that generates; its context for vectors is made when it is wanted. `ram` was there before the model."""
    params, flash_why = resolve(config, model)
    config = with_host_cache(config, params, ram)
    log.start_counting()
    context, made_with, files = _context(config, model, params)
    config = _with_disk(config, made_with)
    vectors = embedding_params(config, model, min(context.n_ctx, VECTOR_N_CTX), params.flash_attn)
    embedder = _embedder(config, model, vectors, log)
    if config.embeddings:
        embedder.prepare()
    if not context.can_shift:
        _warn_about_shifts(config.rules, log)
    n_gpu_layers = log.n_gpu_layers
    draft_model, draft = (None, None) if config.draft is None else _load_draft(config, config.draft, context, log)
    backend = Backend(context, model.vocabulary, GrammarCompiler(model.vocabulary), draft_model)
    reuse = "any" if context.copies_all else "snapshots" if config.cache_ram_bytes else "whole"
    embedding = embedding_info(model, vectors, is_asked_for=config.embeddings or config.pooling is not None)
    costs = _cost_file(config, made_with, params, n_gpu_layers)
    engine = _build(config, backend, context, embedder, _n_fixed(n_gpu_layers), costs)
    ready = dataclasses.replace(
        ready_of(model, log, context, params, flash_why, embedding, n_slots=context.n_slots, reuse=reuse),
        n_gpu_layers=n_gpu_layers,
        offload_why=offload_why,
        draft=draft,
        host_cache_bytes=config.rules.cache_ram_bytes,
        fingerprint=made_with,
        disk=engine.disk,
        provenance=_provenance(files, config, params, context, n_gpu_layers),
    )
    return Loaded(engine, ready, log.capture)


def _context(config: EngineConfig, model: Model, params: ContextParams) -> tuple[Context, str, Provenance]:
    """The context of all slots, the fingerprint of what it computes with, and the digests of all files."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        # Files are read meanwhile: that takes a fortieth of a second, all of which a start would notice.
        reading = reader.submit(_read_again, lambda: fingerprint(config.model, params))
        digests = reader.submit(_read_again, lambda: provenance.files_of(config.model))
        # Kept by the vocabulary: it asks C about each of its tokens.
        reader.submit(lambda: model.vocabulary.eog_tokens)
        context = Context(model, params)
    return context, reading.result(), digests.result()


def _n_fixed(n_gpu_layers: int) -> int:
    """Tokens of a chunk of deterministic requests."""
    return _GPU_CHUNK if n_gpu_layers else CPU_CHUNK


def _provenance(
    files: Provenance, config: EngineConfig, params: ContextParams, context: Context, n_gpu_layers: int
) -> Provenance | None:
    """What deterministic texts come of; None where cells are put wherever a window has left some."""
    if context.model.n_swa and not params.swa_full:
        return None
    # llama.cpp rounds the context up.
    params = dataclasses.replace(params, n_ctx=context.n_ctx)
    made = provenance.completed(files, config.model, params, n_gpu_layers=n_gpu_layers)
    n_fixed = min(_n_fixed(n_gpu_layers), params.n_ubatch, context.n_batch)
    return dataclasses.replace(made, settings=(*made.settings, ("n_fixed", n_fixed)))


def _build(
    config: EngineConfig, backend: Backend, context: Context, embedder: Embedder, n_fixed: int, costs: CostFile
) -> Engine:
    """Engine with the queue and the scheduler that the settings describe."""
    scheduler = Scheduler(
        n_batch=context.n_batch,
        n_ubatch=config.context.n_ubatch,
        n_outputs_max=context.n_outputs_max,
        max_gap_ms=config.max_gap_ms,
        max_gap_steps=config.max_gap_steps,
        max_gap_full_ms=config.max_gap_full_ms,
        n_fixed=n_fixed,
        costs=StepCosts(config.context.n_ubatch, costs.read()),
    )
    queue = RequestQueue(config.max_queue_wait_s, accounts=embedder.accounts, aging_s=config.priority_aging_s)
    max_draft = min(config.rules.max_draft, context.n_outputs_max - 1, context.n_batch - 1)
    rules = dataclasses.replace(config.rules, max_draft=max_draft)
    return build_engine(backend, queue, scheduler, embedder, rules, cost_file=costs)


def _cost_file(config: EngineConfig, made_with: str, params: ContextParams, n_gpu_layers: int) -> CostFile:
    """Where costs of steps are kept that depend on model, context, build and machine."""
    path = Path(config.cache_dir) / "step-costs.json" if config.cache_dir else None
    parts = (system.cpu_name(), system.build(), made_with, params.n_threads, params.flash_attn, n_gpu_layers)
    return CostFile(path, "|".join(map(str, parts)))


def _load_draft(
    config: EngineConfig, draft: DraftConfig, context: Context, log: LoadLog
) -> tuple[DraftModel, DraftInfo]:
    """The draft model for the model of `context`. Raises `ModelError` where it cannot draft for that one."""
    if not context.can_trim:
        raise ModelError(f"{config.model.path}: its cache cannot drop rejected draft tokens; leave --model-draft out")
    log.n_gpu_layers = 0
    model = Model(draft.model)
    if model.is_recurrent or _only_embeds(model):
        raise ModelError(
            f"{draft.model.path}: cannot be a draft model, as it is recurrent or an embedding model; "
            "leave --model-draft out"
        )
    asked = dataclasses.replace(context.params, flash_attn=config.context.flash_attn)
    wanted = draft_plan.context_of(asked, model.n_ctx_train)
    params, _ = resolve(dataclasses.replace(config, model=draft.model, context=wanted), model)
    decoder = Context(model, params)
    vocabulary = context.model.vocabulary
    drafter = DraftModel(decoder, n_vocab=context.n_vocab, eog=vocabulary.eog_tokens, p_min=draft.p_min)
    return drafter, draft_info(model, decoder, n_gpu_layers=log.n_gpu_layers)


def _warn_about_shifts(rules: EngineRules, log: LoadLog) -> None:
    """Report settings that do nothing, as they need a cache whose tokens can be moved."""
    for name, is_set in (("context_shift", rules.shifts_context), ("cache_reuse", rules.n_cache_reuse > 0)):
        if is_set:
            log.tell(f"{name} does nothing here: the cache of this model cannot move tokens")


def _read_again(read: Callable[[], T]) -> T:
    """What is read of the files of the model. Raises ModelError where one has gone since it was loaded."""
    try:
        return read()
    except OSError as error:
        raise ModelError(f"{error.filename}: cannot be read again: {error.strerror or error}") from None


def _with_disk(config: EngineConfig, made_with: str) -> EngineConfig:
    """The settings with a disk cache whose files name the model and settings that they were computed with."""
    disk = config.rules.disk
    marked = None if disk is None else dataclasses.replace(disk, fingerprint=made_with)
    return dataclasses.replace(config, rules=dataclasses.replace(config.rules, disk=marked))


# --- an engine for vectors only ---------------------------------------------------------------------------------------


def _vector_engine(config: EngineConfig, model: Model, log: LoadLog) -> Loaded:
    """Engine for an embedding or reranking model: no slots, no cache that is kept."""
    if config.draft is not None:
        raise ModelError(f"{config.model.path}: is an embedding model; leave --model-draft out")
    n_ctx = config.context.n_ctx or VECTOR_N_CTX
    flash_attn, flash_why = vector_flash_attention(config, min(n_ctx, model.n_ctx_train or n_ctx))
    vectors = embedding_params(config, model, n_ctx, flash_attn)
    log.start_counting()
    embedder = _embedder(config, model, vectors, log)
    decoder = embedder.prepare().decoder
    embedding = embedding_info(model, vectors, is_asked_for=True)
    ready = ready_of(model, log, decoder, vectors, flash_why, embedding, n_slots=MAX_OPEN, reuse="none")
    return Loaded(VectorEngine(embedder), dataclasses.replace(ready, writes=False), log.capture)


def _embedder(config: EngineConfig, model: Model, params: EmbeddingParams, log: LoadLog) -> Embedder:
    def make() -> EmbeddingContext:
        before = log.memory_bytes
        context = EmbeddingContext(model, params)
        log.tell(f"the context for embeddings takes {(log.memory_bytes - before) >> 20} MiB")
        return context

    known = EmbedderParams(params.pooling, params.n_ctx, model.vocabulary.n_vocab, len(model.adapters))
    accounts = Accounts(config.prompt_cost, config.carried)
    return Embedder(known, make, WaitingList(config.max_queue_wait_s, accounts=accounts))


# --- checks and reports -----------------------------------------------------------------------------------------------


def _only_embeds(model: Model) -> bool:
    """Whether a model was made for vectors: its file names a pooling, or it attends to tokens that come later."""
    return model.pooling is not None or not model.is_causal


def _refuse_unservable(model: Model) -> None:
    if not model.vocabulary.has_tokenizer:
        raise ModelError(f"{model.params.path} has no tokenizer, so no text can be served with it")
    if model.has_encoder or not model.has_decoder:
        raise ModelError(
            f"{model.params.path} is a {model.architecture} model, which reads with an encoder of its own, as T5 does, "
            "and such models are not served. Choose one that only has a decoder, or for vectors one like BERT"
        )


def _hint(model: ModelParams) -> str:
    if not model.n_gpu_layers:
        return ""
    return f"; {model.n_gpu_layers} layers are more than the GPU holds: give --n-gpu-layers fewer, or leave it out"


def _progress(report: Report) -> Callable[[float], bool]:
    """Callback for llama.cpp, which calls it once a tensor: at most one report a hundredth."""
    last = -1.0

    def on_progress(fraction: float) -> bool:
        nonlocal last
        if fraction - last >= 0.01 or fraction >= 1:
            last = fraction
            report(LoadProgress(fraction))
        return True

    return on_progress
