"""axe-core, which looks at a page for what people with impairments stumble over."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page

from tests.support.programs.web_tools import modules

_RUN = "async () => (await axe.run(document)).violations"


def violations(page: Page) -> dict[str, list[str]]:
    """The rules that the page breaks now, each with the elements that do. Raises Unavailable."""
    page.evaluate((modules() / "axe-core" / "axe.min.js").read_text("utf-8"))
    found: list[dict[str, Any]] = page.evaluate(_RUN)
    return {one["id"]: [node["html"][:200] for node in one["nodes"]] for one in found}
