"""Loading of llama.cpp's library, in a process that has not loaded it yet."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def looks_after(call: str, variables: dict[str, str]) -> str:
    """Looks before a thread sleeps, as GNU's OpenMP is told, after a call in a new process."""
    code = f"import os; from ggufd.llama import library; {call}; print(os.environ.get('GOMP_SPINCOUNT'))"
    without = {name: value for name, value in os.environ.items() if name not in _NAMES}
    done = subprocess.run([sys.executable, "-c", code], env=without | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("variables", "looks"),
    [
        pytest.param({}, "70000", id="a short while"),
        pytest.param({"GOMP_SPINCOUNT": "7"}, "7", id="as the user says"),
        pytest.param({"OMP_WAIT_POLICY": "active"}, "None", id="as the user says in another way"),
    ],
)
def test_compute_threads_wait_a_short_while_before_they_sleep(variables: dict[str, str], looks: str) -> None:
    assert looks_after("library.load()", variables) == looks


def test_a_process_may_have_them_wait_less() -> None:
    assert looks_after("library.load(20_000)", {}) == "20000"
