"""Flags about computing: context, threads, caches, speculative decoding."""

from __future__ import annotations

from typing import Any

from ggufd.settings.llama_server import readings
from ggufd.settings.llama_server.flag import Flag, Part, Refused, Taken, fixed, plain, sets, switch, valued
from ggufd.settings.llama_server.readings import on_off_auto, unless

_PRIORITY = "start the server with `nice` for another priority"
_POLL = "llama.cpp decides how its threads wait"
_CHECKPOINTS = "states are kept at the ends of messages, within --cache-ram"
_OWN_CELLS = (
    "each slot has cells of its own, --ctx-size divided by --parallel; without --parallel each has all of --ctx-size"
)
_DRAFT = "the draft model is computed as the large one is"
_LOOKUP = "prompt lookup drafts by itself, with lengths that it adapts; --spec-draft-n-max bounds them"
_DRAFT_LENGTH = "the length of a draft adapts to what was accepted; --spec-draft-n-max bounds it"
_SYNTHETIC = "this accepts drafts by chance, which would change answers; measure with `ggufd bench`"
_REMOVED = "llama-server has removed it; use --spec-draft-n-max, which bounds every draft"


def _types(value: str) -> dict[str, Any]:
    """Only `none` on its own means that nothing drafts."""
    return {"spec_draft_n_max": 0} if value == "none" else {}


CONTEXT: tuple[Flag, ...] = (
    valued("-c --ctx-size", sets("ctx_size"), "LLAMA_ARG_CTX_SIZE"),
    valued(
        "--kv-unified-per-slot",
        Refused("slots share no cells here; set --ctx-size to this number times --parallel"),
        "LLAMA_ARG_KV_UNIFIED_PER_SLOT",
    ),
    valued("-np --parallel", sets("parallel", read=unless({"-1": "0"})), "LLAMA_ARG_N_PARALLEL"),
    valued("-b --batch-size", sets("batch_size"), "LLAMA_ARG_BATCH"),
    valued("-ub --ubatch-size", sets("ubatch_size"), "LLAMA_ARG_UBATCH"),
    plain("--swa-full", fixed(swa_full=True), "LLAMA_ARG_SWA_FULL"),
    switch(
        "-cb --cont-batching",
        "-nocb --no-cont-batching",
        Taken("requests are always batched continuously"),
        Taken("requests are always batched continuously; --parallel 1 computes one at a time"),
        "LLAMA_ARG_CONT_BATCHING",
    ),
    switch(
        "-kvu --kv-unified",
        "-no-kvu --no-kv-unified",
        Taken(_OWN_CELLS),
        Taken("each slot has cells of its own anyway"),
        "LLAMA_ARG_KV_UNIFIED",
    ),
    switch(
        "--context-shift",
        "--no-context-shift",
        fixed(context_shift=True),
        fixed(context_shift=False),
        "LLAMA_ARG_CONTEXT_SHIFT",
    ),
    valued("-fa --flash-attn", sets("flash_attn", read=on_off_auto), "LLAMA_ARG_FLASH_ATTN"),
    switch(
        "-kvo --kv-offload",
        "-nkvo --no-kv-offload",
        fixed(kv_offload=True),
        fixed(kv_offload=False),
        "LLAMA_ARG_KV_OFFLOAD",
    ),
    valued("-ctk --cache-type-k", sets("cache_type_k"), "LLAMA_ARG_CACHE_TYPE_K"),
    valued("-ctv --cache-type-v", sets("cache_type_v"), "LLAMA_ARG_CACHE_TYPE_V"),
    valued("-dt --defrag-thold", Taken("llama.cpp needs it no longer"), "LLAMA_ARG_DEFRAG_THOLD"),
    valued("--rope-scaling", sets("rope_scaling"), "LLAMA_ARG_ROPE_SCALING_TYPE"),
    valued("--rope-scale", sets("rope_freq_scale", read=readings.inverse), "LLAMA_ARG_ROPE_SCALE"),
    valued("--rope-freq-base", sets("rope_freq_base"), "LLAMA_ARG_ROPE_FREQ_BASE"),
    valued("--rope-freq-scale", sets("rope_freq_scale"), "LLAMA_ARG_ROPE_FREQ_SCALE"),
    valued("--yarn-orig-ctx", sets("yarn_orig_ctx"), "LLAMA_ARG_YARN_ORIG_CTX"),
    valued("--yarn-ext-factor", sets("yarn_ext_factor"), "LLAMA_ARG_YARN_EXT_FACTOR"),
    valued("--yarn-attn-factor", sets("yarn_attn_factor"), "LLAMA_ARG_YARN_ATTN_FACTOR"),
    valued("--yarn-beta-slow", sets("yarn_beta_slow"), "LLAMA_ARG_YARN_BETA_SLOW"),
    valued("--yarn-beta-fast", sets("yarn_beta_fast"), "LLAMA_ARG_YARN_BETA_FAST"),
    plain("--embedding --embeddings", fixed(embeddings=True), "LLAMA_ARG_EMBEDDINGS"),
    plain("--rerank --reranking", fixed(reranking=True), "LLAMA_ARG_RERANKING"),
    valued("--pooling", sets("pooling"), "LLAMA_ARG_POOLING"),
    valued("--embd-normalize", sets("embd_normalize")),
    switch(
        "--warmup",
        "--no-warmup",
        Taken("the first request finds a warm model anyway"),
        Taken("the start does no warm-up of its own"),
    ),
    switch(
        "--perf",
        "--no-perf",
        Taken("times are always measured"),
        Taken("times are always measured"),
        "LLAMA_ARG_PERF",
    ),
)

THREADS: tuple[Flag, ...] = (
    valued("-t --threads", sets("threads"), "LLAMA_ARG_THREADS"),
    valued("-tb --threads-batch", sets("threads_batch")),
    valued("-C --cpu-mask", Part("cpus", "mask", ("cpus",), readings.cpu_list)),
    valued("-Cr --cpu-range", Part("cpus", "range", ("cpus",), readings.cpu_range)),
    valued("--cpu-strict", Taken("threads may move among the CPUs of --cpu-mask and --cpu-range")),
    valued("--prio", Taken(_PRIORITY)),
    valued("--poll", Taken(_POLL)),
    valued("-Cb --cpu-mask-batch", Taken("prefill runs on the CPUs of --cpu-mask and --cpu-range")),
    valued("-Crb --cpu-range-batch", Taken("prefill runs on the CPUs of --cpu-mask and --cpu-range")),
    valued("--cpu-strict-batch", Taken("threads may move among the CPUs of --cpu-mask and --cpu-range")),
    valued("--prio-batch", Taken(_PRIORITY)),
    valued("--poll-batch", Taken(_POLL)),
    valued(
        "--threads-http", Taken("one thread serves all connections, without waiting for any"), "LLAMA_ARG_THREADS_HTTP"
    ),
)

CACHES: tuple[Flag, ...] = (
    valued("-ctxcp --ctx-checkpoints --swa-checkpoints", Taken(_CHECKPOINTS), "LLAMA_ARG_CTX_CHECKPOINTS"),
    valued("-cms --checkpoint-min-step", Taken(_CHECKPOINTS), "LLAMA_ARG_CHECKPOINT_MIN_SPACING_NT"),
    valued("-cram --cache-ram", sets("cache_ram", read=unless({"-1": "auto"})), "LLAMA_ARG_CACHE_RAM"),
    switch(
        "--cache-idle-slots",
        "--no-cache-idle-slots",
        Taken("a chat goes to the RAM cache when its slot is needed"),
        Taken("a chat goes to the RAM cache when its slot is needed; --cache-ram 0 keeps none"),
        "LLAMA_ARG_CACHE_IDLE_SLOTS",
    ),
    switch(
        "--cache-prompt",
        "--no-cache-prompt",
        Taken("prefixes are always reused"),
        Taken("prefixes are always reused; that changes the time of an answer, not the answer"),
        "LLAMA_ARG_CACHE_PROMPT",
    ),
    valued("--cache-reuse", sets("cache_reuse"), "LLAMA_ARG_CACHE_REUSE"),
    valued("-sps --slot-prompt-similarity", Taken("the slot with the longest common prefix is chosen")),
    valued("--slot-save-path", sets("slot_save_path")),
)

SPECULATION: tuple[Flag, ...] = (
    valued(
        "--spec-draft-model -md --model-draft", Part("draft", "path", ("model_draft",)), "LLAMA_ARG_SPEC_DRAFT_MODEL"
    ),
    valued(
        "--spec-draft-hf -hfd -hfrd --hf-repo-draft",
        Part("draft", "repo", ("model_draft",)),
        "LLAMA_ARG_SPEC_DRAFT_HF_REPO",
    ),
    valued("--spec-draft-n-max", sets("spec_draft_n_max"), "LLAMA_ARG_SPEC_DRAFT_N_MAX"),
    valued("--spec-draft-n-min", Taken(_DRAFT_LENGTH), "LLAMA_ARG_SPEC_DRAFT_N_MIN"),
    valued("--spec-draft-p-min --draft-p-min", sets("spec_draft_p_min"), "LLAMA_ARG_SPEC_DRAFT_P_MIN"),
    valued(
        "--spec-draft-p-split --draft-p-split",
        Taken("a draft is one line of tokens, not a tree"),
        "LLAMA_ARG_SPEC_DRAFT_P_SPLIT",
    ),
    valued(
        "--spec-draft-ngl -ngld --gpu-layers-draft --n-gpu-layers-draft",
        sets("n_gpu_layers_draft"),
        "LLAMA_ARG_N_GPU_LAYERS_DRAFT",
    ),
    valued("--spec-draft-device -devd --device-draft", Taken("the draft model goes to the devices of --device")),
    valued("-cd --ctx-size-draft", Taken(_DRAFT), "LLAMA_ARG_CTX_SIZE_DRAFT", is_former=True),
    valued("--spec-draft-threads -td --threads-draft", Taken(_DRAFT)),
    valued("--spec-draft-threads-batch -tbd --threads-batch-draft", Taken(_DRAFT)),
    valued("--spec-draft-cpu-mask -Cd --cpu-mask-draft", Taken(_DRAFT)),
    valued("--spec-draft-cpu-range -Crd --cpu-range-draft", Taken(_DRAFT)),
    valued("--spec-draft-cpu-strict --cpu-strict-draft", Taken(_DRAFT)),
    valued("--spec-draft-prio --prio-draft", Taken(_PRIORITY)),
    valued("--spec-draft-poll --poll-draft", Taken(_POLL)),
    valued("--spec-draft-cpu-mask-batch -Cbd --cpu-mask-batch-draft", Taken(_DRAFT)),
    valued("--spec-draft-cpu-strict-batch --cpu-strict-batch-draft", Taken(_DRAFT)),
    valued("--spec-draft-prio-batch --prio-batch-draft", Taken(_PRIORITY)),
    valued("--spec-draft-poll-batch --poll-batch-draft", Taken(_POLL)),
    valued(
        "--spec-draft-type-k -ctkd --cache-type-k-draft",
        Taken("the draft model's cache is f16"),
        "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_K",
    ),
    valued(
        "--spec-draft-type-v -ctvd --cache-type-v-draft",
        Taken("the draft model's cache is f16"),
        "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_V",
    ),
    valued("--spec-draft-override-tensor -otd --override-tensor-draft", Taken(_DRAFT)),
    plain("--spec-draft-cpu-moe -cmoed --cpu-moe-draft", Taken(_DRAFT), "LLAMA_ARG_SPEC_DRAFT_CPU_MOE"),
    valued(
        "--spec-draft-n-cpu-moe --spec-draft-ncmoe -ncmoed --n-cpu-moe-draft",
        Taken(_DRAFT),
        "LLAMA_ARG_SPEC_DRAFT_N_CPU_MOE",
    ),
    switch(
        "--spec-draft-backend-sampling",
        "--no-spec-draft-backend-sampling",
        Taken("drafts are sampled on the CPU"),
        Taken("drafts are sampled on the CPU"),
        "LLAMA_ARG_SPEC_DRAFT_BACKEND_SAMPLING",
    ),
    valued("--spec-type", sets("spec_draft_n_max", read=_types), "LLAMA_ARG_SPEC_TYPE", repeats=True),
    plain("--spec-default", Taken(_LOOKUP)),
    valued("-lcs --lookup-cache-static", Taken("prompt lookup reads the prompt and the answer, no files")),
    valued("-lcd --lookup-cache-dynamic", Taken("prompt lookup reads the prompt and the answer, no files")),
    *(
        valued(f"--spec-ngram-{name}", Taken(_LOOKUP))
        for name in (
            "mod-n-min",
            "mod-n-max",
            "mod-n-match",
            *(f"{kind}-{part}" for kind in ("simple", "map-k", "map-k4v") for part in ("size-n", "size-m", "min-hits")),
        )
    ),
    valued("--spec-synth-len", Refused(_SYNTHETIC), "LLAMA_ARG_SPEC_SYNTH_LEN"),
    valued("--spec-synth-rates", Refused(_SYNTHETIC), "LLAMA_ARG_SPEC_SYNTH_RATES"),
    valued("--draft --draft-n --draft-max", Refused(_REMOVED), "LLAMA_ARG_DRAFT_MAX"),
    valued("--draft-min --draft-n-min", Refused(_REMOVED), "LLAMA_ARG_DRAFT_MIN"),
    valued("--spec-ngram-size-n", Refused(_REMOVED)),
    valued("--spec-ngram-size-m", Refused(_REMOVED)),
    valued("--spec-ngram-min-hits", Refused(_REMOVED)),
)
