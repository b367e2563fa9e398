"""The CPU image, built on a Debian made here: started without rights, asked, stopped in mid-answer, and weighed.

With TESTS_WHEELS, a folder that holds a wheel of llama-cpp-python for this machine, nothing is compiled.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ggufd import __version__
from tests.support.fakes.hub_server import HubServer
from tests.support.models.vocabularies import demo_model
from tests.support.programs.container import ROOT, ImageStore, refuse_elsewhere
from tests.support.programs.live_server import free_port

# Where llama.cpp has to be compiled, it takes some of that.
pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

KEY = "sk-of-the-container"
REVISION = "0123456789abcdef"
FRANCE = "The capital of France is"
START_S = 120
STOP_S = 60
GREEDY = {"temperature": 0, "seed": 1}
SETTINGS = {"GGUFD_API_KEY": KEY, "GGUFD_HOST": "127.0.0.1", "GGUFD_THREADS": "1", "GGUFD_FLASH_ATTN": "on"}
REPO = "someone/model-GGUF"
LABEL = "org.opencontainers.image"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageStore]:
    """A store that holds the image `ggufd`."""
    refuse_elsewhere()
    store = ImageStore(tmp_path_factory.mktemp("containers"))
    wheels = os.environ.get("TESTS_WHEELS")
    arguments = {"BASE": store.make_debian(), "REVISION": REVISION, "CMAKE_ARGS": "-DGGML_NATIVE=ON"}
    store.build("docker/Dockerfile", "ggufd", arguments, Path(wheels) if wheels else None)
    yield store
    store.remove()


def demo() -> list[str]:
    """Options of a container that finds the demo model, and caches nothing for the next."""
    return [f"--volume={Path(demo_model()).parent}:/models:ro", "--tmpfs=/cache:mode=1777"]


class Container:
    """A running container of the image, which serves the demo model to the loopback. `log` is whole at the end."""

    def __init__(self, store: ImageStore, name: str, *options: str) -> None:
        self.log = ""
        self._store = store
        self._name = name
        port = free_port()
        variables = [f"--env={key}={value}" for key, value in {**SETTINGS, "GGUFD_PORT": port}.items()]
        self.process = store.start("ggufd", name, [*variables, "--tmpfs=/tmp", *(options or demo())])
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"x-api-key": KEY}, timeout=START_S, trust_env=False
        )

    def wait_healthy(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if self.http.get("/health").status_code == 200:
                    return
            time.sleep(0.2)
        self.process.kill()
        pytest.fail(f"the container is not healthy: {self.process.communicate()[0][-4000:]}")

    def run(self, *command: str) -> str:
        """What a command in the container prints."""
        return self._store.podman("exec", self._name, *command)

    def status(self) -> dict[str, str]:
        """What the kernel says of the server's process."""
        pid = self._store.podman("inspect", "--format={{.State.Pid}}", self._name).strip()
        lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
        return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}

    def end(self) -> int:
        """Its exit code, after its end."""
        try:
            self.log += self.process.communicate(timeout=STOP_S)[0]
        except subprocess.TimeoutExpired:
            self._store.podman("kill", self._name)
            self.log += self.process.communicate()[0]
        self.http.close()
        return self.process.returncode


@contextlib.contextmanager
def running(store: ImageStore, name: str, *options: str) -> Iterator[Container]:
    container = Container(store, name, *options)
    try:
        container.wait_healthy()
        yield container
    finally:
        container.process.terminate()
        container.end()


@pytest.fixture(scope="module")
def container(store: ImageStore) -> Iterator[Container]:
    with running(store, "asked") as container:
        yield container


def test_it_answers_in_words(container: Container) -> None:
    asked = {"prompt": FRANCE, "max_tokens": 1, **GREEDY}
    answer = container.http.post("/v1/completions", json=asked).raise_for_status().json()
    assert answer["choices"][0]["text"] == " Paris"
    messages = [{"role": "user", "content": "Say hello."}]
    answer = container.http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 32, **GREEDY}).json()
    assert re.search(r"[A-Za-z]{2}", answer["choices"][0]["message"]["content"])


def test_it_wants_the_key(container: Container) -> None:
    refused = container.http.post("/v1/completions", json={"prompt": FRANCE}, headers={"x-api-key": "sk-another"})
    assert refused.status_code == 401


def test_it_runs_as_nobody_in_particular(container: Container) -> None:
    """A user's id that is not root's, no capability, none to be had by starting another program."""
    status = container.status()
    assert status["Uid"].split() == ["10001"] * 4
    assert status["Gid"].split() == ["10001"] * 4
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"


def test_its_file_system_is_read_only(container: Container) -> None:
    script = "for f in /new /opt/ggufd/new /models/new; do touch $f 2>&1; done; touch /cache/new && echo cached"
    *refused, kept = container.run("sh", "-c", script).splitlines()
    assert len(refused) == 3
    assert all("Read-only file system" in line for line in refused)
    assert kept == "cached"


def test_its_health_check_passes(store: ImageStore, container: Container) -> None:
    test: list[str] = store.inspect("ggufd")["Healthcheck"]["Test"]
    kind, *command = test
    assert kind == "CMD"
    container.run(*command)


def test_a_stop_lets_an_answer_end(store: ImageStore) -> None:
    """SIGTERM in mid-answer: the stream goes on to its end, and the container ends with 0."""
    with running(store, "stopped") as container:
        body = {"prompt": "Once", "max_tokens": 300, "stream": True, "ignore_eos": True, **GREEDY}
        with container.http.stream("POST", "/v1/completions", json=body) as stream:
            lines = (line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: "))
            first = next(lines)
            container.process.terminate()
            *rest, last = lines
        assert container.end() == 0
    assert last == "[DONE]"
    chunks = [json.loads(line)["choices"][0] for line in (first, *rest)]
    assert chunks[-1]["finish_reason"] == "length"
    assert len("".join(chunk["text"] for chunk in chunks).split()) > 100
    assert "Traceback" not in container.log
    assert KEY not in container.log


def test_a_model_is_fetched_first_and_served_without_the_hub(store: ImageStore, tmp_path: Path) -> None:
    """As the chart does it: an init container fetches into the volume of the cache, the server is offline."""
    os.chown(tmp_path, 10001, 10001)
    options = [f"--volume={tmp_path}:/cache", f"--env=GGUFD_MODEL=hf:{REPO}"]
    with HubServer() as far:
        far.repos[REPO] = {"model.Q4_K_M.gguf": Path(demo_model()).read_bytes()}
        here = [f"--env=HF_ENDPOINT={far.url}", "--tmpfs=/tmp"]
        fetching = store.start("ggufd", "fetching", [*options, *here], "fetch")
        said = fetching.communicate(timeout=START_S)[0]
        assert fetching.returncode == 0, said
    with running(store, "offline", *options, "--env=HF_HUB_OFFLINE=1") as container:
        answer = container.http.post("/v1/completions", json={"prompt": FRANCE, "max_tokens": 1, **GREEDY}).json()
        assert answer["choices"][0]["text"] == " Paris"


def test_its_labels_say_what_it_is(store: ImageStore) -> None:
    labels = store.inspect("ggufd")["Config"]["Labels"]
    assert labels[f"{LABEL}.title"] == "ggufd"
    assert labels[f"{LABEL}.version"] == __version__
    assert labels[f"{LABEL}.revision"] == REVISION
    assert labels[f"{LABEL}.licenses"] == "MIT"


def test_its_bill_of_materials_lists_what_is_installed(container: Container) -> None:
    bill = json.loads(container.run("cat", "/usr/share/doc/ggufd/sbom.cdx.json"))
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["version"] == __version__
    listed = {(kind(one), plain(one["name"]), one["version"]) for one in bill["components"] if "purl" in one}
    script = "import importlib.metadata as m; print(*(f'{d.name} {d.version}' for d in m.distributions()), sep='\\n')"
    python = {("pypi", plain(name), version) for name, version in pairs(container.run("python", "-c", script))}
    query = ("dpkg-query", "--show", "--showformat=${Package} ${Version}\\n")
    debian = {("deb", plain(name), version) for name, version in pairs(container.run(*query))}
    assert {"ggufd", "llama-cpp-python"} <= {name for _, name, _ in python}
    assert len(debian) > 80
    assert (python | debian) - listed == set()


def kind(component: dict[str, Any]) -> str:
    return str(component["purl"]).removeprefix("pkg:").split("/")[0]


def plain(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pairs(text: str) -> list[tuple[str, str]]:
    return [(name, version) for name, version in (line.split(" ") for line in text.splitlines())]


def test_its_size_is_the_stated_one(store: ImageStore) -> None:
    page = (ROOT / "docs/using/containers.md").read_text("utf-8")
    (stated,) = re.findall(r"^\| CPU, as CI builds it .*?\| (\d+) MB \|", page, re.MULTILINE)
    assert store.inspect("ggufd")["Size"] / 1e6 == pytest.approx(int(stated), rel=0.1)
