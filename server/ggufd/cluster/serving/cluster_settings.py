"""Settings of serve as a cluster takes them: those that every replica gets, and those that a cluster cannot have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ggufd.cluster.serving.launch import Tables, tables_of
from ggufd.errors import ConfigError
from ggufd.settings import access
from ggufd.settings.config import Config
from ggufd.settings.listen import is_loopback

_CARRIED = ("HF_HUB_OFFLINE",)
_SECRET = "HF_TOKEN"


def carried(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that every replica gets beside its settings: a Ray that runs already does not have this machine's."""
    return {name: environ[name] for name in _CARRIED if environ.get(name)}


def check_exports(exports: Mapping[str, str], environ: Mapping[str, str]) -> None:
    """Raises ConfigError for a variable that a command line sets, and that must not be deployed."""
    if exports.get(_SECRET, "") != environ.get(_SECRET, ""):
        raise ConfigError(
            f"--hf-token: what is deployed can be read on Ray's dashboard; set {_SECRET} on each machine, in the "
            f"environment that Ray is started in"
        )


def replica_tables(config: Config, *, are_elsewhere: bool = False) -> Tables:
    """Settings of each replica, where `config` is what a single server would have. Raises ConfigError.

    Of replicas that `are_elsewhere`, as in containers, this machine has no files: a key file is named as they see it.

    Keys are named by a file, which each machine has: what is deployed can be read on Ray's dashboard.
    """
    _check(config)
    tables = tables_of(config)
    server = tables.setdefault("server", {})
    if are_elsewhere and config.server.api_key_file:
        return tables
    keys = access.of(config.server)
    if keys is not None:
        # A machine without the file is then told so, and does not serve everybody.
        server["api_key_file"] = str(Path(access.key_file(config.server)).resolve())
    elif is_loopback(config.server.host) and not config.server.allowed_hosts:
        # A replica listens beyond the loopback and would leave out the guard against rebound names.
        server["allowed_hosts"] = ["localhost"]
    return {name: table for name, table in tables.items() if table}


def _check(config: Config) -> None:
    server = config.server
    if server.api_key:
        raise ConfigError(
            "--api-key: what is deployed can be read on Ray's dashboard; make keys with `ggufd keys add NAME`, put the "
            "file on each machine, and name it with --api-key-file"
        )
    if server.ssl_key_file or server.ssl_cert_file:
        raise ConfigError("--ssl-key-file, --ssl-cert-file: a cluster speaks plain HTTP; put a proxy with TLS in front")
    if server.peer_token_file:
        raise ConfigError("--peer-token-file: a cluster makes a token of its own when it is deployed; leave it out")
    if server.port == 0 or "," in server.host:
        raise ConfigError("--host, --port: expected one address and one port, at which the cluster is reached")
