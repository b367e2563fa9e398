"""Comparison of prompts: the differences say all of both texts, whatever these are."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from ggufd.chat.advice.causes import common_ends, find_cause, is_next_turn
from ggufd.chat.advice.comparison import PromptComparison, common_beginning, compare, count_segments, split_segments

SEGMENTS = st.lists(
    st.sampled_from([f"Segment number {number}.\n" for number in range(9)] + ["a\n", "\n"]), max_size=40
)
TEXTS = st.text(st.sampled_from("ab. \n<|>[/INST]\u3002"), max_size=200)


def rebuilt(comparison: PromptComparison) -> tuple[list[str], list[str]]:
    """Both prompts, put together from the differences and from what is equal between them."""
    earlier: list[str] = []
    later: list[str] = []
    i = j = 0
    for one in comparison.differences:
        same = comparison.earlier[i : one.start_a]
        assert same == comparison.later[j : one.start_b]
        earlier += [*same, *comparison.removed(one)]
        later += [*same, *comparison.inserted(one)]
        i, j = one.end_a, one.end_b
    assert comparison.earlier[i:] == comparison.later[j:]
    return [*earlier, *comparison.earlier[i:]], [*later, *comparison.later[j:]]


@given(TEXTS | st.text())
def test_segments_are_the_text(text: str) -> None:
    segments = split_segments(text)
    assert "".join(segments) == text.replace("\x1f", "")
    assert all(segments)
    assert len(segments) <= count_segments(text) + text.count("\x1f")


@given(SEGMENTS, SEGMENTS)
def test_both_prompts_can_be_put_together_from_the_differences(earlier: list[str], later: list[str]) -> None:
    comparison = compare(earlier, later)
    assert rebuilt(comparison) == (earlier, later)
    assert all(comparison.removed(one) or comparison.inserted(one) for one in comparison.differences)
    assert (comparison.differences == ()) == (earlier == later)
    assert len(comparison.differences) <= 12


@given(SEGMENTS, SEGMENTS, st.lists(st.sampled_from(("Segment number 1.", "An answer"))))
@example(["Segment number 0.\n"], ["Segment number 1.\n", "Segment number 0.\n"], ["Segment number 1."])
def test_a_diagnosis_points_at_the_first_character_that_differs(
    earlier: list[str], later: list[str], answers: list[str]
) -> None:
    comparison = compare(earlier, later)
    if not is_next_turn(comparison, answers):
        return
    diagnosis = find_cause(comparison)
    if diagnosis is not None:
        was, now = "".join(earlier), "".join(later)
        assert now[: diagnosis.character] == was[: diagnosis.character]
        assert was[diagnosis.character :][:1] != now[diagnosis.character :][:1]
        assert diagnosis.was in was
        assert diagnosis.now in now
        assert max(len(diagnosis.was), len(diagnosis.now)) <= 80


@given(SEGMENTS, SEGMENTS)
def test_a_prompt_that_goes_on_has_one_difference_at_its_end(earlier: list[str], new: list[str]) -> None:
    comparison = compare(earlier, [*earlier, *new])
    assert len(comparison.differences) == bool(new)
    assert is_next_turn(comparison, ()) == bool("".join(new).strip())
    assert not new or find_cause(comparison) is None


@given(st.text(), st.text(), st.text(), st.text())
def test_common_ends_do_not_overlap(start: str, a: str, b: str, end: str) -> None:
    one, other = start + a + end, start + b + end
    first, last = common_ends(one, other)
    assert first + last <= min(len(one), len(other))
    assert first >= len(start)
    assert one[:first] == other[:first]
    assert one[len(one) - last :] == other[len(other) - last :]
    assert one[first : first + 1] != other[first : first + 1] or first == min(len(one), len(other))


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_the_common_beginning(a: list[int], b: list[int]) -> None:
    def slow(a: Sequence[int], b: Sequence[int]) -> int:
        pairs = zip(a, b, strict=False)
        return next((n for n, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))

    assert common_beginning([str(x) for x in a], [str(x) for x in b]) == slow(a, b)
