"""Ray in a network namespace that has the loopback and nothing else: it binds ports on all addresses, here on none.

`pytest_in_namespace` runs a file of tests there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

_ENTER = """
mkdir -p /tmp/ray /tmp/haproxy-serve &&
mount -t tmpfs none /tmp/ray && mount -t tmpfs none /tmp/haproxy-serve &&
ip link set lo up || exit 99
"$@"
exit $?
"""
"""Folders whose names Ray and Serve do not let choose are its own. The shell stays, as the one who takes orphans."""

_NAMESPACES = ("unshare", "--net", "--mount", "--pid", "--mount-proc", "--kill-child")
"""With the first process of its own space of processes, all others end, whatever became of them."""


def needs_namespace() -> None:
    """Skip where a network namespace cannot be made; with TESTS_NEVER_SKIP set, fail."""
    made = shutil.which("unshare") and shutil.which("ip") and os.geteuid() == 0
    if not made or subprocess.run([*_NAMESPACES, "true"], check=False).returncode:
        what = "no network namespace can be made: needs root, unshare and ip, so that Ray's ports are open to nobody"
        pytest.fail(what) if os.environ.get("TESTS_NEVER_SKIP") else pytest.skip(what)


def pytest_in_namespace(file: Path, folder: Path, timeout_s: float) -> None:
    """Run a file of tests there, with `folder` for its state. Fails the test with all that they said.

    A test that fails is run once more at once, as CI does with single ones: all of the file would take minutes.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT / "server"), str(ROOT))),
        "XDG_STATE_HOME": str(folder / "state"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        # Nobody but HAProxy is before the ingresses, and learns at once of one that ends.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }
    options = ["-x", "-v", "--reruns=1", "-n0", "-p", "no:cacheprovider", f"--timeout={timeout_s:.0f}"]
    tests = [sys.executable, "-m", "pytest", *options, str(file)]
    command = [*_NAMESPACES, "sh", "-c", _ENTER, "sh", *tests]
    with (folder / "said").open("w+") as output:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            code: object = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = f"nothing, and still ran after {timeout_s:.0f} s"
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        said = output.read()
    assert code == 0, f"{file.name} ended with {code}:\n{said[-8000:]}"
    assert "skipped" not in said.splitlines()[-1], said[-2000:]
