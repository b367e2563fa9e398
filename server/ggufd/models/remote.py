"""Model names of the Hugging Face hub and of ollama's local store, resolved to files.

`hf:OWNER/REPO`, `hf:OWNER/REPO:QUANTISATION`, `hf:OWNER/REPO/FILE.gguf` go through huggingface_hub: its token
(HF_TOKEN), its endpoint (HF_ENDPOINT), its cache (HF_HOME). This module resolves the file or parts, and reads a header
by range requests; `download` downloads them. Every failure is a ModelError of one line. `ollama:NAME[:TAG]` only reads
what ollama has stored on this machine.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufd.errors import ModelError
from ggufd.llama.gguf import gguf_header
from ggufd.llama.gguf.byte_reader import ReadAt

logger = logging.getLogger("ggufd")

_HF = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^:]+\.gguf)|:(?P<quant>[\w.-]+))?", re.ASCII)
_OLLAMA = re.compile(
    r"ollama:(?:(?:(?P<host>[\w.-]+)/)?(?P<owner>[\w.-]+)/)?(?P<name>[\w.-]+)(?::(?P<tag>[\w.-]+))?", re.ASCII
)
_PREFERRED = "Q4_K_M"
_TIMEOUT_S = 20
_CONNECT_S = 10
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})
_HEADER_CHUNK_BYTES = 1 << 20
"""Bytes per range request for a remote header."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """File of a repository: size in bytes, checksum if the hub has one."""

    repo: str
    name: str
    n_bytes: int
    sha256: str | None


def find_ollama(model: str) -> Path:
    """Path of `ollama:NAME[:TAG]` in ollama's store on this machine."""
    digests, blobs = _ollama_layers(model)
    if "adapter" in digests:
        adapter = blobs / digests["adapter"]
        logger.warning(
            "%s: ollama applies an adapter to this model, and ggufd does so only with --lora %s", model, adapter
        )
    return blobs / digests["model"]


def find_ollama_projector(model: str) -> Path | None:
    """Path of the image projector of `ollama:NAME[:TAG]`; None where it has none, or lies in the model's own file."""
    digests, blobs = _ollama_layers(model)
    return blobs / digests["projector"] if "projector" in digests else None


def _ollama_layers(model: str) -> tuple[dict[str, str], Path]:
    """File names of a model's layers by their kind, and their folder."""
    match = _OLLAMA.fullmatch(model)
    if match is None:
        raise ModelError(f"{model}: expected ollama:NAME or ollama:NAME:TAG")
    root = Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")
    # Models of another registry, such as hf.co, lie under its name.
    host = match["host"] or "registry.ollama.ai"
    folder = root / "manifests" / host / (match["owner"] or "library") / match["name"]
    manifest = folder / (match["tag"] or "latest")
    try:
        layers = json.loads(manifest.read_text("utf-8"))["layers"]
        digests = {
            one["mediaType"].removeprefix("application/vnd.ollama.image."): str(one["digest"]).replace(":", "-")
            for one in reversed(layers)
        }
        if "model" not in digests:
            raise KeyError("model")
    except FileNotFoundError:
        raise ModelError(f"{model}: ollama has no such model on this machine (looked for {manifest})") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise ModelError(f"{model}: {manifest} is not the manifest of a model") from None
    return digests, root / "blobs"


def find(model: str) -> list[RemoteFile]:
    """File, or all parts, of `hf:...`, from the hub's list of the repository's files. Raises ModelError."""
    match = _match(model)
    files = _files(model, match["repo"])
    first = match["file"] or _choose(model, sorted(files), match["quant"])
    names = [str(part).replace(os.sep, "/") for part in gguf_header.parts_of(Path(first))]
    missing = [name for name in names if name not in files]
    if missing:
        raise ModelError(f"{model}: there is no {missing[0]} in this repository{_suggestions(files)}")
    return [files[name] for name in names]


def find_projectors(model: str) -> list[RemoteFile]:
    """Image projectors in the repository of `hf:...`, the one to be preferred first. Raises ModelError."""
    files = _files(model, _match(model)["repo"])
    return [files[name] for name in sorted(files, key=_projector_rank) if is_projector_name(name)]


def is_projector_name(name: str) -> bool:
    """Whether a file is called as image projectors are."""
    return Path(name).name.lower().startswith("mmproj")


def _projector_rank(name: str) -> tuple[int, str]:
    """Place of a projector among those of one model: half precision first, which is as good as full."""
    types = ("f16", "bf16", "q8_0")
    found = (i for i, kind in enumerate(types) if re.search(rf"(?<![a-z0-9]){kind}(?![a-z0-9])", name.lower()))
    return next(found, len(types)), name


def _match(model: str) -> re.Match[str]:
    match = _HF.fullmatch(model)
    if match is None:
        raise ModelError(f"{model}: expected hf:OWNER/REPO, hf:OWNER/REPO:QUANTISATION or hf:OWNER/REPO/FILE.gguf")
    return match


def _files(model: str, repo: str) -> dict[str, RemoteFile]:
    """GGUF files of a repository by name."""
    hub = hub_library(model)
    with as_model_error(model):
        session = hub.utils.get_session()
        # The library's own timeouts: none for a response, half a minute to connect.
        session.timeout = _TIMEOUT_S
        session.head(hub.constants.ENDPOINT, timeout=_CONNECT_S, follow_redirects=False)
        tree = list(hub.HfApi().list_repo_tree(repo, recursive=True))
    return {one.path: _remote(repo, one) for one in tree if str(one.path).lower().endswith(".gguf")}


def find_cached(model: str) -> Path | None:
    """Path of `hf:...` in the local cache, for a start without a network; None if it is not there."""
    match = _HF.fullmatch(model)
    if match is None:
        return None
    hub = hub_library(model)
    folder = cache_folder(hub, match["repo"])
    with contextlib.suppress(OSError, ModelError):
        snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
        names = sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.gguf"))
        first = match["file"] or _choose(model, names, match["quant"])
        if all(part.exists() for part in gguf_header.parts_of(snapshot / first)):
            return snapshot / first
    return None


def cache_folder(hub: Any, repo: str) -> Path:
    """Folder of a repository in the library's cache: `blobs` by checksum, `snapshots` of links to them, `refs`."""
    return Path(hub.constants.HF_HUB_CACHE) / ("models--" + repo.replace("/", "--"))


def _remote(repo: str, one: Any) -> RemoteFile:
    return RemoteFile(repo, one.path, int(one.size), one.lfs.sha256 if one.lfs else None)


def _choose(model: str, names: Sequence[str], quant: str | None) -> str:
    """File name of a quantisation: the one asked for, else the only one, else Q4_K_M."""
    first_parts = [name for name in names if gguf_header.parts_of(Path(name))[0] == Path(name)]
    models = [name for name in first_parts if not is_projector_name(name)]
    if not models:
        raise ModelError(f"{model}: there is no .gguf file in this repository")
    if quant is None and len(models) == 1:
        return models[0]
    wanted = re.compile(rf"(?<![A-Za-z0-9_]){re.escape(quant or _PREFERRED)}(?![A-Za-z0-9_])", re.IGNORECASE)
    found = [name for name in models if wanted.search(Path(name).name)]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} files are {quant or _PREFERRED}" if found else f"no file is {quant or _PREFERRED}"
    raise ModelError(f"{model}: {what}; name one as hf:OWNER/REPO/FILE.gguf{_suggestions(models)}")


def _suggestions(names: Any) -> str:
    return "; it has " + ", ".join(sorted(names)[:20]) if names else ""


def read_header(model: str, files: Sequence[RemoteFile]) -> gguf_header.Gguf:
    """GGUF header, read by range requests: a few megabytes, whatever the size of the model."""
    hub = hub_library(model)
    headers = []
    for one in files:
        url = hub.hf_hub_url(one.repo, one.name)
        with as_model_error(model):
            headers.append(gguf_header.read_header(_reader(hub, url), one.n_bytes, f"{model}/{one.name}"))
    return gguf_header.Gguf(tuple(headers))


def _reader(hub: Any, url: str) -> ReadAt:
    session, headers = hub.utils.get_session(), hub.utils.build_hf_headers()

    def read_at(offset: int, n: int) -> bytes:
        range_headers = {**headers, "Range": f"bytes={offset}-{offset + min(n, _HEADER_CHUNK_BYTES) - 1}"}
        with session.stream("GET", url, headers=range_headers, follow_redirects=True, timeout=_TIMEOUT_S) as response:
            # The files of a gated repository are listed for everybody; only here the hub reports that it is gated.
            hub.utils.hf_raise_for_status(response)
            if response.status_code != 206:
                raise ModelError(
                    f"{url}: the server does not support range requests, so the header alone cannot be read"
                )
            return bytes(response.read())

    return read_at


def hub_library(model: str) -> Any:
    """The module huggingface_hub, imported when first needed. Raises ModelError when it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.utils
    except ModuleNotFoundError:
        raise ModelError(f"{model}: downloading models needs one more package: pip install 'ggufd[hub]'") from None
    return huggingface_hub


@contextlib.contextmanager
def as_model_error(model: str) -> Iterator[None]:
    """Map errors of the library and its HTTP client to ModelError, one line."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    # The base class of its HTTP client's errors; the client differs between versions.
    client_error: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        yield
    except GatedRepoError:
        raise ModelError(f"{model}: this repository is gated: accept its terms on the hub, and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise ModelError(f"{model}: there is no such repository, or it is private and HF_TOKEN is not set") from None
    except ModelError:
        raise
    except (HfHubHTTPError, client_error, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise ModelError(
                f"{model}: the hub's cache on this machine cannot be written: {error}; make room, or set HF_HOME to "
                "another disk"
            ) from None
        # The library takes every response for the hub's; a proxy's or a login page's can be anything.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{model}: the hub cannot be reached or does not answer as expected: {lines[0]}") from None


OnProgress = Callable[[float], None]
"""Callback for the share done, 0 to 1."""
