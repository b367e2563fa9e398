"""Resumable downloads from the Hugging Face hub into its local cache.

The cache is huggingface_hub's, shared with other programs that use it. A large file is written beside its place there,
as `SHA256.part`, until it is complete and has that checksum: a broken connection, a killed process or a power failure
costs only the bytes in flight. The library itself starts again with each process (newer versions delete partial files).
It downloads alone what cannot be resumed: a file without a checksum, one of over 50 GB, which the hub serves in its own
protocol only, any where HF_XET_HIGH_PERFORMANCE asks for that protocol, and all into a cache without symbolic links.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufd.errors import ModelError
from ggufd.models import remote
from ggufd.models.remote import RemoteFile

if TYPE_CHECKING:
    from ggufd.models.remote import OnProgress

logger = logging.getLogger("ggufd")

_DISK_MARGIN = 256 << 20
_REPORT_STEP = 0.01


def fetch(model: str, files: Sequence[RemoteFile], on_progress: OnProgress | None = None) -> Path:
    """Download missing and incomplete files; the path of the first file. `on_progress` gets the share, 0 to 1.

    A failed download is resumed by the next call, of any process. Raises ModelError, one line, also for a full disk or
    a wrong checksum.
    """
    hub = remote.hub_library(model)
    with remote.as_model_error(model):
        missing = [one for one in files if not _is_cached(hub, one)]
    _check_disk(hub, model, missing)
    n_bytes = sum(one.n_bytes for one in missing)
    listeners = [on_progress] if on_progress is not None else []
    if not sys.stderr.isatty():
        hub.utils.disable_progress_bars()
        listeners.append(_log_lines(model, n_bytes))
    bar = _reporting_bar(hub, n_bytes, listeners)
    paths = []
    for one in files:
        is_resumed = one in missing and _can_be_resumed(hub, one)
        with remote.as_model_error(model):
            if is_resumed:
                _fetch_blob(hub, model, one, bar)
            path = Path(hub.hf_hub_download(one.repo, one.name, tqdm_class=bar))
        if one in missing and not is_resumed:
            _check_sum(one, path)
        paths.append(path)
    return paths[0]


def _can_be_resumed(hub: Any, one: RemoteFile) -> bool:
    from huggingface_hub.file_download import are_symlinks_supported

    of = hub.constants
    is_plain = one.n_bytes <= of.MAX_HTTP_DOWNLOAD_SIZE and not of.HF_XET_HIGH_PERFORMANCE
    return one.sha256 is not None and is_plain and are_symlinks_supported(of.HF_HUB_CACHE)


def _fetch_blob(hub: Any, model: str, one: RemoteFile, bar: type[Any]) -> None:
    """Download the file to where the library looks for its contents before it downloads."""
    part = _part(hub, one)
    blob = part.with_suffix("")
    locks = Path(hub.constants.HF_HUB_CACHE) / ".locks" / part.parents[1].name
    for folder in (part.parent, locks):
        folder.mkdir(parents=True, exist_ok=True)
    with hub.utils.WeakFileLock(locks / f"{blob.name}.lock"):
        # The previous holder of the lock may have downloaded it.
        if not blob.exists():
            _fetch_rest(hub, model, one, bar)
            _check_sum(one, part)
            part.replace(blob)


def _fetch_rest(hub: Any, model: str, one: RemoteFile, bar: type[Any]) -> None:
    from huggingface_hub.file_download import http_get

    part = _part(hub, one)
    try:
        with remote.as_model_error(model), part.open("ab") as file:
            n_there = file.tell()
            if n_there > one.n_bytes:
                n_there = file.truncate(0)
            if n_there > 0:
                logger.info("%s: resumes at %s of %s", one.name, _megabytes(n_there), _megabytes(one.n_bytes))
            url, headers = hub.hf_hub_url(one.repo, one.name), hub.utils.build_hf_headers()
            http_get(
                url,
                file,
                resume_size=n_there,
                headers=headers,
                expected_size=one.n_bytes,
                displayed_filename=Path(one.name).name,
                tqdm_class=bar,
            )
    except ModelError as error:
        n_there = part.stat().st_size
        kept = f"{_megabytes(n_there)} of {_megabytes(one.n_bytes)} are kept, and the next try resumes there"
        raise ModelError(f"{error.message}; {kept}" if n_there else error.message) from None


def _part(hub: Any, one: RemoteFile) -> Path:
    return remote.cache_folder(hub, one.repo) / "blobs" / f"{one.sha256}.part"


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"


def _log_lines(model: str, n_bytes: int) -> OnProgress:
    """Progress listener that logs every tenth, for use without a terminal."""
    logged = 0

    def log(share: float) -> None:
        nonlocal logged
        if int(share * 10) > logged:
            logged = int(share * 10)
            logger.info("downloading %s: %d %% of %s", model, logged * 10, _megabytes(n_bytes))

    return log


def _reporting_bar(hub: Any, n_bytes: int, listeners: Sequence[OnProgress]) -> type[Any]:
    """Progress bar class of the library that also reports the share of all files, in steps of a hundredth."""
    done, last = 0, 0.0

    class Bar(hub.utils.tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, initial: int = 0, **options: Any) -> None:
            nonlocal done
            done += initial
            super().__init__(*args, initial=initial, **options)

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal done, last
            done += int(n or 0)
            # A retry may fetch some bytes twice.
            share = min(1.0, done / max(1, n_bytes))
            if share - last >= _REPORT_STEP:
                last = share
                for listener in listeners:
                    listener(share)
            return super().update(n)  # type: ignore[no-any-return]

    return Bar


def _is_cached(hub: Any, one: RemoteFile) -> bool:
    """Whether the cache has the complete file. A truncated one is deleted, because the library would use it."""
    found = hub.try_to_load_from_cache(one.repo, one.name)
    if not isinstance(found, str):
        return False
    path = Path(found)
    if path.stat().st_size == one.n_bytes:
        return True
    blob = path.resolve()
    # A blob is named by its checksum: one with another is an older version, which may be complete.
    if not path.is_symlink() or one.sha256 is None or blob.name == one.sha256:
        blob.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    return False


def _check_disk(hub: Any, model: str, missing: Sequence[RemoteFile]) -> None:
    """Check free disk space before the first byte. Raises ModelError."""
    cache = Path(hub.constants.HF_HUB_CACHE)
    folder = next((one for one in (cache, *cache.parents) if one.exists()), None)
    parts = [_part(hub, one) for one in missing if one.sha256 is not None]
    needed = sum(one.n_bytes for one in missing) - sum(part.stat().st_size for part in parts if part.exists())
    if folder is None or not missing:
        return
    free = shutil.disk_usage(folder).free
    if needed + _DISK_MARGIN > free:
        raise ModelError(
            f"{model}: {needed / 1e9:.1f} GB have to be downloaded, but {folder} has {free / 1e9:.1f} GB free; make "
            "room, or set HF_HOME to another disk"
        )


def _check_sum(one: RemoteFile, path: Path) -> None:
    """Verify the checksum of a fresh download; a wrong one is deleted, so that the next try starts over."""
    if one.sha256 is None:
        return
    logger.info("%s: verifying the checksum", one.name)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != one.sha256:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise ModelError(
            f"{one.repo}/{one.name}: the download is damaged (its checksum is wrong) and was deleted; try again"
        )
