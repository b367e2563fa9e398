"""background: one chat beside batch jobs that keep every slot busy, with a second key for the jobs where one is given.

With one key the chat waits in line like everybody. A server that is fair between keys lets it pass.
"""

from __future__ import annotations

from ggufd.bench.measure.site import Case, Figure, Site, Sizes
from ggufd.bench.scenarios import beside

NAME = "background"
JOB_PROMPT = 100
JOB_TOKENS = 160
HEAD_START_S = 1.0


def cases(sizes: Sizes) -> list[Case]:
    """The one case."""
    return [Case(NAME, f"a chat beside {sizes.jobs} jobs", beside.CHAT_CONTEXT, _measure, streams=sizes.jobs + 1)]


async def _measure(site: Site) -> list[Figure]:
    sizes = site.sizes
    keys = "one key" if site.server.other is None else "two keys"
    jobs = beside.JobClients(sizes.jobs, JOB_PROMPT, JOB_TOKENS, HEAD_START_S, sizes.seconds)
    return await beside.measure(site, jobs, NAME, f"a chat beside {sizes.jobs} jobs, {keys}")
