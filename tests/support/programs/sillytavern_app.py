"""A real SillyTavern, from npm, for tests: installed once into a cache folder, run from a throw-away data folder.

It is a client here, nothing more: AGPL, never part of this tree. Knows nothing about the server it is going to talk to.
Started directly, this module only installs: `python -m tests.support.programs.sillytavern_app`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import pytest
from filelock import FileLock

VERSIONS = tuple(os.environ.get("TEST_SILLYTAVERN_VERSIONS", "1.12.6 1.18.0").split())
"""The oldest that is in use and a new one; others are tried by naming them in the environment, oldest first."""

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ggufd-tests"
INSTALL_S = 600
FIRST_START_S = 240
START_S = 120

SETTINGS = {
    "whitelistMode": "false",
    "autorun": "false",
    "enableExtensionsAutoUpdate": "false",
    "autoUpdate": "false",
    "disableAutoDownload": "true",
    "autoDownload": "false",
    "enableDownloadableTokenizers": "false",
    "disableThumbnails": "true",
}
"""Lines of its config.yaml, by key, in any version that has the key: nothing is fetched, no browser is opened."""


class Unavailable(Exception):
    """There is no SillyTavern here, for this reason."""


def install(version: str) -> Path:
    """The folder of an installed version. Raises Unavailable where Node, npm or the registry is missing."""
    require_node()
    CACHE.mkdir(parents=True, exist_ok=True)
    # Several processes of one run ask for it at once.
    with FileLock(CACHE / f"sillytavern-{version}.lock"):
        return _install(version, CACHE / f"sillytavern-{version}")


def _install(version: str, home: Path) -> Path:
    package = home / "node_modules" / "sillytavern"
    done = home / "installed"
    if not done.exists():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        (home / "package.json").write_text('{"private": true}\n')
        npm("install", "--ignore-scripts", "--omit=dev", f"sillytavern@{version}", cwd=home)
        shutil.copy(package / "default" / "config.yaml", package / "config.yaml")
        _set(package / "config.yaml", SETTINGS)
        done.touch()
    _make_seed(version, home, package)
    return package


def require_node() -> None:
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise Unavailable(f"{program} is not installed; Node 20 or newer and npm are needed")
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(said.removeprefix("v").split(".")[0]) < 20:
        raise Unavailable(f"node is {said}; 20 or newer is needed")


def npm(*arguments: str, cwd: Path) -> None:
    command = ["npm", *arguments, "--no-audit", "--no-fund", "--no-progress"]
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"npm did not end within {INSTALL_S} s") from error
    if done.returncode:
        raise Unavailable(f"npm could not install it: {done.stderr.strip()[-400:]}")


def _set(config: Path, settings: dict[str, str]) -> None:
    text = config.read_text(encoding="utf-8")
    for key, value in settings.items():
        text = re.sub(rf"^(\s*{key}:).*$", rf"\1 {value}", text, flags=re.MULTILINE)
    config.write_text(text, encoding="utf-8")


def _make_seed(version: str, home: Path, package: Path) -> None:
    """A data folder as its first start leaves it: making one takes half a minute, copying one does not."""
    seed = home / "seed"
    if seed.exists():
        return
    part = home / "seed.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    with SillyTavern(version, package, part, start_s=FIRST_START_S):
        pass
    part.rename(seed)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class SillyTavern:
    """One running SillyTavern on a loopback port; ends when left. `http` has the cookies and token of its page."""

    def __init__(self, version: str, package: Path, data: Path, start_s: float = START_S) -> None:
        self.version, self.data = version, data
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        self.log = data / "server.log"
        self._package, self._port, self._start_s = package, port, start_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SillyTavern:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(), cwd=self._package, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait()
        except BaseException:
            self._end()
            raise
        self.http.headers["X-CSRF-Token"] = self.http.get("/csrf-token").json()["token"]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.http.close()
        self._end()

    def _command(self) -> list[str]:
        flags = ["--listen=false", "--disableCsrf=true", f"--port={self._port}", f"--dataRoot={self.data}"]
        if not self.version.startswith("1.12."):
            config = self.data / "config.yaml"
            shutil.copy(self._package / "config.yaml", config)
            flags += [f"--configPath={config}", "--browserLaunchEnabled=false"]
        return ["node", "server.js", *flags]

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._start_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(httpx.HTTPError):
                if self.http.get("/version").status_code == 200:
                    return
            time.sleep(0.2)
        raise RuntimeError(f"SillyTavern {self.version} does not answer: {self.log.read_text()[-2000:]}")

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)

    def post(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
        return self.http.post(path, json=body, headers=headers)

    @contextlib.contextmanager
    def opened(self, path: str, body: dict[str, Any]) -> Iterator[httpx.Response]:
        """An answer that is read by the caller; leaving early closes the connection, as the page's Stop does.

        One client an answer: a connection that is closed here is closed on the wire.
        """
        with (
            httpx.Client(base_url=self.url, headers=self.http.headers, cookies=self.http.cookies, timeout=60) as client,
            client.stream("POST", path, json=body) as response,
        ):
            yield response

    @contextlib.contextmanager
    def streamed(self, path: str, body: dict[str, Any]) -> Iterator[Iterator[Any]]:
        """The events of a streamed answer, parsed, without `[DONE]`."""
        with self.opened(path, body) as response:
            assert response.status_code == 200, response.read()
            yield _events(response)

    def post_and_leave(self, path: str, body: dict[str, Any], is_time: Callable[[], bool]) -> None:
        """Send a request, and hang up without an answer once `is_time` has said so."""
        cookies = "; ".join(f"{name}={value}" for name, value in self.http.cookies.items())
        headers = {
            "Content-Type": "application/json",
            "X-CSRF-Token": self.http.headers["X-CSRF-Token"],
            "Cookie": cookies,
        }
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)) as connection:
            connection.request("POST", path, json.dumps(body), headers)
            assert is_time(), "the request never began to run"


def _events(response: httpx.Response) -> Iterator[Any]:
    for line in response.iter_lines():
        if line.startswith("data:") and (data := line.removeprefix("data:").strip()) != "[DONE]":
            yield json.loads(data)


def edit_settings(data: Path, changes: dict[str, Any]) -> None:
    """Change what its page remembers, before it starts; nested objects are merged."""
    path = data / "default-user" / "settings.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    _merge(settings, changes)
    path.write_text(json.dumps(settings), encoding="utf-8")


def _merge(into: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


@contextlib.contextmanager
def running(version: str, folder: Path, settings: dict[str, Any] | None = None) -> Iterator[SillyTavern]:
    """A started SillyTavern whose data lies in `folder`, which must not exist. Raises Unavailable."""
    package = install(version)
    shutil.copytree(CACHE / f"sillytavern-{version}" / "seed", folder, symlinks=True)
    if settings:
        edit_settings(folder, settings)
    with SillyTavern(version, package, folder) as app:
        yield app


@contextlib.contextmanager
def or_skip() -> Iterator[None]:
    """Skip the tests that need what is not here, and say what; with TESTS_NEVER_SKIP set, fail."""
    try:
        yield
    except Unavailable as error:
        if os.environ.get("TESTS_NEVER_SKIP"):
            pytest.fail(f"no SillyTavern: {error}")
        pytest.skip(f"no SillyTavern: {error}")


if __name__ == "__main__":
    for wanted in VERSIONS:
        print(install(wanted))
