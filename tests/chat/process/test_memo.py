"""What texts came to: the last ones, within a budget, and never somebody else's."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from ggufd.chat.process.memo import Memo

BUDGET = 200
CALLS = st.lists(st.tuples(st.binary(max_size=1), st.lists(st.integers(0, 9), max_size=120), st.booleans()))


def size(result: list[int]) -> int:
    return len(pickle.dumps(result, pickle.HIGHEST_PROTOCOL))


@given(CALLS)
def test_it_keeps_what_was_asked_for_last(calls: list[tuple[bytes, list[int], bool]]) -> None:
    memo, kept = Memo(BUDGET), dict[bytes, list[int]]()
    for asked, result, is_put in calls:
        if not is_put:
            assert memo.get(asked) == kept.get(asked)
            if asked in kept:
                kept[asked] = kept.pop(asked)
        elif size(result) <= BUDGET:
            memo.put(asked, result)
            kept.pop(asked, None)
            kept[asked] = result
            while sum(map(size, kept.values())) > BUDGET:
                del kept[next(iter(kept))]
        else:
            memo.put(asked, result)
        assert memo.n_bytes == sum(map(size, kept.values()))


def test_each_result_is_a_new_object() -> None:
    memo = Memo()
    memo.put(b"x", [1, 2])
    memo.get(b"x").append(3)
    assert memo.get(b"x") == [1, 2]
