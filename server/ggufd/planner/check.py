"""`ggufd check`: the settings resolved on this machine, from the model's header. Nothing is loaded.

Errors are those that a start would give.
"""

from __future__ import annotations

from pathlib import Path

from ggufd import console
from ggufd.llama.gguf.header_checks import refuse_half_biases
from ggufd.llama.model.placing import refuse_cpu
from ggufd.models.hub import ModelFile
from ggufd.placement.projector_plan import ProjectorUse
from ggufd.planner import report, table
from ggufd.planner.machine import this_machine
from ggufd.planner.report import ModelPlan
from ggufd.settings import engine_settings
from ggufd.settings.config import Config


def run(config: Config, model: ModelFile, file: Path | None, n_keys: int) -> None:
    """Print what would be run with the settings of `file` and `n_keys` keys. Raises ModelError as a start would."""
    machine = this_machine(engine_settings.engine_config(config, model))
    plan = report.make(model, config, engine_settings.context_params(config), machine)
    if config.model.require_gpu:
        refuse_cpu(plan.choice.placement.n_gpu_layers)
    if plan.choice.placement.n_gpu_layers == 0:
        refuse_half_biases(plan.shape.gguf)
    problem = [] if plan.choice.fits else ["", table.verdict(plan)]
    console.show("The settings are valid. This would run:", rows(config, plan, file, n_keys), problem)


def rows(config: Config, plan: ModelPlan, file: Path | None, n_keys: int) -> list[tuple[str, str]]:
    """Table rows: the most important settings as resolved."""
    context, server, model = plan.choice.context, config.server, plan.model
    size = table.bytes_text(model.size_bytes) + (", the demo model" if model.is_demo else "")
    return [
        ("Settings", str(file or "no config.toml, only defaults")),
        ("Model", f"{model.source or model.path} ({size})"),
        *_draft(model.draft),
        *_projector(model),
        ("Context", console.slots_text(context.n_slots, context.n_ctx)),
        ("Runs on", f"{table.placement_text(plan)} ({plan.choice.why})"),
        ("Memory", _memory(plan)),
        ("Flash attention", _flash_attention(plan)),
        ("KV cache", f"keys {context.cache_type_k}, values {context.cache_type_v}"),
        ("Queue", f"{config.queue.max_queue} requests, {config.queue.max_queue_wait_s:g} s"),
        ("Listens on", f"{server.host}, port {server.port}, {_keys(n_keys)}"),
        ("Sampling", _sampling(config)),
    ]


def _draft(draft: ModelFile | None) -> list[tuple[str, str]]:
    return (
        []
        if draft is None
        else [("Draft model", f"{draft.source or draft.path} ({table.bytes_text(draft.size_bytes)})")]
    )


def _projector(model: ModelFile) -> list[tuple[str, str]]:
    one = model.projector
    return [] if one is None else [("Images", f"{one.path} ({table.bytes_text(one.n_bytes)}, {one.kind})")]


def _memory(plan: ModelPlan) -> str:
    parts = [plan.choice.estimate, *([] if plan.draft is None else [plan.draft])]
    images = plan.images or ProjectorUse()
    needed = images.ram + sum(one.needed for one in parts)
    vram = images.vram + sum(one.vram.total for one in parts)
    text = f"{table.bytes_text(needed)} of {table.bytes_text(plan.machine.ram_free)} free RAM"
    return f"{text}, {table.bytes_text(vram)} VRAM" if vram else text


def _flash_attention(plan: ModelPlan) -> str:
    wanted = plan.choice.context.flash_attn
    if wanted != "auto":
        return wanted
    return "on" if plan.choice.placement.n_gpu_layers else "decided by a measurement at the first start"


def _sampling(config: Config) -> str:
    given = {key: value for key, value in config.sampling.model_dump().items() if value is not None}
    return ", ".join(f"{key} {value}" for key, value in given.items()) or "the model's own defaults"


def _keys(count: int) -> str:
    return f"{count} API {'key' if count == 1 else 'keys'}" if count else "no API key"
