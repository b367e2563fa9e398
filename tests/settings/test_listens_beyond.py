"""Whether the live view may show everybody's rows on this machine: only where nothing else can ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ggufd.models import hub
from ggufd.settings import api_settings, sources


@pytest.mark.parametrize(
    ("given", "is_beyond"),
    [
        ({}, False),
        ({"host": "::1"}, False),
        ({"host": "127.0.0.2"}, False),
        ({"host": "0.0.0.0", "allow_unauthenticated": True}, True),
        ({"trusted_proxies": "127.0.0.1"}, True),
        ({"root_path": "/llm"}, True),
        ({"allowed_hosts": "models.example"}, True),
    ],
)
def test_a_proxy_or_another_name_is_somebody_elses_way_in(given: dict[str, Any], *, is_beyond: bool) -> None:
    made = api_settings.api_config(sources.load(None, given, {}), hub.ModelFile(Path("m.gguf"), 0))
    assert made.listens_beyond is is_beyond
    assert made.trusts_proxies is ("trusted_proxies" in given)
