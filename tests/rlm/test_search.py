from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from llamalab.rlm.search import Line, find_lines

TEXT = [
    Line(1, "The Blue Harbor vault has the access code 48213, they say."),
    Line(2, "Nothing here."),
    Line(3, "the ACCESS CODE of the blue harbor vault is 48213."),
    Line(4, "Blue Harbor vaults are not meant."),
    Line(5, "See: access code of the Blue Harbor vault"),
]


def numbers(text: str) -> list[int]:
    return [line.number for line in find_lines(TEXT, text)]


def test_the_phrase_wins_in_any_case_and_the_shorter_line_comes_first() -> None:
    assert numbers("access code of the Blue Harbor vault") == [5, 3]


def test_without_the_phrase_all_words_of_meaning_must_be_there() -> None:
    assert numbers("the vault access code for Blue Harbor") == [5, 3, 1]
    assert numbers("vault password of Blue Harbor") == []


def test_words_are_whole() -> None:
    assert numbers("Blue Harbor vaults") == [4]
    assert numbers("arbor") == []


def test_signs_are_no_patterns() -> None:
    assert find_lines([Line(1, "a.c"), Line(2, "abc")], "a.c") == [Line(1, "a.c")]
    assert find_lines([Line(1, "x (y")], "(y") == [Line(1, "x (y")]


@given(st.lists(st.text("ab .\n".replace("\n", ""), max_size=12), max_size=8), st.text("ab", min_size=1, max_size=3))
def test_a_single_word_is_found_as_the_standard_library_finds_it(lines: list[str], word: str) -> None:
    """For one word both rules are the same: the word between boundaries."""
    found = find_lines([Line(i, text) for i, text in enumerate(lines)], word)
    assert {line.number for line in found} == {i for i, t in enumerate(lines) if re.search(rf"\b{word}\b", t)}
