"""context: TTFT, ITL and memory of a chat that fills a slot, over slot sizes; one server each."""

from __future__ import annotations

from ggufd.bench.curves.ground import Ground, mib, step_s
from ggufd.bench.measure.client import BenchError

MESSAGE = 25
ANSWER = 32
FILLED = 0.85
"""The part of a slot that is read first; texts are only about as long as wanted."""


async def measure(ground: Ground) -> None:
    """Measure a message at that depth, and the memory of the slot."""
    curve = ground.begin("context", "tokens of context, nearly all in use")
    for n_ctx in ground.extent.contexts:
        with ground.launch_long("-np", "1", "-c", str(n_ctx), "--cache-ram", "0") as local:
            site = await ground.site(local, "context", n_ctx)
            if site.server.n_ctx is not None and site.server.n_ctx < n_ctx:
                raise BenchError(f"the model takes {site.server.n_ctx:,} tokens, not {n_ctx:,}: give a --long-model")
            text = site.words.text(int(FILLED * n_ctx) - 2 * (MESSAGE + ANSWER))
            whole = await site.client.complete(text, 1)
            # A message is replaced by the next one, so that the depth stays.
            prompts = [f"{text}\n{site.words.text(MESSAGE)}" for _ in range(ground.extent.repetitions)]
            answers = [await site.client.complete(prompt, ANSWER) for prompt in prompts]
            curve.add(n_ctx, "a step", "ms", [1000 * step_s([answer]) for answer in answers])
            curve.add(n_ctx, "TTFT of a short message", "s", [answer.wait for answer in answers])
            if whole.prompt_tokens is not None:
                curve.add(n_ctx, "reading all of it", "tok/s", [whole.prompt_tokens / whole.wait])
            curve.add(n_ctx, "memory of all processes", "MiB", [mib(local.memory().total)])
        ground.say(f"context: {n_ctx:,} of {max(ground.extent.contexts):,}")
