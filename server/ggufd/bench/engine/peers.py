"""llama.cpp's benchmark programs, run on a shape: command lines and JSON lines."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufd.bench.engine.loop import Rates
from ggufd.bench.engine.shapes import Workload
from ggufd.bench.measure.client import BenchError

_MORE_TRIES = 3


@dataclass(frozen=True, slots=True)
class PeerSetting:
    """Setting of both sides."""

    model: str
    n_threads: int
    flash_attn: bool

    @property
    def flags(self) -> list[str]:
        """Flags, as both programs spell them."""
        return ["-m", self.model, "-t", str(self.n_threads), "-fa", "on" if self.flash_attn else "off"]


@dataclass(frozen=True, slots=True)
class Program:
    """One of the programs, and its time limit for a shape, in seconds."""

    path: Path
    timeout_s: float = 600.0

    def run(self, arguments: list[str]) -> list[dict[str, Any]]:
        """Run it; returns its JSON lines. Raises BenchError when it cannot be run, fails, or takes too long."""
        try:
            done = subprocess.run(
                [str(self.path), *arguments],
                env=_environment(self.path),
                capture_output=True,
                text=True,
                timeout=self.timeout_s,
                check=False,
            )
        except OSError as error:
            raise BenchError(f"{self.path} cannot be run: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise BenchError(f"{self.path} took more than {self.timeout_s:g} s for one shape") from None
        if done.returncode:
            raise BenchError(f"{self.path} ended with {done.returncode}: {_last_line(done.stderr)}")
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _environment(program: Path) -> Mapping[str, str]:
    """Environment with the libraries beside the program. For it alone: here they would replace the binding's."""
    folders = [str(program.resolve().parent), os.environ.get("LD_LIBRARY_PATH", "")]
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders))}


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def batched_bench(program: Program, shape: Workload, setting: PeerSetting) -> Rates:
    """llama-batched-bench, with a stream for each sequence as the engine has it."""
    sizes = ["-npp", str(shape.n_prompt), "-ntg", str(shape.n_write), "-npl", str(shape.n_sequences)]
    n_ctx = shape.n_sequences * shape.n_ctx
    arguments = [*setting.flags, *sizes, "-c", str(n_ctx), "-no-kvu", "--output-format", "jsonl"]
    found = program.run(arguments)
    for _ in range(_MORE_TRIES):
        # Its lines are written by a thread that is not always done when it ends.
        found = found or program.run(arguments)
    if len(found) != 1:
        raise BenchError(f"{program.path} gave {len(found)} results for one shape")
    return Rates(float(found[0]["speed_pp"]), float(found[0]["speed_tg"]))


def llama_bench(program: Program, shape: Workload, setting: PeerSetting) -> Rates:
    """llama-bench, once after its own warm-up."""
    sizes = ["-p", str(shape.n_prompt), "-n", str(shape.n_write), "-d", str(shape.n_depth)]
    found = program.run([*setting.flags, *sizes, "-r", "1", "-o", "jsonl"])
    rates = {bool(one["n_gen"]): float(one["avg_ts"]) for one in found}
    return Rates(rates.get(False), rates.get(True))
