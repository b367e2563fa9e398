"""The live views of several replicas as one."""

from __future__ import annotations

from typing import Any

from ggufd.api.live.history import HistoryRow
from ggufd.cluster.merging.live import LiveMerge

COLUMNS = list(HistoryRow._fields)


def a_message(time: float = 100.0, **more: Any) -> dict[str, Any]:
    server = {"state": "ready", "trouble": "", "model": "m", "slots": 2, "sees": "all", "can_load": True}
    totals = {"running": 1, "waiting": 0, "slots": 2, "reading": 1, "writing": 0, "keeping": 1}
    usual = {
        "object": "live.snapshot",
        "time": time,
        "server": server,
        "totals": totals,
        "age_s": 0.1,
        "slots": [{"id": 0, "state": "reading", "request": 7}, {"id": 1, "state": "idle"}],
        "queue": [],
        "batches": [],
        "keys": [],
        "cache": {"cached_tokens": 3, "slots": {"tokens": 5}},
        "history": {"columns": COLUMNS, "rows": []},
        "requests": [],
        "events": [],
    }
    return usual | more


def a_row(time: float, written: float | None, p50: float | None = None, p95: float | None = None) -> list[Any]:
    return [time, 1.0, written, 1, 2, None, p50, p95, None, None, 0]


def merged(**messages: dict[str, Any]) -> dict[str, Any]:
    merge = LiveMerge()
    for name, message in messages.items():
        merge.take(name, message)
    told: dict[str, Any] = merge.message()
    return told


class TestNow:
    def test_slots_stand_side_by_side_and_sums_are_sums(self) -> None:
        told = merged(a=a_message(), b=a_message(101.0))
        assert [(one["replica"], one["id"], one.get("request")) for one in told["slots"]] == [
            ("a", 0, "7@a"),
            ("a", 1, None),
            ("b", 0, "7@b"),
            ("b", 1, None),
        ]
        assert told["totals"] == {"running": 2, "waiting": 0, "slots": 4, "reading": 2, "writing": 0, "keeping": 2}
        assert told["cache"] == {"cached_tokens": 6, "slots": {"tokens": 10}}
        assert (told["time"], told["server"]["slots"]) == (101.0, 4)
        assert [(one["id"], one["state"], one["running"]) for one in told["server"]["replicas"]] == [
            ("a", "ready", 1),
            ("b", "ready", 1),
        ]

    def test_it_serves_as_long_as_one_does_and_says_what_is_wrong_where(self) -> None:
        lame = a_message()["server"] | {"state": "failed", "trouble": "out of memory", "sees": "own"}
        told = merged(a=a_message(server=lame, cache=None), b=a_message())["server"]
        assert (told["state"], told["trouble"], told["sees"]) == ("ready", "a: out of memory", "own")

    def test_what_was_served_anywhere_counts_for_a_key(self) -> None:
        def keys(one: float, two: float) -> list[dict[str, Any]]:
            common = {"running": 1, "waiting": 0, "refusals": 1, "fair_share": 0.5}
            return [
                {"name": "one", "weight": 3.0, "served": one, "share": one / (one + two), **common},
                {"name": "two", "weight": 1.0, "served": two, "share": two / (one + two), **common},
            ]

        one, two = merged(a=a_message(keys=keys(10.0, 30.0)), b=a_message(keys=keys(50.0, 10.0)))["keys"]
        assert (one["served"], one["share"], one["fair_share"], one["running"]) == (60.0, 0.6, 0.75, 2)
        assert (two["served"], two["share"], two["fair_share"], two["refusals"]) == (40.0, 0.4, 0.25, 2)

    def test_ones_own_share_is_of_all_that_was_served(self) -> None:
        own = {"name": "one", "weight": 1.0, "running": 0, "waiting": 0, "refusals": 0, "fair_share": 0.5}
        quarter, half = own | {"served": 10.0, "share": 0.25}, own | {"served": 30.0, "share": 0.5}
        (told,) = merged(a=a_message(keys=[quarter]), b=a_message(keys=[half]))["keys"]
        assert told["share"] == 0.4


class TestWhatGrows:
    def test_a_second_is_told_once_all_have_told_it(self) -> None:
        merge = LiveMerge()
        merge.take("a", a_message(100.2, history={"columns": COLUMNS, "rows": [a_row(100.1, 5.0, 0.2, 1.0)]}))
        merge.take("b", a_message(100.3))
        assert merge.message()["history"]["rows"] == []
        merge.take("b", a_message(101.0, history={"columns": COLUMNS, "rows": [a_row(100.9, 7.0, 0.4, 0.5)]}))
        (row,) = merge.message()["history"]["rows"]
        assert dict(zip(COLUMNS, row, strict=True)) | {} == {
            "time": 100.9,
            "read": 2.0,
            "written": 12.0,
            "waiting": 2,
            "running": 4,
            "batch": None,
            "first_p50": 0.3,
            "first_p95": 1.0,
            "gap_p50": None,
            "gap_p95": None,
            "refused": 0,
        }

    def test_a_second_of_a_replica_at_rest_is_not_waited_for(self) -> None:
        merge = LiveMerge()
        merge.take("a", a_message(100.2, history={"columns": COLUMNS, "rows": [a_row(100.1, 5.0)]}))
        merge.take("b", a_message(103.0))
        assert [row[2] for row in merge.message()["history"]["rows"]] == [5.0]

    def test_a_snapshot_after_a_break_tells_nothing_twice(self) -> None:
        merge = LiveMerge()
        ended = [{"number": 0, "time": 99.0, "path": "/x"}]
        merge.take("a", a_message(requests=ended))
        first = merge.message()
        assert (first["object"], [one["replica"] for one in first["requests"]]) == ("live.snapshot", ["a"])
        merge.take("a", a_message(102.0, requests=[*ended, {"number": 1, "time": 101.0, "path": "/y"}]))
        second = merge.message()
        assert second["object"] == "live.update"
        assert [(one["path"], one["number"]) for one in second["requests"]] == [("/y", 1)]

    def test_a_replica_that_is_gone_leaves_an_event(self) -> None:
        merge = LiveMerge()
        merge.take("a", a_message())
        merge.take("b", a_message())
        merge.message()
        merge.drop("a", "does not answer any more")
        told = merge.message()
        assert [one["replica"] for one in told["slots"]] == ["b", "b"]
        assert [one["text"] for one in told["events"]] == ["a: does not answer any more"]
