"""Addresses (URLs) of images: read strictly, and held against the operator's list of hosts."""

from __future__ import annotations

import re
from typing import NamedTuple, Self
from urllib.parse import quote, urlsplit

from ggufd.errors import InvalidRequest

_PORTS = {"http": 80, "https": 443}
_MOST_CHARS = 4096
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|[0-9a-f:.]+")
_SAFE = "/?:@!$&'()*+,;=-._~%[]"


class ImageUrl(NamedTuple):
    """http or https URL, in the pieces that a request needs; `host` is ASCII, lower case, without brackets."""

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Pieces of a URL. Raises InvalidRequest where anything about it is unusual."""
        if len(url) > _MOST_CHARS:
            raise InvalidRequest(f"The image's URL is longer than {_MOST_CHARS} characters.")
        try:
            parts = urlsplit(url)
            port = parts.port
            host = (parts.hostname or "").encode("idna").decode("ascii").lower()
            target = quote((parts.path or "/") + ("?" + parts.query if parts.query else ""), safe=_SAFE)
        except ValueError:  # UnicodeError is one
            raise _malformed() from None
        if parts.scheme not in _PORTS or not _HOST.fullmatch(host) or "\\" in url:
            raise _malformed()
        if "@" in parts.netloc:
            raise InvalidRequest("The image's URL holds a user name, which is not sent anywhere. Leave it out.")
        return cls(parts.scheme, host.rstrip("."), port or _PORTS[parts.scheme], target)

    @property
    def authority(self) -> str:
        """Value of the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.has_default_port else f"{host}:{self.port}"

    @property
    def has_default_port(self) -> bool:
        return self.port == _PORTS[self.scheme]


def _malformed() -> InvalidRequest:
    return InvalidRequest("The image's URL is malformed: http://host/path or https://host/path was expected.")


def check_host(url: ImageUrl, hosts: tuple[str, ...]) -> None:
    """Check a host against the operator's list: names, `*.domain`, `*`; ports other than the scheme's by name only.

    Raises InvalidRequest.
    """
    if not any(_allows(rule.lower(), url) for rule in hosts):
        raise InvalidRequest(
            f"Images are not fetched from {url.authority} here: the operator allows hosts by --image-hosts. Send the "
            f"image as a data URI."
        )


def _allows(rule: str, url: ImageUrl) -> bool:
    if rule == url.authority or (rule == url.host and url.has_default_port):
        return True
    return url.has_default_port and (rule == "*" or (rule.startswith("*.") and url.host.endswith(rule[1:])))
