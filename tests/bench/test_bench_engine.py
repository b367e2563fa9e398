"""`ggufd bench engine`: what is timed is what was asked for, and llama.cpp's programs get the same shapes."""

from __future__ import annotations

import json
import random
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ggufd.bench.app import app
from ggufd.bench.engine.loop import Loop
from ggufd.bench.engine.peers import PeerSetting, Program, batched_bench, llama_bench
from ggufd.bench.engine.shapes import Workload, batched, lone, numbers
from ggufd.bench.measure.client import BenchError
from ggufd.engine.messages.reports import Event
from ggufd.engine.messages.requests import EngineRequest
from tests.support.fakes.bench_server import FakeServer, serving
from tests.support.fakes.fake_llama import make_engine

pytestmark = pytest.mark.timed

SETTING = PeerSetting("m.gguf", 2, flash_attn=False)


# --- shapes --------------------------------------------------------------------------------------------------------


def test_shapes_are_all_combinations_and_say_what_they_are() -> None:
    assert batched((8, 16), (4,), (1, 2)) == [
        Workload(8, 4, 1),
        Workload(8, 4, 2),
        Workload(16, 4, 1),
        Workload(16, 4, 2),
    ]
    assert [shape.label for shape in lone((4000,), (0, 1300))] == [
        "4,000 read",
        "64 written",
        "64 written at depth 1,300",
    ]
    assert Workload(8, 4, 2).label == "2 sequences, 8 read and 4 written"
    assert Workload(8, 4, 2, n_depth=100).n_ctx == 113


def test_numbers_are_read_and_others_refused() -> None:
    assert numbers("--npl", "1, 4") == (1, 4)
    assert numbers("--prompts", "") == ()
    assert numbers("--depths", "0", least=0) == (0,)
    with pytest.raises(BenchError, match=r"--npl '1,x'"):
        numbers("--npl", "1,x")
    with pytest.raises(BenchError, match="from 1 on"):
        numbers("--npl", "0")


# --- the loop ------------------------------------------------------------------------------------------------------


class Watched:
    """Passes everything on to an engine, and keeps the requests."""

    def __init__(self, **options: object) -> None:
        self.rig = make_engine(**options)
        self.requests: list[EngineRequest] = []

    @property
    def has_work(self) -> bool:
        return self.rig.engine.has_work

    def add(self, request: EngineRequest) -> None:
        self.requests.append(request)
        self.rig.add(request)

    def step(self) -> list[Event]:
        return self.rig.step()


def test_each_phase_goes_on_where_the_last_one_ended() -> None:
    engine = Watched(n_slots=2, n_ctx=64)
    rates = Loop(engine, 200, random.Random(1)).measure(Workload(6, 4, 2, n_depth=10))
    assert rates.read is not None
    assert rates.written is not None
    depth, reading, writing = engine.requests[:2], engine.requests[2:4], engine.requests[4:]
    assert [len(one.prompt) for one in (*depth, *reading, *writing)] == [10, 10, 16, 16, 17, 17]
    assert [one.max_tokens for one in (*depth, *reading, *writing)] == [1, 1, 1, 1, 4, 4]
    assert all(b.prompt[: len(a.prompt)] == a.prompt for a, b in zip(depth, reading, strict=True))
    assert all(b.prompt[: len(a.prompt)] == a.prompt for a, b in zip(reading, writing, strict=True))


def test_every_step_that_writes_has_a_row_of_every_sequence() -> None:
    engine = Watched(n_slots=4, n_ctx=64)
    Loop(engine, 200, random.Random(1)).measure(Workload(8, 5, 4))
    assert [record.n_decode + record.n_prefill for record in engine.rig.engine.steps().records[-5:]] == [4] * 5


def test_a_phase_that_a_shape_has_not_has_no_rate() -> None:
    engine = Watched(n_slots=1, n_ctx=64)
    loop = Loop(engine, 200, random.Random(1))
    assert loop.measure(Workload(8, 0)).written is None
    assert loop.measure(Workload(0, 4)).read is None


def test_what_the_engine_refuses_or_forgets_is_no_figure() -> None:
    engine = Watched(n_slots=1, n_ctx=16)
    with pytest.raises(BenchError, match="the engine refused"):
        Loop(engine, 200, random.Random(1)).measure(Workload(40, 4))
    # Two chats at a depth on one slot: what the first had computed is gone when it goes on.
    engine = Watched(n_slots=1, n_ctx=64)
    with pytest.raises(BenchError, match="0 of the prompt cached"):
        Loop(engine, 200, random.Random(1)).measure(Workload(4, 4, 2, n_depth=20))


# --- llama.cpp's programs ------------------------------------------------------------------------------------------


def program(path: Path, lines: Sequence[str], *, code: int = 0) -> Program:
    """A program that writes its arguments beside itself, then says these lines."""
    body = "\n".join(f"echo '{line}'" for line in lines)
    path.write_text(f'#!/bin/sh\necho "$@" > "$0.args"\n{body}\necho "no such model" >&2\nexit {code}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return Program(path)


def arguments_of(found: Program) -> str:
    return Path(f"{found.path}.args").read_text().strip()


def test_batched_bench_gets_the_shape_and_a_stream_for_each_sequence(tmp_path: Path) -> None:
    found = program(tmp_path / "bb", ["some words", '{"speed_pp": 100.5, "speed_tg": 20.25}'])
    rates = batched_bench(found, Workload(32, 16, 4), SETTING)
    assert (rates.read, rates.written) == (100.5, 20.25)
    assert arguments_of(found) == ("-m m.gguf -t 2 -fa off -npp 32 -ntg 16 -npl 4 -c 196 -no-kvu --output-format jsonl")


def test_batched_bench_runs_again_when_its_line_was_lost(tmp_path: Path) -> None:
    found = program(tmp_path / "bb", ['{"speed_pp": 1.0, "speed_tg": 2.0}'])
    first = '[ -e "$0.ran" ] || { touch "$0.ran"; exit 0; }'
    found.path.write_text(found.path.read_text().replace("#!/bin/sh", f"#!/bin/sh\n{first}"))
    assert batched_bench(found, Workload(1, 1), SETTING).written == 2.0


def test_llama_bench_gets_the_depth(tmp_path: Path) -> None:
    found = program(tmp_path / "b", ['{"n_gen": 64, "avg_ts": 150.0}'])
    rates = llama_bench(found, Workload(0, 64, n_depth=1300), SETTING)
    assert (rates.read, rates.written) == (None, 150.0)
    assert arguments_of(found) == "-m m.gguf -t 2 -fa off -p 0 -n 64 -d 1300 -r 1 -o jsonl"


def test_a_program_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="ended with 3: no such model"):
        batched_bench(program(tmp_path / "bb", [], code=3), Workload(1, 1), SETTING)
    with pytest.raises(BenchError, match="No such file"):
        batched_bench(Program(tmp_path / "none"), Workload(1, 1), SETTING)
    with pytest.raises(BenchError, match="gave 0 results"):
        batched_bench(program(tmp_path / "silent", []), Workload(1, 1), SETTING)


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quiet_log_afterwards")
def test_the_command_measures_both_sides_in_turns(tiny_model: Path, tmp_path: Path) -> None:
    bb = program(tmp_path / "bb", ['{"speed_pp": 1.0, "speed_tg": 1.0}'])
    out = tmp_path / "out.json"
    flags = [
        "-m",
        str(tiny_model),
        "-t",
        "1",
        "-fa",
        "off",
        "--npp",
        "8",
        "--ntg",
        "4",
        "--npl",
        "1,2",
        "--rounds",
        "2",
    ]
    alone = ["--prompts", "", "--depths", "20"]
    result = CliRunner().invoke(
        app, ["engine", *flags, *alone, "--llama-batched-bench", str(bb.path), "--json", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert "A / B" in result.output
    found = {(one["case"], one["quantity"]): one for one in json.loads(out.read_text())["results"]}
    together = found["2 sequences, 8 read and 4 written", "written"]
    assert together["ratio"]["of_medians"] > 1
    assert [(one["repetition"], one["server"]) for one in together["samples"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert found["64 written at depth 20", "written"]["ratio"] is None


@pytest.mark.usefixtures("quiet_log_afterwards")
def test_a_server_of_the_model_is_set_against_the_same_program(tiny_model: Path, tmp_path: Path) -> None:
    bb = program(tmp_path / "bb", ['{"speed_pp": 1.0, "speed_tg": 25.0}'])
    out = tmp_path / "out.json"
    flags = ["-m", str(tiny_model), "-t", "1", "-fa", "off", "--npp", "8", "--ntg", "12", "--npl", "2", "--rounds", "1"]
    rest = ["--prompts", "", "--depths", "", "--llama-batched-bench", str(bb.path), "--json", str(out)]
    fake = FakeServer(step_s=0.02)
    with serving(fake):
        result = CliRunner().invoke(app, ["engine", *flags, *rest, "--url", fake.url])
        too_many = CliRunner().invoke(app, ["engine", *flags, *rest, "--url", fake.url, "--npl", "5"])
    assert result.exit_code == 0, result.output
    (over_http,) = (one for one in json.loads(out.read_text())["results"] if one["scenario"] == "batch, over HTTP")
    assert 40 < over_http["medians"][0] < 101
    # Prompts are read before what is timed begins.
    assert [body["max_tokens"] for body in fake.bodies[-4:]] == [1, 1, 12, 12]
    assert fake.bodies[-4]["prompt"] in [body["prompt"] for body in fake.bodies[-2:]]
    assert over_http["ratio"]["of_medians"] == pytest.approx(over_http["medians"][0] / 25)
    assert (too_many.exit_code, "4 slots, and 5 sequences" in too_many.output) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--npl", ""], "no shape to measure"),
        (["--ntg", "x"], "--ntg 'x'"),
        (["-m", "/nowhere.gguf"], "/nowhere.gguf"),
    ],
)
def test_what_cannot_be_measured_is_one_line(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["engine", *arguments, "--prompts", "", "--depths", ""])
    assert result.exit_code == 1
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_url_alone_is_measured_over_http() -> None:
    result = CliRunner().invoke(app, ["127.0.0.1:1"])
    assert result.exit_code == 1
    assert "http://127.0.0.1:1 cannot be reached" in result.output
