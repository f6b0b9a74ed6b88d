"""Scorers accept what is right in any usual form, and nothing that only contains it."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamalab.rlm.bench.scorers import Absent, AllOf, Day, Number, OneOf, Value, named

NAMES = frozenset({"8412345", "1234567", "quick fox", "fox", "0b0e9ad6-0d0f-4c6b-9d3c-2f8a0e9b1c2d"})


@pytest.mark.parametrize(
    "answer", ["240", " 240. ", "There are 240 lines.", "The answer is 240", "count: 240", "**240**"]
)
def test_a_number_is_right_however_it_is_said(answer: str) -> None:
    assert Number(240).score(answer) == 1
    assert Value("240").score(answer) == (0 if "lines" in answer else 1)


@pytest.mark.parametrize(
    "answer", ["40", "2400", "1240", "240.5", "-240", "40 or 240", "240 or 40", "it is 240, not 40", "24 0", "", "two"]
)
def test_another_number_is_not_right(answer: str) -> None:
    assert Number(240).score(answer) < 1
    assert Value("240").score(answer) == 0


@pytest.mark.parametrize("gold", ["40", "7"])
def test_forty_does_not_pass_for_two_hundred_and_forty(gold: str) -> None:
    answer = f"2{gold}"
    for right in (Number(int(gold)), Value(gold), AllOf(frozenset({gold}), frozenset({answer}))):
        assert right.score(answer) < 1
    assert OneOf(frozenset({gold}), frozenset({answer})).score(answer) == 0


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_only_the_number_itself_is_right(gold: int, said: int) -> None:
    """And what is off by d gets 0.75 to the power of d, as OOLONG has it."""
    score = Number(gold).score(str(said))
    assert (score == 1) == (gold == said)
    if abs(gold - said) < 50:
        assert score == pytest.approx(0.75 ** abs(gold - said))


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1,204", "1204"),
        ("1204", "1,204"),
        ("Ada Blimora", "The owner of the Silver Comet bridge is Ada Blimora."),
        ("9:05", "The opening time of the Blimoran station is 9:05."),
        ("AB-123", "ab-123"),
        ("Jan 14, 2024", "2024-01-14"),
    ],
)
def test_a_value_is_right_in_a_sentence_or_in_another_writing(gold: str, answer: str) -> None:
    assert Value(gold).score(answer) == 1


@pytest.mark.parametrize(
    ("gold", "answer"),
    [("Ada Blimora", "Ada"), ("9:05", "19:05"), ("9:05", "9:055"), ("AB-123", "AB-1234"), ("12", "12 meters")],
)
def test_a_part_of_a_value_or_more_than_it_is_not_right(gold: str, answer: str) -> None:
    assert Value(gold).score(answer) == 0


def test_a_list_gets_its_overlap_and_pays_for_what_is_too_much() -> None:
    right = AllOf(frozenset({"alpha", "beta"}), frozenset({"gamma", "delta"}))
    assert right.score("Beta, alpha") == 1
    assert right.score("alpha") == 1 / 2
    assert right.score("alpha, beta, gamma, delta") == 1 / 2
    assert right.score("alphabet") == 0
    assert right.score("The words are alpha and beta, as far as I see.") == 1


def test_any_of_those_that_are_tied_is_right_and_nothing_else() -> None:
    right = OneOf(frozenset({"number", "place"}), frozenset({"person", "time"}))
    assert [right.score(answer) for answer in ("Number", "place", "number and place")] == [1, 1, 1]
    assert [right.score(answer) for answer in ("person", "number or person", "numbers", "")] == [0, 0, 0, 0]


def test_a_day_is_right_in_any_writing_and_alone() -> None:
    right = Day(frozenset({date(2024, 1, 14), date(2024, 2, 3)}))
    for answer in ("2024-01-14", "Jan 14, 2024", "It was 14 January 2024.", "Feb 3, 2024 and Jan 14, 2024"):
        assert right.score(answer) == 1
    for answer in ("Jan 15, 2024", "2024-01-14 or 2024-01-15", "January", "2024-13-14"):
        assert right.score(answer) == 0


@pytest.mark.parametrize(
    "answer", ["not found", "Not in the text.", "The text does not say.", "There is no mention of it.", "unknown"]
)
def test_what_says_that_it_is_not_there_is_right(answer: str) -> None:
    assert Absent(frozenset({"48213"})).score(answer) == 1


@pytest.mark.parametrize("answer", ["48213", "not found, but 48213 is near", "", "Ada Blimora", "I found it"])
def test_what_gives_something_is_not(answer: str) -> None:
    assert Absent(frozenset({"48213"})).score(answer) == 0


def test_names_are_named_whole_and_the_longer_hides_the_shorter() -> None:
    assert named("The QUICK FOX", NAMES) == {"quick fox"}
    assert named("the quick fox and a fox", NAMES) == {"quick fox", "fox"}
    assert named("8,412,345 and 12345678", NAMES) == {"8412345"}
    assert named("8412345,1234567", NAMES) == {"8412345", "1234567"}
    assert named("id 0B0E9AD6-0D0F-4C6B-9D3C-2F8A0E9B1C2D.", NAMES) == {"0b0e9ad6-0d0f-4c6b-9d3c-2f8a0e9b1c2d"}
    assert named("84123456", NAMES) == frozenset()
