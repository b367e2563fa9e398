"""Who may come in, as the settings say it: with which keys, or without any."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ggufd.errors import ConfigError
from ggufd.keys import file
from ggufd.keys.ring import Key, KeyRing, Role, digest_of
from ggufd.settings.config import ServerSection
from ggufd.settings.listen import is_loopback


class Access(NamedTuple):
    """The keys that are asked for. `file` is where some come from, or may come from later."""

    ring: KeyRing
    file: file.WatchedFile


def of(settings: ServerSection) -> Access | None:
    """The keys that `settings` ask for; None where everybody may come in.

    Raises ConfigError when a key file is bad or empty, or when everybody in the network could come in unasked.
    """
    own = tuple(Key(f"api-key-{i}", digest_of(key), Role.ADMIN) for i, key in enumerate(settings.api_key, 1))
    path = key_file(settings)
    has_file = bool(settings.api_key_file) or path.exists()
    keys = (*own, *file.read(path)) if has_file else own
    if has_file and not keys:
        raise ConfigError(f"{path} holds no key, so nobody could come in: `ggufd keys add NAME`, or remove the file")
    if not keys:
        _check_open(settings)
        return None
    ring = KeyRing(keys)
    return Access(ring, file.WatchedFile(path, ring, own))


def key_file(settings: ServerSection) -> Path:
    """The key file: the one named, else the one of the config folder, whether it is there or not."""
    return Path(settings.api_key_file) if settings.api_key_file else file.default_path()


def _check_open(settings: ServerSection) -> None:
    if not (is_loopback(settings.host) or settings.allow_unauthenticated):
        raise ConfigError(
            f"--host {settings.host} can be reached from other machines, and no key is set: make one with "
            f"`ggufd keys add NAME`, set --api-key or GGUFD_API_KEY, or say --allow-unauthenticated if everybody may "
            f"use it"
        )
