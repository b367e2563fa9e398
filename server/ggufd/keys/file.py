"""Key file: TOML with a table per key, which holds its hash, or llama-server's format with one key per line.

    [alice]
    sha256 = "9f86d081..."
    role = "admin"          # else "user"
    weight = 2.0            # the limits of `ring.Limits`, all optional
    tokens_per_minute = 60000

A file whose name ends in .toml is the first kind. The second kind holds keys in plain text, with the user role.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ggufd import text_files
from ggufd.errors import ConfigError
from ggufd.keys.ring import Key, KeyRing, Limits, Role, digest_of, new_key

if TYPE_CHECKING:
    import tomlkit

logger = logging.getLogger("ggufd")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_PROCESS_SECRET = secrets.token_bytes(32)

_HEADER = (
    "API keys of ggufd: a table per key, with its SHA-256. Written by `ggufd keys add` and `revoke`; a running server",
    'reloads it when it changes. Optional in each table: role = "admin", weight, max_running, max_waiting,',
    "tokens_per_minute, max_priority.",
)


class Entry(BaseModel):
    """Table of one key in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    role: Role = Field(Role.USER, strict=False)
    weight: float = Field(1.0, gt=0, le=1000, allow_inf_nan=False)
    max_running: int | None = Field(None, ge=1)
    max_waiting: int | None = Field(None, ge=0)
    tokens_per_minute: int | None = Field(None, ge=1)
    max_priority: int | None = None

    def key(self, name: str) -> Key:
        limits = Limits(**self.model_dump(exclude={"sha256", "role"}))
        return Key(name, bytes.fromhex(self.sha256), self.role, limits)


def default_path() -> Path:
    """Path of the key file if no setting names one."""
    return platformdirs.user_config_path("ggufd") / "keys.toml"


def read(path: Path) -> tuple[Key, ...]:
    """Keys of a file, possibly none. Raises ConfigError, which never quotes a key."""
    try:
        text = text_files.read(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: the key file cannot be read: {_reason(error)}") from None
    return _tables(path, text) if path.suffix == ".toml" else _lines(text)


def _reason(error: OSError | ValueError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _lines(text: str) -> tuple[Key, ...]:
    """Keys of a file with one per line; # begins a comment. Names in the log must not help to guess a key."""
    keys = [line.strip() for line in text.splitlines()]
    return tuple(
        Key(_anonymous_name(key), digest_of(key)) for key in dict.fromkeys(keys) if key and not key.startswith("#")
    )


def _anonymous_name(key: str) -> str:
    return "key-" + hashlib.blake2b(key.encode(), key=_PROCESS_SECRET, digest_size=4).hexdigest()


def _tables(path: Path, text: str) -> tuple[Key, ...]:
    return tuple(_key(path, name, table) for name, table in _parse(path, text).unwrap().items())


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name[:80]!a} is not a valid name for a key; expected up to 64 letters, digits and . _ @ -")


def _parse(path: Path, text: str) -> tomlkit.TOMLDocument:
    # Here and below: most servers have no such file, and would import it for nothing.
    import tomlkit
    import tomlkit.exceptions

    try:
        return tomlkit.parse(text)
    except tomlkit.exceptions.ParseError as error:
        raise ConfigError(f"{path}, line {error.line}: not readable as TOML; expected a table for each key") from None
    except tomlkit.exceptions.TOMLKitError:
        raise ConfigError(f"{path}: not readable as TOML: the same name stands twice in one table") from None


def _key(path: Path, name: str, table: Any) -> Key:
    _check_name(name)
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: '{name[:64]}' is not a table; expected [NAME] and below it sha256 = \"...\"")
    try:
        return Entry.model_validate(table).key(name)
    except ValidationError as error:
        fault = error.errors(include_input=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        expected = fault["msg"].removeprefix("Input should be ")
        raise ConfigError(f"{path}: [{name}] {place}: {expected[0].lower()}{expected[1:]}") from None


# --- change -----------------------------------------------------------------------------------------------------------


def add(path: Path, name: str, options: dict[str, Any]) -> str:
    """Add a new key to the file, created if need be; returns the key, which is stored nowhere.

    `options` are fields of `Entry`. Raises ConfigError.
    """
    import tomlkit

    _check_name(name)
    document = _document(path)
    if name in document:
        raise ConfigError(f"{path}: there is a key for {name} already; revoke it first, or choose another name")
    key = new_key()
    table = {"sha256": digest_of(key).hex(), **options}
    _key(path, name, table)
    document[name] = {field: value for field, value in table.items() if value is not None}
    _write(path, tomlkit.dumps(document))
    return key


def revoke(path: Path, name: str) -> None:
    """Remove a key from the file. Raises ConfigError when it is not there."""
    import tomlkit

    document = _document(path)
    if name not in document:
        names = ", ".join(document) or "none"
        raise ConfigError(f"{path}: there is no key for {name!a}; the file has: {names}")
    del document[name]
    _write(path, tomlkit.dumps(document))


def _document(path: Path) -> tomlkit.TOMLDocument:
    if path.suffix != ".toml":
        raise ConfigError(f"{path}: only a .toml file has names for its keys; edit one with a key per line by hand")
    import tomlkit

    if path.exists():
        read(path)
        return _parse(path, text_files.read(path))
    document = tomlkit.document()
    for line in _HEADER:
        document.add(tomlkit.comment(line))
    document.add(tomlkit.nl())
    return document


def _write(path: Path, text: str) -> None:
    """Write atomically, readable by the owner only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # mkstemp's files have mode 0600.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise ConfigError(f"{path}: the key file cannot be written: {error.strerror or error}") from None


# --- reload -----------------------------------------------------------------------------------------------------------


class _Stamp(NamedTuple):
    """Metadata that changes when a file is changed or replaced."""

    inode: int
    mtime_ns: int
    size: int


class WatchedFile:
    """Key file whose keys, with `others` that are not from it, are kept in `ring` as the file changes.

    An editor may empty the file and then write it. What it holds in between must end nobody's request, so a change is
    taken up when it is found a second time.
    """

    def __init__(self, path: Path, ring: KeyRing, others: tuple[Key, ...]) -> None:
        self._path = path
        self._ring = ring
        self._others = others
        self._seen = self._found = self._stamp()

    def reload_if_changed(self) -> None:
        """Reload the file if it has changed, and not again since the last call."""
        before, self._found = self._found, self._stamp()
        if self._found == before != self._seen:
            self.reload()

    def reload(self) -> None:
        """Reload the file. If it cannot be read, the keys stay as they are."""
        before, self._seen = self._seen, self._stamp()
        if before is None and self._seen is None:
            return
        try:
            keys = read(self._path)
        except ConfigError as error:
            logger.error("%s; the keys stay as they are", error.message)
            return
        self._ring.replace((*self._others, *keys))
        logger.info("keys from %s: %d", self._path, len(keys))

    def _stamp(self) -> _Stamp | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return _Stamp(found.st_ino, found.st_mtime_ns, found.st_size)
