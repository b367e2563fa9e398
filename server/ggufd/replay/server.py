"""Server of a replay: one that runs, or one that is started for it with the settings of the receipt."""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from ggufd.errors import StartupError
from ggufd.processes.server_process import ServerProcess
from ggufd.replay.receipt_file import ReplayError

_READY_S = 600.0
_STOP_S = 30.0

_FLAGS: Mapping[str, tuple[str, Any]] = {
    "n_ctx": ("ctx-size", None),
    "n_ubatch": ("ubatch-size", None),
    "n_threads": ("threads", None),
    "n_threads_batch": ("threads-batch", None),
    "flash_attn": ("flash-attn", None),
    "cache_type_k": ("cache-type-k", "f16"),
    "cache_type_v": ("cache-type-v", "f16"),
    "rope_scaling": ("rope-scaling", ""),
    "rope_freq_base": ("rope-freq-base", 0.0),
    "rope_freq_scale": ("rope-freq-scale", 0.0),
    "yarn_orig_ctx": ("yarn-orig-ctx", 0),
    "yarn_ext_factor": ("yarn-ext-factor", -1.0),
    "yarn_attn_factor": ("yarn-attn-factor", -1.0),
    "yarn_beta_slow": ("yarn-beta-slow", -1.0),
    "yarn_beta_fast": ("yarn-beta-fast", -1.0),
}
"""Settings of a receipt: their flags, and the values that need none."""


class ReplayServer:
    """Server at `url`; `api_key` is sent where there is one, and an answer may take `timeout_s`."""

    def __init__(self, url: str, api_key: str | None, timeout_s: float) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ReplayError(f"--url {url}: expected a server's address, such as http://127.0.0.1:5001")
        self._is_tls = parts.scheme == "https"
        self._netloc = parts.netloc.rpartition("@")[2]
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout_s = timeout_s

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON that the server answers. Raises `ReplayError`, with its words where it refuses."""
        connect = http.client.HTTPSConnection if self._is_tls else http.client.HTTPConnection
        connection = connect(self._netloc, timeout=self._timeout_s)
        try:
            connection.request("POST", self._base + path, json.dumps(body).encode(), self._headers)
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ReplayError(f"{self._netloc} gives no answer: {error or type(error).__name__}") from None
        finally:
            connection.close()
        return _json_of(data, response.status, f"{self._netloc}{self._base}{path}")

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens; of a server that does not tell, the tokens."""
        try:
            return str(self.post("/detokenize", {"tokens": list(tokens)})["content"])
        except (ReplayError, KeyError, TypeError):
            return " ".join(map(str, tokens))


def _json_of(data: bytes, status: int, where: str) -> Any:
    try:
        value = json.loads(data)
    except ValueError:
        raise ReplayError(f"{where} answers {status}, and no JSON") from None
    if status != 200:
        error = value.get("error") if isinstance(value, dict) else None
        message = error.get("message") if isinstance(error, dict) else error or f"status {status}"
        raise ReplayError(f"{where}: {message}")
    return value


@contextlib.contextmanager
def started(settings: Mapping[str, Any], arguments: Sequence[str]) -> Iterator[str]:
    """Context with the URL of a server of these settings, ready; `arguments` are further flags, and go before them.

    Raises `ReplayError` when it ends or is not ready in time, with the last line that it said.
    """
    command = [sys.executable, "-m", "ggufd", "serve", "--host", "127.0.0.1", "--port", "0", "--parallel", "1"]
    try:
        process = ServerProcess([*command, *flags_of(settings), *arguments])
        try:
            yield process.wait_address(_READY_S)
        finally:
            process.stop(_STOP_S)
    except StartupError as error:
        raise ReplayError(error.message) from None


def flags_of(settings: Mapping[str, Any]) -> list[str]:
    """Flags of `ggufd serve` for the settings of a receipt."""
    flags = [
        f"--{flag}={settings[name]}"
        for name, (flag, neutral) in _FLAGS.items()
        if name in settings and settings[name] != neutral
    ]
    if settings.get("kv_offload") is False:
        flags.append("--no-kv-offload")
    if settings.get("n_gpu_layers") == 0:
        flags.append("--n-gpu-layers=0")
    return flags
