"""images: TTFT of questions about an image, new or seen before, and ITL of running streams while images arrive.

An image is drawn anew each time, as a PNG that every server reads: 4 x 4 squares of plain colors.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import random
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any

from ggufd.bench.measure.client import Stream, TimedAnswer, closing_all
from ggufd.bench.measure.figures import Better, Metric, longest_gap
from ggufd.bench.measure.site import Case, Figure, Site, Sizes

NAME = "images"
ALONE = "one at a time"
SQUARES, SQUARE_PIXELS = 4, 64
QUESTION = 12
ANSWER = 4
RUNNING = 4
RUNNING_TOKENS = 768
ARRIVING = 3
SETTLE_S = 0.5
LOOK_S = 0.02

_ROOM = 1400
"""Tokens that an image may take in a prompt."""

Message = dict[str, Any]


def cases(sizes: Sizes) -> list[Case]:
    """Images alone, and beside streams."""
    needs = max(RUNNING_TOKENS + 64, _ROOM + 8 * QUESTION)
    return [
        Case(NAME, ALONE, _ROOM + 8 * QUESTION, _alone),
        Case(NAME, _label(), needs, _beside, streams=RUNNING + 1),
    ]


def _label() -> str:
    return f"{ARRIVING} images arrive"


def drawn_image(source: random.Random) -> str:
    """A new image, as a data URI."""
    lines = []
    for _ in range(SQUARES):
        line = b"".join(bytes(source.choices((0, 255), k=3)) * SQUARE_PIXELS for _ in range(SQUARES))
        lines += [b"\0" + line] * SQUARE_PIXELS
    side = SQUARES * SQUARE_PIXELS
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = (b"IHDR" + head, b"IDAT" + zlib.compress(b"".join(lines)), b"IEND")
    png = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(chunk) for chunk in chunks)
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _chunk(content: bytes) -> bytes:
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


# --- alone ------------------------------------------------------------------------------------------------------------


async def _alone(site: Site) -> list[Figure]:
    """A new image, the same one in another chat, and the next turn about it beside that of as long a text."""
    image = drawn_image(site.words.random)
    fresh, chat = await _turn(site, [_question(site, image)])
    next_turn, _ = await _turn(site, [*chat, _question(site)])
    again, _ = await _turn(site, [_question(site, image)])
    text = {"role": "user", "content": site.words.text(fresh.prompt_tokens or _ROOM)}
    plain, history = await _turn(site, [text])
    plain_turn, _ = await _turn(site, [*history, _question(site)])
    waits = {
        "TTFT of a new image": fresh.wait,
        "TTFT of an image seen in another chat": again.wait,
        "TTFT of the next turn": next_turn.wait,
        "TTFT of as long a text": plain.wait,
    }
    figures = [Figure(Metric(NAME, ALONE, name, "s", Better.LOWER), wait, (wait,)) for name, wait in waits.items()]
    over = Metric(NAME, ALONE, "TTFT of the next turn over that of a text", "x", Better.LOWER)
    return [*figures, Figure(over, next_turn.wait / plain_turn.wait, (next_turn.wait, plain_turn.wait))]


async def _turn(site: Site, messages: list[Message]) -> tuple[TimedAnswer, list[Message]]:
    """The answer, and the chat with it."""
    (answer,) = await site.together([""], ANSWER, [{"messages": messages}])
    return answer, [*messages, {"role": "assistant", "content": answer.text}]


def _question(site: Site, image: str | None = None) -> Message:
    """A message with new words, before an image too: so no cache of prefixes knows it, but one of images may."""
    text = site.words.text(QUESTION)
    if image is None:
        return {"role": "user", "content": text}
    picture = {"type": "image_url", "image_url": {"url": image}}
    before = {"type": "text", "text": site.words.text(QUESTION)}
    return {"role": "user", "content": [before, picture, {"type": "text", "text": text}]}


# --- beside streams ---------------------------------------------------------------------------------------------------


class _Lanes:
    """Streams that run, each followed by another one when it is over: images take as long as the server makes them."""

    def __init__(self, site: Site, n_lanes: int) -> None:
        self._site = site
        self._prompts = [site.words.text(24) for _ in range(n_lanes)]
        self._lanes: list[list[Stream]] = [[] for _ in range(n_lanes)]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> _Lanes:
        self._tasks = [asyncio.create_task(self._run(*one)) for one in zip(self._prompts, self._lanes, strict=True)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, prompt: str, lane: list[Stream]) -> None:
        for number in itertools.count():
            stream = await self._site.client.start(f"{number} {prompt}", RUNNING_TOKENS)
            lane.append(stream)
            with closing_all([stream]):
                await stream.answer()

    async def all_past(self, moment_s: float) -> None:
        """Wait until every lane has a text later than that. Raises BenchError where a stream failed."""
        while not all(lane and lane[-1].times and lane[-1].times[-1] > moment_s for lane in self._lanes):
            ended = [task for task in self._tasks if task.done()]
            if ended:
                ended[0].result()
            await asyncio.sleep(LOOK_S)

    def gaps(self, begun_s: float, ended_s: float) -> tuple[float, ...]:
        """The longest gap of each lane in that time; not that between a stream and the next one."""
        return tuple(max(_gaps(lane, begun_s, ended_s)) for lane in self._lanes)


def _gaps(lane: list[Stream], begun_s: float, ended_s: float) -> Iterator[float]:
    for times in (stream.times for stream in lane):
        if times and times[0] < ended_s and times[-1] > begun_s:
            yield longest_gap(times, max(begun_s, times[0]), min(ended_s, times[-1]))


async def _beside(site: Site) -> list[Figure]:
    """New images, one after the other, beside streams that run."""
    async with _Lanes(site, min(RUNNING, max(1, site.server.slots - 1))) as lanes:
        await lanes.all_past(0.0)
        await asyncio.sleep(SETTLE_S)
        begun_s = time.perf_counter()
        waits = []
        for _ in range(ARRIVING):
            answer, _ = await _turn(site, [_question(site, drawn_image(site.words.random))])
            waits.append(answer.wait)
        ended_s = time.perf_counter()
        # The last gaps have an end too.
        await lanes.all_past(ended_s)
        gaps = lanes.gaps(begun_s, ended_s)
    return [
        Figure(Metric(NAME, _label(), "longest ITL of running streams", "s", Better.LOWER), max(gaps), gaps),
        Figure(Metric(NAME, _label(), "longest TTFT", "s", Better.LOWER), max(waits), tuple(waits)),
    ]
