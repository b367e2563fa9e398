"""Receipt of one HTTP request: the request itself, what computed it, and the tokens that came of it.

All that `ggufd replay` needs. Made while the answer comes, and told once, at its end. Knows no route.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from ggufd import __version__
from ggufd.api.http.record import RequestRecord
from ggufd.api.receipts.parameters import parameters_json
from ggufd.api.request.fields import SAMPLING
from ggufd.api.services.services import Services
from ggufd.engine.messages.events import Finish, Output
from ggufd.engine.messages.provenance import FileDigest, Provenance
from ggufd.engine.messages.requests import EngineRequest

VERSION = 1

_SEEDS = 2**32 - 1
"""Seeds wrap around here: llama.cpp takes this one for "draw a seed"."""


class Receipt:
    """Receipt of `requests`, of which `record` has the body; choice `i * n + j` is sequence `j` of request `i`."""

    def __init__(self, services: Services, requests: Sequence[EngineRequest], record: RequestRecord) -> None:
        # What it is now: by the end of the answer another engine may be loading.
        self._provenance = services.require_ready().provenance
        self._template = services.text.info.chat_template or ""
        self._requests = requests
        self._record = record
        self._n = requests[0].n
        self._tokens: list[array[int]] = [array("i") for _ in range(self._n * len(requests))]
        self._finishes: dict[int, Finish] = {}
        self._is_told = False

    def add(self, index: int, output: Output) -> None:
        """Take in what the engine said of a choice."""
        self._tokens[index].extend(output.tokens)
        if output.finish is not None:
            self._finishes[index] = output.finish

    def take(self) -> dict[str, Any]:
        """`{"receipt": ...}` as soon as every choice has ended, and once; empty before that and after it."""
        if self._is_told or len(self._finishes) < len(self._tokens) or self._provenance is None:
            return {}
        self._is_told = True
        return {
            "receipt": {
                "version": VERSION,
                "request": {"path": self._record.path, "body": body_with_seed(self._record.body, self._seed)},
                "computed_by": self._computed_by(self._provenance),
                "parameters": parameters_json(self._requests[0]),
                "prompts": [_counted(request.prompt) for request in self._requests],
                "choices": [self._choice(index, tokens) for index, tokens in enumerate(self._tokens)],
            }
        }

    @property
    def _seed(self) -> int:
        seed = self._requests[0].sampling.seed
        assert seed is not None, "a deterministic request has a seed"
        return seed

    def _choice(self, index: int, tokens: array[int]) -> dict[str, Any]:
        finish = self._finishes[index]
        return {
            "index": index,
            "seed": (self._seed + index % self._n) % _SEEDS,
            "finish_reason": finish.reason.value,
            **_counted(tokens),
            "tokens": list(tokens),
        }

    def _computed_by(self, made: Provenance) -> dict[str, Any]:
        scales = self._requests[0].adapters or (0.0,) * len(made.adapters)
        return {
            "model": [_file_json(file) for file in made.model],
            "template": hashlib.sha256(self._template.encode()).hexdigest(),
            "adapters": [
                _file_json(file) | {"scale": scale} for file, scale in zip(made.adapters, scales, strict=True)
            ],
            "control_vectors": [_file_json(file) for file in made.control_vectors],
            "settings": dict(made.settings),
            "build": {"ggufd": __version__, "binding": made.build, "libraries": made.libraries},
            "hardware": {"cpu": made.cpu, "devices": list(made.devices)},
        }


def body_with_seed(raw: bytes, seed: int) -> dict[str, Any]:
    """The body of a request with this seed in place of any other, or of none, which draws one."""
    body: dict[str, Any] = json.loads(raw.decode("utf-8-sig"))
    options = body.get("options")
    if isinstance(options, Mapping):
        body["options"] = _without_seed(options)
    return {**_without_seed(body), "seed": seed}


def _without_seed(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in SAMPLING["seed"]}


def _counted(tokens: Sequence[int]) -> dict[str, Any]:
    """Number of tokens, and their digest: SHA-256 of their ids, 32 bits each, little-endian."""
    data = b"".join(token.to_bytes(4, "little", signed=True) for token in tokens)
    return {"n_tokens": len(tokens), "digest": hashlib.sha256(data).hexdigest()}


def _file_json(file: FileDigest) -> dict[str, Any]:
    return {"name": file.name, "bytes": file.n_bytes, "digest": file.digest}
