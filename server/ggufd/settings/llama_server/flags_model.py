"""Flags about the model: where it comes from, how it is loaded, where it is placed."""

from __future__ import annotations

from ggufd.settings.llama_server import readings
from ggufd.settings.llama_server.flag import (
    Exports,
    Flag,
    Part,
    Refused,
    Shows,
    Taken,
    fixed,
    plain,
    sets,
    switch,
    valued,
)
from ggufd.settings.llama_server.readings import names, one_of

_NOT_SERVED = "this model's projector is not served here; serve it with llama-server"
_PRESET = "write a table [models.NAME] for each model into config.toml, with its settings by our names"
_ONE = "one model is in memory at a time; another takes its place when a request names it"
_READ = "a file is mapped, or read through the system's cache"
_PLACED = "what fits into a GPU is measured at the start; set --n-gpu-layers to place it yourself"


def _hub(repo: str, file: str) -> str:
    return f"hf:{repo}/{file}"


_CODER = {"port": 8012, "ubatch_size": 1024, "batch_size": 1024, "ctx_size": 0, "cache_reuse": 256}
_CODER_05B = _hub("ggml-org/Qwen2.5-Coder-0.5B-Q8_0-GGUF", "qwen2.5-coder-0.5b-q8_0.gguf")
_CODER_7B = _hub("ggml-org/Qwen2.5-Coder-7B-Q8_0-GGUF", "qwen2.5-coder-7b-q8_0.gguf")
_GPT_OSS = {
    "port": 8013,
    "ubatch_size": 2048,
    "batch_size": 32768,
    "parallel": 2,
    "ctx_size": 131072 * 2,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.01,
}

SOURCES: tuple[Flag, ...] = (
    valued("-m --model", Part("model", "path", ("model", "more_models")), "LLAMA_ARG_MODEL", repeats=True),
    valued("-mu --model-url", Part("model", "url", ("model",)), "LLAMA_ARG_MODEL_URL"),
    valued(
        "-dr --docker-repo",
        Refused("Docker's registry is not read; pull the file with Docker, and name it with --model"),
        "LLAMA_ARG_DOCKER_REPO",
    ),
    valued("-hf -hfr --hf-repo", Part("model", "repo", ("model",)), "LLAMA_ARG_HF_REPO"),
    valued("-hff --hf-file", Part("model", "file", ("model",)), "LLAMA_ARG_HF_FILE"),
    valued("-hft --hf-token", Exports("HF_TOKEN"), "HF_TOKEN"),
    plain("--offline", Exports("HF_HUB_OFFLINE", "1"), "LLAMA_ARG_OFFLINE"),
    plain("-cl --cache-list", Refused("downloads lie in the cache of huggingface_hub: `hf cache ls` lists them")),
    valued("-a --alias", sets("alias"), "LLAMA_ARG_ALIAS"),
    valued("--tags", sets("tags", read=names), "LLAMA_ARG_TAGS", repeats=True),
    plain(
        "--embd-gemma-default",
        fixed(
            model=_hub("ggml-org/embeddinggemma-300M-qat-q4_0-GGUF", "embeddinggemma-300M-qat-Q4_0.gguf"),
            port=8011,
            ubatch_size=2048,
            batch_size=2048,
            parallel=32,
            ctx_size=2048 * 32,
            embeddings=True,
        ),
    ),
    plain(
        "--fim-qwen-1.5b-default",
        fixed(model=_hub("ggml-org/Qwen2.5-Coder-1.5B-Q8_0-GGUF", "qwen2.5-coder-1.5b-q8_0.gguf"), **_CODER),
    ),
    plain(
        "--fim-qwen-3b-default",
        fixed(model=_hub("ggml-org/Qwen2.5-Coder-3B-Q8_0-GGUF", "qwen2.5-coder-3b-q8_0.gguf"), **_CODER),
    ),
    plain("--fim-qwen-7b-default", fixed(model=_CODER_7B, **_CODER)),
    plain("--fim-qwen-7b-spec", fixed(model=_CODER_7B, model_draft=_CODER_05B, **_CODER)),
    plain(
        "--fim-qwen-14b-spec",
        fixed(
            model=_hub("ggml-org/Qwen2.5-Coder-14B-Q8_0-GGUF", "qwen2.5-coder-14b-q8_0.gguf"),
            model_draft=_CODER_05B,
            **_CODER,
        ),
    ),
    plain(
        "--fim-qwen-30b-default",
        fixed(
            model=_hub("ggml-org/Qwen3-Coder-30B-A3B-Instruct-Q8_0-GGUF", "qwen3-coder-30b-a3b-instruct-q8_0.gguf"),
            **_CODER,
        ),
    ),
    plain(
        "--gpt-oss-20b-default", fixed(model=_hub("ggml-org/gpt-oss-20b-GGUF", "gpt-oss-20b-mxfp4.gguf"), **_GPT_OSS)
    ),
    plain("--gpt-oss-120b-default", fixed(model="hf:ggml-org/gpt-oss-120b-GGUF", **_GPT_OSS)),
    plain("--vision-gemma-4b-default", Refused(_NOT_SERVED)),
    plain("--vision-gemma-12b-default", Refused(_NOT_SERVED)),
    valued("--models-dir", sets("models_dir"), "LLAMA_ARG_MODELS_DIR"),
    valued("--models-preset", Refused(_PRESET), "LLAMA_ARG_MODELS_PRESET"),
    valued("--models-max", Taken(_ONE), "LLAMA_ARG_MODELS_MAX"),
    switch(
        "--models-autoload",
        "--no-models-autoload",
        Taken("a request that names a known model has it loaded, as far as --swap-for allows"),
        fixed(swap_for="nobody"),
        "LLAMA_ARG_MODELS_AUTOLOAD",
    ),
)

IMAGES: tuple[Flag, ...] = (
    valued("-mm --mmproj", sets("mmproj"), "LLAMA_ARG_MMPROJ"),
    valued(
        "-mmu --mmproj-url",
        Refused(
            "URLs are not downloaded; download the file and name it with --mmproj, or give hf:OWNER/REPO/FILE.gguf"
        ),
        "LLAMA_ARG_MMPROJ_URL",
    ),
    switch(
        "--mmproj-auto",
        "--no-mmproj --no-mmproj-auto",
        fixed(mmproj_auto=True),
        fixed(mmproj_auto=False),
        "LLAMA_ARG_MMPROJ_AUTO",
    ),
    switch(
        "--mmproj-offload",
        "--no-mmproj-offload",
        fixed(mmproj_offload=True),
        fixed(mmproj_offload=False),
        "LLAMA_ARG_MMPROJ_OFFLOAD",
    ),
    valued(
        "-mmdev --mmproj-device",
        Taken("the projector runs on the first device of the model; --no-mmproj-offload keeps it on the CPU"),
        "MTMD_BACKEND_DEVICE",
    ),
    valued("--image-min-tokens", sets("image_min_tokens"), "LLAMA_ARG_IMAGE_MIN_TOKENS"),
    valued("--image-max-tokens", sets("image_max_tokens"), "LLAMA_ARG_IMAGE_MAX_TOKENS"),
    valued("--mtmd-batch-max-tokens", Taken("images are encoded one after another"), "LLAMA_ARG_MTMD_BATCH_MAX_TOKENS"),
    valued("--video-fps", Taken("videos are not read here"), "LLAMA_ARG_VIDEO_FPS"),
    valued("--video-timestamp-interval", Taken("videos are not read here"), "LLAMA_ARG_VIDEO_TIMESTAMP_INTERVAL"),
    valued("--video-ffmpeg-dir", Taken("videos are not read here"), "LLAMA_ARG_VIDEO_FFMPEG_DIR"),
    valued("--media-path", sets("media_path")),
)

LOADING: tuple[Flag, ...] = (
    valued(
        "-lm --load-mode",
        sets(
            "mmap",
            "mlock",
            read=one_of(
                {
                    "auto": {"mmap": True, "mlock": False},
                    "none": {"mmap": False, "mlock": False},
                    "mmap": {"mmap": True, "mlock": False},
                    "mlock": {"mmap": False, "mlock": True},
                    "mmap+mlock": {"mmap": True, "mlock": True},
                    "dio": {"mmap": False, "mlock": False},
                }
            ),
        ),
        "LLAMA_ARG_LOAD_MODE",
    ),
    Flag(("--mlock",), fixed(mlock=True), env="LLAMA_ARG_MLOCK", is_former=True),
    switch("--mmap", "--no-mmap", fixed(mmap=True), fixed(mmap=False), "LLAMA_ARG_MMAP", is_former=True),
    switch(
        "-dio --direct-io",
        "-ndio --no-direct-io",
        Taken(_READ),
        Taken(_READ),
        "LLAMA_ARG_DIO",
        is_former=True,
    ),
    valued(
        "-lzm --lazy-mode", Taken("the operating system reads a mapped file as it is needed"), "LLAMA_ARG_LAZY_MODE"
    ),
    plain("--check-tensors", Taken("the header is checked, the weights' numbers are not")),
    valued("--override-kv", sets("override_kv", read=names), repeats=True),
    switch(
        "--repack",
        "-nr --no-repack",
        Taken("llama.cpp repacks weights where that is faster"),
        Taken("llama.cpp repacks weights where that is faster; answers are the same"),
        "LLAMA_ARG_REPACK",
    ),
    plain("--no-host", Taken("llama.cpp chooses the buffers"), "LLAMA_ARG_NO_HOST"),
    valued("--lora", sets("lora", read=names), repeats=True),
    valued("--lora-scaled", sets("lora_scaled", read=names), repeats=True),
    plain("--lora-init-without-apply", fixed(lora_init_without_apply=True)),
    valued("--control-vector", sets("control_vector", read=names), repeats=True),
    valued("--control-vector-scaled", sets("control_vector_scaled", read=names), repeats=True),
    Flag(("--control-vector-layer-range",), sets("control_vector_layer_range"), 2),
    valued("--sleep-idle-seconds", sets("sleep_idle_seconds")),
)

PLACEMENT: tuple[Flag, ...] = (
    valued("-ngl --gpu-layers --n-gpu-layers", sets("n_gpu_layers"), "LLAMA_ARG_N_GPU_LAYERS"),
    valued("-sm --split-mode", sets("split_mode"), "LLAMA_ARG_SPLIT_MODE"),
    valued("-ts --tensor-split", sets("tensor_split", read=readings.shares), "LLAMA_ARG_TENSOR_SPLIT"),
    valued("-mg --main-gpu", sets("main_gpu"), "LLAMA_ARG_MAIN_GPU"),
    valued("-dev --device", sets("device", read=names), "LLAMA_ARG_DEVICE"),
    plain("--list-devices", Shows("devices")),
    valued("-ot --override-tensor", sets("override_tensor", read=names), "LLAMA_ARG_OVERRIDE_TENSOR", repeats=True),
    plain("-cmoe --cpu-moe", fixed(cpu_moe=True), "LLAMA_ARG_CPU_MOE"),
    valued("-ncmoe --n-cpu-moe", sets("n_cpu_moe"), "LLAMA_ARG_N_CPU_MOE"),
    valued(
        "-ncffn --n-cpu-ffn",
        sets("override_tensor", read=readings.dense_layers),
        "LLAMA_ARG_N_CPU_FFN",
        repeats=True,
    ),
    valued("--rpc", sets("rpc", read=names), "LLAMA_ARG_RPC", repeats=True),
    valued("-fit --fit", Taken(_PLACED), "LLAMA_ARG_FIT"),
    valued("-fitt --fit-target", Taken(_PLACED), "LLAMA_ARG_FIT_TARGET"),
    valued("-fitc --fit-ctx", Taken(_PLACED), "LLAMA_ARG_FIT_CTX"),
    switch(
        "--op-offload",
        "--no-op-offload",
        Taken("llama.cpp does so where there is a GPU"),
        Taken("llama.cpp chooses where a step is computed; answers are the same"),
    ),
    valued("--numa", sets("numa"), "LLAMA_ARG_NUMA"),
)
