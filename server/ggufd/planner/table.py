"""Rendering of a plan: tables for a terminal, Markdown for a model card. Computes nothing."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ggufd.images.encoder import row_store
from ggufd.placement.memory import Estimate
from ggufd.placement.projector_plan import ProjectorUse
from ggufd.planner.report import ModelPlan

_MOST_STEPS = 12
"""Most rows in the table of offloaded layers; JSON has all."""


def show(report: ModelPlan, console: Console | None = None) -> None:
    """Print the whole plan of one model."""
    console = console or Console()
    console.print(Text(report.model.path.name, style="bold green"))
    console.print(_facts(report))
    console.print(_in_ram(report))
    console.print(_offload(report))
    if not report.shape.only_embeds:
        console.print(_contexts(report))
    style = "bold" if report.choice.fits else "bold red"
    console.print(Text(verdict(report), style=style))
    if report.choice.fits:
        # Never wrapped: it must survive being copied.
        console.print("  " + command(report), soft_wrap=True, markup=False, highlight=False)


def _facts(report: ModelPlan) -> Table:
    shape = report.shape
    rows = [
        ("Model", f"{shape.architecture}, {_parameters(report)}, {shape.n_layers} layers"),
        ("Quantised", f"{_quantisation(report)}, {shape.bits_per_weight:.2f} bits per weight"),
        ("Size", bytes_text(shape.gguf.n_bytes) + _parts(report.model.n_parts)),
        ("Context", f"trained for {shape.n_ctx_train:,} tokens{_layer_kinds(report)}"),
        ("Machine", _machine(report)),
    ]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row("  " + name, Text(value))
    return table


def _parameters(report: ModelPlan) -> str:
    shape = report.shape
    text = f"{count_text(shape.n_params)} parameters"
    if shape.n_experts:
        used = f"{shape.n_experts_used} of {shape.n_experts} experts used"
        text += f", {count_text(shape.n_params_active)} active per token ({used})"
    return text


def _quantisation(report: ModelPlan) -> str:
    """Quantisation as the file names it, if it does, and its actual tensor types."""
    types = ", ".join(f"{name} {share:.0%}" for name, share in report.types if share >= 0.005)
    return f"{report.file_type} ({types})" if report.file_type else types


def _parts(n_parts: int) -> str:
    return f" in {n_parts} files" if n_parts > 1 else ""


def _layer_kinds(report: ModelPlan) -> str:
    shape = report.shape
    text = ""
    if any(layer.is_windowed for layer in shape.layers):
        n_windowed = sum(layer.is_windowed for layer in shape.layers)
        text += f"; {n_windowed} layers have a sliding window of {shape.n_window:,} tokens"
    if shape.is_recurrent:
        text += f"; {sum(layer.state_elements > 0 for layer in shape.layers)} layers are recurrent"
    return text


def _machine(report: ModelPlan) -> str:
    machine = report.machine
    gpus = ", ".join(f"{one.name} with {bytes_text(one.free)} free" for one in machine.devices)
    return f"{bytes_text(machine.ram_free)} of {bytes_text(machine.ram_total)} RAM free; {gpus or 'no GPU'}"


def _in_ram(report: ModelPlan) -> Table:
    one = report.in_ram
    table = Table(title=f"In RAM, {_slots(report)}", title_justify="left", box=None, padding=(0, 2), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    for name, size, note in _memory_rows(report):
        table.add_row(name, bytes_text(size), note)
    if report.draft is not None:
        table.add_row("Draft model, with its cache", bytes_text(report.draft.needed), _draft(report.draft))
    if report.images is not None:
        table.add_row("Image projector, with its process", bytes_text(report.images.ram), _images(report.images))
    table.add_section()
    table.add_row("Own memory", bytes_text(report.own), "", style="bold")
    table.add_row("With the memory-mapped weights", bytes_text(report.needed - one.host_cache), "", style="bold")
    if not report.shape.only_embeds:
        note = "depends on free RAM" if report.cache_ram is None else "--cache-ram"
        table.add_row("Chats evicted from slots, up to", bytes_text(report.host_cache), note)
    for kept in report.kept:
        vram = f"and {bytes_text(kept.vram)} VRAM; " if kept.vram else ""
        table.add_row(f"Beside it: {kept.name}", bytes_text(kept.ram), f"{vram}stays loaded (keep_loaded)")
    return table


def _memory_rows(report: ModelPlan) -> Iterator[tuple[str, int, str]]:
    """Rows of the RAM table: name, bytes, note."""
    one, ram = report.in_ram, report.in_ram.ram
    yield "Weights, memory-mapped", one.mapped, "dropped when RAM is short"
    yield "Weights, own copies", ram.weights, "repacked for this CPU" if one.placement.mmap else "--no-mmap"
    if not report.shape.only_embeds:
        yield "KV cache", ram.cache, _cache_types(report)
        yield "Compute buffers", ram.compute, f"flash attention {report.context.flash_attn}"
    if ram.adapters:
        yield "Adapters", ram.adapters, "LoRA and control vectors"
    if ram.vectors:
        yield "Context for embeddings", ram.vectors, ""
    yield "Engine process and vocabulary", one.process, ""


def _draft(draft: Estimate) -> str:
    vram = draft.vram.total
    return f"and {bytes_text(vram)} VRAM" if vram else f"{bytes_text(draft.ram.cache)} of it KV cache"


def _images(use: ProjectorUse) -> str:
    rows = f"its rows up to {bytes_text(row_store.MAX_BYTES)} of disk"
    return f"and {bytes_text(use.vram)} VRAM; {rows}" if use.vram else rows


def _slots(report: ModelPlan) -> str:
    if report.shape.only_embeds:
        return f"inputs of {report.context.n_ctx:,} tokens"
    n = report.context.n_slots
    return f"{n} {'slot' if n == 1 else 'slots'} of {report.context.n_ctx:,} tokens"


def _cache_types(report: ModelPlan) -> str:
    return f"keys {report.context.cache_type_k}, values {report.context.cache_type_v}"


def _offload(report: ModelPlan) -> Table:
    # 60 columns hold it.
    table = Table(title="Layers on the GPU", title_justify="left", box=None, padding=(0, 0, 0, 1))
    for name in ("layers", "weights", "KV cache", "compute", "VRAM", "RAM"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in _evenly_sampled(report.steps):
        vram = one.vram
        cells = (vram.weights, vram.cache, vram.compute, vram.total, one.needed)
        table.add_row(str(one.placement.n_gpu_layers), *(bytes_text(cell) for cell in cells))
    return table


def _evenly_sampled(steps: Sequence[Estimate]) -> list[Estimate]:
    """All steps, or a sample of them at even distances with the first and the last."""
    if len(steps) <= _MOST_STEPS:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(i * last / (_MOST_STEPS - 1))] for i in range(_MOST_STEPS)]


def _contexts(report: ModelPlan) -> Table:
    table = Table(title="Contexts that fit here", title_justify="left", box=None, padding=(0, 2))
    table.add_column("slots", justify="right")
    table.add_column("tokens each", justify="right")
    table.add_column("", style="dim")
    for slots, n_ctx in report.contexts:
        note = "the training context" if n_ctx >= report.shape.n_ctx_train else ""
        table.add_row(str(slots), f"{n_ctx:,}" if n_ctx else "-", note)
    return table


def verdict(report: ModelPlan) -> str:
    """One line: the best setting, or what does not fit."""
    choice = report.choice
    if choice.placement.n_gpu_layers and not report.machine.devices:
        return "Does not fit: the settings put layers on a GPU, but llama.cpp sees none here."
    if not choice.fits:
        one = choice.estimate
        vram = f" and {bytes_text(one.vram.total)} VRAM" if one.vram.total else ""
        return f"Does not fit: it needs {bytes_text(one.needed)} RAM{vram}. Use a smaller quantisation or context."
    n = choice.context.n_slots
    what = f"{n} {'slot' if n == 1 else 'slots'} of {choice.context.n_ctx:,} tokens"
    if report.shape.only_embeds:
        what = f"embeddings of inputs of up to {choice.context.n_ctx:,} tokens"
    return f"Best here: {what}, {placement_text(report)} ({choice.why})"


def placement_text(report: ModelPlan) -> str:
    """Number of layers on the GPU, in words."""
    placement = report.choice.placement
    total = report.shape.n_layers + 1
    n = min(placement.n_gpu_layers, total)
    return f"{n} of {total} layers on the GPU" if n else "all on the CPU"


def command(report: ModelPlan) -> str:
    """Command line that runs the chosen setting."""
    choice = report.choice
    parts = [f"ggufd -m {shlex.quote(report.model.source or str(report.model.path))}"]
    draft = report.model.draft
    if draft is not None:
        parts.append(f"-md {shlex.quote(draft.source or str(draft.path))}")
    if report.machine.devices:
        parts.append(f"-ngl {choice.placement.n_gpu_layers}")
        # Without -ncmoe a number of layers includes all of their experts.
        if n_cpu_moe := min(choice.placement.n_cpu_moe, report.shape.n_layers):
            parts.append(f"-ncmoe {n_cpu_moe}")
    if report.shape.only_embeds:
        parts.append(f"-c {choice.context.n_ctx}")
    else:
        parts += [f"-c {choice.context.n_ctx * choice.context.n_slots}", f"-np {choice.context.n_slots}"]
    for flag, value in (("-ctk", choice.context.cache_type_k), ("-ctv", choice.context.cache_type_v)):
        if value != "f16":
            parts.append(f"{flag} {value}")
    return " ".join([*parts, *map(shlex.quote, report.other_flags)])


def markdown(reports: Sequence[ModelPlan]) -> str:
    """Markdown table for a model card: the quantisations of a folder, smallest first."""
    lines = [
        "| file | quantisation | bits per weight | size | own memory | RAM needed | VRAM, all layers | fits here |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for report in sorted(reports, key=lambda one: one.shape.gguf.n_bytes):
        one, on_gpu = report.in_ram, report.steps[-1]
        cells = (
            report.model.path.name.replace("|", "\\|"),
            _short_quantisation(report),
            f"{report.shape.bits_per_weight:.2f}",
            bytes_text(report.shape.gguf.n_bytes),
            bytes_text(report.own),
            bytes_text(report.needed - one.host_cache),
            bytes_text(on_gpu.vram.total),
            "yes" if report.choice.fits else "no",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _footnote(reports[0])]) if reports else ""


def _short_quantisation(report: ModelPlan) -> str:
    main = "+".join(name for name, share in report.types if share >= 0.02 and name != "F32")
    return f"{report.file_type} ({main})" if report.file_type and report.file_type != main else main


def _footnote(report: ModelPlan) -> str:
    flash = report.context.flash_attn
    return (
        f"RAM without offload, VRAM with all layers offloaded, for {_slots(report)}, {_cache_types(report)}, flash "
        f"attention {flash}. RAM needed is own memory and the memory-mapped weights."
    )


def count_text(count: int) -> str:
    """Number of parameters, as 135M or 24.2B."""
    for unit, name in ((1e9, "B"), (1e6, "M")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return str(count)


def bytes_text(count: int) -> str:
    """Bytes in binary units: 92 MiB, 1.40 GiB."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}" if unit == 1 << 30 else f"{count / unit:.0f} {name}"
    return f"{count / 1024:.0f} KiB" if count else "0"
