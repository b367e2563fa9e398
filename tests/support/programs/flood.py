"""Floods a server with the largest and the most hostile bodies, from a process of its own: what floods must not slow
down who measures.

`python -m tests.support.programs.flood URL KEY SECONDS` says "ready", begins when it gets a line, and says in the end
how many it sent.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.api.http.test_api_body import HOSTILE, LARGE

N_CLIENTS = 6
BODIES = [raw[:1_999_999] for raw in (*HOSTILE.values(), *LARGE.values())]


def flood(url: str, key: str, end_s: float, place: int) -> int:
    """One client's share, beginning at the body of this place; how many it sent."""
    n_sent = 0
    with httpx.Client(base_url=url, trust_env=False, timeout=60, headers={"x-api-key": key}) as http:
        while time.monotonic() < end_s:
            http.post("/v1/completions", content=BODIES[(place + n_sent) % len(BODIES)])
            n_sent += 1
    return n_sent


def main(url: str, key: str, seconds: str) -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    end_s = time.monotonic() + float(seconds)
    with ThreadPoolExecutor(N_CLIENTS) as clients:
        print(sum(clients.map(lambda place: flood(url, key, end_s, place), range(N_CLIENTS))))


if __name__ == "__main__":
    main(*sys.argv[1:])
