"""Requests of this machine: from its loopback, through no proxy, to a server that listens nowhere else."""

from __future__ import annotations

import ipaddress

from starlette.requests import Request

from ggufd.api.services.settings import ApiConfig

_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


def is_forwarded(request: Request) -> bool:
    """Whether a proxy sent this request on."""
    return any(name in request.headers for name in _FORWARDED)


def is_of_this_machine(request: Request, config: ApiConfig) -> bool:
    """Whether only somebody on this machine can have sent this request."""
    address = request.client.host if request.client else ""
    return _is_loopback(address) and not (is_forwarded(request) or config.listens_beyond)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False
