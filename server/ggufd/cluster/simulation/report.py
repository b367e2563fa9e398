"""Report of a simulation: tables of policies, of lost replicas, of a flood and of heads; and what was aimed at.

Text for people, a line as soon as it is known. Does not know where it is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from ggufd.cluster.simulation.comparison import OURS, lost, run_one_machine, run_policy
from ggufd.cluster.simulation.flood import Flood, Flooded, flooded
from ggufd.cluster.simulation.heads import SIZES, head_figures
from ggufd.cluster.simulation.machine import N_KEPT, N_SLOTS
from ggufd.cluster.simulation.run import RunFigures, Scale, Tell

_T = TypeVar("_T")

_LEAST_CACHED, _MOST_BUSY, _LEAST_BACK = 0.9, 1.3, 0.9
_BACK_WITHIN = 3
"""Turns of each chat."""

_N_OTHERS = 19


class ReportLine(NamedTuple):
    """A line and the style in which a terminal may show it."""

    text: str
    style: str = ""


class Runner(Protocol):
    """Does a run, and shows how far it is."""

    def __call__(self, label: str, run: Callable[[Tell], _T]) -> _T:
        """Result of the run."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """What is simulated: chats over servers, by some policies; and with a part of the servers lost, 0 for none."""

    scale: Scale
    policies: Sequence[str]
    lost_share: float = 0.1

    @property
    def n_runs(self) -> int:
        """Calls of the runner: one machine, the policies, the floods, and what is lost in three ways."""
        return 1 + len(self.policies) + 2 + (3 if self.lost_share else 0)

    def report(self, runner: Runner) -> Iterator[ReportLine]:
        """All lines. The aims come last, and only those that were looked at."""
        yield from _title(self.scale)
        aims: list[ReportLine] = []
        yield from self._compared(runner, aims)
        if self.lost_share:
            yield from self._lost(runner, aims)
        yield from _floods(runner, self.scale.n_replicas, aims)
        yield from _heads()
        yield ReportLine("")
        yield ReportLine(f"{'aim':58s} {'found':>8s}", "bold")
        yield from aims

    def _compared(self, runner: Runner, aims: list[ReportLine]) -> Iterator[ReportLine]:
        yield ReportLine(
            f"{'policy':21s} {'cached':>7s} {'of one':>7s} {'busiest':>8s} {'use':>5s} {'TTFT p50':>9s} {'p99':>8s} "
            f"{'turns':>8s}",
            "bold",
        )
        one = runner("one machine", lambda tell: run_one_machine(self.scale, tell))
        yield ReportLine(policy_row("one machine", one, one))
        for name in self.policies:
            measured = runner(name, lambda tell, name=name: run_policy(self.scale, name, None, tell))  # type: ignore[misc]
            yield ReportLine(policy_row(name, measured, one))
            if name == OURS:
                of_one = measured.cached_share / max(1e-9, one.cached_share)
                aims.append(_aim("cached share, by that of one machine: at least", _LEAST_CACHED, of_one))
                aims.append(_aim("busiest server, by the mean: at most", _MOST_BUSY, measured.busiest, is_most=True))

    def _lost(self, runner: Runner, aims: list[ReportLine]) -> Iterator[ReportLine]:
        part = self.lost_share
        yield ReportLine("")
        yield ReportLine(
            f"{'cached share of each chat, by that before':44s}"
            + "".join(f" {f'turn {turn + 1}':>8s}" for turn in range(_BACK_WITHIN)),
            "bold",
        )
        for label, gone, is_drained in (
            ("nothing is lost", 0.0, False),
            (f"{part:.0%} of the servers killed at once", part, False),
            (f"{part:.0%} drained, their chats moved", part, True),
        ):
            measured = runner(
                label,
                lambda tell, gone=gone, is_drained=is_drained: lost(  # type: ignore[misc]
                    self.scale, part=gone, is_drained=is_drained, tell=tell
                ),
            )
            shares = [
                measured.cached_share_after(turn) / max(1e-9, measured.cached_share) for turn in range(_BACK_WITHIN)
            ]
            yield ReportLine(f"{label:44s}" + "".join(f" {share:8.2f}" for share in shares))
            if gone and not is_drained:
                aims.append(
                    _aim(
                        f"after the loss, within {_BACK_WITHIN} turns of each chat: at least", _LEAST_BACK, max(shares)
                    )
                )


def policy_row(name: str, measured: RunFigures, one: RunFigures) -> str:
    """A policy's line; `one` is the machine of the same total capacity, which has nobody to be compared with."""
    of_one = "" if measured is one else f"{measured.cached_share / max(1e-9, one.cached_share):.3f}"
    busiest = "" if measured is one else f"{measured.busiest:.2f}"
    return (
        f"{name:21s} {measured.cached_share:7.3f} {of_one:>7s} {busiest:>8s} {measured.use:5.0%} "
        f"{measured.wait_s(50):7.2f} s {measured.wait_s(99):6.1f} s {measured.n_requests:8,d}"
    )


def _title(scale: Scale) -> Iterator[ReportLine]:
    yield ReportLine(
        f"{scale.n_replicas:,} servers of {N_SLOTS} slots and {N_KEPT} kept chats, {scale.n_chats:,} chats at a time",
        "bold",
    )
    yield ReportLine(
        f"{scale.n_ingresses} ingresses, {scale.decode_tok_s:.2f} tokens a second and stream, seed {scale.seed}; "
        f"{(scale.ends_s - scale.warm_s) / 60:.4g} min after {scale.warm_s / 60:.4g}"
    )
    yield ReportLine("")


def _floods(runner: Runner, n_replicas: int, aims: list[ReportLine]) -> Iterator[ReportLine]:
    flood = Flood(n_replicas=n_replicas, n_others=min(_N_OTHERS, n_replicas))
    yield ReportLine("")
    yield ReportLine(
        f"{'a key floods all servers':36s} {'has':>6s} {'fair':>6s} {'others':>14s} {'ahead by':>9s}", "bold"
    )
    for has_ledger in (True, False):
        label = f"{'with' if has_ledger else 'without'} the ledger"
        found = runner(label, lambda tell, has_ledger=has_ledger: flooded(flood, has_ledger=has_ledger))  # type: ignore[misc]
        yield ReportLine(_flood_row(label, found))
        if has_ledger:
            bound = f"tokens more than who waits there: at most {found.bound:,.0f}"
            aims.append(_told(bound, f"{found.worst:,.0f}", holds=found.holds))


def _flood_row(label: str, found: Flooded) -> str:
    others = f"{min(found.others):.3f} to {max(found.others):.3f}"
    return f"{label:36s} {found.share:6.3f} {found.fair_share:6.3f} {others:>14s} {found.worst:9,.0f}"


def _heads() -> Iterator[ReportLine]:
    yield ReportLine("")
    yield ReportLine(
        f"{'head of a text completion, characters':36s} {'stays':>8s} {'role play':>10s} {'apart':>8s}", "bold"
    )
    for one in (head_figures(size) for size in SIZES):
        yield ReportLine(f"{one.size:<36,d} {one.stays:8.3f} {one.stays_in_role_play:10.3f} {one.told_apart:8.3f}")


def _aim(what: str, limit: float, found: float, *, is_most: bool = False) -> ReportLine:
    holds = found <= limit if is_most else found >= limit
    return _told(f"{what} {limit:g}", f"{found:.3f}", holds=holds)


def _told(what: str, found: str, *, holds: bool) -> ReportLine:
    return ReportLine(f"{what:58s} {found:>8s}  {'held' if holds else 'missed'}", "green" if holds else "red")
