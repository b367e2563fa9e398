"""`ggufd bench curves`: the numbers are the server's, and the pictures show them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ggufd.bench.app import app
from ggufd.bench.curves import chats, context, gaps, streams
from ggufd.bench.curves.command import CURVES
from ggufd.bench.curves.curve import Curve
from ggufd.bench.curves.ground import QUICK, Extent, Ground
from ggufd.bench.measure.client import BenchError
from ggufd.bench.measure.local import Local
from ggufd.llama.gguf import gguf_header
from tests.support.fakes.bench_server import FakeServer, serving_here
from tests.support.models.cut_model import write_cut_model
from tests.support.virtual_time import virtual_time

EXTENT = dataclasses.replace(QUICK, streams=(1, 3), contexts=(200, 400), new_prompt=40)


class Launcher:
    """Starts nothing: every server is the fake. Keeps the flags."""

    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake
        self.flags: list[tuple[str, ...]] = []

    @contextlib.contextmanager
    def __call__(self, *flags: str) -> Iterator[Local]:
        self.flags.append(flags)
        yield Local(self.fake.url, os.getpid())


@contextlib.asynccontextmanager
async def ground(extent: Extent = EXTENT, **fake: Any) -> AsyncIterator[tuple[Ground, Launcher, Launcher]]:
    one = FakeServer(**fake)
    with virtual_time():
        async with serving_here(one):
            short, long = Launcher(one), Launcher(one)
            yield Ground(short, long, extent, 1, lambda line: None), short, long


def values(curve: Curve) -> dict[tuple[float, str], float]:
    return {(point.x, point.quantity): point.value for point in curve.points}


def step(decode: int, prefill: int, /, **phases: float) -> list[dict[str, Any]]:
    """The events of one step as `GET /debug/steps` has them; `phases` in microseconds."""
    args = {
        "sequences": decode,
        "decode rows": decode,
        "draft tokens": 0,
        "prefill rows": prefill,
        "expected ms": 0.077,
    }
    return [{"name": name, "dur": dur, "args": args if name == "step" else {}} for name, dur in phases.items()]


# --- curves --------------------------------------------------------------------------------------------------------


def test_a_point_is_the_median_and_a_curve_survives_json() -> None:
    curve = Curve("streams", "streams at once")
    curve.add(4, "a step", "ms", [3.0, 1.0, 9.0])
    curve.add(1, "a step", "ms", [2.0])
    curve.add(1, "planning", "%", [])
    assert [(point.x, point.value) for point in curve.lines("ms")["a step"]] == [(1, 2.0), (4, 3.0)]
    assert curve.units == ["ms"]
    assert Curve.of_json(json.loads(json.dumps(curve.as_json()))) == curve


def test_shares_are_of_steps_that_only_write_that_many_rows() -> None:
    events = [
        *step(4, 0, step=90, plan=9, decode=70, sample=11, send=10),
        *step(4, 30, step=900, plan=900, decode=0, sample=0, send=0),
        *step(3, 0, step=900, plan=900, decode=0, sample=0, send=0),
        *step(4, 0, step=90, plan=1, decode=70, sample=19, send=10),
    ]
    found = streams.shares(events, 4)
    assert found == {
        "planning": pytest.approx(10 / 200),
        "all but llama.cpp's decode": pytest.approx(60 / 200),
        "error of the cost model, median": pytest.approx(0.1),
    }
    assert streams.shares(events, 64) == {}


async def test_streams_find_the_step_and_the_wait_of_many_at_once() -> None:
    events = step(3, 0, step=100, plan=2, decode=50, send=0)
    async with ground(step_s=0.02, token_s=0.001, steps=events) as (found, launcher, _):
        await streams.measure(found)
    (curve,) = found.curves
    got = values(curve)
    assert 20 <= got[1, "a step"] < 200
    assert 3 * 24 * 0.001 * 0.5 < got[3, "median TTFT, all at once"] < 2
    assert got[3, "planning"] == pytest.approx(2)
    assert (1, "planning") not in got
    assert launcher.flags == [("-np", "3", "-c", str(3 * (16 + 64)))]


async def test_many_streams_write_long_enough_to_write_all_at_once() -> None:
    extent = dataclasses.replace(EXTENT, streams=(1, 20), tokens=16)
    async with ground(extent, step_s=0.001) as (found, launcher, _):
        await streams.measure(found)
    assert {body["max_tokens"] for body in launcher.fake.bodies[1:]} == {16, 40}
    assert launcher.flags == [("-np", "20", "-c", str(20 * (40 + 64)))]


async def test_each_context_has_a_server_of_its_own_of_the_long_model() -> None:
    async with ground(token_s=0.001) as (found, short, long):
        await context.measure(found)
    got = values(found.curves[0])
    assert (short.flags, [flags[3] for flags in long.flags]) == ([], ["200", "400"])
    # A message of 25 tokens, whatever lies before it.
    assert all(0.025 <= got[x, "TTFT of a short message"] < 2 for x in (200, 400))
    assert all(50 < got[x, "reading all of it"] <= 1000 for x in (200, 400))
    assert got[400, "memory of all processes"] > 1


async def test_a_context_that_the_model_does_not_take_is_said() -> None:
    async with ground(n_ctx=300) as (found, _, _):
        with pytest.raises(BenchError, match="300 tokens, not 400: give a --long-model"):
            await context.measure(found)
        assert {point.x for point in found.curves[0].points} == {200}


async def test_kept_chats_go_on_with_the_new_message_only() -> None:
    async with ground(token_s=0.002, step_s=0.002) as (found, launcher, _):
        await chats.measure(found)
    got = values(found.curves[0])
    assert {x for x, _ in got} == {1, 4}
    assert got[4, "TTFT of a kept chat"] >= 25 * 0.002
    prompts = [body["prompt"] for body in launcher.fake.bodies]
    again = [prompt for prompt in prompts if len(prompt.split()) > EXTENT.chat_tokens + 20]
    assert len(again) == 2
    assert all(any(prompt.startswith(f"{before}\n") for before in prompts) for prompt in again)
    assert got[4, "TTFT of a new chat"] >= 30 * 0.002


async def test_every_gap_has_a_server_of_its_own() -> None:
    async with ground(token_s=0.002, step_s=0.004) as (found, launcher, _):
        await gaps.measure(found)
    steps = ("--max-gap-steps", "0")
    assert [flags[-4:] for flags in launcher.flags] == [("--max-gap-ms", gap, *steps) for gap in ("50", "200")]
    got = values(found.curves[0])
    assert 0.07 <= got[50, "TTFT of the new request"] < 3
    assert 0.06 <= got[200, "longest ITL of running streams"] < 3


# --- pictures ------------------------------------------------------------------------------------------------------


def made_curve() -> Curve:
    curve = Curve("context", "tokens of context")
    for n in (1024, 2048):
        curve.add(n, "a step", "ms", [n / 100])
        curve.add(n, "one wait", "s", [1.0])
        curve.add(n, "another wait", "s", [2.0])
    return curve


def test_a_picture_names_quantities_and_units_and_is_the_same_each_time(tmp_path: Path) -> None:
    # Matplotlib takes a second, in every process that collects this file.
    from ggufd.bench.curves.plots import draw

    (path,) = draw([made_curve(), Curve("empty", "nothing")], tmp_path / "new")
    assert path.name == "curve-context.svg"
    texts = {element.text for element in ET.parse(path).iter() if element.tag.endswith("}text")}
    assert {"a step", "one wait", "another wait", "ms", "s", "tokens of context", "1k", "2k"} <= texts
    before = path.read_bytes()
    draw([made_curve()], tmp_path / "new")
    assert path.read_bytes() == before


def test_a_file_of_an_earlier_run_is_drawn(tmp_path: Path) -> None:
    file = tmp_path / "curves.json"
    file.write_text(json.dumps({"curves": [made_curve().as_json()]}))
    result = CliRunner().invoke(app, ["curves", "--from", str(file), "--plots", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "curve-context.svg").exists()


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "stream"], "no curve is named 'stream': expected one of streams, context, chats, gaps"),
        (["--from", "/nowhere.json"], "/nowhere.json is no file"),
        (["--only", "gaps", "-m", "/nowhere.gguf"], "gaps: failed: the server ended with 1"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["curves", *arguments])
    assert result.exit_code == 1
    assert said in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(BenchError("no luck"), 0, "context: failed: no luck"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_a_run_that_is_cut_short_keeps_what_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, code: int, said: str
) -> None:
    async def good(found: Ground) -> None:
        found.begin("streams", "x").add(1, "a step", "ms", [1.0])

    async def bad(found: Ground) -> None:
        found.begin("context", "x")
        raise error

    for name in ("streams", "context"):
        monkeypatch.setitem(CURVES, name, good if name == "streams" else bad)
    out = tmp_path / "out.json"
    result = CliRunner().invoke(app, ["curves", "--only", "streams", "--only", "context", "--json", str(out)])
    assert result.exit_code == code
    assert said in result.output
    found = json.loads(out.read_text())
    assert [len(curve["points"]) for curve in found["curves"]] == [1, 0]
    assert any(said in warning for warning in found["warnings"])


def test_a_cut_model_has_the_first_layers_and_another_context(tiny_model: Path, tmp_path: Path) -> None:
    cut = write_cut_model(tiny_model, tmp_path / "cut.gguf", n_layers=1, n_ctx=4096)
    header, whole = gguf_header.read([cut]), gguf_header.read([tiny_model])
    layers = {tensor.name.split(".")[1] for tensor in header.tensors() if tensor.name.startswith("blk.")}
    assert layers == {"0"}
    assert (header.metadata["llama.block_count"], header.metadata["llama.context_length"]) == (1, 4096)
    assert header.metadata["tokenizer.ggml.tokens"] == whole.metadata["tokenizer.ggml.tokens"]
