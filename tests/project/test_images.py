"""Container images: what the Dockerfiles state agrees with the code, and among themselves."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement

from ggufd import __version__

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
KINDS = ("Dockerfile", "Dockerfile.cuda", "Dockerfile.vulkan")
LABELS = ("title", "description", "version", "revision", "licenses")


def text_of(name: str) -> str:
    return (DOCKER / name).read_text("utf-8")


def arguments(text: str) -> dict[str, str]:
    """Arguments of a build that have a default on one line."""
    return dict(re.findall(r"^ARG (\w+)=\"?([^\"\n]*[^\"\n\\])\"?$", text, re.MULTILINE))


def end(text: str) -> str:
    """What an image runs as and how it is probed: the last lines."""
    return text[text.index("\nUSER ") :]


def test_all_are_known() -> None:
    found = {path.name for path in DOCKER.glob("Dockerfile*")} - {path.name for path in DOCKER.glob("*.dockerignore")}
    assert found == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
class TestDockerfile:
    def test_its_versions_are_ours(self, name: str) -> None:
        assert set(re.findall(r"^ARG VERSION=(.*)$", text_of(name), re.MULTILINE)) == {__version__}
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        wanted = next(one for one in map(Requirement, project["dependencies"]) if one.name == "llama-cpp-python")
        assert arguments(text_of(name))["LLAMA_CPP_PYTHON"] in wanted.specifier

    def test_its_base_can_be_chosen(self, name: str) -> None:
        text = text_of(name)
        bases = set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) - {"build", "run"}
        assert bases <= {"${BASE}", "${BUILD_BASE}"}
        assert "BASE" in arguments(text)

    def test_it_is_labelled(self, name: str) -> None:
        labels = dict(re.findall(r"org\.opencontainers\.image\.(\w+)=\"([^\"]+)\"", text_of(name)))
        assert tuple(labels) == LABELS
        assert (labels["version"], labels["revision"], labels["licenses"]) == ("${VERSION}", "${REVISION}", "MIT")

    def test_it_ends_as_the_others_do(self, name: str) -> None:
        assert end(text_of(name)) == end(text_of(KINDS[0]))
        assert text_of(f"{name}.dockerignore") == text_of(f"{KINDS[0]}.dockerignore")

    def test_compose_builds_it(self, name: str) -> None:
        services = yaml.safe_load(text_of("compose.yaml"))["services"].values()
        assert [one["image"] for one in services if one.get("build", {}).get("dockerfile") == f"docker/{name}"]
