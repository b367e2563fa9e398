"""Container images built and run with Debian's own tools, in a store of the test's own: mmdebstrap, buildah, podman.

Commands of a build run in a chroot, a container runs under crun with the machine's network. Both want root, and no
daemon. Knows no server.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs.programs import needed_program

ROOT = Path(__file__).parents[3]
_PROGRAMS = ("mmdebstrap", "buildah", "podman", "crun")
_PIP_SETTINGS = ("cert", "index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")
_CERTIFICATES = Path("/etc/ssl/certs")
# The first line is for machines whose control groups are of both versions, where crun does not start: a view of its own
# of them, which only it sees.
_RUN = """[ -e /sys/fs/cgroup/cgroup.controllers ] \
    || { umount -R -l /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup; }
exec "$@"
"""


def refuse_elsewhere() -> None:
    """Skip where no image can be built; with TESTS_NEVER_SKIP set, fail."""
    for name in _PROGRAMS:
        needed_program(name, f"Debian's package {name} has it")
    if os.geteuid() != 0 or platform.freedesktop_os_release()["ID"] != "debian":
        what = "images are built by root, on Debian"
        pytest.fail(what) if os.environ.get("TESTS_NEVER_SKIP") else pytest.skip(what)


class ImageStore:
    """Images and containers under a folder, and the Debian that the images are built on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        store = ["--root", f"{folder}/images", "--runroot", f"{folder}/run"]
        # vfs copies everything, and needs nothing of the kernel or of the file system.
        overlay = subprocess.run(["buildah", "--storage-driver=overlay", *store, "info"], capture_output=True)
        self._where = [f"--storage-driver={'vfs' if overlay.returncode else 'overlay'}", *store]

    def make_debian(self) -> str:
        """Name of a base image of this machine's release, with Python and nothing else."""
        release = platform.freedesktop_os_release()["VERSION_CODENAME"]
        context = self._folder / "debian"
        context.mkdir()
        packages = "--include=ca-certificates,python3,python3-venv"
        _run(["mmdebstrap", "--quiet", "--variant=minbase", packages, release, f"{context}/root.tar"])
        (context / "Dockerfile").write_text("FROM scratch\nADD root.tar /\n")
        _run(["buildah", *self._where, "build", "--quiet", "--tag", "debian", str(context)])
        (context / "root.tar").unlink()
        return "localhost/debian"

    def build(self, dockerfile: str, tag: str, arguments: dict[str, str], wheels: Path | None) -> None:
        """Image of one of our Dockerfiles. What lies in `wheels` is installed and not compiled."""
        volumes = {_CERTIFICATES: _CERTIFICATES, self._pip_config(wheels): Path("/etc/pip.conf")}
        if wheels is not None:
            volumes[wheels] = Path("/wheels")
        _run(
            [
                *("buildah", *self._where, "build", "--isolation", "chroot", "--format", "docker", *_limits()),
                *("--pull=never", "--file", dockerfile, "--ignorefile", f"{dockerfile}.dockerignore", "--tag", tag),
                *(f"--volume={here}:{there}:ro" for here, there in volumes.items()),
                *(f"--build-arg={name}={value}" for name, value in arguments.items()),
                ".",
            ]
        )

    def _pip_config(self, wheels: Path | None) -> Path:
        """How pip reaches the package index from here, for a build."""
        listed = _run([sys.executable, "-m", "pip", "config", "list"])
        entries = [line.split("=", 1) for line in listed.splitlines()]
        found = {key.rpartition(".")[2]: value.strip("'") for key, value in entries}
        kept = {key: value for key, value in found.items() if key in _PIP_SETTINGS}
        if wheels is not None:
            kept["find-links"] = "/wheels"
        file = self._folder / "pip.conf"
        file.write_text("\n".join(["[global]", *(f"{key} = {value}" for key, value in kept.items()), ""]))
        return file

    def start(self, tag: str, name: str, options: Sequence[str], *arguments: str) -> subprocess.Popen[str]:
        """The container in the foreground, as confined as compose.yaml has it; a signal to it is one to the server."""
        confined = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges")
        here = ("--rm", "--cgroups=disabled", "--network=host", *_limits())
        command = ["podman", *self._where, "--runtime=crun", "run", f"--name={name}", *here, *confined, *options]
        return subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", _RUN, "sh", *command, f"localhost/{tag}", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def podman(self, *arguments: str) -> str:
        """What a command of podman prints."""
        return _run(
            ["unshare", "--mount", "sh", "-c", _RUN, "sh", "podman", *self._where, "--runtime=crun", *arguments]
        )

    def remove(self) -> None:
        """Everything: it is some gigabytes."""
        self.podman("rmi", "--all", "--force")
        shutil.rmtree(self._folder, ignore_errors=True)

    def inspect(self, tag: str) -> dict[str, Any]:
        """What an image says of itself."""
        (image,) = json.loads(self.podman("image", "inspect", f"localhost/{tag}"))
        found: dict[str, Any] = image
        return found


def _limits() -> list[str]:
    """The limits that this process has: raising them may be forbidden."""
    limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    return [f"--ulimit={name}={':'.join(map(str, resource.getrlimit(one)))}" for name, one in limits.items()]


def _run(command: list[str]) -> str:
    """What a command prints. Fails with its last lines where it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[:2]} failed:\n{(done.stdout + done.stderr)[-4000:]}"
    return done.stdout
