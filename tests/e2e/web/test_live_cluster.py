"""A person in front of the live view of a cluster: two real servers behind one ingress."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from ggufd.cluster.routing.hints import hint_of
from ggufd.cluster.routing.router import Router
from tests.support.fakes.ingress_server import ingress_server
from tests.support.programs.live_server import live_server
from tests.support.programs.long_requests import long_requests
from tests.support.programs.web_page import looking

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

TOKEN = "a-token-of-a-cluster-of-two-servers-only"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two servers of one slot each."""
    token_file = tmp_path_factory.mktemp("cluster") / "token"
    token_file.write_text(TOKEN)
    token_file.chmod(0o600)
    flags = ("--peer-token-file", str(token_file), "--ctx-size", "8192", "--parallel", "1")
    with (
        live_server(*flags) as a,
        live_server(*flags) as b,
        ingress_server({"a": a.url, "b": b.url}, router=Router(), token=TOKEN, hint_of=hint_of) as ingress,
    ):
        yield ingress.url


def test_all_replicas_are_shown_and_a_request_of_any_can_be_ended(browser: Browser, url: str) -> None:
    with looking(browser, url) as live, long_requests(url, "", "", "") as requests:
        expect(live.rows("Replicas")).to_have_count(2)
        expect(live.part("Replicas")).to_contain_text("2 answer")
        expect(live.rows("Slots")).to_have_count(2)
        replicas = live.part("Slots").locator("td[data-name=Replica]")
        expect(replicas).to_have_text(["a", "b"])
        expect(live.rows("Queue")).to_have_count(1)
        expect(live.tile("Waiting")).to_have_text("1")
        expect(live.tile("Being served")).to_have_text("2")
        live.part("Queue").get_by_role("button").click()
        live.press("End it")
        live.wait_until(lambda: any(not request.is_open for request in requests), timeout_ms=60_000)
        ended = [request for request in requests if not request.is_open]
        assert "This request was ended" in ended[0].lines[-1]
        expect(live.tile("Waiting")).to_have_text("0")
        requests[0].leave()
        requests[1].leave()
        expect(live.rows("Last requests").first).to_be_visible()
        expect(live.part("Last requests").locator("td[data-name=Replica]").first).to_have_text(
            re.compile("^[ab]$"), timeout=60_000
        )
