"""Access control from the settings: the API keys, or none on a loopback address."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ggufd import text_files
from ggufd.errors import ConfigError
from ggufd.keys import file
from ggufd.keys.ring import Key, KeyRing, Role, digest_of
from ggufd.settings.config import ServerSection
from ggufd.settings.listen import is_loopback

MIN_TOKEN_LENGTH = 32
"""Of a peer token: a shorter one may have been thought up by a person."""


class Access(NamedTuple):
    """Keys that grant access. `file` is where some come from, or may come from later."""

    ring: KeyRing
    file: file.WatchedFile


def of(settings: ServerSection) -> Access | None:
    """Keys required by `settings`; None for open access.

    Raises ConfigError when a key file is bad or empty, or when open access would reach beyond this machine.
    """
    own = tuple(Key(f"api-key-{i}", digest_of(key), Role.ADMIN) for i, key in enumerate(settings.api_key, 1))
    path = key_file(settings)
    has_file = bool(settings.api_key_file) or path.exists()
    keys = (*own, *file.read(path)) if has_file else own
    if has_file and not keys:
        raise ConfigError(
            f"{path} holds no key, so every request would be refused: run `ggufd keys add NAME`, or remove it"
        )
    if not keys:
        _check_open(settings)
        return None
    ring = KeyRing(keys)
    return Access(ring, file.WatchedFile(path, ring, own))


def peer_token(settings: ServerSection) -> str | None:
    """Token of the cluster that the server belongs to; None where it belongs to none. Raises ConfigError."""
    name = settings.peer_token_file
    if not name:
        return None
    try:
        token = text_files.read(Path(name)).strip()
    except OSError as error:
        raise ConfigError(f"--peer-token-file {name}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"--peer-token-file {name}: {error}") from None
    if len(token) < MIN_TOKEN_LENGTH or not token.isascii() or len(token.split()) != 1:
        raise ConfigError(
            f"--peer-token-file {name}: expected one word of at least {MIN_TOKEN_LENGTH} ASCII characters; "
            f"make one with `openssl rand -hex 32 > {name}`"
        )
    return token


def key_file(settings: ServerSection) -> Path:
    """Path of the key file: the one named, else the config folder's, whether it exists or not."""
    return Path(settings.api_key_file) if settings.api_key_file else file.default_path()


def _check_open(settings: ServerSection) -> None:
    # With a token nobody comes in but the cluster, whose ingress decides who may.
    if not (is_loopback(settings.host) or settings.allow_unauthenticated or settings.peer_token_file):
        raise ConfigError(
            f"--host {settings.host} can be reached from other machines, and no key is set: make one with "
            f"`ggufd keys add NAME`, set --api-key or GGUFD_API_KEY, or set --allow-unauthenticated to let everybody "
            f"use it"
        )
