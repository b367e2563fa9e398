"""What llama.cpp itself says that a model and its contexts take, from its log.

    python -m tests.support.fakes.allocated < request.json > answer.json

A process of its own, since the log goes through one function of the whole process. The request is a list of
`{"path", "real": load the weights?, "contexts": [ContextParams as a dict], "vectors": [EmbeddingParams as a dict]}`;
the answer gives for each the model's buffers and those of every context, as `{buffer kind: MiB}`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute|output)\s+buffer size\s*=\s*([\d.]+) MiB")
_CACHE = re.compile(r"^llama_kv_cache: size =\s*([\d.]+) MiB")


def ask(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the process on a request."""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.fakes.allocated"],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        timeout=170,
        cwd=root,
        check=True,
    )
    answer: list[dict[str, Any]] = json.loads(done.stdout)
    return answer


def _main() -> None:
    from ggufd.llama.context.context import Context
    from ggufd.llama.context.embedding import EmbeddingContext
    from ggufd.llama.log import LogCapture
    from ggufd.llama.model.model import Model
    from ggufd.llama.params import ContextParams, EmbeddingParams, ModelParams

    lines: list[str] = []
    log = LogCapture(lambda level, line: lines.append(line))
    log.install()
    answer = []
    for request in json.load(sys.stdin):
        is_real = request.get("real", False)
        lines.clear()
        model = Model(ModelParams(request["path"], mmap=is_real, no_alloc=not is_real))
        found: dict[str, Any] = {"model": _buffers(lines), "contexts": [], "vectors": []}
        for params in request["contexts"]:
            lines.clear()
            Context(model, ContextParams(**{"n_slots": 1, "n_threads": 1, **params})).close()
            found["contexts"].append(_buffers(lines))
        for params in request.get("vectors", ()):
            lines.clear()
            EmbeddingContext(model, EmbeddingParams(**{"n_threads": 1, **params})).close()
            found["vectors"].append(_buffers(lines))
        model.close()
        answer.append(found)
    json.dump(answer, sys.stdout)


def _buffers(lines: list[str]) -> dict[str, float]:
    """Sums by device and kind, "CPU compute"; "cache" is what the caches' own lines say: buffers are empty unless
    they are real."""
    sums: dict[str, float] = {}
    for line in lines:
        if match := _BUFFER.search(line):
            key = f"{match[1]} {match[2]}"
            sums[key] = sums.get(key, 0.0) + float(match[3])
        elif match := _CACHE.search(line):
            sums["cache"] = sums.get("cache", 0.0) + float(match[1])
    return sums


if __name__ == "__main__":
    _main()
