"""Node's tools for the sources of the web page: the pinned packages, installed once into a cache folder."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from tests.support.programs.sillytavern_app import CACHE, npm, require_node

WEB = Path(__file__).parents[3] / "server" / "ggufd" / "web"
SOURCES = ("chat", "facts", "live", "settings", "shared", "tokens", "vendor")


def modules() -> Path:
    """The folder of the installed packages. Raises Unavailable where Node, npm or the registry is missing."""
    require_node()
    pins = WEB / "package.json"
    home = CACHE / f"web-{hashlib.sha256(pins.read_bytes()).hexdigest()[:12]}"
    done = home / "installed"
    if not done.exists():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        shutil.copy(pins, home)
        npm("install", "--ignore-scripts", "--no-package-lock", cwd=home)
        done.touch()
    return home / "node_modules"


def node(*arguments: str | Path, cwd: Path = WEB) -> subprocess.CompletedProcess[str]:
    """A finished run of Node."""
    return subprocess.run(["node", *map(str, arguments)], cwd=cwd, capture_output=True, text=True)
