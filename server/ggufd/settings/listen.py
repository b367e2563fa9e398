"""The sockets the server listens at, bound before anything slow is done.

A port in use is then one line at once, and a client that comes early waits instead of being refused.
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
_MOST_FILES = 65_536
_OTHER_FILES = 100
"""What the process may open besides connections: pipes to its children, the log, libraries."""

_LEAST_OTHER_FILES = 40
"""24 when all is well, and some more while a child is started again."""

_FEW_CONNECTIONS = 200
_LEAST_CONNECTIONS = 4

_VANISHED_S = 60
"""A peer that does not acknowledge anything for so long is gone: its cable was pulled, its machine is off."""
_BOTH_LOOPBACKS = ("127.0.0.1", "localhost")


def bind(host: str, port: int) -> list[socket.socket]:
    """Listening sockets for `host`; port 0 takes a free one. Raises StartupError.

    For IPv4's loopback IPv6's is bound too when it can be: `localhost` means either, by the client's choice.
    """
    if host not in _BOTH_LOOPBACKS:
        return [_bind(host, port)]
    first = _bind("127.0.0.1", port)
    port = first.getsockname()[1]
    try:
        return [first, _bind("::1", port)]
    except StartupError as error:
        logger.debug("not listening at ::1: %s", error.message)
        return [first]


def check_tls(key_file: str, cert_file: str) -> bool:
    """Whether both files are named, and go together. Raises ConfigError when they cannot be used."""
    if not (key_file or cert_file):
        return False
    if not (key_file and cert_file):
        missing = "--ssl-cert-file" if key_file else "--ssl-key-file"
        raise ConfigError(f"TLS needs a private key and its certificate: {missing} is not set")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert_file, key_file, _no_password)
    except ssl.SSLError as error:
        why = error.reason or str(error)
        raise ConfigError(f"{cert_file} and {key_file} are no certificate and its key, both PEM: {why}") from None
    except OSError as error:
        raise ConfigError(f"{cert_file}, {key_file}: cannot be read: {error.strerror or error}") from None
    return True


def _no_password() -> str:
    raise ConfigError("the private key of --ssl-key-file is encrypted; expected one without a password")


def url_of(host: str, sockets: list[socket.socket], *, is_tls: bool = False) -> str:
    """A URL that works on this machine. An address that means all of them is replaced by the loopback."""
    port = sockets[0].getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host) or (f"[{host}]" if ":" in host else host)
    return f"http{'s' if is_tls else ''}://{shown}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`; a name other than localhost counts as open."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def connections_limit() -> int:
    """How many connections there may be, after the limit of open files was raised as far as this user may.

    Says so where they are few.
    """
    try:
        import resource
    except ImportError:
        return _MOST_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    n_files = _MOST_FILES if soft == resource.RLIM_INFINITY else min(soft, _MOST_FILES)
    n_others = min(_OTHER_FILES, max(_LEAST_OTHER_FILES, n_files // 2))
    n_connections = max(_LEAST_CONNECTIONS, n_files - n_others)
    if n_connections < _FEW_CONNECTIONS:
        logger.warning(
            "at most %d connections at once: this process may open %d files; raise that with ulimit -n",
            n_connections,
            n_files,
        )
    return n_connections


def _notice_the_vanished(listening: socket.socket) -> None:
    """Connections take these options over from the socket that accepts them, where a system has them."""
    options = {"TCP_KEEPIDLE": _VANISHED_S // 2, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
    with contextlib.suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (options | {"TCP_USER_TIMEOUT": _VANISHED_S * 1000}).items():
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
        raise StartupError(_sentence(error, host, port)) from None
    _notice_the_vanished(listening)
    return listening


def _sentence(error: OSError, host: str, port: int) -> str:
    if isinstance(error, socket.gaierror):
        return f"--host {host}: no such address on this machine; expected an IP address, such as 127.0.0.1"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use by another program; stop that, or choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has; choose one from 1024 on with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host}: this machine has no such address; 0.0.0.0 means all it has"
    return f"cannot listen at {host}, port {port}: {error.strerror or error}"
