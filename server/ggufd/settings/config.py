"""The settings, as one frozen `Config`: names, types, limits, defaults, meanings.

Every setting has a name of its own, so the environment spells it GGUFD_<NAME> whatever its section. Flags
and the documentation's table are made from the same fields. Knows neither where values come from (`sources`) nor what
they do.
"""

from __future__ import annotations

import json
import re
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
    """A list in one text: JSON when it begins with a bracket, else parted by commas (or semicolons)."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("texts parted by commas, or a list as JSON writes it") from None
    return _parts(value)


def split_patterns(value: Any) -> Any:
    """The same of regular expressions, which may begin with a bracket of their own."""
    try:
        return split(value)
    except ValueError:
        return _parts(value)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in re.split("[,;]", text) if part.strip()]


def _some_share(shares: tuple[float, ...]) -> tuple[float, ...]:
    if shares and not any(shares):
        raise ValueError("a share above 0 for one GPU at least")
    return shares


Shares = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1e12)], ...], BeforeValidator(split), AfterValidator(_some_share)
]
Strings = Annotated[tuple[str, ...], BeforeValidator(split)]
Keys = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(split)]


def _minus_one_is(meaning: Any) -> BeforeValidator:
    """llama-server's -1 for what has a word of its own here."""
    return BeforeValidator(lambda value: meaning if value in (-1, "-1") else value)


AllLayers = BeforeValidator(lambda value: "auto" if value in ("all", -1, "-1") else value)
CacheRam = Literal["auto"] | Annotated[int, Field(ge=0)]
Layers = Annotated[Literal["auto"] | Annotated[int, Field(ge=0, le=2**31 - 1)], AllLayers]
Threads = Annotated[int, _minus_one_is(0)]
Seed = Annotated[Annotated[int, Field(ge=0, le=2**32 - 1)] | None, _minus_one_is(None)]
Limit = Annotated[Annotated[int, Field(ge=1)] | None, _minus_one_is(None)]
Seconds = Annotated[Annotated[float, Field(gt=0)] | None, _minus_one_is(None)]
Waiting = Annotated[Annotated[int, Field(ge=0)] | None, _minus_one_is(None)]
Overrides = Annotated[tuple[Annotated[str, Field(pattern="^[^=]+=[^=]+$")], ...], BeforeValidator(split_patterns)]
Scaled = Annotated[tuple[Annotated[str, Field(pattern=r"^.+:[+-]?(\d+(\.\d*)?|\.\d+)$")], ...], BeforeValidator(split)]
_KEY_VALUE = r"^[^=]{1,127}=(int:-?\d{1,18}|float:-?[\d.]+(e-?\d+)?|bool:(true|false)|str:.{0,127})$"
KeyValues = Annotated[tuple[Annotated[str, Field(pattern=_KEY_VALUE)], ...], BeforeValidator(split)]
LayerRange = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None, BeforeValidator(split)]
Servers = Annotated[tuple[Annotated[str, Field(pattern=r"^[^\s:/]+:\d{1,5}$")], ...], BeforeValidator(split)]
SamplerNames = Annotated[tuple[SamplerName, ...], BeforeValidator(split)]


def setting(default: Any, description: str, *flags: str, **limits: Any) -> Any:
    """A field. It gets the flag --its-name; `flags` are further spellings, llama-server's where there are.

    Those of a switch are `on/off`.
    """
    return Field(default, description=description, json_schema_extra={"flags": list(flags)}, **limits)


_SWITCHES = (bool, bool | None)


class Section(BaseModel):
    """One table of config.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation not in _SWITCHES:
            raise ValueError("Input should be a value of its own, not true or false")
        return value


class ModelSection(Section):
    """Which model, and how it is loaded."""

    model: str = setting(
        "", "GGUF file, folder with one in it, hf:OWNER/REPO:QUANT or ollama:NAME; empty takes the demo model.", "-m"
    )
    model_draft: str = setting(
        "",
        "Smaller model of the same vocabulary that guesses what a lone answer says next; named as model is.",
        "-md",
        "--spec-draft-model",
    )
    alias: str = setting("", "Model name in the API; empty takes the file's name.", "-a")
    chat_template_file: str = setting("", "Jinja file instead of the model's own chat template.")
    tool_format: ToolFormatName = setting(
        "auto", "How the model writes tool calls; auto goes by its chat template, generic takes a prompt of our own."
    )
    n_gpu_layers: Layers = setting(
        "auto", "Layers on the GPU; auto is as many as fit, 0 stays on the CPU.", "-ngl", "--gpu-layers"
    )
    n_gpu_layers_draft: Layers = setting(
        "auto", "The same for the draft model.", "-ngld", "--gpu-layers-draft", "--spec-draft-ngl"
    )
    cpu_moe: bool = setting(False, "Keep all experts of a mixture-of-experts model in RAM.", "-cmoe")
    n_cpu_moe: int | None = setting(
        None, "Keep the experts of so many layers in RAM, from the first; unset goes by what fits.", "-ncmoe", ge=0
    )
    override_tensor: Overrides = setting(
        (), "Tensors by pattern to a buffer, as in ffn_.*_exps=CPU; goes before all other placement.", "-ot"
    )
    override_kv: KeyValues = setting(
        (), "Other values for the file's metadata, as in llama.expert_used_count=int:3; types int, float, bool, str."
    )
    lora: Strings = setting((), "LoRA adapters for every request that does not say otherwise.")
    lora_scaled: Scaled = setting((), "The same with a scale each, as in style.gguf:0.5.")
    lora_init_without_apply: bool = setting(False, "Load the adapters for requests that ask for them only.")
    control_vector: Strings = setting((), "Control vectors, always added.")
    control_vector_scaled: Scaled = setting((), "The same with a scale each, as in calm.gguf:0.8.")
    control_vector_layer_range: LayerRange = setting(
        None, "First and last layer that control vectors are added to, as in 10,20; unset is all."
    )
    split_mode: Literal["none", "layer", "row"] = setting("layer", "How several GPUs share the model.", "-sm")
    main_gpu: int = setting(0, "The GPU to use where split_mode is none.", "-mg", ge=0)
    tensor_split: Shares = setting((), "Share of each GPU, as in 3,1; empty goes by free memory.", "-ts")
    rpc: Servers = setting(
        (), "llama.cpp RPC servers whose devices are used too, as in host:50052; needs a build with RPC."
    )
    mmap: bool = setting(True, "Map the file instead of reading it: a second start is quicker.")
    mlock: bool = setting(False, "Keep the model in RAM, never in swap.")
    sleep_idle_seconds: Seconds = setting(
        None, "Seconds without a request after which the model is unloaded until the next one; unset keeps it."
    )
    require_gpu: bool = setting(False, "Refuse to start where no GPU can be used.")


class ContextSection(Section):
    """The llama.cpp context: how many conversations, how long, in what precision."""

    ctx_size: int = setting(
        0,
        "Tokens of context: shared by all slots if parallel is set too, else each slot's; 0 is automatic.",
        "-c",
        ge=0,
        le=(1 << 30) - 1,
    )
    parallel: int = setting(0, "Slots, the conversations computed at once; 0 is four.", "-np", ge=0, le=256)
    batch_size: int = setting(2048, "Most tokens given to one step.", "-b", ge=1, le=1 << 24)
    ubatch_size: int = setting(512, "Most tokens computed at once within a step.", "-ub", ge=1, le=1 << 24)
    threads: Threads = setting(0, "Compute threads; 0 is one for each physical core.", "-t", ge=0, le=512)
    threads_batch: Threads = setting(0, "Compute threads for prompts; 0 is as threads.", "-tb", ge=0, le=512)
    flash_attn: Literal["auto", "on", "off"] = setting(
        "auto", "Flash attention; auto is on with a GPU, and measured at start on a CPU.", "-fa"
    )
    cache_type_k: CacheType = setting("f16", "Type of the KV cache's keys.", "-ctk")
    cache_type_v: CacheType = setting("f16", "Type of its values; a quantised one needs flash attention.", "-ctv")
    kv_offload: bool = setting(True, "Keep the KV cache on the GPU with the layers.", "-kvo/-nkvo")
    swa_full: bool = setting(True, "Keep the full cache of sliding-window models, so that prefixes can be reused.")
    cache_reuse: int = setting(
        0, "Fewest tokens worth moving in the cache when a client trims its history; 0 computes them again.", ge=0
    )
    context_shift: bool = setting(
        False, "Let an answer go on when its slot is full, without the older half of what stands behind n_keep tokens."
    )
    cache_ram: CacheRam = setting(
        "auto",
        "MiB of host RAM for chats that lost their slot; 0 keeps none, auto is half of what is free, 1024 at most.",
        "-cram",
    )
    slot_save_path: str = setting(
        "", "Folder where POST /slots/N?action=save keeps what a slot holds; empty refuses to save."
    )
    cache_disk: int = setting(
        0, "MiB on disk that keep chats which left host RAM, also over a restart; 0 keeps none.", ge=0
    )
    cache_sharing: Literal["auto", "shared", "per-key"] = setting(
        "auto", "Who may reuse what another key had computed: all, nobody, or auto: nobody from the second key on."
    )
    pre_roll: bool = setting(
        False, "Compute while idle what a chat's next prompt begins with when its client drops old messages each turn."
    )
    spec_draft_n_max: int = setting(
        31, "Most tokens of a lone answer guessed ahead and checked in one step; 0 guesses none.", ge=0
    )
    spec_draft_p_min: float = setting(
        0.0,
        "Probability below which the draft model's guess ends; 0 leaves it to what pays.",
        "--draft-p-min",
        ge=0,
        le=1,
    )
    embeddings: bool = setting(
        False, "Make the context for embeddings at start, not when they are first asked for.", "--embedding"
    )
    pooling: Literal["", "none", "mean", "cls", "last", "rank"] = setting(
        "", "How a text's vectors become one; empty is the model's own, else their mean."
    )
    reranking: bool = setting(False, "Rank documents: the same as pooling rank.", "--rerank")
    rope_scaling: Literal["", "none", "linear", "yarn"] = setting("", "RoPE scaling; empty is the model's own.")
    rope_freq_base: float = setting(0.0, "RoPE base frequency; 0 is the model's own.", ge=0)
    rope_freq_scale: float = setting(0.0, "RoPE frequency factor, 0.5 doubles the context; 0 is the model's own.", ge=0)
    yarn_orig_ctx: int = setting(0, "YaRN: context the model was trained with; 0 is the file's.", ge=0)
    yarn_ext_factor: float = setting(-1.0, "YaRN: extrapolation mix; -1 is the model's own.", ge=-1)
    yarn_attn_factor: float = setting(-1.0, "YaRN: attention magnitude; -1 is the model's own.", ge=-1)
    yarn_beta_slow: float = setting(-1.0, "YaRN: high correction dimension; -1 is the model's own.", ge=-1)
    yarn_beta_fast: float = setting(-1.0, "YaRN: low correction dimension; -1 is the model's own.", ge=-1)


class ServerSection(Section):
    """HTTP: where it listens, who may come in, what it says in the log."""

    host: str = setting("127.0.0.1", "Address to listen at; this one is reached from this machine only.", min_length=1)
    port: int = setting(8080, "Port to listen at; 0 takes a free one.", ge=0, le=65535)
    api_key: Keys = setting((), "Keys, one of which every caller must send; they are an admin's.")
    api_key_file: str = setting(
        "", "Key file: as ggufd keys writes it, or a key a line; empty takes keys.toml of your config folder, if any."
    )
    allow_unauthenticated: bool = setting(False, "Listen beyond this machine although no key is set.")
    root_path: str = setting("", "Path under which a reverse proxy shows the server, such as /llm.", pattern="^(/.*)?$")
    metrics_for: Literal["admin", "user", "everybody", "nobody"] = setting(
        "admin", "Who may read /metrics: an admin's key, any key, everybody without one, or nobody."
    )
    trusted_proxies: Strings = setting(
        (), "Addresses or networks of reverse proxies whose X-Forwarded-For and X-Forwarded-Proto are believed."
    )
    ssl_key_file: str = setting("", "TLS: the private key, PEM; with it and the certificate the server speaks https.")
    ssl_cert_file: str = setting("", "TLS: the certificate with its chain, PEM.")
    allowed_hosts: Strings = setting(
        (), "Names besides localhost under which it may be asked for without a key, against DNS rebinding; * is any."
    )
    cors_origins: Strings = setting(
        (), "Web pages that may call from a browser, such as https://example.org; * is all of them."
    )
    max_body_bytes: int = setting(2_000_000, "Largest request body; more is refused with 413.", ge=1024)
    ping_s: float = setting(1.0, "Seconds of silence after which a stream carries a comment.", gt=0)
    text_interval_ms: float = setting(
        20.0,
        "Milliseconds from write to write where tokens come quicker, as a screen shows them; 0 sends each at once.",
        ge=0,
    )
    read_timeout_s: float = setting(30.0, "Seconds in which a request must have arrived whole.", gt=0)
    write_timeout_s: float = setting(
        60.0, "Seconds after which a client that reads nothing of its answer is dropped.", gt=0
    )
    drain_s: float = setting(30.0, "Seconds that running requests get to end at Ctrl-C or SIGTERM.", ge=0)
    traces: bool = setting(
        False, "Send a span for each request to OTEL_EXPORTER_OTLP_ENDPOINT; needs pip install 'ggufd[otel]'."
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "Least severe log lines shown; debug adds llama.cpp's own, and words of prompts."
    )
    log_format: Literal["text", "json"] = setting("text", "The log as lines to read, or as an object of JSON each.")


class ResponsesSection(Section):
    """Answers of /v1/responses that are kept, so that a client can read them again or go on from them."""

    responses_path: str = setting("", "SQLite file that keeps them over restarts; empty keeps them in memory.")
    max_responses: int = setting(1000, "Most answers kept; the one used least recently goes first.", ge=0)
    max_responses_mib: int = setting(64, "Most MiB that they take.", ge=1)


class QueueSection(Section):
    """The queue in front of the context."""

    max_queue: int = setting(64, "Requests that may wait; one more is refused with 503.", ge=0)
    max_queue_wait_s: float = setting(600.0, "Seconds a request may wait before it is refused.", gt=0)
    max_gap_ms: float = setting(100.0, "Longest pause that reading a prompt may put into other streams.", gt=0)
    max_gap_steps: int = setting(
        8, "The same in steps of theirs, where so many take longer: on a slow machine, or with many streams.", ge=0
    )
    prompt_cost: float = setting(
        0.25, "What a computed token of a prompt counts beside a generated one, where keys share by tokens.", ge=0
    )
    priority_aging_s: float = setting(30.0, "Seconds of waiting that make up for one step of priority.", gt=0)
    reserved_slots: int = setting(0, "Slots that only short requests may take; one slot is always everybody's.", ge=0)
    short_tokens: int = setting(
        512, "Most tokens, to compute and to generate, of a request that may take a reserved slot.", ge=1
    )
    preempt: bool = setting(
        False, "Let a long answer wait in host RAM while one with a better claim uses its slot; costs RAM as slots do."
    )
    share_by_address: bool = setting(True, "Without keys, give every client address a share of its own.")
    max_running_per_key: Limit = setting(None, "Slots that one key may hold at once; unset is all of them.")
    max_waiting_per_key: Waiting = setting(None, "Requests of one key that may wait; one more is refused with 429.")
    tokens_per_minute_per_key: Limit = setting(
        None, "Tokens that one key may have computed and generated a minute; then 429."
    )
    step_timeout_s: float = setting(
        60.0, "Seconds without a sign of life after which a busy engine is ended and started again; 0 is never.", ge=0
    )


class ReasoningSection(Section):
    """What a model thinks before it answers."""

    reasoning_format: ReasoningFormat = setting(
        "auto", "Where thoughts go: auto and deepseek put them into reasoning_content, none leaves them in the content."
    )
    reasoning_budget: int = setting(
        -1, "Tokens of thoughts after which a model is made to answer; 0 lets it not think, -1 is no limit.", ge=-1
    )


class SamplingSection(Section):
    """Defaults for what a request leaves out; unset takes the model file's own, else OpenAI's, else off."""

    max_tokens: Limit = setting(
        None, "Most tokens of an answer; unset goes on to the end of the context.", "-n", "--predict", "--n-predict"
    )
    seed: Seed = setting(None, "Seed of requests that send none; unset draws one each time.", "-s")
    temperature: float | None = setting(None, "Randomness; 0 always takes the likeliest token.", "--temp", ge=0)
    dynatemp_range: float | None = setting(None, "Width of dynamic temperature; 0 is off.", ge=0)
    dynatemp_exponent: float | None = setting(None, "How entropy maps to dynamic temperature.", "--dynatemp-exp", gt=0)
    top_k: int | None = setting(None, "Keep this many likeliest tokens; 0 is off.", ge=0)
    top_p: float | None = setting(
        None, "Keep the likeliest tokens up to this probability in sum; 1 is off.", ge=0, le=1
    )
    min_p: float | None = setting(None, "Drop tokens below this share of the likeliest; 0 is off.", ge=0, le=1)
    typ_p: float | None = setting(None, "Locally typical sampling; 1 is off.", "--typical", "--typical-p", ge=0, le=1)
    top_n_sigma: float | None = setting(
        None,
        "Keep tokens within this many standard deviations of the best logit; -1 is off.",
        "--top-nsigma",
        ge=-1,
    )
    xtc_probability: float | None = setting(None, "Chance that XTC drops the likeliest tokens; 0 is off.", ge=0, le=1)
    xtc_threshold: float | None = setting(None, "Probability above which XTC may drop a token.", ge=0, le=1)
    dry_multiplier: float | None = setting(None, "Strength of the DRY penalty on repeated passages; 0 is off.", ge=0)
    dry_base: float | None = setting(None, "Growth of the DRY penalty with the length of the passage.", ge=0)
    dry_allowed_length: int | None = setting(None, "Tokens that may repeat before DRY acts.", ge=0)
    dry_penalty_last_n: int | None = setting(None, "Tokens that DRY looks back; 0 is off, -1 the whole context.", ge=-1)
    dry_sequence_breakers: Strings | None = setting(
        None, "Texts across which DRY sees no repetition.", "--dry-sequence-breaker"
    )
    repeat_penalty: float | None = setting(None, "Penalty on tokens that came before; 1 is off.", gt=0)
    repeat_last_n: int | None = setting(None, "Tokens the penalties look back; 0 is off, -1 the whole context.", ge=-1)
    frequency_penalty: float | None = setting(None, "Penalty that grows with each use of a token; 0 is off.")
    presence_penalty: float | None = setting(None, "Penalty on every token used at all; 0 is off.")
    mirostat: int | None = setting(None, "Mirostat version, 1 or 2; 0 is off.", ge=0, le=2)
    mirostat_tau: float | None = setting(None, "Entropy that mirostat aims at.", "--mirostat-ent", ge=0)
    mirostat_eta: float | None = setting(None, "Learning rate of mirostat.", "--mirostat-lr", ge=0, le=1)
    adaptive_target: float | None = setting(None, "Probability that adaptive-p aims at; -1 is off.", ge=-1, le=1)
    adaptive_decay: float | None = setting(None, "Memory of adaptive-p.", ge=0, le=0.99)
    min_keep: int | None = setting(None, "Tokens that every sampler leaves at least.", ge=0)
    samplers: SamplerNames | None = setting(None, "Samplers in the order they are applied.")
    ignore_eos: bool | None = setting(None, "Never let the model end its answer.")


class Config(BaseModel):
    """Every setting. Made by `sources.load`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: ModelSection = ModelSection()
    context: ContextSection = ContextSection()
    server: ServerSection = ServerSection()
    responses: ResponsesSection = ResponsesSection()
    queue: QueueSection = QueueSection()
    reasoning: ReasoningSection = ReasoningSection()
    sampling: SamplingSection = SamplingSection()


class Setting(NamedTuple):
    """A field of the config, with all its spellings."""

    section: str
    key: str
    field: FieldInfo

    @property
    def flags(self) -> tuple[str, ...]:
        """`--its-name` last, shorter and further spellings before it."""
        return tuple(spelling.partition("/")[0] for spelling in self.spellings)

    @property
    def spellings(self) -> tuple[str, ...]:
        """The flags as typer reads them: a switch that is on by default is turned off by what follows the slash."""
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
        """The default in TOML; empty where unset is the default."""
        default = self.field.default
        if default is None:
            return ""
        return json.dumps(list(default) if isinstance(default, tuple) else default)


def settings() -> tuple[Setting, ...]:
    """Every setting in the order of config.toml."""
    return tuple(
        Setting(section, key, field)
        for section, table in Config.model_fields.items()
        if isinstance(table.annotation, type) and issubclass(table.annotation, Section)
        for key, field in table.annotation.model_fields.items()
    )
