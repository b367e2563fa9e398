"""Terminal output: progress bar and start summary.

Rich on a terminal, plain lines in a log file. Knows no engine and no HTTP; it is given what it shows. Rich is imported
when it is used: a server that writes to a log loads its model meanwhile.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ggufd import __version__
from ggufd.engine.messages.reports import Ready
from ggufd.models.hub import ModelFile

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

logger = logging.getLogger("ggufd")


def prepare() -> None:
    """Import what `show` will need, so that it does not wait for that."""
    import rich.console
    import rich.table  # noqa: F401


def _progress(console: Console | None) -> Progress | None:
    """Progress bar on a terminal; None elsewhere."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if console is None and not is_terminal and not any(map(os.environ.get, _LIKE_A_TERMINAL)):
        return None
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = console or Console(stderr=True)
    if not console.is_terminal:
        return None
    columns = (TextColumn("Loading {task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


_LIKE_A_TERMINAL = ("FORCE_COLOR", "TTY_COMPATIBLE")
"""Variables by which Rich takes what is no terminal for one."""


class LoadingBar:
    """Progress bar of the model's loading; `update` may be called from any thread."""

    def __init__(self, name: str, console: Console | None = None) -> None:
        self._name = name
        self._progress = _progress(console)
        self._logged = 0

    def __enter__(self) -> LoadingBar:
        if self._progress is not None:
            self._task = self._progress.add_task(self._name, total=1.0)
            self._progress.start()
        else:
            logger.info("loading %s", self._name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()

    def update(self, fraction: float) -> None:
        """Show the loaded `fraction`, 0 to 1; without a terminal, log every quarter."""
        if self._progress is not None:
            self._progress.update(self._task, completed=fraction)
        elif int(fraction * 4) > self._logged:
            self._logged = int(fraction * 4)
            logger.info("loading %s: %d %%", self._name, self._logged * 25)


def show_summary(
    ready: Ready,
    model: ModelFile,
    model_id: str,
    url: str,
    *,
    has_keys: bool = False,
    has_page: bool = True,
    console: Console | None = None,
) -> None:
    """Print the start summary: model, context, devices, memory, addresses, and a first request to try."""
    rows = [
        ("Model", f"{model_id}: {_description(ready)}"),
        (
            "Context",
            slots_text(ready.n_slots, ready.n_ctx) if ready.writes else f"inputs of up to {ready.n_ctx:,} tokens",
        ),
        *_embedding(ready),
        *_draft(ready),
        *_images(model),
        ("Runs on", _devices(ready)),
        ("Memory", f"{_bytes(ready.memory_bytes)}; flash attention {_flash_attention(ready)}"),
        *_host_cache(ready),
        *([("Chat", f"{url} in a browser")] if has_page and ready.writes else []),
        ("API", f"{url}/v1"),
        ("Docs", f"{url}/docs"),
    ]
    show(f"ggufd {__version__} is ready", rows, _hints(ready, model, url, has_keys=has_keys), console)


def log_settings(file: Path | None, notes: Sequence[str] = ()) -> None:
    """Log the config file that was read (a forgotten config.toml explains much) and notes on the command line."""
    if file is not None:
        logger.info("settings from %s", file)
    for note in notes:
        logger.info("%s", note)


_CHAT = ("chat/completions", {"messages": [{"role": "user", "content": "Hello! Who are you?"}], "max_tokens": 100})
_EMBEDDING = ("embeddings", {"input": ["A first text.", "A second one."]})
_RERANK = ("rerank", {"query": "Who lives in the sea?", "documents": ["The cat.", "The whale."]})


def curl_line(url: str, *, with_key: bool, example: tuple[str, object] = _CHAT) -> str:
    """curl command for a first request, ready for a POSIX shell (the key comes from the environment)."""
    path, body = example
    key = ' -H "Authorization: Bearer $GGUFD_API_KEY"' if with_key else ""
    return f"curl {url}/v1/{path} -H 'Content-Type: application/json'{key} -d {shlex.quote(json.dumps(body))}"


def show(
    title: str, rows: Sequence[tuple[str, str]], hints: Sequence[str] = (), console: Console | None = None
) -> None:
    """Print a title, rows of names and values, and `hints`, which are never wrapped, so that they can be copied."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row("  " + name, Text(value))
    console.print(Text(title, style="bold green"))
    console.print(table)
    for hint in hints:
        # Never wrapped.
        console.print(hint, soft_wrap=True, markup=False, highlight=False)


def _hints(ready: Ready, model: ModelFile, url: str, *, has_keys: bool) -> list[str]:
    example = _RERANK if ready.embedding.pooling == "rank" else _EMBEDDING
    hints = ["", "  Try it:", f"  {curl_line(url, with_key=has_keys, example=_CHAT if ready.writes else example)}"]
    if model.is_demo:
        hints += ["", "  This is the small demo model. To serve another: ggufd --model FILE.gguf"]
    return [*hints, "", "  Ctrl-C stops the server."]


def _description(ready: Ready) -> str:
    model = ready.model
    return (
        f"{model.name}, {model.architecture}, {model.ftype}, {_parameters(model.n_params)} parameters, "
        f"{_bytes(model.size_bytes)}"
    )


def slots_text(n_slots: int, n_ctx: int) -> str:
    """`4 slots of 8,192 tokens each`."""
    return f"{n_slots} {_plural('slot', n_slots)} of {n_ctx:,} tokens{_each(n_slots)}"


def _embedding(ready: Ready) -> list[tuple[str, str]]:
    """Row about embeddings; none for a generative model, unless they were asked for at start."""
    info = ready.embedding
    if not info.is_asked_for:
        return []
    if info.pooling == "rank":
        return [("Reranking", f"query and document of up to {info.n_ctx:,} tokens together")]
    return [("Embeddings", f"{info.width:,} dimensions, {info.pooling} pooling, inputs of up to {info.n_ctx:,} tokens")]


def _draft(ready: Ready) -> list[tuple[str, str]]:
    draft = ready.draft
    if draft is None:
        return []
    where = f", {draft.n_gpu_layers} layers on the GPU" if draft.n_gpu_layers else ""
    what = f"{draft.name}, {draft.ftype}, {_parameters(draft.n_params)} parameters, {_bytes(draft.size_bytes)}{where}"
    return [("Draft model", f"{what}; for up to four requests at once")]


def _images(model: ModelFile) -> list[tuple[str, str]]:
    one = model.projector
    return [] if one is None else [("Images", f"read by {one.path.name}, {one.kind}, {_bytes(one.n_bytes)}")]


def _devices(ready: Ready) -> str:
    threads = f"{ready.n_threads} {_plural('thread', ready.n_threads)}"
    if ready.n_gpu_layers == 0:
        return f"CPU, {threads}" + (f"; the GPU is not used: {ready.offload_why}" if ready.offload_why else "")
    total = ready.model.n_layer + 1
    where = ", ".join(ready.devices) or "GPU"
    why = f" ({ready.offload_why})" if ready.offload_why else ""
    return f"{where}: {min(ready.n_gpu_layers, total)} of {total} layers{why}; CPU: {threads}"


def _flash_attention(ready: Ready) -> str:
    state = "on" if ready.flash_attn else "off"
    return f"{state} ({ready.flash_attn_why})" if ready.flash_attn_why else state


def _host_cache(ready: Ready) -> list[tuple[str, str]]:
    """Row about the RAM cache, whose limit depends on the free memory at start."""
    if not ready.writes:
        return []
    back = (
        "; an edited chat goes on from the checkpoint at the end of an earlier message"
        if ready.reuse == "snapshots"
        else ""
    )
    size = f"up to {_bytes(ready.host_cache_bytes)}" if ready.host_cache_bytes else "none"
    return [("RAM cache", f"{size}, for chats evicted from their slot{back}")]


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word + "s"


def _each(count: int) -> str:
    return " each" if count > 1 else ""


def _parameters(count: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return str(count)


def _bytes(count: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}" if unit == 1 << 30 else f"{count / unit:.0f} {name}"
    return f"{count / 1024:.0f} KiB"
