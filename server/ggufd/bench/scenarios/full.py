"""full: as many clients as slots, each with long new prompts and short answers, and one chat beside them.

Reading bounds such a server: what it writes a second depends on how well it shares out its time between the prompts
that are read and the answers that are written.
"""

from __future__ import annotations

from ggufd.bench.measure.site import Case, Figure, Site, Sizes
from ggufd.bench.scenarios import beside

NAME = "full"
JOB_PROMPT = 650
JOB_TOKENS = 96
LONGER = 16
"""How many times as long as a chat beside background jobs it is watched: a round of 16 prompts takes half a minute."""


def cases(sizes: Sizes) -> list[Case]:
    """The one case; how many clients it has is up to the server's slots."""
    return [Case(NAME, "a chat beside a client a slot", beside.CHAT_CONTEXT, _measure)]


async def _measure(site: Site) -> list[Figure]:
    seconds = LONGER * site.sizes.seconds
    jobs = beside.JobClients(site.server.slots, JOB_PROMPT, JOB_TOKENS, seconds / 2, seconds)
    return await beside.measure(site, jobs, NAME, f"a chat beside {jobs.n} clients on {jobs.n} slots")
