"""The web page over HTTP: who gets it, how it is cached, what guards it."""

from __future__ import annotations

import re

import pytest

from ggufd.api.web.assets import web_assets
from tests.support.fakes.api_client import error_of, ring_of, running

HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'"
)
FIRST_PAGE_BYTES = 300_000


def files_of(page: str, prefix: str = "") -> list[str]:
    return re.findall(r'(?:src|href)="(ui/[^"]+)"', page)


def loaded_by(page: str) -> dict[str, bytes]:
    """Every file that a page loads, by what its scripts import at their top."""
    assets = web_assets()
    waiting = [name.removeprefix(f"ui/{assets.version}/") for name in files_of(page)]
    found: dict[str, bytes] = {}
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = assets.files[name].plain
        folder = name.rpartition("/")[0]
        for target in re.findall(r'(?:from|import)\s*"(\.[^"]+)"', found[name].decode()):
            parts = [*folder.split("/"), *target.split("/")]
            while ".." in parts:
                at = parts.index("..")
                del parts[at - 1 : at + 1]
            waiting.append("/".join(part for part in parts if part != "."))
    return found


async def test_a_browser_gets_the_page_and_programs_get_json() -> None:
    async with running(model_id="<b>&model") as api:
        page = await api.http.get("/", headers=HTML)
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert 'id="app"' in page.text
        data = (await api.http.get("/", headers={"accept": "*/*"})).json()
        assert (data["model"], data["models"], data["n_ctx"], data["slots"]) == ("<b>&model", 1, 512, 4)
        api.engine.ready = None
        assert (await api.http.get("/", headers=HTML)).text == page.text
        assert (await api.http.get("/")).json()["n_ctx"] is None


@pytest.mark.parametrize("path", ["/", "/live"])
async def test_a_page_loads_only_files_that_are_there_under_a_strict_policy(path: str) -> None:
    async with running() as api:
        page = await api.http.get(path, headers=HTML)
        assert page.headers["content-security-policy"] == POLICY
        assert (page.headers["x-content-type-options"], page.headers["referrer-policy"]) == ("nosniff", "no-referrer")
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|style=|https?:", page.text)
        names = files_of(page.text)
        assert len(names) > 4
        for name in names:
            assert (await api.http.get(f"/{name}")).status_code == 200


async def test_files_are_kept_by_the_browser_and_sent_compressed() -> None:
    async with running() as api:
        name = f"/ui/{web_assets().version}/vendor/preact.js"
        packed = await api.http.get(name)
        plain = await api.http.get(name, headers={"accept-encoding": "identity"})
        assert packed.headers["content-encoding"] == "gzip"
        assert int(packed.headers["content-length"]) < int(plain.headers["content-length"]) / 2
        assert packed.content == plain.content
        assert packed.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert packed.headers["content-type"] == "text/javascript; charset=utf-8"
        assert packed.headers["x-content-type-options"] == "nosniff"


async def test_a_page_is_asked_for_again_and_sent_once() -> None:
    async with running() as api:
        page = await api.http.get("/", headers=HTML)
        assert (page.headers["cache-control"], page.headers["vary"]) == ("no-cache", "Accept, Accept-Encoding")
        again = await api.http.get("/", headers=HTML | {"if-none-match": page.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "name", ["old/chat/main.js", "{}/chat/none.js", "{}/package.json", "{}/../api/app.py", "{}/vendor/LICENCES.txt"]
)
async def test_nothing_else_is_served(name: str) -> None:
    async with running() as api:
        error_of(await api.http.get("/ui/" + name.format(web_assets().version)), 404)


async def test_pages_and_their_files_need_no_key_and_data_does() -> None:
    async with running(keys=ring_of("k"), root_path="/llm") as api:
        for path in ("/", "/live", f"/ui/{web_assets().version}/chat/main.js"):
            assert (await api.http.get(path, headers=HTML)).status_code == 200
            assert (await api.http.get(f"/llm{path}", headers=HTML)).status_code == 200
            assert (await api.http.head(path, headers=HTML)).status_code == 200
        for path in ("/", "/v1/models", "/v1/queue", "/props", "/slots"):
            error_of(await api.http.get(path), 401)
        error_of(await api.http.post("/", headers=HTML), 401)
        error_of(await api.http.get("/v1/models", headers=HTML), 401)
        assert "fake-model" not in (await api.http.get("/", headers=HTML)).text


async def test_pages_of_foreign_names_are_refused() -> None:
    async with running(allowed_hosts=()) as api:
        for path in ("/", "/live"):
            assert (await api.http.get(path, headers=HTML | {"host": "evil.example"})).status_code == 403


async def test_a_page_asked_for_as_a_folder_leads_back() -> None:
    async with running() as api:
        response = await api.http.get("/live/", headers=HTML)
        assert (response.status_code, response.headers["location"]) == (307, "../live")


async def test_without_the_page_everybody_gets_json_and_needs_a_key() -> None:
    async with running(ui=False) as api:
        assert (await api.http.get("/", headers=HTML)).json()["name"] == "ggufd"
        error_of(await api.http.get("/live", headers=HTML), 404)
        error_of(await api.http.get(f"/ui/{web_assets().version}/chat/main.js"), 404)
    async with running(ui=False, keys=ring_of("k")) as api:
        for path in ("/", "/live"):
            error_of(await api.http.get(path, headers=HTML), 401)


async def test_the_first_page_is_small() -> None:
    async with running() as api:
        loaded = loaded_by((await api.http.get("/", headers=HTML)).text)
    assert "chat/app.js" in loaded
    assert "vendor/marked.js" in loaded
    assert sum(map(len, loaded.values())) < FIRST_PAGE_BYTES, {name: len(text) for name, text in loaded.items()}


def test_the_scripts_ask_nobody_else() -> None:
    """No address of another server in our own code, and no way around the policy."""
    own = {name: asset.plain.decode() for name, asset in web_assets().files.items() if not name.startswith("vendor/")}
    forbidden = re.compile(
        r"https?://(?!127\.0\.0\.1|www\.w3\.org/2000/svg)|\beval\(|new Function|setAttribute\(.style"
    )
    assert {name: found[0] for name, text in own.items() if (found := forbidden.search(text))} == {}
