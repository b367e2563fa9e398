"""What a request may not make the server do: open a connection, read a file, or run a template's code."""

from __future__ import annotations

import re
import socket
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ggufd.chat.rendering.template import Template, TemplateError
from tests.support.fakes.api_client import running

ROOT = Path(__file__).parents[3]


class Listener:
    """A port of this machine that notes who comes."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.n_came = 0
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                one, _ = self._socket.accept()
            except OSError:
                return
            self.n_came += 1
            one.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.close()


def bodies(url: str) -> list[tuple[str, Any]]:
    """Every way that some API has to name an address or a file."""
    part = {"type": "image_url", "image_url": {"url": url}}
    text = {"type": "text", "text": "What is this?"}
    source = {"type": "image", "source": {"type": "url", "url": url}}
    return [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [text, part]}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "file", "file": {"url": url}}]}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": url}], "chat_template": url, "image": url}),
        ("/v1/completions", {"prompt": "a", "images": [url], "image_url": url}),
        ("/v1/completions", {"prompt": {"prompt_string": "a", "multimodal_data": [url]}}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}),
        ("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": [source]}]}),
        ("/completion", {"prompt": "a", "image_data": [{"data": url, "id": 1}]}),
        ("/api/chat", {"messages": [{"role": "user", "content": "a", "images": [url]}]}),
        ("/api/generate", {"prompt": "a", "images": [url]}),
        ("/api/v1/generate", {"prompt": "a", "images": [url]}),
        ("/v1/embeddings", {"input": url, "model": url}),
        ("/v1/completions", {"prompt": "a", "json_schema": {"$ref": f"{url}/schema.json"}}),
        ("/v1/completions", {"prompt": "a", "model": url}),
    ]


async def test_no_field_makes_the_server_open_a_connection(listener: Listener) -> None:
    url = f"http://127.0.0.1:{listener.port}"
    async with running() as api:
        for path, body in bodies(url):
            response = await api.post(path, body)
            assert response.status_code < 500 or response.status_code in (501, 503), response.text
    assert listener.n_came == 0
    with socket.create_connection(("127.0.0.1", listener.port)):
        pass
    for _ in range(500):
        if listener.n_came:
            break
        threading.Event().wait(0.01)
    assert listener.n_came == 1, "the listener hears nobody, so the test says nothing"


async def test_no_field_makes_the_server_read_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("canary-of-the-file")
    async with running() as api:
        for url in (f"file://{tmp_path}/secret.txt", f"{tmp_path}/secret.txt", "../../../../etc/passwd"):
            for path, body in bodies(url):
                response = await api.post(path, body)
                assert "canary-of-the-file" not in response.text
                assert "root:" not in response.text


async def test_paths_lead_nowhere_else() -> None:
    async with running() as api:
        for path in ("/docs/files/../../app.py", "/docs/files/%2e%2e/%2e%2e/app.py", "/docs/files//etc/passwd"):
            response = await api.http.get(path)
            assert response.status_code == 404
        for path in ("/slots/..%2f..%2fetc?action=erase", "/slots/0?action=save", "/slots/0?action=restore"):
            assert (await api.http.post(path, json={"filename": "../../x"})).status_code in (400, 404)


@pytest.mark.parametrize(
    "source",
    [
        # CVE-2024-34359, as published: the way from a list to the modules that are loaded.
        "{% for c in [].__class__.__base__.__subclasses__() %}{% if c.__name__ == 'catch_warnings' %}"
        "{{ c()._module.__builtins__['__import__']('os').system('MARK') }}{% endif %}{% endfor %}",
        "{{ self.__init__.__globals__.__builtins__.__import__('os').system('MARK') }}",
        "{{ lipsum.__globals__['os'].system('MARK') }}",
        "{{ cycler.__init__.__globals__.os.system('MARK') }}",
        "{{ joiner.__init__.__globals__.os.system('MARK') }}",
        "{{ namespace.__init__.__globals__.os.system('MARK') }}",
        "{{ strftime_now.__globals__['os'].system('MARK') }}",
        "{{ raise_exception.__code__.co_consts }}{{ 1 // 0 }}",
        "{{ messages.__class__.__init__.__globals__['os'].system('MARK') }}",
        # CVE-2025-27516: the plain format method by way of a filter.
        "{{ ('{0.__class__.__base__.__subclasses__}'|attr('format'))(messages) }}",
        "{% set f = '{0.__init__.__globals__}'.format %}{{ f(cycler) }}",
        "{{ messages|map(attribute='__class__.__base__')|list }}{{ messages.x.y }}",
        "{{ ''.join.__self__.__class__.__mro__[1].__subclasses__()[0] }}",
        "{% extends '/etc/passwd' %}",
        "{% from '/etc/passwd' import x %}",
        "{{ namespace(x=1).__dict__.update(y=2) }}{{ messages.pop() }}",
    ],
)
def test_hostile_templates_run_nothing(source: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(TemplateError):
        Template(source.replace("MARK", f"touch {mark}")).render({"messages": [{"role": "user", "content": "a"}]})
    assert not mark.exists()


def test_arguments_of_a_request_take_nothing_over() -> None:
    """`chat_template_kwargs` are a stranger's: what the template relies on stays what it is."""
    source = "{% if messages %}{{ raise_exception('refused') }}{% endif %}"
    with pytest.raises(TemplateError, match="refused"):
        Template(source).render({"messages": [1], "strftime_now": "x"})


def test_the_lowest_versions_say_why() -> None:
    """Each dependency that reads what strangers send has its floor explained beside it."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    dependencies = tomllib.loads(text)["project"]["dependencies"]
    floors = {re.split(r"[><=;]", one)[0]: one for one in dependencies}
    for name in ("starlette", "jinja2", "h11", "llama-cpp-python"):
        assert ">=" in floors[name]
        line = next(i for i, one in enumerate(text.splitlines()) if one.strip().startswith(f'"{name}>='))
        assert "CVE-" in text.splitlines()[line - 1]
