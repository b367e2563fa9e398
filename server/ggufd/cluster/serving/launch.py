"""How the server of a replica is started: its settings as a file, its token, its command line. Knows no Ray."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggufd.processes.server_process import ServerProcess
from ggufd.settings.config import ENV_PREFIX, Config, settings

Tables = Mapping[str, Mapping[str, Any]]
"""Settings as config.toml has them: the keys of each section."""

_PROGRAM = (sys.executable, "-P", "-m", "ggufd", "serve")
"""Without the folder that it is started in on the path of modules: files there may have any name."""

_OF_SETTINGS = (ENV_PREFIX, "LLAMA_ARG_", "LLAMA_API_KEY")
"""Beginnings of the names of variables that are settings, ours and llama-server's."""

_OWN = frozenset({"host", "port", "peer_token_file"})
"""Settings that a replica has by itself."""


def tables_of(config: Config) -> dict[str, dict[str, Any]]:
    """What these settings have that is not a default, as plain data."""
    tables: dict[str, dict[str, Any]] = {}
    for one in settings():
        value = getattr(getattr(config, one.section), one.key)
        if value != one.field.default and one.key not in _OWN:
            tables.setdefault(one.section, {})[one.key] = _plain(value)
    if config.models:
        tables["models"] = {
            name: {key: _plain(value) for key, value in own.items()} for name, own in config.models.items()
        }
    return tables


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Launch:
    """What a replica starts: a server with `tables` as its settings, at a free port of `host`.

    `variables` are of its environment, beside this process's. Relative paths of the settings are taken from `folder`,
    where this machine has it.
    """

    tables: Tables
    token: str
    host: str = "127.0.0.1"
    folder: str = ""
    program: tuple[str, ...] = _PROGRAM
    variables: Mapping[str, str] = field(default_factory=dict)

    def start(self, on_line: Callable[[str], None]) -> LaunchedServer:
        """Start it. Raises StartupError where it cannot be run."""
        return LaunchedServer(self, on_line)

    def environment(self) -> dict[str, str]:
        """This process's, without variables of settings: those of the machine that deployed are in `tables`."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(_OF_SETTINGS)}
        return {**own, **self.variables}


class LaunchedServer:
    """Server of a replica as a process, with the files that it reads, which only this user can read."""

    def __init__(self, launch: Launch, on_line: Callable[[str], None]) -> None:
        self._files = Path(tempfile.mkdtemp(prefix="ggufd-replica-"))
        try:
            command = [*launch.program, "--config", self._write("config.toml", toml_of(launch.tables))]
            command += ["--peer-token-file", self._write("token", launch.token)]
            command += ["--host", launch.host, "--port", "0"]
            folder = Path(launch.folder)
            self.process = ServerProcess(
                command,
                environment=launch.environment(),
                folder=folder if launch.folder and folder.is_dir() else None,
                on_line=on_line,
            )
        except BaseException:
            self._remove()
            raise

    def stop(self, timeout_s: float) -> None:
        """Let it drain, at most for so long, and remove its files."""
        self.process.stop(timeout_s)
        self._remove()

    def _write(self, name: str, text: str) -> str:
        path = self._files / name
        path.touch(0o600)
        path.write_text(text, "utf-8")
        return str(path)

    def _remove(self) -> None:
        shutil.rmtree(self._files, ignore_errors=True)


def toml_of(tables: Tables) -> str:
    """The same as the text of a config.toml."""
    import tomlkit

    return tomlkit.dumps(tables)
