"""The real program behind keys and TLS: who comes in, what its log gives away, whether probes are answered."""

from __future__ import annotations

import json
import os
import signal
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from ggufd.keys import file
from ggufd.keys.ring import Role
from tests.support.programs.live_server import LiveServer, live_server

pytestmark = pytest.mark.e2e

SMALL = ("--ctx-size", "1024", "--parallel", "2", "--threads", "1", "--flash-attn", "off")
CANARY = "canaryprompt"


class Guarded:
    """A server that asks for keys, with a key of each role."""

    def __init__(self, server: LiveServer, keys: Path, user: str, admin: str, verify: ssl.SSLContext | bool) -> None:
        self.server, self.keys, self.user, self.admin = server, keys, user, admin
        self.http = httpx.Client(base_url=server.url, verify=verify, trust_env=False, timeout=60)

    def get(self, path: str, key: str, **headers: str) -> httpx.Response:
        return self.http.get(path, headers={"authorization": f"Bearer {key}", **headers})

    def complete(self, prompt: str, key: str, *, n: int = 4, **headers: str) -> httpx.Response:
        body = {"prompt": prompt, "max_tokens": n}
        return self.http.post("/v1/completions", json=body, headers={"authorization": f"Bearer {key}", **headers})

    def wait_log(self, words: str, timeout_s: float = 5.0) -> str:
        """The first line of the log with these words."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if found := [line for line in self.server.log if words in line]:
                return found[0]
            time.sleep(0.02)
        raise AssertionError(f"{words!r} is not in the log: {''.join(self.server.log)[-2000:]}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[Guarded]:
    """At info, with a key file."""
    keys = folder / "keys.toml"
    user, admin = file.add(keys, "alice", {}), file.add(keys, "boss", {"role": Role.ADMIN.value})
    slots = ("--slot-save-path", str(folder / "slots"), "--cache-ram", "0", "--temp", "0")
    with live_server(*SMALL, *slots, "--api-key-file", str(keys)) as server:
        guarded = Guarded(server, keys, user, admin, True)
        yield guarded
        guarded.http.close()


@pytest.fixture(scope="module")
def secure(folder: Path) -> Iterator[Guarded]:
    """At debug, in JSON, over TLS, behind a proxy on this machine."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    keys = folder / "secure.toml"
    user, admin = file.add(keys, "alice", {}), file.add(keys, "boss", {"role": Role.ADMIN.value})
    tls = ("--ssl-key-file", str(folder / "key.pem"), "--ssl-cert-file", str(folder / "cert.pem"))
    log = ("--log-level", "debug", "--log-format", "json", "--trusted-proxies", "127.0.0.1")
    with live_server(*SMALL, *tls, *log, "--api-key-file", str(keys), verify=context) as server:
        guarded = Guarded(server, keys, user, admin, context)
        yield guarded
        guarded.http.close()


def test_a_changed_key_file_is_taken_up_while_it_runs(plain: Guarded) -> None:
    key = file.add(plain.keys, "carol", {})
    if hasattr(signal, "SIGHUP"):
        os.kill(plain.server.pid, signal.SIGHUP)
    plain.wait_log("keys.toml: 3")
    assert plain.get("/v1/models", key).status_code == 200
    file.revoke(plain.keys, "carol")
    plain.wait_log("keys.toml: 2", timeout_s=10)
    assert plain.get("/v1/models", key).status_code == 401
    assert plain.get("/v1/models", plain.user).status_code == 200


def test_roles_hold(plain: Guarded) -> None:
    for path in ("/slots", "/metrics"):
        assert plain.get(path, plain.user).status_code == 403
        assert plain.get(path, plain.admin).status_code == 200


def test_one_key_does_not_profit_from_anothers_prompt(plain: Guarded) -> None:
    prompt = "A long prompt that two people send word for word, one after the other. " * 5
    cached = []
    for key in (plain.user, plain.admin, plain.user):
        answer = plain.complete(prompt, key).json()
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached[:2] == [0, 0]
    assert cached[2] > 50


def test_a_saved_chat_comes_back_from_its_file(plain: Guarded, folder: Path) -> None:
    prompt = "The keeper of the lighthouse wrote a letter every evening, and every evening it began: " * 4
    act = {"headers": {"x-api-key": plain.admin}, "json": {"filename": "lighthouse"}}
    for slot in (0, 1):
        assert plain.http.post(f"/slots/{slot}?action=erase", **act).status_code == 200
    first = plain.complete(prompt, plain.user, n=12).json()["choices"][0]["text"]
    slots = plain.get("/slots", plain.admin).json()
    (held,) = [slot for slot in slots if slot["n_past"]]
    saved = plain.http.post(f"/slots/{held['id']}?action=save", **act).json()
    assert saved["n_saved"] == held["n_past"]
    assert (folder / "slots" / "lighthouse").stat().st_size == saved["n_written"]
    for slot in slots:
        plain.http.post(f"/slots/{slot['id']}?action=erase", **act)
    assert plain.http.post("/slots/0?action=restore", **act).json()["n_restored"] == held["n_past"]
    again = plain.complete(prompt, plain.user, n=12).json()
    assert again["choices"][0]["text"] == first
    n_prompt = again["usage"]["prompt_tokens"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == n_prompt - 1


def test_the_log_at_info_gives_no_prompt_and_no_key_away(plain: Guarded) -> None:
    response = plain.complete(f"{CANARY} " * 20, plain.user, **{"x-request-id": "told-1"})
    assert response.headers["x-request-id"] == "told-1"
    plain.complete(f"{CANARY} " * 2000, plain.user)
    plain.complete(CANARY, "canarykey")
    plain.http.post("/v1/chat/completions", content=f'{{"messages": "{CANARY}"', headers={"x-api-key": plain.user})
    chat = {"messages": [{"role": "user", "content": CANARY}] * 2, "max_tokens": 2, "stop": [CANARY]}
    assert plain.http.post("/v1/chat/completions", json=chat, headers={"x-api-key": plain.user}).status_code == 200
    line = plain.wait_log("told-1")
    assert line.split(" ggufd: ")[1].split()[0] == "alice"
    plain.wait_log("context_length_exceeded")
    said = "".join(plain.server.log)
    assert [secret for secret in (CANARY, "canarykey", plain.user, plain.admin) if secret in said] == []


def test_a_log_at_debug_gives_no_key_away_and_each_line_is_an_object(secure: Guarded) -> None:
    assert secure.complete(CANARY, secure.user, **{"x-request-id": "told-2"}).status_code == 200
    secure.complete(CANARY, "canarykey")
    line = json.loads(secure.wait_log("told-2"))
    assert (line["message"], line["key"], line["completion_tokens"]) == ("request", "alice", 4)
    lines = [line for line in secure.server.log if line.startswith("{")]
    assert len(lines) > 10
    assert all(json.loads(line)["level"] for line in lines)
    said = "".join(secure.server.log)
    assert [secret for secret in ("canarykey", secure.user, secure.admin) if secret in said] == []


def test_tls_is_spoken_and_nothing_else(secure: Guarded) -> None:
    assert secure.server.url.startswith("https://")
    with pytest.raises(httpx.HTTPError):
        httpx.get(secure.server.url.replace("https", "http"), trust_env=False, timeout=5)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{secure.server.url}/health", trust_env=False, timeout=5)


def test_a_trusted_proxy_is_believed(secure: Guarded, plain: Guarded) -> None:
    for guarded, address in ((secure, "203.0.113.9"), (plain, "127.0.0.1")):
        headers = {"x-forwarded-for": "203.0.113.9", "x-request-id": "from-afar"}
        assert guarded.get("/v1/nothing", guarded.user, **headers).status_code == 404
        assert address in guarded.wait_log("from-afar")


@pytest.mark.timed
def test_probes_are_answered_whatever_bodies_come(plain: Guarded) -> None:
    """The aim is 50 ms on a quiet machine; here other programs may hold the cores, so the limits are wider."""
    flood = [sys.executable, "-m", "tests.support.programs.flood", plain.server.url, plain.user, "4"]
    took_s = []
    with subprocess.Popen(flood, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as flooding:
        assert flooding.stdin is not None
        assert flooding.stdout is not None
        assert flooding.stdout.readline() == "ready\n"
        print(file=flooding.stdin, flush=True)
        end_s = time.monotonic() + 4
        while time.monotonic() < end_s:
            start_s = time.perf_counter()
            assert plain.http.get("/health").status_code == 200
            took_s.append(time.perf_counter() - start_s)
            time.sleep(0.01)
        assert int(flooding.stdout.readline()) > 6
    print(f"health under load: median {statistics.median(took_s) * 1000:.0f} ms, worst {max(took_s) * 1000:.0f} ms")
    assert statistics.median(took_s) < 0.05
    assert max(took_s) < 0.3
