"""Downloads from hosts that may be hostile: each hop checked, bytes and time bounded, a 400 for everything else."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from ggufd.errors import InvalidRequest
from ggufd.images.fetching.addresses import is_public
from ggufd.images.fetching.hosts import ImageUrl
from ggufd.images.fetching.limits import ImageLimits
from ggufd.images.fetching.network import Network
from ggufd.images.fetching.source import ImageSource
from ggufd.keys.principal import Principal

IMAGE = b"\x89PNG" + bytes(1000)
PLACE = "messages.0.content.0.image_url.url"


class Web:
    """Web of names, each with its addresses; those of 127.0.0.1 that `served` lists count as public here.

    `looked_up` counts the questions for a name; a name's addresses may be a function of the count.
    """

    def __init__(self) -> None:
        self.names: dict[str, Callable[[int], list[str]]] = {}
        self.looked_up: dict[str, int] = {}
        self.connected: list[str] = []
        self.public: set[str] = set()

    async def resolve(self, host: str, port: int) -> list[str]:
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        self.looked_up[host] = self.looked_up.get(host, 0) + 1
        if host not in self.names:
            raise OSError("no such name")
        return self.names[host](self.looked_up[host])

    def is_allowed(self, address: str) -> bool:
        return address in self.public or is_public(address)

    def network(self, tls: Callable[[], ssl.SSLContext] = ssl.create_default_context) -> Network:
        return Network(self.resolve, self.is_allowed, tls)

    def source(self, *hosts: str, max_bytes: int = 100_000, timeout_s: float = 30.0) -> ImageSource:
        return ImageSource(ImageLimits(hosts=hosts, max_bytes=max_bytes, timeout_s=timeout_s), self.network())


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answers(raw: bytes, *, stays: bool = False) -> Serve:
    """Server that answers with these bytes, and then closes or stays."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(raw)
            await writer.drain()
            if stays:
                await reader.read()
        writer.close()

    return serve


def ok(body: bytes = IMAGE, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", "Content-Type: text/plain", *headers, "", ""]
    return "\r\n".join(lines).encode("ascii") + body


def redirect(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode("latin-1")


@contextlib.asynccontextmanager
async def serving(serve: Serve, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    tasks = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await serve(reader, writer)
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)


@pytest.fixture
def web() -> Web:
    """Web with one public host, img.test, on this machine."""
    web = Web()
    web.names["img.test"] = lambda _: ["127.0.0.1"]
    web.public = {"127.0.0.1"}
    return web


async def refusal(source: ImageSource, url: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        await source.read(url, PLACE)
    assert caught.value.param == PLACE
    return caught.value.message.removeprefix(f"'{PLACE}': ")


async def test_an_image_is_fetched_from_a_host_that_is_allowed(web: Web) -> None:
    asked = []

    async def image(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode("ascii"))
        writer.write(ok())
        writer.close()

    async with serving(image) as port:
        source = web.source(f"img.test:{port}")
        assert await source.read(f"http://IMG.test:{port}/a b/ä.png?x=1#part", PLACE) == IMAGE
    head = asked[0].split("\r\n")
    assert head[0] == "GET /a%20b/%C3%A4.png?x=1 HTTP/1.1"
    assert f"Host: img.test:{port}".lower() in asked[0].lower()
    assert "cookie" not in asked[0].lower()
    assert "authorization" not in asked[0].lower()


OLD = {
    "until it closes": b"HTTP/1.1 200 OK\r\n\r\n" + IMAGE,
    "of 1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 1004\r\n\r\n" + IMAGE,
}


@pytest.mark.parametrize("way", OLD)
async def test_old_ways_of_answering_are_read(web: Web, way: str) -> None:
    async with serving(answers(OLD[way])) as port:
        assert await web.source(f"img.test:{port}").read(f"http://img.test:{port}/", PLACE) == IMAGE


async def test_chunks_are_read(web: Web) -> None:
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3ec\r\n" + IMAGE + b"\r\n0\r\n\r\n"
    async with serving(answers(raw)) as port:
        assert await web.source(f"img.test:{port}").read(f"http://img.test:{port}/", PLACE) == IMAGE


async def test_https_checks_the_name_on_the_certificate(web: Web) -> None:
    authority = trustme.CA()
    web.names["other.test"] = web.names["img.test"]
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("img.test").configure_cert(server_side)

    def client_side() -> ssl.SSLContext:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        return context

    async with serving(answers(ok()), server_side) as port:
        limits = ImageLimits(hosts=(f"img.test:{port}", f"other.test:{port}"), timeout_s=30)
        source = ImageSource(limits, web.network(client_side))
        assert await source.read(f"https://img.test:{port}/", PLACE) == IMAGE
        assert "cannot be reached, or not over https" in await refusal(source, f"https://other.test:{port}/")
        assert "broke off its answer" in await refusal(source, f"http://img.test:{port}/")


HOSTS = {
    ("img.test", "http://img.test/"): True,
    ("img.test", "http://IMG.TEST./"): True,
    ("IMG.test", "https://img.test:443/"): True,
    ("img.test", "http://img.test:22/"): False,
    ("img.test:81", "http://img.test:81/"): True,
    ("img.test", "http://a.img.test/"): False,
    ("*.img.test", "http://a.img.test/"): True,
    ("*.img.test", "http://img.test/"): False,
    ("*.img.test", "http://evilimg.test/"): False,
    ("*", "https://anything.test/"): True,
    ("*", "https://anything.test:8080/"): False,
    ("img.test", "http://img.test.evil.test/"): False,
}


@pytest.mark.parametrize(("rule", "url"), HOSTS)
async def test_only_the_operators_hosts_are_asked(rule: str, url: str) -> None:
    web = Web()
    said = await refusal(web.source(rule), url)
    # Nobody knows these names: what is allowed gets as far as asking for them.
    assert said.endswith("has no address.") is HOSTS[rule, url]
    assert bool(web.looked_up) is HOSTS[rule, url]


MALFORMED = (
    "http://",
    "http:///path",
    "http://img.test:99999/",
    "http://img.test:x/",
    "http://[::1/",
    "http://img.test\\@evil.test/",
    "http://img test/",
    "http://a..b/",
    "http://" + "x" * 64 + ".test/",
    "http://[fe80::1%25eth0]/",
    "https:img.test",
    "http://img.test/\ud800",
)


@pytest.mark.parametrize("url", MALFORMED)
async def test_a_malformed_url_is_refused(url: str) -> None:
    web = Web()
    assert "malformed" in await refusal(web.source("*"), url)
    assert not web.looked_up


@given(
    st.text(st.characters(exclude_categories=()), max_size=60),
    st.sampled_from(["http://", "https://img.test/", "http://img.test/?", "http://["]),
)
def test_any_url_is_taken_apart_or_refused(text: str, beginning: str) -> None:
    with contextlib.suppress(InvalidRequest):
        url = ImageUrl.parse(beginning + text)
        assert url.target.isascii()
        assert not set(url.target + url.authority) & set(" \r\n\t\0#\\")
        assert "@" not in url.authority
        assert 0 < url.port < 65536


async def test_credentials_are_sent_nowhere() -> None:
    assert "holds a user name" in await refusal(Web().source("*"), "http://user:word@img.test/")
    assert "longer than 4096" in await refusal(Web().source("*"), "http://img.test/" + "x" * 5000)


WITHIN = (
    "http://127.0.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[fd00:ec2::254]/",
    "http://10.0.0.1/",
    "http://meta.test/",
    "http://half.test/",
)


@pytest.mark.parametrize("url", WITHIN)
async def test_what_lies_within_is_never_asked(url: str) -> None:
    web = Web()
    web.names["meta.test"] = lambda _: ["169.254.169.254"]
    web.names["half.test"] = lambda _: ["93.184.215.14", "10.0.0.1"]
    assert "has no public address" in await refusal(web.source("*"), url)


@pytest.mark.parametrize("url", ["http://2130706433/", "http://0x7f.1/", "http://017700000001/", "http://localhost/"])
async def test_the_systems_own_readings_of_an_address_do_not_help(url: str) -> None:
    source = ImageSource(ImageLimits(hosts=("*",), timeout_s=30))
    said = await refusal(source, url)
    assert "has no public address" in said or "has no address" in said


async def test_the_connection_goes_to_the_address_that_was_checked(web: Web) -> None:
    """The name's second answer is another address; it is never asked for."""
    web.names["img.test"] = lambda count: ["127.0.0.1"] if count == 1 else ["169.254.169.254"]
    async with serving(answers(ok())) as port:
        source = web.source(f"img.test:{port}")
        assert await source.read(f"http://img.test:{port}/", PLACE) == IMAGE
        assert web.looked_up == {"img.test": 1}
        assert "has no public address" in await refusal(source, f"http://img.test:{port}/")


async def test_a_second_address_is_tried_when_the_first_does_not_answer(web: Web) -> None:
    web.public.add("127.0.0.2")
    web.names["img.test"] = lambda _: ["127.0.0.2", "127.0.0.1"]
    async with serving(answers(ok())) as port:
        assert await web.source(f"img.test:{port}").read(f"http://img.test:{port}/", PLACE) == IMAGE


ELSEWHERE = {
    "http://169.254.169.254/": "has no public address",
    "http://meta.test/": "has no public address",
    "http://evil.test:81/": "the operator allows hosts",
    "file:///etc/passwd": "malformed",
    "gopher://img.test/": "malformed",
    "//169.254.169.254/": "has no public address",
    "http://user@img.test/": "holds a user name",
    "data:image/png;base64,AAAA": "malformed",
}


@pytest.mark.parametrize("location", ELSEWHERE)
async def test_every_redirect_is_checked_anew(web: Web, location: str) -> None:
    web.names["meta.test"] = lambda _: ["169.254.169.254"]
    async with serving(answers(redirect(location))) as port:
        source = web.source(f"img.test:{port}", "*")
        assert ELSEWHERE[location] in await refusal(source, f"http://img.test:{port}/")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed_and_many_are_not(web: Web, status: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        left = int(path[1:])
        writer.write(redirect(f"/{left - 1}", status) if left else ok())
        writer.close()

    async with serving(serve) as port:
        source = web.source(f"img.test:{port}")
        assert await source.read(f"http://img.test:{port}/3", PLACE) == IMAGE
        assert "leads to more than 3 others" in await refusal(source, f"http://img.test:{port}/4")


BAD_ANSWERS = {
    "nothing": (b"", "broke off its answer"),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n", "broke off its answer"),
    "cut short": (ok()[:-1], "broke off its answer"),
    "not found": (b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", "answered with status 404"),
    "not modified": (b"HTTP/1.1 304 No\r\n\r\n", "answered with status 304"),
    "said to be too large": (b"HTTP/1.1 200 OK\r\nContent-Length: 100001\r\n\r\n", "larger than 100,000 bytes"),
    "said to be absurd": (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 50 + b"\r\n\r\n", ""),
    "too large": (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(100_001), "larger than 100,000 bytes"),
    "too large in chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"ffff\r\n" + bytes(65535) + b"\r\n") * 9,
        "larger than 100,000 bytes",
    ),
    "compressed": (ok(IMAGE, "Content-Encoding: gzip"), "sent the image compressed"),
    "endless headers": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 90_000, "broke off its answer"),
    "a redirect to nowhere": (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "leads to more than 3"),
}


@pytest.mark.parametrize("what", BAD_ANSWERS)
async def test_a_bad_answer_is_a_refusal(web: Web, what: str) -> None:
    raw, message = BAD_ANSWERS[what]
    async with serving(answers(raw)) as port:
        assert message in await refusal(web.source(f"img.test:{port}"), f"http://img.test:{port}/")


@pytest.mark.parametrize(
    "raw", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123", b"HTTP/1.1 100 Continue\r\n\r\n" * 9]
)
async def test_who_takes_too_long_is_left(web: Web, raw: bytes) -> None:
    async with serving(answers(raw, stays=True)) as port:
        source = web.source(f"img.test:{port}", timeout_s=0.3)
        assert "could not be fetched within 0.3 s" in await refusal(source, f"http://img.test:{port}/")


async def test_a_name_server_that_is_silent_is_left(web: Web) -> None:
    async def never(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    source = ImageSource(ImageLimits(hosts=("*",), timeout_s=0.2), Network(never))
    assert "could not be fetched within" in await refusal(source, "http://img.test/")


async def test_slow_hosts_keep_nobody_waiting_who_sends_the_image_along(web: Web) -> None:
    async with serving(answers(b"", stays=True)) as port:
        source = web.source(f"img.test:{port}", timeout_s=600)
        slow = [asyncio.create_task(source.read(f"http://img.test:{port}/", PLACE)) for _ in range(9)]
        await asyncio.sleep(0)
        assert await source.read("data:image/png;base64,AAAA", PLACE) == bytes(3)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)


async def test_slow_hosts_of_one_account_do_not_hold_up_another(web: Web) -> None:
    begun: asyncio.Queue[str] = asyncio.Queue()
    may_end = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.put_nowait((await reader.readline()).decode().split()[1])
        await may_end.wait()
        writer.close()

    async with serving(answer) as port:
        source = web.source(f"img.test:{port}", timeout_s=600)
        names = [*(f"a{i}" for i in range(7)), "b"]
        asked = [
            asyncio.create_task(source.read(f"http://img.test:{port}/{name}", PLACE, Principal(account=name[0])))
            for name in names
        ]
        assert {await begun.get() for _ in range(4)} == {"/a0", "/a1", "/a2", "/a3"}
        asked[0].cancel()
        asked[1].cancel()
        assert {await begun.get() for _ in range(2)} == {"/a4", "/b"}
        may_end.set()
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
