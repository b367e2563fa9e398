"""Image projector lookup: the one that a setting names, or the one that was published with the model.

Beside the model that is the only `mmproj*.gguf` of its folder, in which there is no other model, or none of another
name; in a repository of the hub one of its `mmproj*.gguf`; in ollama's store the model's projector. One that was found
and cannot be used is told, and left out; one that was named is an error.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ggufd.errors import ModelError
from ggufd.llama.gguf import gguf_header, header_checks, projector_file
from ggufd.llama.gguf.gguf_header import Header
from ggufd.llama.gguf.projector_file import FLAG, ProjectorFile
from ggufd.models import remote
from ggufd.models.hub import ModelFile
from ggufd.models.remote import OnProgress, is_projector_name

logger = logging.getLogger("ggufd")

_NAMES = ("general.basename", "general.name")
"""Metadata that a model and its projector have in common."""


def named(setting: str, model: ModelFile, *, may_fetch: bool, on_fetch: OnProgress | None = None) -> ProjectorFile:
    """Projector that a setting names, for `model`. Raises ModelError where it cannot be used, or does not fit."""
    if setting.startswith("hf:"):
        projector = _from_hub(setting, remote.find(setting), may_fetch=may_fetch, on_fetch=on_fetch)
    else:
        try:
            projector = projector_file.read(Path(setting).expanduser())
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"{FLAG} {setting!r}: is not a valid file name: {error}") from None
    _check(projector, model)
    return projector


def published(model: ModelFile, *, may_fetch: bool, on_fetch: OnProgress | None = None) -> ProjectorFile | None:
    """Projector that was published with `model`; None without one, or where it cannot be used, which is logged."""
    if model.shape is None or model.shape.only_embeds:
        return None
    try:
        projector = _published(model, may_fetch=may_fetch, on_fetch=on_fetch)
        if projector is not None:
            _check(projector, model)
    except ModelError as error:
        logger.warning("no images are read: %s", error.message)
        return None
    return projector


def _check(projector: ProjectorFile, model: ModelFile) -> None:
    if model.shape is None:
        return
    if model.shape.only_embeds:
        raise ModelError(f"{projector.path}: {model.path.name} only makes embeddings, and reads no images")
    projector_file.check_width(projector, model.shape.width, model.path.name)


def _published(model: ModelFile, *, may_fetch: bool, on_fetch: OnProgress | None) -> ProjectorFile | None:
    if model.source.startswith("ollama:"):
        path = remote.find_ollama_projector(model.source)
        return None if path is None else projector_file.read(path)
    if model.source.startswith("hf:"):
        files: list[remote.RemoteFile] = []
        # Without a network what was fetched before lies beside the model.
        with contextlib.suppress(ModelError):
            files = remote.find_projectors(model.source)[:1]
        if files:
            return _from_hub(model.source, files, may_fetch=may_fetch, on_fetch=on_fetch)
    return _beside(model) if model.path.exists() else None


def _from_hub(
    source: str, files: Sequence[remote.RemoteFile], *, may_fetch: bool, on_fetch: OnProgress | None
) -> ProjectorFile:
    """Projector of a repository: checked by its header before it is downloaded."""
    from ggufd.models import download

    header = remote.read_header(source, files).parts[0]
    projector = projector_file.check(Path(files[0].name), header)
    return replace(projector, path=download.fetch(source, files, on_fetch)) if may_fetch else projector


def _beside(model: ModelFile) -> ProjectorFile | None:
    folder = model.path.parent
    try:
        ggufs = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
    except OSError:
        return None
    found = [path for path in ggufs if is_projector_name(path.name)]
    if not found:
        return None
    if len(found) > 1:
        logger.info("no images are read: %d projectors lie beside the model; name one with %s", len(found), FLAG)
        return None
    header = gguf_header.read_file(found[0], FLAG)
    if _has_company(model, ggufs) and not _is_of(header, model):
        logger.info("no images are read: other models lie beside %s, too; name it with %s", found[0].name, FLAG)
        return None
    return projector_file.check(found[0], header)


def _has_company(model: ModelFile, ggufs: Sequence[Path]) -> bool:
    """Whether there are other models in the folder, to which a projector may belong."""
    own = set(gguf_header.parts_of(model.path))
    return any(path not in own and not is_projector_name(path.name) and _may_be_model(path) for path in ggufs)


def _may_be_model(path: Path) -> bool:
    try:
        return not header_checks.no_model(gguf_header.read_file(path).metadata)
    except ModelError:
        return True


def _is_of(header: Header, model: ModelFile) -> bool:
    """Whether a projector names the same model."""
    assert model.shape is not None
    pairs = [(header.metadata.get(key), model.shape.gguf.metadata.get(key)) for key in _NAMES]
    return any(ours == theirs and isinstance(ours, str) and ours for ours, theirs in pairs)
