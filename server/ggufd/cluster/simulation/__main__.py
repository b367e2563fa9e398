"""`python -m ggufd.cluster.simulation`: prints how policies compare, and what losses and floods do."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from ggufd.cluster.simulation.comparison import HEAD, compared, lost
from ggufd.cluster.simulation.flood import Flood, flooded
from ggufd.cluster.simulation.heads import SIZES, head_figures
from ggufd.cluster.simulation.run import Scale


def report(scale: Scale) -> Iterator[str]:
    """Lines of the report, each as soon as it is known."""
    yield f"{scale.n_replicas} replicas of 16 slots and 100 kept chats, {scale.n_chats} chats at a time"
    yield HEAD
    rows = compared(scale)
    one = next(rows)
    yield one.line(one.measured)
    for row in rows:
        yield row.line(one.measured)
    yield "cached share of each chat's next turns after a moment, by that before it:"
    for how, part, is_drained in (
        ("nothing is lost", 0.0, False),
        ("a tenth is killed", 0.1, False),
        ("a tenth is drained, its chats moved", 0.1, True),
    ):
        measured = lost(scale, part=part, is_drained=is_drained)
        shares = [measured.cached_share_after(turn) / max(1e-9, measured.cached_share) for turn in range(4)]
        yield f"    {how:36s}" + ", ".join(f"{share:.3f}" for share in shares)
    yield from (head_figures(size).line() for size in SIZES)
    for has_ledger in (True, False):
        yield flooded(Flood(n_replicas=scale.n_replicas), has_ledger=has_ledger).line()


def main() -> None:
    """Read the size from the command line, and print."""
    parser = argparse.ArgumentParser(prog="python -m ggufd.cluster.simulation", description=__doc__)
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--chats-per-replica", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=900.0, help="measured, after 600 s that are not")
    asked = parser.parse_args()
    n_chats = asked.replicas * asked.chats_per_replica
    for line in report(Scale(asked.replicas, n_chats, ends_s=600.0 + asked.seconds)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
