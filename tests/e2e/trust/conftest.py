"""The plugin of schemathesis, for the one file that needs it: it takes a second to import, in every process."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("schemathesis.pytest.plugin")
