"""`ggufd cluster` on a real Ray, in a network namespace with the loopback only: what `ray_tests.py` tests there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.programs.ray_namespace import needs_namespace, pytest_in_namespace

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.timeout(1500)]

LIMIT_S = 1400.0


def test_a_cluster_on_ray(tmp_path: Path) -> None:
    needs_namespace()
    pytest_in_namespace(Path(__file__).with_name("ray_tests.py"), tmp_path, LIMIT_S)
