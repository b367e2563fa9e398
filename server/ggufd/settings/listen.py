"""Listening sockets and TLS files, bound and checked before anything slow starts.

A port in use is then reported at once, and an early client waits instead of being refused.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import socket
import ssl

from ggufd.errors import ConfigError, StartupError

logger = logging.getLogger("ggufd")

_BACKLOG = 1024
_MAX_FILES = 65_536
_OTHER_FILES = 100
"""File descriptors besides connections: pipes to the children, the log, libraries."""

_MIN_OTHER_FILES = 40
"""24 in normal operation, and some more while a child is restarted."""

_FEW_CONNECTIONS = 200
_MIN_CONNECTIONS = 4

_DEAD_PEER_S = 60
"""A peer that acknowledges nothing for so long is dead: its cable was pulled, its machine is off."""
_BOTH_LOOPBACKS = ("127.0.0.1", "localhost")


def bind(host: str, port: int) -> list[socket.socket]:
    """Listening sockets for `host`, which may be several addresses; port 0 takes a free one. Raises StartupError.

    All have the same port. With the IPv4 loopback the IPv6 one is bound too if possible: clients resolve `localhost` to
    either.
    """
    first_host, *others = addresses(host)
    sockets = _bind_one(first_host, port)
    port = sockets[0].getsockname()[1]
    try:
        for other in others:
            # The first may have bound both loopbacks already.
            address = "127.0.0.1" if other == "localhost" else other.strip("[]")
            if address not in [one.getsockname()[0] for one in sockets]:
                sockets += _bind_one(other, port)
    except StartupError:
        for one in sockets:
            one.close()
        raise
    return sockets


def addresses(host: str) -> list[str]:
    """The addresses of a host setting, which separates them by commas."""
    return [one.strip() for one in host.split(",") if one.strip()]


def _bind_one(host: str, port: int) -> list[socket.socket]:
    if host not in _BOTH_LOOPBACKS:
        return [_bind(host, port)]
    first = _bind("127.0.0.1", port)
    port = first.getsockname()[1]
    try:
        return [first, _bind("::1", port)]
    except StartupError as error:
        logger.debug("not listening on ::1: %s", error.message)
        return [first]


def check_tls(key_file: str, cert_file: str) -> bool:
    """Whether TLS is configured with a key and its certificate. Raises ConfigError when they cannot be used."""
    if not (key_file or cert_file):
        return False
    if not (key_file and cert_file):
        missing = "--ssl-cert-file" if key_file else "--ssl-key-file"
        raise ConfigError(f"TLS needs a private key and its certificate; set {missing} too")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert_file, key_file, _no_password)
    except ssl.SSLError as error:
        why = error.reason or str(error)
        raise ConfigError(
            f"{cert_file} and {key_file} are not a certificate and its private key in PEM: {why}"
        ) from None
    except OSError as error:
        raise ConfigError(f"{cert_file}, {key_file}: cannot be read: {error.strerror or error}") from None
    return True


def _no_password() -> str:
    raise ConfigError("the private key of --ssl-key-file is encrypted; expected one without a password")


def url_of(host: str, sockets: list[socket.socket], *, is_tls: bool = False) -> str:
    """URL of the server as seen from this machine, at its first address: a wildcard becomes the loopback."""
    port = sockets[0].getsockname()[1]
    host = addresses(host)[0]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host) or (f"[{host}]" if ":" in host else host)
    return f"http{'s' if is_tls else ''}://{shown}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to all of `host`; a name other than localhost counts as open."""
    return all(_is_loopback(one) for one in addresses(host))


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address == "localhost"


def connections_limit() -> int:
    """Connection limit, after raising the limit of open files as far as this user may.

    Logs a warning if it is low.
    """
    try:
        import resource
    except ImportError:
        return _MAX_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    n_files = _MAX_FILES if soft == resource.RLIM_INFINITY else min(soft, _MAX_FILES)
    n_reserved = min(_OTHER_FILES, max(_MIN_OTHER_FILES, n_files // 2))
    n_connections = max(_MIN_CONNECTIONS, n_files - n_reserved)
    if n_connections < _FEW_CONNECTIONS:
        logger.warning(
            "at most %d connections at once: this process may open %d files; raise that with ulimit -n",
            n_connections,
            n_files,
        )
    return n_connections


def _detect_dead_peers(listening: socket.socket) -> None:
    """Set TCP keep-alive and user timeout, where the system has them; accepted connections inherit them."""
    options = {"TCP_KEEPIDLE": _DEAD_PEER_S // 2, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
    with contextlib.suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (options | {"TCP_USER_TIMEOUT": _DEAD_PEER_S * 1000}).items():
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # "::" means every address, IPv4's too where the system can do that.
        both = host == "::" and socket.has_dualstack_ipv6()
        listening = socket.create_server(address[:2], family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        raise StartupError(_bind_error(error, host, port)) from None
    _detect_dead_peers(listening)
    return listening


def _bind_error(error: OSError, host: str, port: int) -> str:
    if isinstance(error, socket.gaierror):
        return f"--host {host}: cannot be resolved; expected an IP address of this machine, such as 127.0.0.1"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use by another program; stop it, or choose another port with --port"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has; choose one of 1024 or above with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host}: not an address of this machine; 0.0.0.0 listens on all it has"
    return f"cannot listen on {host}, port {port}: {error.strerror or error}"
