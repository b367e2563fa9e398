"""Programs that some tests need and no package index has, or only in an environment of its own."""

from __future__ import annotations

import os
import shutil

import pytest


def needed_program(name: str, where: str) -> str:
    """Its path. Skips the test where it is not here, and says `where` to have it; with TESTS_NEVER_SKIP set, fails."""
    found = shutil.which(name)
    if found is None:
        what = f"no {name}: {where}"
        pytest.fail(what) if os.environ.get("TESTS_NEVER_SKIP") else pytest.skip(what)
    return found
