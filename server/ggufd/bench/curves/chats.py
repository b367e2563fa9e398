"""chats: memory, TTFT and ITL with a growing number of cached chats, in four slots and in host RAM."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from ggufd.bench.curves.curve import Curve
from ggufd.bench.curves.ground import Ground, mib, step_s
from ggufd.bench.measure.client import Client
from ggufd.bench.measure.site import Site

N_SLOTS = 4
N_CTX = 1024
CACHE_RAM_MIB = 8192
MESSAGE = 25
ANSWER = 32
NEW_PROMPT = 30


async def measure(ground: Ground) -> None:
    """One server, whose chats become more."""
    curve = ground.begin("chats", "kept chats")
    flags = ("-np", str(N_SLOTS), "-c", str(N_SLOTS * N_CTX), "--cache-ram", str(CACHE_RAM_MIB))
    with ground.launch(*flags) as local:
        site = await ground.site(local, "chats")
        known: list[str] = []
        n_new = 0  # those who come in `_look` are kept, too
        for n_chats in ground.extent.chats:
            while len(known) + n_new < n_chats:
                known.append(site.words.text(ground.extent.chat_tokens))
                await site.client.complete(known[-1], 1)
            n_kept = len(known) + n_new
            curve.add(n_kept, "memory of all processes", "MiB", [mib(local.memory().total)])
            curve.add(n_kept, "of it chats in host RAM", "MiB", [mib(await _host_bytes(site.client))])
            await _look(ground, curve, site, known, n_kept)
            n_new += ground.extent.repetitions
            ground.say(f"chats: {n_chats} of {max(ground.extent.chats)}")


async def _look(ground: Ground, curve: Curve, site: Site, known: list[str], n_chats: int) -> None:
    """Continue the least recently used chats, in turns with new ones."""
    again, new = [], []
    for _ in range(ground.extent.repetitions):
        known.append(f"{known.pop(0)}\n{site.words.text(MESSAGE)}")
        again.append(await site.client.complete(known[-1], ANSWER))
        new.append(await site.client.complete(site.words.text(NEW_PROMPT), ANSWER))
    curve.add(n_chats, "a step", "ms", [1000 * step_s([answer]) for answer in again])
    curve.add(n_chats, "TTFT of a kept chat", "s", [answer.wait for answer in again])
    curve.add(n_chats, "TTFT of a new chat", "s", [answer.wait for answer in new])


async def _host_bytes(client: Client) -> float:
    """What the server itself counts, in its metrics."""
    families = text_string_to_metric_families(await client.text("/metrics"))
    samples = [sample for family in families for sample in family.samples if sample.name == "ggufd_memory_bytes"]
    return sum(sample.value for sample in samples if sample.labels["of"] == "host_cache")
