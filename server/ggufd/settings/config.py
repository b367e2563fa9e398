"""Definitions of all settings, as one frozen `Config`: names, types, limits, defaults, descriptions.

Names are unique over all sections, so the environment variable is GGUFD_<NAME>. Flags and the documentation's table
are made from the same fields. Knows neither where values come from (`sources`) nor what they do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo

ENV_PREFIX = "GGUFD_"

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "iq4_nl", "q4_1", "q4_0"]
ReasoningFormat = Literal["auto", "deepseek", "none"]
ToolFormatName = Literal[
    "auto",
    "generic",
    "apriel",
    "command-r",
    "command-r7b",
    "deepseek-r1",
    "deepseek-v3.1",
    "deepseek-v3.2",
    "deepseek-v4",
    "firefunction",
    "functionary",
    "functionary-3.2",
    "gemma-4",
    "glm",
    "granite",
    "harmony",
    "hermes",
    "kimi-k2",
    "lfm2",
    "llama-3",
    "minimax-m2",
    "mistral",
    "mistral-json",
    "nemotron",
    "pythonic",
    "qwen3-coder",
    "seed-oss",
]
SamplerName = Literal[
    "penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature", "adaptive_p"
]


def split(value: Any) -> Any:
    """List from one string: JSON when it begins with a bracket, else separated by commas (or semicolons)."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("values separated by commas, or a JSON list") from None
    return _parts(value)


def split_patterns(value: Any) -> Any:
    """List of regular expressions, which may themselves begin with a bracket."""
    try:
        return split(value)
    except ValueError:
        return _parts(value)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in re.split("[,;]", text) if part.strip()]


def _at_least_one_share(shares: tuple[float, ...]) -> tuple[float, ...]:
    if shares and not any(shares):
        raise ValueError("a share above 0 for at least one GPU")
    return shares


Shares = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1e12)], ...], BeforeValidator(split), AfterValidator(_at_least_one_share)
]
Strings = Annotated[tuple[str, ...], BeforeValidator(split)]
Keys = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(split)]


def _minus_one_is(meaning: Any) -> BeforeValidator:
    """Validator that maps llama-server's -1 to `meaning`."""
    return BeforeValidator(lambda value: meaning if value in (-1, "-1") else value)


AllLayers = BeforeValidator(lambda value: "auto" if value in ("all", -1, "-1") else value)
CacheRam = Literal["auto"] | Annotated[int, Field(ge=0)]
Layers = Annotated[Literal["auto"] | Annotated[int, Field(ge=0, le=2**31 - 1)], AllLayers]
Threads = Annotated[int, _minus_one_is(0)]
Seed = Annotated[Annotated[int, Field(ge=0, le=2**32 - 1)] | None, _minus_one_is(None)]
Limit = Annotated[Annotated[int, Field(ge=1)] | None, _minus_one_is(None)]
BodyLimit = Annotated[int, Field(ge=1024)] | None
Seconds = Annotated[Annotated[float, Field(gt=0)] | None, _minus_one_is(None)]
Waiting = Annotated[Annotated[int, Field(ge=0)] | None, _minus_one_is(None)]
Overrides = Annotated[tuple[Annotated[str, Field(pattern="^[^=]+=[^=]+$")], ...], BeforeValidator(split_patterns)]
Scaled = Annotated[tuple[Annotated[str, Field(pattern=r"^.+:[+-]?(\d+(\.\d*)?|\.\d+)$")], ...], BeforeValidator(split)]
_KEY_VALUE = r"^[^=]{1,127}=(int:-?\d{1,18}|float:-?[\d.]+(e-?\d+)?|bool:(true|false)|str:.{0,127})$"
KeyValues = Annotated[tuple[Annotated[str, Field(pattern=_KEY_VALUE)], ...], BeforeValidator(split)]
LayerRange = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None, BeforeValidator(split)]
Servers = Annotated[tuple[Annotated[str, Field(pattern=r"^[^\s:/]+:\d{1,5}$")], ...], BeforeValidator(split)]
CacheRepairs = Annotated[tuple[Literal["billing_header"], ...], BeforeValidator(split)]


def _check_template(text: str) -> str:
    """A name of a template is easily taken for one: as Jinja it is a text that shows no message."""
    if text and text != "chatml" and "{{" not in text and "{%" not in text:
        raise ValueError("the text of a Jinja template, or chatml (for a file: --chat-template-file)")
    return text


def _check_object(text: str) -> str:
    if text and not isinstance(_json(text), dict):
        raise ValueError('a JSON object, as in {"enable_thinking": false}')
    return text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


ChatTemplate = Annotated[str, AfterValidator(_check_template)]
JsonObject = Annotated[str, AfterValidator(_check_object)]
CpuList = Annotated[str, Field(pattern=r"^(\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*)?$")]
_BIAS = r"^\d{1,9}=[+-]?(inf|\d+(\.\d*)?|\.\d+)$"
Biases = Annotated[tuple[Annotated[str, Field(pattern=_BIAS)], ...], BeforeValidator(split)]
SamplerNames = Annotated[tuple[SamplerName, ...], BeforeValidator(split)]


def setting(default: Any, description: str, *flags: str, **limits: Any) -> Any:
    """Pydantic field of a setting, with the flag --its-name; `flags` are further spellings, such as llama-server's.

    Those of a switch are `on/off`, or ` /off`.
    """
    return Field(default, description=description, json_schema_extra={"flags": list(flags)}, **limits)


_SWITCHES = (bool, bool | None)


class Section(BaseModel):
    """One table of config.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _reject_booleans(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation not in _SWITCHES:
            raise ValueError("Input should be a value, not true or false")
        return value


class ModelSection(Section):
    """Model: source, adapters, placement on devices."""

    model: str = setting(
        "", "GGUF file, folder that holds one, hf:OWNER/REPO:QUANT or ollama:NAME; empty is the demo model.", "-m"
    )
    model_draft: str = setting(
        "",
        "Draft model for speculative decoding: smaller, of the same vocabulary; named as model is.",
        "-md",
        "--spec-draft-model",
    )
    mmproj: str = setting(
        "", "Image projector (mmproj) of the model: a GGUF file, or hf:OWNER/REPO/FILE.gguf; see mmproj_auto.", "-mm"
    )
    mmproj_auto: bool = setting(
        True,
        "Use an image projector that was published with the model: beside it, in its repository, in ollama's store.",
        " /--no-mmproj",
    )
    mmproj_offload: bool = setting(True, "Run the image projector on the GPU where the model is.")
    image_min_tokens: Limit = setting(
        None, "Fewest tokens of an image, of a projector that takes any size; unset is the projector's own."
    )
    image_max_tokens: Limit = setting(
        None, "Most tokens of an image, of a projector that takes any size; unset is the projector's own."
    )
    alias: str = setting("", "Model name in the API, or several, separated by commas; empty is the file's name.", "-a")
    tags: Strings = setting((), "Tags of the model in the list of models; they change nothing else.")
    chat_template: ChatTemplate = setting(
        "", "Jinja text instead of the model's own chat template, or chatml; empty is the model's own."
    )
    chat_template_file: str = setting("", "Jinja file instead of the model's own chat template.")
    chat_template_kwargs: JsonObject = setting(
        "", "Variables for the chat template, a JSON object; those of a request override them one by one."
    )
    tool_format: ToolFormatName = setting(
        "auto",
        "Format of the model's tool calls; auto detects it from the chat template, generic works with any model.",
    )
    n_gpu_layers: Layers = setting(
        "auto", "Layers on the GPU; auto is as many as fit, 0 is CPU only.", "-ngl", "--gpu-layers"
    )
    n_gpu_layers_draft: Layers = setting(
        "auto",
        "Layers of the draft model on the GPU; auto is as many as fit.",
        "-ngld",
        "--gpu-layers-draft",
        "--spec-draft-ngl",
    )
    cpu_moe: bool = setting(False, "Keep all experts of a mixture-of-experts model in RAM.", "-cmoe")
    n_cpu_moe: int | None = setting(
        None,
        "Keep the experts of the first N layers in RAM; unset is only as many as do not fit in VRAM.",
        "-ncmoe",
        ge=0,
    )
    override_tensor: Overrides = setting(
        (), "Buffer for tensors that match a pattern, as in ffn_.*_exps=CPU; overrides all other placement.", "-ot"
    )
    override_kv: KeyValues = setting(
        (), "Overrides of the file's metadata, as in llama.expert_used_count=int:3; types int, float, bool, str."
    )
    lora: Strings = setting((), "LoRA adapters, applied at scale 1 to requests that set no other.")
    lora_scaled: Scaled = setting((), "LoRA adapters with a scale each, as in style.gguf:0.5.")
    lora_init_without_apply: bool = setting(
        False, "Load the LoRA adapters, but apply them only to requests that ask for them."
    )
    control_vector: Strings = setting((), "Control vectors, applied to every request.")
    control_vector_scaled: Scaled = setting((), "Control vectors with a scale each, as in calm.gguf:0.8.")
    control_vector_layer_range: LayerRange = setting(
        None, "First and last layer that control vectors are applied to, as in 10,20; unset is all."
    )
    split_mode: Literal["none", "layer", "row"] = setting("layer", "How the model is split across several GPUs.", "-sm")
    main_gpu: int = setting(0, "The GPU to use when split_mode is none.", "-mg", ge=0)
    tensor_split: Shares = setting(
        (), "Proportion of the model for each GPU, as in 3,1; empty is by free memory.", "-ts"
    )
    device: Strings = setting(
        (), "Devices to offload to, as --list-devices names them, as in CUDA0,CUDA1; none is no GPU, empty is all."
    )
    numa: Literal["", "distribute", "isolate", "numactl"] = setting(
        "", "Use of several NUMA nodes: distribute, isolate, or as numactl says; empty leaves it to the system."
    )
    rpc: Servers = setting(
        (), "llama.cpp RPC servers whose devices are used as well, as in host:50052; needs a build with RPC."
    )
    mmap: bool = setting(True, "Memory-map the file instead of reading it: later starts are faster.")
    mlock: bool = setting(False, "Lock the model in RAM, so that it is never swapped out.")
    sleep_idle_seconds: Seconds = setting(
        None, "Seconds without a request after which the model is unloaded until the next one; unset is never."
    )
    require_gpu: bool = setting(False, "Refuse to start when no GPU can be used.")


class ContextSection(Section):
    """Context: slots, KV cache, batches, speculative decoding, embeddings."""

    ctx_size: int = setting(
        0,
        "Context size in tokens: the total of all slots if parallel is set too, else each slot's; 0 is automatic.",
        "-c",
        ge=0,
        le=(1 << 30) - 1,
    )
    parallel: int = setting(
        0, "Number of slots, the sequences that run at once (continuous batching); 0 is 4.", "-np", ge=0, le=256
    )
    batch_size: int = setting(
        2048,
        "Most tokens in the batch of one step; longer prompts take several (chunked prefill).",
        "-b",
        ge=1,
        le=1 << 24,
    )
    ubatch_size: int = setting(512, "Most tokens of a batch that are computed at once.", "-ub", ge=1, le=1 << 24)
    threads: Threads = setting(0, "Compute threads; 0 is one per physical core.", "-t", ge=0, le=512)
    cpus: CpuList = setting("", "CPUs that compute threads may run on, as in 0-3,8; empty is all.")
    threads_batch: Threads = setting(0, "Compute threads for prefill; 0 is the same as threads.", "-tb", ge=0, le=512)
    flash_attn: Literal["auto", "on", "off"] = setting(
        "auto", "Flash attention; auto is on with a GPU, on a CPU a measurement at start decides.", "-fa"
    )
    cache_type_k: CacheType = setting("f16", "Data type of the KV cache's keys.", "-ctk")
    cache_type_v: CacheType = setting(
        "f16", "Data type of the KV cache's values; a quantised one needs flash attention.", "-ctv"
    )
    kv_offload: bool = setting(True, "Keep the KV cache of offloaded layers on the GPU too.", "-kvo/-nkvo")
    swa_full: bool = setting(True, "Keep the full KV cache of sliding-window models, so that prefixes can be reused.")
    cache_reuse: int = setting(
        0, "Shortest run of tokens to reuse by shifting the KV cache when a client trims its history; 0 is off.", ge=0
    )
    context_shift: bool = setting(
        False, "Context shift: when a slot is full, drop the older half of the tokens behind n_keep and generate on."
    )
    cache_ram: CacheRam = setting(
        "auto",
        "MiB of host RAM for chats evicted from their slot; 0 is none, auto is half of the free RAM, 1024 at most.",
        "-cram",
    )
    slot_save_path: str = setting("", "Folder for the files of POST /slots/N?action=save; empty refuses to save.")
    cache_disk: int = setting(0, "MiB on disk for chats evicted from host RAM, kept over restarts; 0 is none.", ge=0)
    cache_disk_path: str = setting(
        "",
        "Folder for the chats of cache_disk, of which each engine that shares it has a part; empty is the user's own.",
    )
    cache_sharing: Literal["auto", "shared", "per-key"] = setting(
        "auto", "Prefix cache between keys: shared by all, per-key, or auto: per-key as soon as there are two keys."
    )
    cache_repairs: CacheRepairs = setting(
        ("billing_header",),
        "Changes to prompts that let a prefix be reused; billing_header drops Claude Code's from system texts.",
    )
    cache_advice: bool = setting(
        True,
        "Remember each key's last prompts in memory to tell why its chats are computed again, see /v1/cache/advice.",
    )
    pre_roll: bool = setting(
        False,
        "While idle, compute the start of a chat's next prompt ahead when its client drops old messages each turn.",
    )
    spec_draft_n_max: int = setting(
        31, "Speculative decoding of up to four requests at once: most draft tokens of each per step; 0 is off.", ge=0
    )
    spec_draft_p_min: float = setting(
        0.0,
        "Probability below which the draft model ends its draft; 0 is where drafting no longer pays off.",
        "--draft-p-min",
        ge=0,
        le=1,
    )
    embeddings: bool = setting(
        False, "Create the context for embeddings at start, not at the first request for them.", "--embedding"
    )
    pooling: Literal["", "none", "mean", "cls", "last", "rank"] = setting(
        "", "Pooling of a text's vectors into one; empty is the model's own, else the mean."
    )
    reranking: bool = setting(False, "Rerank documents; the same as pooling rank.", "--rerank")
    rope_scaling: Literal["", "none", "linear", "yarn"] = setting("", "RoPE scaling method; empty is the model's own.")
    rope_freq_base: float = setting(0.0, "RoPE base frequency; 0 is the model's own.", ge=0)
    rope_freq_scale: float = setting(0.0, "RoPE frequency scale, 0.5 doubles the context; 0 is the model's own.", ge=0)
    yarn_orig_ctx: int = setting(0, "YaRN: context size the model was trained with; 0 is the model's own.", ge=0)
    yarn_ext_factor: float = setting(-1.0, "YaRN: extrapolation mix factor; -1 is the model's own.", ge=-1)
    yarn_attn_factor: float = setting(-1.0, "YaRN: attention magnitude scale; -1 is the model's own.", ge=-1)
    yarn_beta_slow: float = setting(-1.0, "YaRN: high correction dimension (alpha); -1 is the model's own.", ge=-1)
    yarn_beta_fast: float = setting(-1.0, "YaRN: low correction dimension (beta); -1 is the model's own.", ge=-1)


class PoolSection(Section):
    """Several models, of which one is loaded; [models.NAME] holds the settings of one of them."""

    models_dir: str = setting(
        "", "Folder of models that are known besides model, and loaded when a request names one; empty is none."
    )
    more_models: Strings = setting((), "Further models that are known, each named as model is.")
    swap_after_s: float = setting(
        30.0, "Least seconds that a model stays loaded while requests of others wait for another one.", ge=0
    )
    swap_for: Literal["admin", "everybody", "nobody"] = setting(
        "admin",
        "Whose requests may have another model loaded: admin keys (without keys this machine), everybody, or nobody.",
    )
    swap_models: Strings = setting((), "Models that requests of all keys may have loaded, by name; * is all.")
    swap_retry_s: float = setting(
        60.0, "Seconds after which a model that could not be loaded is tried again for a request.", ge=0
    )


class ServerSection(Section):
    """HTTP server: address, keys, TLS, limits, log."""

    host: str = setting(
        "127.0.0.1",
        "Address to listen on, or several, separated by commas; 127.0.0.1 can be reached from this machine only.",
        pattern=r"[^\s,]",
    )
    port: int = setting(8080, "Port to listen on; 0 is any free one.", ge=0, le=65535)
    api_key: Keys = setting((), "API keys, one of which every request must carry; they have the admin role.")
    api_key_file: str = setting(
        "", "Key file, as ggufd keys writes it or with a key per line; empty is keys.toml of the config folder, if any."
    )
    allow_unauthenticated: bool = setting(False, "Listen beyond this machine even though no key is set.")
    root_path: str = setting(
        "", "Path prefix under which a reverse proxy serves this server, such as /llm.", pattern="^(/.*)?$"
    )
    ui: bool = setting(True, "Serve the web page (chat and live view) to browsers; --no-ui leaves it out.")
    metrics_for: Literal["admin", "user", "everybody", "nobody"] = setting(
        "admin", "Who may read /metrics: admin keys, all keys (user), everybody without a key, or nobody."
    )
    ready_when_full: bool = setting(
        False, "Answer /ready with 200 while the queue is full too, so that a readiness probe does not flap under load."
    )
    trusted_proxies: Strings = setting(
        (), "Addresses or networks of reverse proxies whose X-Forwarded-For and X-Forwarded-Proto are trusted."
    )
    peer_token_file: str = setting(
        "",
        "File with the token of the cluster that this server belongs to, without which every request but health "
        "probes is refused; empty is no cluster.",
    )
    ssl_key_file: str = setting("", "TLS private key, PEM; with it and the certificate the server speaks HTTPS.")
    ssl_cert_file: str = setting("", "TLS certificate with its chain, PEM.")
    allowed_hosts: Strings = setting(
        (), "Host names besides localhost that are served without a key (DNS rebinding protection); * is any."
    )
    cors_origins: Strings = setting(
        (),
        "Origins of web pages that may call the API (CORS), such as https://example.org; * is all, localhost those of "
        "this machine.",
    )
    slots: bool = setting(True, "Answer GET /slots, for admin keys; without it the route is refused with 501.")
    max_body_bytes: BodyLimit = setting(
        None,
        "Largest request body in bytes; a larger one is refused with 413. Unset is 2000000, and 32000000 where the "
        "model has an image projector.",
    )
    ping_s: float = setting(1.0, "Seconds of silence after which a stream sends a keep-alive comment.", gt=0)
    text_interval_ms: float = setting(
        20.0,
        "Least milliseconds between two chunks of a stream; faster tokens share one; 0 sends each at once.",
        ge=0,
    )
    read_timeout_s: float = setting(30.0, "Seconds within which a whole request must have arrived.", gt=0)
    write_timeout_s: float = setting(
        60.0, "Seconds after which a client that does not read its answer is disconnected.", gt=0
    )
    drain_s: float = setting(30.0, "Seconds that running requests get to finish after Ctrl-C or SIGTERM.", ge=0)
    traces: bool = setting(
        False,
        "Export an OpenTelemetry span per request to OTEL_EXPORTER_OTLP_ENDPOINT; needs pip install 'ggufd[otel]'.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "Least severe log lines shown; debug adds llama.cpp's own, and parts of prompts."
    )
    log_format: Literal["text", "json"] = setting("text", "Log lines as text, or as one JSON object each.")
    log_file: str = setting("", "File that the log is written to as well; it is appended to.")


class ResponsesSection(Section):
    """Stored responses of /v1/responses, which clients can retrieve or continue."""

    responses_path: str = setting(
        "", "SQLite file that keeps stored responses over restarts; empty keeps them in memory."
    )
    max_responses: int = setting(1000, "Most responses stored; the least recently used is deleted first (LRU).", ge=0)
    max_responses_mib: int = setting(64, "Most MiB of stored responses.", ge=1)


class StreamsSection(Section):
    """Resumable streams: answers that go on and are kept when their client is gone."""

    resumable: bool = setting(
        False, "Make every stream resumable whose request does not say; a disconnect then ends none of them."
    )
    max_streams: int = setting(
        64, "Most resumable streams, running and ended; ended ones make room, 0 keeps none.", ge=0
    )
    max_streams_per_key: int = setting(8, "Most resumable streams of one key, or without keys of one address.", ge=0)
    max_streams_mib: int = setting(64, "Most MiB of events kept of all resumable streams.", ge=1)
    max_streams_per_key_mib: int = setting(16, "Most MiB of events kept of one key's resumable streams.", ge=1)
    max_stream_mib: int = setting(4, "Most MiB of events kept of one resumable stream; the oldest go first.", ge=1)
    stream_unread_s: float = setting(
        600.0, "Seconds that a resumable stream goes on without a reader; then the answer ends.", gt=0
    )
    stream_kept_s: float = setting(300.0, "Seconds that a resumable stream is kept after its end.", ge=0)


class BatchesSection(Section):
    """Batches of /v1/batches: requests that may wait until there is nothing else to do."""

    batch_dir: str = setting("", "Folder that keeps files and batches over restarts; empty turns batches off.")
    batch_max_mib: int = setting(1024, "Most MiB of files and results of batches.", ge=1)
    batch_max_file_mib: int = setting(64, "Most MiB of one uploaded file.", ge=1)
    batch_max_files_per_key: int = setting(100, "Files that one key may have, those with results included.", ge=1)
    batch_keep_days: int = setting(30, "Days after which files and batches are deleted.", ge=1, le=3650)


class ImagesSection(Section):
    """Images of requests, read where the model has a projector: where they may come from, how large they may be."""

    image_hosts: Strings = setting(
        (),
        "Hosts that images may be fetched from: example.com, *.example.com, example.com:8443; * is any public one.",
    )
    media_path: str = setting("", "Folder whose files requests may name as file://NAME; empty is none.")
    max_image_pixels: int = setting(
        18_000_000, "Most pixels of an image; of WebP, which takes more memory, half as many.", ge=1024
    )
    max_image_bytes: int = setting(20_000_000, "Largest file of an image in bytes.", ge=1024)
    image_timeout_s: float = setting(5.0, "Seconds that fetching an image may take, and decoding it.", gt=0, le=600)


class QueueSection(Section):
    """Queue: admission, priorities, fair sharing, limits per key."""

    max_queue: int = setting(64, "Requests that may wait in the queue; more are refused with 503.", ge=0)
    max_queue_wait_s: float = setting(600.0, "Seconds a request may wait in the queue before it is refused.", gt=0)
    max_gap_ms: float = setting(
        200.0, "Longest pause in milliseconds that a chunk of prefill may put between tokens of other streams.", gt=0
    )
    max_gap_steps: int = setting(
        2, "The same limit in decode steps of those streams; the longer of both applies.", ge=0
    )
    max_gap_full_ms: float = setting(
        600.0,
        "While many requests wait the pause may be 3 to 5 times as many steps, up to these milliseconds; 0 is never.",
        ge=0,
    )
    prompt_cost: float = setting(
        0.25, "Cost of a computed prompt token against a generated one, for the fair sharing between keys.", ge=0
    )
    priority_aging_s: float = setting(30.0, "Seconds of waiting that raise a request by one step of priority.", gt=0)
    reserved_slots: int = setting(0, "Slots reserved for short requests; one slot always stays open to all.", ge=0)
    short_tokens: int = setting(
        512, "Most tokens, of prompt to compute and answer, of a request that may take a reserved slot.", ge=1
    )
    preempt: bool = setting(
        False,
        "Preemption: a long answer waits in host RAM while a request with a better claim uses its slot; costs RAM.",
    )
    share_by_address: bool = setting(True, "Without keys, share the server fairly between client addresses.")
    max_running_per_key: Limit = setting(None, "Slots that one key may hold at once; unset is all of them.")
    max_waiting_per_key: Waiting = setting(None, "Requests of one key that may wait; more are refused with 429.")
    tokens_per_minute_per_key: Limit = setting(
        None, "Tokens per minute, computed and generated, of one key; above it requests get 429."
    )
    step_timeout_s: float = setting(
        60.0, "Seconds without progress after which a busy engine process is killed and restarted; 0 is never.", ge=0
    )


class ReasoningSection(Section):
    """Reasoning: the part of an answer that is the model's thinking."""

    reasoning_format: ReasoningFormat = setting(
        "auto", "Where reasoning goes: auto and deepseek put it into reasoning_content, none leaves it in content."
    )
    reasoning_budget: int = setting(
        -1, "Most reasoning tokens before the model is made to answer; 0 is no reasoning, -1 is no limit.", ge=-1
    )
    reasoning_budget_message: str = setting("", "Text written at the end of reasoning that reached its budget.")


class OutputSection(Section):
    """Output where a request says nothing: constraints, stop strings, biases."""

    grammar: str = setting("", "Grammar (GBNF) of answers to requests that set no constraint of their own.")
    json_schema: JsonObject = setting("", "JSON schema of answers to requests that set no constraint of their own.")
    stop: Strings = setting((), "Strings that end an answer, for requests that set none.")
    logit_bias: Biases = setting((), "Biases of tokens for requests that set none, as in 15043=-1; -inf bans a token.")
    n_keep: int = setting(
        0, "Tokens of a prompt that a context shift keeps, for requests that set none; -1 is all.", "--keep", ge=-1
    )
    special: bool = setting(False, "Write special tokens out in answers, for requests that do not say.")
    prefill_assistant: bool = setting(
        True, "Continue the last message of a chat where it is the assistant's, for requests that do not say."
    )
    chat_parsing: bool = setting(
        True, "Take reasoning and tool calls out of a chat's answers; without it all of it stays in content."
    )
    spm_infill: bool = setting(
        False, "Write the suffix before the prefix in an infill prompt, as some models were trained (SPM)."
    )
    embd_normalize: int = setting(
        2,
        "Norm of vectors of POST /embedding: 2 is Euclidean, -1 none, 0 the greatest at 32,760, 1 the sum, else p.",
        ge=-1,
        le=64,
    )


class SamplingSection(Section):
    """Sampling defaults where a request says nothing; unset is the model file's own, else OpenAI's, else off."""

    max_tokens: Limit = setting(
        None, "Most tokens of an answer; unset is up to the end of the context.", "-n", "--predict", "--n-predict"
    )
    seed: Seed = setting(None, "Seed of requests that send none; unset is a random one each time.", "-s")
    temperature: float | None = setting(None, "Temperature; 0 is greedy sampling.", "--temp", ge=0)
    dynatemp_range: float | None = setting(None, "Range of dynamic temperature; 0 is off.", ge=0)
    dynatemp_exponent: float | None = setting(
        None, "Exponent of dynamic temperature, which maps entropy to it.", "--dynatemp-exp", gt=0
    )
    top_k: int | None = setting(None, "Top-k: keep this many of the most likely tokens; 0 is off.", ge=0)
    top_p: float | None = setting(
        None, "Top-p: keep the most likely tokens up to this cumulative probability; 1 is off.", ge=0, le=1
    )
    min_p: float | None = setting(
        None, "Min-p: drop tokens below this fraction of the most likely one's probability; 0 is off.", ge=0, le=1
    )
    typ_p: float | None = setting(None, "Locally typical sampling; 1 is off.", "--typical", "--typical-p", ge=0, le=1)
    top_n_sigma: float | None = setting(
        None,
        "Top-n-sigma: keep tokens within this many standard deviations of the best logit; -1 is off.",
        "--top-nsigma",
        ge=-1,
    )
    xtc_probability: float | None = setting(
        None, "Probability that XTC drops the most likely tokens; 0 is off.", ge=0, le=1
    )
    xtc_threshold: float | None = setting(None, "Probability above which XTC may drop a token.", ge=0, le=1)
    dry_multiplier: float | None = setting(None, "Strength of the DRY repetition penalty; 0 is off.", ge=0)
    dry_base: float | None = setting(None, "Growth of the DRY penalty with the length of the repetition.", ge=0)
    dry_allowed_length: int | None = setting(None, "Longest repetition in tokens without a DRY penalty.", ge=0)
    dry_penalty_last_n: int | None = setting(
        None, "Tokens that DRY looks back; 0 is off, -1 is the whole context.", ge=-1
    )
    dry_sequence_breakers: Strings | None = setting(
        None, "Strings that end a repetition for DRY.", "--dry-sequence-breaker"
    )
    repeat_penalty: float | None = setting(None, "Repetition penalty on earlier tokens; 1 is off.", gt=0)
    repeat_last_n: int | None = setting(
        None, "Tokens that the penalties look back; 0 is off, -1 is the whole context.", ge=-1
    )
    frequency_penalty: float | None = setting(None, "Penalty that grows with each occurrence of a token; 0 is off.")
    presence_penalty: float | None = setting(None, "Penalty on every token that has occurred; 0 is off.")
    mirostat: int | None = setting(None, "Mirostat version, 1 or 2; 0 is off.", ge=0, le=2)
    mirostat_tau: float | None = setting(None, "Target entropy of mirostat.", "--mirostat-ent", ge=0)
    mirostat_eta: float | None = setting(None, "Learning rate of mirostat.", "--mirostat-lr", ge=0, le=1)
    adaptive_target: float | None = setting(None, "Target probability of adaptive-p; -1 is off.", ge=-1, le=1)
    adaptive_decay: float | None = setting(
        None, "Decay of adaptive-p's running average; higher adapts more slowly.", ge=0, le=0.99
    )
    min_keep: int | None = setting(None, "Least tokens that every sampler keeps.", ge=0)
    samplers: SamplerNames | None = setting(None, "Samplers, in the order they are applied.")
    ignore_eos: bool | None = setting(None, "Ban end-of-generation tokens, so that answers run up to their limit.")


class Config(BaseModel):
    """All settings of one run, made by `sources.load`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: ModelSection = ModelSection()
    context: ContextSection = ContextSection()
    pool: PoolSection = PoolSection()
    server: ServerSection = ServerSection()
    responses: ResponsesSection = ResponsesSection()
    streams: StreamsSection = StreamsSection()
    batches: BatchesSection = BatchesSection()
    images: ImagesSection = ImagesSection()
    queue: QueueSection = QueueSection()
    reasoning: ReasoningSection = ReasoningSection()
    output: OutputSection = OutputSection()
    sampling: SamplingSection = SamplingSection()
    models: Mapping[str, Mapping[str, Any]] = {}
    """Tables [models.NAME]: settings of single models by key, see `model_tables`."""
    name: str = ""
    """Name in the API of the model that these settings are of, where there are several; else it is the file's."""


class Setting(NamedTuple):
    """One setting: its section, key and field, with all its spellings."""

    section: str
    key: str
    field: FieldInfo

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags, `--its-name` last."""
        return tuple(on for spelling in self.spellings if (on := spelling.partition("/")[0].strip()))

    @property
    def spellings(self) -> tuple[str, ...]:
        """Flags as typer declares them: on and off of a switch separated by a slash."""
        extra = self.field.json_schema_extra
        further = extra["flags"] if isinstance(extra, dict) else []
        assert isinstance(further, list)
        name = self.key.replace("_", "-")
        return (*map(str, further), f"--{name}/--no-{name}" if self.is_switch else f"--{name}")

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.key.upper()

    @property
    def description(self) -> str:
        return self.field.description or ""

    @property
    def is_switch(self) -> bool:
        return self.field.annotation in _SWITCHES

    @property
    def default_text(self) -> str:
        """Default as TOML; empty when it is unset."""
        default = self.field.default
        if default is None:
            return ""
        return json.dumps(list(default) if isinstance(default, tuple) else default)


def settings() -> tuple[Setting, ...]:
    """All settings, in the order of config.toml."""
    return tuple(
        Setting(section, key, field)
        for section, table in Config.model_fields.items()
        if isinstance(table.annotation, type) and issubclass(table.annotation, Section)
        for key, field in table.annotation.model_fields.items()
    )
