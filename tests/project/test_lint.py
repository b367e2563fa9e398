"""Style, types and container files, each checked by the tool that knows it: one test command is everything."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CHECKS = {
    "style": ["-m", "ruff", "check", "."],
    "format": ["-m", "ruff", "format", "--check", "."],
    "types": ["-m", "mypy"],
}

DOCKERFILES = sorted(path for path in (ROOT / "docker").glob("Dockerfile*") if path.suffix != ".dockerignore")


def complaints(command: list[str]) -> str:
    """What a checker says when it is not content."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("arguments", CHECKS.values(), ids=CHECKS)
def test_python(arguments: list[str]) -> None:
    assert complaints([sys.executable, *arguments]) == ""


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles(file: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint has no build for this system")
    assert complaints([hadolint, str(file)]) == ""


@pytest.mark.skipif(shutil.which("bash") is None, reason="has no bash")
def test_ci_script_is_readable_to_bash() -> None:
    assert complaints(["bash", "-n", ".ci/run"]) == ""
