"""Ray's dashboard over HTTP: what Serve runs, and what it shall run. Knows Serve's JSON, and no Ray in this process."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ggufd.errors import StartupError

DEFAULT_URL = "http://127.0.0.1:8265"
_PATH = "/api/serve/applications/"
_TIMEOUT_S = 300.0
_PROBE_S = 5.0


class RayError(StartupError):
    """Ray that is not there, or refuses."""


class Dashboard:
    """Dashboard at `url`."""

    def __init__(self, url: str = DEFAULT_URL) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RayError(f"--dashboard {url}: expected the address of Ray's dashboard, such as {DEFAULT_URL}")
        self.url = url
        self._is_tls = parts.scheme == "https"
        self._netloc = parts.netloc.rpartition("@")[2]

    def is_there(self) -> bool:
        """Whether Ray's dashboard answers."""
        try:
            return self._call("GET", "/api/version", None, _PROBE_S)[0] == 200
        except RayError:
            return False

    def details(self) -> dict[str, Any]:
        """All that Serve tells of its applications. Raises RayError."""
        status, text = self._call("GET", _PATH)
        if status != 200:
            raise RayError(f"Ray Serve does not tell its state: {_last_line(text)}")
        found: dict[str, Any] = json.loads(text)
        return found

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Have Serve run what a config says, and nothing else. Raises RayError."""
        status, text = self._call("PUT", _PATH, config)
        if status != 200:
            raise RayError(f"Ray Serve refuses the deployment: {_last_line(text)}")

    def shut_down(self) -> None:
        """End Serve with its proxies. Raises RayError."""
        status, text = self._call("DELETE", _PATH)
        if status != 200:
            raise RayError(f"Ray Serve does not end: {_last_line(text)}")

    def _call(self, method: str, path: str, body: Any = None, timeout_s: float = _TIMEOUT_S) -> tuple[int, str]:
        connect = http.client.HTTPSConnection if self._is_tls else http.client.HTTPConnection
        connection = connect(self._netloc, timeout=timeout_s)
        headers = {"Content-Type": "application/json", **_authorization()}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            why = error or type(error).__name__
            raise RayError(
                f"Ray's dashboard at {self._netloc} gives no answer ({why}); where no Ray runs yet, "
                f"ggufd cluster serve starts one"
            ) from None
        finally:
            connection.close()


def _authorization() -> dict[str, str]:
    """Header for a Ray that was started with RAY_AUTH_MODE=token."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN")
    if not token:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        try:
            token = path.read_text("utf-8").strip()
        except OSError as error:
            raise RayError(f"RAY_AUTH_MODE is token, and {path} cannot be read: {error.strerror}") from None
    return {"Authorization": f"Bearer {token}"}


def _last_line(text: str) -> str:
    """Of a traceback, which is what Ray answers: the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it says nothing more"
