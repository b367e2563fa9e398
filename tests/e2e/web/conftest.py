"""Browser of the tests of the web page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.support.programs import web_page
from tests.support.programs.sillytavern_app import or_skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with or_skip(), web_page.browser() as started:
        yield started
