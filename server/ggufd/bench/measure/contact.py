"""First contact with the servers of a run: reached, described, warmed up, and asked how they count tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ggufd.bench.measure.client import BenchError, Client
from ggufd.bench.measure.discovery import discover
from ggufd.bench.measure.report import BenchReport
from ggufd.bench.measure.site import MeasuredServer
from ggufd.bench.measure.words import Words, calibrate


@dataclass(frozen=True, slots=True)
class Contact:
    """Addresses of one server or two, and how they are spoken to.

    `max_slots` is for servers that do not tell their slots.
    """

    url: str
    seed: int
    against: str | None = None
    api_key: str | None = None
    other_api_key: str | None = None
    model: str | None = None
    max_slots: int | None = None
    timeout_s: float = 300.0


async def meet(contact: Contact, report: BenchReport) -> None:
    """Put the servers and their tokens a word into the report, and warnings of what makes them hard to compare.

    Raises BenchError when one cannot be reached, wants a key, or counts no tokens.
    """
    clients = _clients(contact)
    servers = [await discover(client, contact.max_slots, contact.other_api_key) for client in clients]
    report.servers.extend(servers)
    for client in clients:
        await _warm_up(client, contact.seed)
    # Both get the same texts, so one rate for both.
    report.tokens_per_word = await calibrate(clients[0], contact.seed)
    report.warnings.extend(_doubts(servers))


def _clients(contact: Contact) -> list[Client]:
    urls = [contact.url] if contact.against is None else [contact.url, contact.against]
    clients = [Client(url, api_key=contact.api_key, timeout_s=contact.timeout_s) for url in urls]
    if len({client.url for client in clients}) < len(clients):
        raise BenchError(f"{clients[0].url} was given twice: --against needs another server")
    clients[0].model = contact.model
    return clients


async def _warm_up(client: Client, seed: int) -> None:
    """One short completion that is not counted."""
    await client.complete(Words(1.3, seed, "warm-up").text(16), 16)


def _doubts(servers: Sequence[MeasuredServer]) -> list[str]:
    """Warnings about differences that make the two servers hard to compare."""
    if len(servers) < 2:
        return []
    one, two = servers
    doubts = []
    for what, a, b in (("slots", one.n_slots, two.n_slots), ("tokens of context a slot", one.n_ctx, two.n_ctx)):
        if a != b and a is not None and b is not None:
            doubts.append(f"the servers differ in {what}: {a:,} and {b:,}")
    return doubts
