"""Builds the engine of this process from plain data: the one module of the engine that names the real `llama`."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ggufd.engine.backend.interfaces import Decoder, VectorDecoder
from ggufd.engine.embeddings.embedding import MAX_OPEN, Embedder, EmbedderParams
from ggufd.engine.embeddings.vector_engine import VectorEngine
from ggufd.engine.engine import Engine
from ggufd.engine.kv_store.fingerprint import fingerprint
from ggufd.engine.messages.config import DraftConfig, EngineConfig, EngineRules
from ggufd.engine.messages.reports import (
    DraftInfo,
    EmbeddingInfo,
    Loading,
    LoadProgress,
    LogLine,
    ModelInfo,
    Notice,
    Placing,
    Ready,
)
from ggufd.engine.queueing.fairness import Accounts
from ggufd.engine.queueing.queue import RequestQueue
from ggufd.engine.queueing.waiting_list import WaitingList
from ggufd.engine.sampling.constraint import GrammarCompiler
from ggufd.engine.scheduling.scheduler import Scheduler
from ggufd.errors import ModelError, ModelTooLarge
from ggufd.llama.calibration.calibration import prefers_flash_attention
from ggufd.llama.context.context import Context
from ggufd.llama.context.embedding import EmbeddingContext
from ggufd.llama.gguf import gguf_header, shape
from ggufd.llama.gguf.gguf_header import Scalar
from ggufd.llama.gguf.header_checks import refuse_half_biases
from ggufd.llama.gguf.shape import Shape
from ggufd.llama.log import LogCapture
from ggufd.llama.model import system
from ggufd.llama.model.model import Model
from ggufd.llama.model.placing import check_gpus, check_overrides, refuse_cpu
from ggufd.llama.model.vocabulary import ModelVocabulary
from ggufd.llama.params import SHORT_TEXT, VECTOR_N_CTX, ContextParams, EmbeddingParams, FlashAttention, ModelParams
from ggufd.placement import draft_plan, host
from ggufd.placement.memory import Extras, estimate
from ggufd.placement.offload import Device, Machine, PlacementRequest, choose, cpu_placement, host_cache_bytes

_DEFAULT_N_CTX = 8192
_MIN_N_CTX = 512
_MEMORY_SHARE = 0.8
_BUFFER = re.compile(r"(\S+)\s+(model|LoRA|KV|RS|compute|output)\s+buffer size\s*=\s*([\d.]+) MiB")
_CHANGED = re.compile(r"Using metadata override \([^)]*\) '(.+)' = ")
_NO_MEMORY = re.compile(r"(unable|failed) to allocate|out of memory", re.IGNORECASE)
_NOT_LOCKED = re.compile(r"failed to (?:mlock|VirtualLock).*|mlock not supported.*|\w+ProcessWorkingSetSize failed.*")
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers")

Report = Callable[[Loading], None]


class Loaded(NamedTuple):
    """An engine that serves, what it says of itself, and the log that C writes to while it lives."""

    engine: Engine | VectorEngine
    ready: Ready
    log: LogCapture


def load(config: EngineConfig, report: Report) -> Loaded:
    """Load the model and make its context. Raises `ModelError` with one line that says why it cannot be."""
    log = _LoadLog(config.log_level, report)
    log.capture.install()
    try:
        system.add_rpc_servers(config.model.rpc)
        ram = host.ram()
        devices = system.device_memory()
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
            loaded = _vectors_only(config, model, log)
        else:
            loaded = _writing(placed, model, log, offload_why, ram)
        if config.require_gpu:
            refuse_cpu(loaded.ready.n_gpu_layers)
        return loaded
    except ModelError as error:
        message = log.explain(error.message)
        if log.is_out_of_memory:
            raise ModelTooLarge(message + _hint(config.model)) from None
        raise ModelError(message) from None


def _writing(config: EngineConfig, model: Model, log: _LoadLog, offload_why: str, ram: host.Ram) -> Loaded:
    """An engine that writes; its context for vectors is made when it is wanted. `ram` was there before the model."""
    params, flash_why = _resolve(config, model)
    config = _with_host_cache(config, params, ram)
    log.start_counting()
    with ThreadPoolExecutor(max_workers=1) as reader:
        # Files are read meanwhile: that takes a fortieth of a second, all of which a start would notice.
        reading = reader.submit(_fingerprint, config, params)
        context = Context(model, params)
    made_with = reading.result()
    config = _with_disk(config, made_with)
    vectors = _embedding_params(config, model, min(context.n_ctx, VECTOR_N_CTX), params.flash_attn)
    embedder = _embedder(config, model, vectors, log)
    if config.embeddings:
        embedder.prepare()
    engine = _engine(config, model, context, embedder)
    if not context.can_shift:
        _tell_what_cannot_be(config.rules, log)
    n_gpu_layers = log.n_gpu_layers
    draft = None if config.draft is None else _add_draft(config, config.draft, engine, context, log)
    reuse = "any" if context.copies_all else "snapshots" if config.cache_ram_bytes else "whole"
    embedding = _embedding_info(model, vectors, is_asked_for=config.embeddings or config.pooling is not None)
    ready = dataclasses.replace(
        _ready(model, log, context, params, flash_why, embedding, n_slots=context.n_slots, reuse=reuse),
        n_gpu_layers=n_gpu_layers,
        offload_why=offload_why,
        draft=draft,
        host_cache_bytes=config.rules.cache_ram_bytes,
        fingerprint=made_with,
    )
    return Loaded(engine, ready, log.capture)


def _with_host_cache(config: EngineConfig, params: ContextParams, ram: host.Ram) -> EngineConfig:
    """The settings with the RAM decided for chats that lost their slot: a container ends who takes too much."""
    n_bytes = config.cache_ram_bytes
    if n_bytes is None:
        machine = Machine(ram.free, ram.total, cpu_features=system.cpu_features())
        made = _shape_of(config)
        placement = dataclasses.replace(
            cpu_placement(_wish(config), machine), n_gpu_layers=config.model.n_gpu_layers or 0
        )
        _, machine, _ = _place_draft(config, made, machine)
        n_bytes = host_cache_bytes(estimate(made, params, placement), machine)
    return dataclasses.replace(
        config, cache_ram_bytes=n_bytes, rules=dataclasses.replace(config.rules, cache_ram_bytes=n_bytes)
    )


def _wish(config: EngineConfig) -> PlacementRequest:
    extras = Extras.of(config.model, embeds=config.embeddings, host_cache=config.cache_ram_bytes)
    model = config.model
    return PlacementRequest(
        config.context, None, model.n_cpu_moe, model.mmap, model.tensor_split, extras, model.overrides
    )


def _add_draft(config: EngineConfig, draft: DraftConfig, engine: Engine, context: Context, log: _LoadLog) -> DraftInfo:
    """Load the draft model too, and let it guess."""
    if not context.can_trim:
        raise ModelError(f"{config.model.path}: its cache takes no wrong guess back; leave --model-draft out")
    log.n_gpu_layers = 0
    model = Model(draft.model)
    if model.is_recurrent or _only_embeds(model):
        raise ModelError(f"{draft.model.path}: is no model that can guess for another; leave --model-draft out")
    asked = dataclasses.replace(context.params, flash_attn=config.context.flash_attn)
    wanted = draft_plan.context_of(asked, model.n_ctx_train)
    params, _ = _resolve(dataclasses.replace(config, model=draft.model, context=wanted), model)
    decoder = Context(model, params)
    engine.guess_with(decoder, draft.p_min)
    return DraftInfo(
        name=model.metadata.get("general.name") or Path(draft.model.path).stem,
        path=draft.model.path,
        ftype=model.ftype,
        n_params=model.n_params,
        size_bytes=model.size_bytes,
        n_ctx=decoder.n_ctx,
        n_gpu_layers=log.n_gpu_layers,
    )


def _tell_what_cannot_be(rules: EngineRules, log: _LoadLog) -> None:
    """What was asked for and needs a cache whose tokens can be moved to other places."""
    for name, is_set in (("context_shift", rules.shifts_context), ("cache_reuse", rules.n_cache_reuse > 0)):
        if is_set:
            log.tell(f"{name} does nothing here: the cache of this model cannot move tokens")


def _vectors_only(config: EngineConfig, model: Model, log: _LoadLog) -> Loaded:
    """An engine for a model that was made for vectors: no slots, no cache that is kept."""
    if config.draft is not None:
        raise ModelError(f"{config.model.path}: is an embedding model; leave --model-draft out")
    n_ctx = config.context.n_ctx or VECTOR_N_CTX
    flash_attn, flash_why = _vectors_flash_attention(config, min(n_ctx, model.n_ctx_train or n_ctx))
    vectors = _embedding_params(config, model, n_ctx, flash_attn)
    log.start_counting()
    embedder = _embedder(config, model, vectors, log)
    decoder = embedder.prepare().decoder
    embedding = _embedding_info(model, vectors, is_asked_for=True)
    ready = _ready(model, log, decoder, vectors, flash_why, embedding, n_slots=MAX_OPEN, reuse="none")
    return Loaded(VectorEngine(embedder), dataclasses.replace(ready, writes=False), log.capture)


def _ready(
    model: Model,
    log: _LoadLog,
    context: Decoder | VectorDecoder,
    params: ContextParams | EmbeddingParams,
    flash_why: str,
    embedding: EmbeddingInfo,
    *,
    n_slots: int,
    reuse: str,
) -> Ready:
    """What an engine of either kind says of itself: `params` are what `context` was made with."""
    return Ready(
        model=_info(model),
        n_ctx=context.n_ctx,
        n_slots=n_slots,
        n_batch=context.n_batch,
        n_threads=params.n_threads,
        n_gpu_layers=log.n_gpu_layers,
        devices=system.gpu_devices(),
        flash_attn=params.flash_attn == "on",
        flash_attn_why=flash_why,
        reuse=reuse,
        memory_bytes=log.memory_bytes,
        buffers=tuple(log.buffers),
        system_info=system.info(),
        build=system.build(),
        buffer_types=tuple(system.buffer_types()),
        has_rpc=system.has_rpc(),
        embedding=embedding,
    )


def _vectors_flash_attention(config: EngineConfig, n_ctx: int) -> tuple[FlashAttention, str]:
    """Short texts are read faster without it on a CPU, but the scores of a long one against itself take much memory."""
    if config.context.flash_attn != "auto":
        return config.context.flash_attn, "as configured"
    if system.gpu_devices() and config.model.n_gpu_layers != 0:
        return "on", "layers run on a GPU"
    return ("on", "texts may be long") if n_ctx > SHORT_TEXT else ("off", "texts are short")


def _only_embeds(model: Model) -> bool:
    """A file that names a pooling was made for vectors, and a model that sees what comes next cannot write it."""
    return model.pooling is not None or not model.is_causal


def _embedding_params(config: EngineConfig, model: Model, n_ctx: int, flash_attn: FlashAttention) -> EmbeddingParams:
    """Inputs of `n_ctx` tokens, or of as many as the model was trained for; what names no pooling gets the mean."""
    pooling = config.pooling or model.pooling or "mean"
    if pooling == "rank" and not _has_classifier(model):
        raise ModelError(f"{model.params.path} has no classifier, so it gives no scores; use another pooling than rank")
    return EmbeddingParams(
        n_ctx=min(n_ctx, model.n_ctx_train or n_ctx),
        pooling=pooling,
        n_threads=config.context.n_threads_batch or config.context.n_threads or host.compute_threads(),
        flash_attn=flash_attn,
        kv_offload=config.context.kv_offload,
    )


def _has_classifier(model: Model) -> bool:
    header = gguf_header.read(gguf_header.parts_of(Path(model.params.path)))
    return any(tensor.name.startswith("cls") for tensor in header.tensors())


def _embedding_info(model: Model, params: EmbeddingParams, *, is_asked_for: bool) -> EmbeddingInfo:
    width = model.n_scores if params.pooling == "rank" else model.n_embd_out
    return EmbeddingInfo(params.pooling, width, params.n_ctx, is_asked_for)


def _embedder(config: EngineConfig, model: Model, params: EmbeddingParams, log: _LoadLog) -> Embedder:
    def make() -> EmbeddingContext:
        before = log.memory_bytes
        context = EmbeddingContext(model, params)
        log.tell(f"the context for embeddings takes {(log.memory_bytes - before) >> 20} MiB")
        return context

    known = EmbedderParams(params.pooling, params.n_ctx, model.vocabulary.n_vocab, len(model.adapters))
    accounts = Accounts(config.prompt_cost)
    return Embedder(known, make, WaitingList(config.max_queue, config.max_queue_wait_s, accounts=accounts))


class Placed(NamedTuple):
    """The settings with the layers on the GPU decided, why so, and what that takes there where it was left to us."""

    config: EngineConfig
    why: str
    vram_bytes: int = 0


def place(config: EngineConfig, devices: Sequence[system.DeviceMemory]) -> Placed:
    """Decide what goes to GPUs where that is left to us. Raises ModelError for numbers that cannot be obeyed."""
    gpus = usable_gpus(config, devices)
    if not gpus:
        return Placed(config, "")
    if config.model.n_gpu_layers is not None and config.draft is None:
        return Placed(config, "as configured")
    made = _shape_of(config)
    ram = host.ram()
    machine = Machine(ram.free, ram.total, gpus, system.cpu_features(), config.vram_limit)
    config, machine, draft_bytes = _place_draft(config, made, machine)
    if config.model.n_gpu_layers is not None:
        return Placed(config, "as configured")
    choice = choose(made, _wish(config), machine)
    placement = choice.placement
    model = dataclasses.replace(
        config.model, n_gpu_layers=placement.n_gpu_layers, n_cpu_moe=min(placement.n_cpu_moe, made.n_layers)
    )
    context = dataclasses.replace(config.context, n_ctx=choice.context.n_ctx)
    why = choice.why if config.vram_limit is None else f"{choice.why}, where more could not be allocated"
    vram_bytes = draft_bytes + choice.estimate.vram.total
    return Placed(dataclasses.replace(config, model=model, context=context), why, vram_bytes)


def usable_gpus(config: EngineConfig, devices: Sequence[system.DeviceMemory]) -> tuple[Device, ...]:
    """The GPUs that are used. Raises ModelError for what the settings say of placing and this machine cannot do."""
    if config.model.overrides:
        check_overrides(config.model.overrides, system.buffer_types())
    gpus = _gpus_of(config.model, devices)
    if not gpus:
        _refuse_draft_layers(config.draft)
    return gpus


def _refuse_draft_layers(draft: DraftConfig | None) -> None:
    """Raises ModelError where layers of the draft model are to be on a GPU, but there is none."""
    if draft is not None and draft.model.n_gpu_layers:
        raise ModelError(f"--n-gpu-layers-draft {draft.model.n_gpu_layers}: llama.cpp sees no GPU; leave it out")


def _place_draft(config: EngineConfig, made: Shape, machine: Machine) -> tuple[EngineConfig, Machine, int]:
    """The same with the draft model placed, what it leaves of the machine, and its bytes on GPUs."""
    if config.draft is None:
        return config, machine, 0
    params = config.draft.model
    taken = draft_plan.plan(_shape_of(config.draft), params, made, config.context, machine)
    placed = dataclasses.replace(params, n_gpu_layers=taken.placement.n_gpu_layers)
    draft = dataclasses.replace(config.draft, model=placed)
    return dataclasses.replace(config, draft=draft), draft_plan.remaining(machine, taken), taken.vram.total


def _shape_of(config: EngineConfig | DraftConfig) -> Shape:
    params = config.model
    return config.shape or shape.of(
        gguf_header.read(gguf_header.parts_of(Path(params.path))).with_metadata(dict(params.metadata))
    )


def _gpus_of(model: ModelParams, devices: Sequence[system.DeviceMemory]) -> tuple[Device, ...]:
    """The GPUs that are used: one where the model is not to be split. Raises ModelError for wishes without a GPU."""
    check_gpus(model, [one.description for one in devices])
    if devices and model.split_mode == "none":
        devices = [devices[model.main_gpu]]
    return tuple(Device(one.description, one.free, one.total, one.shares_ram) for one in devices)


def _hint(model: ModelParams) -> str:
    if not model.n_gpu_layers:
        return ""
    return f"; {model.n_gpu_layers} layers are more than the GPU holds: give --n-gpu-layers fewer, or leave it out"


def _fingerprint(config: EngineConfig, params: ContextParams) -> str:
    """The name of what slots are computed with. Raises ModelError where a file has gone since it was loaded."""
    try:
        return fingerprint(config.model, params)
    except OSError as error:
        raise ModelError(f"{error.filename}: cannot be read again: {error.strerror or error}") from None


def _with_disk(config: EngineConfig, made_with: str) -> EngineConfig:
    """The settings with chats on disk told apart from those that would not fit this model and these settings."""
    disk = config.rules.disk
    marked = None if disk is None else dataclasses.replace(disk, fingerprint=made_with)
    return dataclasses.replace(config, rules=dataclasses.replace(config.rules, disk=marked))


def _engine(config: EngineConfig, model: Model, context: Context, embedder: Embedder) -> Engine:
    scheduler = Scheduler(
        n_batch=context.n_batch,
        n_ubatch=config.context.n_ubatch,
        n_outputs_max=context.n_outputs_max,
        max_gap_ms=config.max_gap_ms,
        max_gap_steps=config.max_gap_steps,
    )
    queue = RequestQueue(
        config.max_queue,
        config.max_queue_wait_s,
        accounts=embedder.accounts,
        aging_s=config.priority_aging_s,
    )
    max_draft = min(config.rules.max_draft, context.n_outputs_max - 1, context.n_batch - 1)
    return Engine(
        context,
        model.vocabulary,
        GrammarCompiler(model.vocabulary),
        queue,
        scheduler,
        embedder,
        rules=dataclasses.replace(config.rules, max_draft=max_draft),
    )


def _refuse_unservable(model: Model) -> None:
    if not model.vocabulary.has_tokenizer:
        raise ModelError(f"{model.params.path} has no tokenizer, so no text can be served with it")
    if model.has_encoder or not model.has_decoder:
        raise ModelError(
            f"{model.params.path} is a {model.architecture} model, which reads with an encoder of its own, as T5 does, "
            "and such models are not served. Choose one that only has a decoder, or for vectors one like BERT"
        )


def _resolve(config: EngineConfig, model: Model) -> tuple[ContextParams, str]:
    """The context's numbers with every "auto" decided, and why flash attention is on or off."""
    params = config.context
    n_threads = params.n_threads or host.compute_threads()
    n_ctx = params.n_ctx or _fitting_n_ctx(model, params, _draft_bytes(config))
    params = dataclasses.replace(params, n_threads=n_threads, n_ctx=n_ctx)
    if params.flash_attn != "auto":
        return params, "as configured"
    is_on, why = _flash_attention(config, model, params)
    return dataclasses.replace(params, flash_attn="on" if is_on else "off"), why


def _flash_attention(config: EngineConfig, model: Model, params: ContextParams) -> tuple[bool, str]:
    if params.cache_type_v not in ("f16", "f32", "bf16"):
        return True, "a quantised V cache needs it"
    if system.gpu_devices() and config.model.n_gpu_layers != 0:
        return True, "layers run on a GPU"
    if model.is_recurrent:
        return False, "not measured for recurrent models"
    memory = Path(config.cache_dir) / "flash-attention.json" if config.cache_dir else None
    return prefers_flash_attention(model, params, memory)


def _draft_bytes(config: EngineConfig) -> int:
    """RAM that the draft model will take."""
    if config.draft is None:
        return 0
    machine = Machine(0, 0)
    made, params = _shape_of(config.draft), config.draft.model
    return draft_plan.plan(made, params, _shape_of(config), config.context, machine).needed


def _fitting_n_ctx(model: Model, params: ContextParams, taken_bytes: int = 0) -> int:
    """The training context up to 8,192 tokens a slot, halved until all slots' caches fit into free memory.

    `taken_bytes` of it are spoken for.
    """
    n_ctx = min(model.n_ctx_train or _DEFAULT_N_CTX, _DEFAULT_N_CTX)
    budget = _MEMORY_SHARE * host.ram().free - taken_bytes
    while n_ctx > _MIN_N_CTX and model.kv_bytes_per_token * n_ctx * params.n_slots > budget:
        n_ctx //= 2
    return n_ctx


def _progress(report: Report) -> Callable[[float], bool]:
    """At most one report a hundredth: the callback comes once a tensor."""
    last = -1.0

    def on_progress(fraction: float) -> bool:
        nonlocal last
        if fraction - last >= 0.01 or fraction >= 1:
            last = fraction
            report(LoadProgress(fraction))
        return True

    return on_progress


def _info(model: Model) -> ModelInfo:
    metadata, vocabulary = model.metadata, model.vocabulary
    return ModelInfo(
        name=metadata.get("general.name") or Path(model.params.path).stem,
        path=model.params.path,
        architecture=model.architecture,
        description=model.description,
        ftype=model.ftype,
        n_params=model.n_params,
        size_bytes=model.size_bytes,
        n_vocab=vocabulary.n_vocab,
        n_ctx_train=model.n_ctx_train,
        n_embd=model.n_embd,
        n_layer=model.n_layer,
        chat_template=model.chat_template,
        bos_piece=_piece_text(vocabulary, vocabulary.bos),
        eos_piece=_piece_text(vocabulary, vocabulary.eos),
        metadata={key: value for key, value in metadata.items() if key != "tokenizer.chat_template"}
        | {key: _as_llama_writes(value) for key, value in model.params.metadata},
        vocab_type=vocabulary.vocab_type,
    )


def _as_llama_writes(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _piece_text(vocabulary: ModelVocabulary, token: int | None) -> str:
    return "" if token is None else vocabulary.piece(token, special=True).decode("utf-8", "replace")


class _LoadLog:
    """llama.cpp's log while loading: passed on, and searched for what it says nowhere else."""

    def __init__(self, level: int, report: Report) -> None:
        self._level = level
        self._report = report
        self._is_counting = True
        self._is_lock_told = False
        self._errors: list[str] = []
        self._changed: set[str] = set()
        self.buffers: list[str] = []
        self.memory_bytes = 0
        self.n_gpu_layers = 0
        self.capture = LogCapture(self._receive)

    def start_counting(self) -> None:
        """Forget the buffers of calibration contexts; those of the weights stay."""
        self.buffers = [line for line in self.buffers if " model " in line or " LoRA " in line]
        self.memory_bytes = 0
        for line in self.buffers:
            self._count(line)

    def tell(self, message: str) -> None:
        """What is no line of llama.cpp's."""
        self._report(Notice(message))

    def explain(self, message: str) -> str:
        """`message`, with the last error of llama.cpp that says more than that loading failed."""
        reasons = [line for line in self._errors if "failed to load model" not in line]
        if not reasons:
            return message
        reason = re.sub(r"^\w+: ", "", reasons[0])
        return f"{message}: {reason}"

    @property
    def is_out_of_memory(self) -> bool:
        """Whether llama.cpp says that it failed for want of memory."""
        return any(_NO_MEMORY.search(line) for line in self._errors)

    def check_metadata(self, changes: Sequence[tuple[str, Scalar]]) -> None:
        """Raises ModelError where llama.cpp did not read a key that the settings change, or not with that type."""
        for key, value in changes:
            if key not in self._changed:
                raise ModelError(
                    f"override_kv {key}: llama.cpp reads no such key of this model, or not as a {type(value).__name__}"
                )

    def _receive(self, level: int, line: str) -> None:
        if level >= logging.ERROR:
            self._errors.append(line.strip())
        if _BUFFER.search(line):
            self.buffers.append(line)
            self._count(line)
        if (changed := _CHANGED.search(line)) is not None:
            self._changed.add(changed[1])
        offloaded = _OFFLOADED.search(line)
        if offloaded is not None:
            self.n_gpu_layers = int(offloaded[1])
        if not self._is_lock_told and (failure := _NOT_LOCKED.search(line)) is not None:
            self._is_lock_told = True
            self.tell(f"mlock: the model may go to swap, {failure[0]}; raise 'ulimit -l', or leave --mlock out")
        if level >= self._level:
            self._report(LogLine(level, line))

    def _count(self, line: str) -> None:
        match = _BUFFER.search(line)
        if match is not None:
            self.memory_bytes += int(float(match[3]) * 1024 * 1024)
