"""Loading of llama.cpp's library, in a process that has not loaded it yet."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_SHOW = "import os; from ggufd.llama import library; library.load(); print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("variables", "looks"),
    [
        pytest.param({}, "20000", id="a short while"),
        pytest.param({"GOMP_SPINCOUNT": "7"}, "7", id="as the user says"),
        pytest.param({"OMP_WAIT_POLICY": "active"}, "None", id="as the user says in another way"),
    ],
)
def test_compute_threads_wait_a_short_while_before_they_sleep(variables: dict[str, str], looks: str) -> None:
    without = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", _SHOW], env=without | variables, capture_output=True, text=True)
    assert done.stdout.strip() == looks, done.stderr
