"""Command `bench engine`: shapes on a loaded engine and on llama.cpp's programs, in turns."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from ggufd.bench.engine import peers
from ggufd.bench.engine.loop import Loop, Rates
from ggufd.bench.engine.over_http import OverHttp
from ggufd.bench.engine.shapes import Workload, batched, lone, numbers
from ggufd.bench.measure.client import BenchError
from ggufd.bench.measure.figures import Better, Metric
from ggufd.bench.measure.output import console, failing_in_one_line, say, write_json
from ggufd.bench.measure.report import Sheet
from ggufd.bench.measure.site import Figure
from ggufd.bench.measure.table import show
from ggufd.engine.messages.config import EngineConfig, EngineRules
from ggufd.engine.messages.reports import Ready
from ggufd.errors import GgufdError
from ggufd.llama.params import ContextParams, FlashAttention, ModelParams
from ggufd.models import hub
from ggufd.placement import host

if TYPE_CHECKING:
    from ggufd.engine.loader import Loaded

OURS = 0
PEER = 1

_WARM_UP = Workload(400, 16)
_LEAST_N_CTX = 512

Measure = Callable[[Workload], Rates]


def engine(
    model: Annotated[str, typer.Option("--model", "-m", help="The model, as `ggufd serve` takes it.")] = "",
    threads: Annotated[
        int, typer.Option("--threads", "-t", min=0, help="Compute threads of both sides; 0: as `serve` would.")
    ] = 0,
    flash_attn: Annotated[
        FlashAttention, typer.Option("--flash-attn", "-fa", help="auto is as measured, for both sides.")
    ] = "auto",
    npp: Annotated[str, typer.Option(help="Tokens of a prompt, as llama-batched-bench takes them.")] = "128",
    ntg: Annotated[str, typer.Option(help="Tokens that each sequence writes.")] = "128",
    npl: Annotated[str, typer.Option(help="Sequences at once.")] = "1,4,8,16",
    prompts: Annotated[str, typer.Option(help="Long prompts to read alone, as llama-bench -p; may be empty.")] = (
        "800,4000"
    ),
    depths: Annotated[str, typer.Option(help="Depths to write at alone, as llama-bench -d; may be empty.")] = "0,1300",
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions of each shape.")] = 3,
    llama_batched_bench: Annotated[
        Path | None, typer.Option(help="This program; it runs in turns with the engine.")
    ] = None,
    llama_bench: Annotated[Path | None, typer.Option(help="This one, for what is read or written alone.")] = None,
    url: Annotated[
        str | None, typer.Option(help="A server of this model too: its rate over HTTP, beside llama-batched-bench's.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="GGUFD_BENCH_API_KEY", help="Key to send to that server.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every sample to this file.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draw the same tokens as another run; random by default.")] = None,
) -> None:
    """Measure the engine's own loop, without HTTP: greedy, with the shapes of llama-batched-bench and llama-bench."""
    with failing_in_one_line():
        together = batched(numbers("--npp", npp), numbers("--ntg", ntg), numbers("--npl", npl))
        alone = lone(numbers("--prompts", prompts), numbers("--depths", depths, least=0))
        if not together + alone:
            raise BenchError("there is no shape to measure: give --npl, --prompts or --depths")
        source = random.Random(seed)
        by_http = _by_http(url, api_key, together, source)
        # All of it stays named until the end: C writes to its log.
        loaded = _load(model, threads, flash_attn, together + alone)
        ready, loop = loaded.ready, _warm_loop(loaded, source)
        setting = peers.PeerSetting(ready.model.path, ready.n_threads, ready.flash_attn)
        by_batched = _by(peers.batched_bench, llama_batched_bench, setting)
        by_bench = _by(peers.llama_bench, llama_bench, setting)
        ours = _ours(ready) if url is None else f"{_ours(ready)}; over HTTP {url}"
        sheet = Sheet([ours, "llama.cpp's programs"] if by_batched or by_bench else [ours])
        for shape in together:
            _measure(shape, rounds, _Sides("batch", loop.measure, by_batched, by_http), sheet)
        for shape in alone:
            _measure(shape, rounds, _Sides("alone", loop.measure, by_bench), sheet)
    show(sheet, console())
    write_json(json_file, sheet.as_json())


def _load(model: str, n_threads: int, flash_attn: FlashAttention, shapes: Sequence[Workload]) -> Loaded:
    """An engine with room for every shape, that keeps nothing outside its slots and drafts nothing."""
    from ggufd.engine.loader import load  # brings llama.cpp, which the other commands do without

    try:
        loaded = load(_config(model, n_threads, flash_attn, shapes), lambda event: None)
    except GgufdError as error:
        raise BenchError(error.message) from None
    if not loaded.ready.writes:
        raise BenchError(f"{loaded.ready.model.path} is an embedding model, which decodes nothing")
    return loaded


def _config(model: str, n_threads: int, flash_attn: FlashAttention, shapes: Sequence[Workload]) -> EngineConfig:
    """Raises `GgufdError` where there is no such model."""
    return EngineConfig(
        model=ModelParams(str(hub.find(model).path)),
        context=ContextParams(
            n_ctx=max(_LEAST_N_CTX, *(shape.n_ctx for shape in shapes)),
            n_slots=max(shape.n_sequences for shape in shapes),
            n_threads=n_threads or host.compute_threads(),
            flash_attn=flash_attn,
        ),
        rules=EngineRules(),
    )


def _warm_loop(loaded: Loaded, source: random.Random) -> Loop:
    """Loop after a warm-up: chunks of prefill are small until the cost of a token is known."""
    loop = Loop(loaded.engine, loaded.ready.model.n_vocab, source)
    loop.measure(_WARM_UP)
    return loop


def _by(
    run: Callable[[peers.Program, Workload, peers.PeerSetting], Rates], path: Path | None, setting: peers.PeerSetting
) -> Measure | None:
    if path is None:
        return None
    program = peers.Program(path)
    return lambda shape: run(program, shape, setting)


def _by_http(url: str | None, api_key: str | None, shapes: Sequence[Workload], source: random.Random) -> Measure | None:
    if url is None or not shapes:
        return None
    return OverHttp(url, api_key, source, max(shape.n_sequences for shape in shapes)).measure


def _ours(ready: Ready) -> str:
    flash = "on" if ready.flash_attn else "off"
    return (
        f"the engine, {ready.model.path}, {ready.n_threads} threads, flash attention {flash} ({ready.flash_attn_why})"
    )


class _Sides(NamedTuple):
    """Sides of a measurement, under the name `scenario`; `http` is set against the same peer."""

    scenario: str
    ours: Measure
    peer: Measure | None
    http: Measure | None = None


def _measure(shape: Workload, rounds: int, sides: _Sides, sheet: Sheet) -> None:
    over_http = f"{sides.scenario}, over HTTP"
    for repetition in range(rounds):
        sheet.add(repetition, OURS, _figures(sides.scenario, shape, sides.ours(shape)))
        if sides.http is not None:
            sheet.add(repetition, OURS, _figures(over_http, shape, sides.http(shape)))
        if sides.peer is not None:
            rates = sides.peer(shape)
            sheet.add(repetition, PEER, _figures(sides.scenario, shape, rates))
            if sides.http is not None:
                sheet.add(repetition, PEER, _figures(over_http, shape, Rates(None, rates.written)))
        say(f"{sides.scenario}, {shape.label}: {repetition + 1} of {rounds}")


def _figures(scenario: str, shape: Workload, rates: Rates) -> list[Figure]:
    phases = (("read", rates.read), ("written", rates.written))
    return [
        Figure(Metric(scenario, shape.label, phase, "tok/s", Better.HIGHER), rate)
        for phase, rate in phases
        if rate is not None
    ]
