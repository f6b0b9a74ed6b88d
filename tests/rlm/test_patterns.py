from __future__ import annotations

import re
from dataclasses import replace
from math import inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llamalab.errors import InputError
from llamalab.rlm import patterns
from llamalab.rlm.patterns import Pattern, Stop, compile_pattern, matching_lines, quote, search

texts = st.text(st.sampled_from("aab xé\nß€A1"), max_size=60)
expressions = st.sampled_from(
    [
        "a",
        "a+",
        "a+b",
        "(?:a|b)+",
        "[^a]+",
        "^a",
        "a$",
        "^.+$",
        "é|ß",
        "a*b",
        "x?y?",
        "",
        ".",
        "..",
        "[0-9]+",
        "a|ab",
    ]
)
FLAGS = re.IGNORECASE | re.MULTILINE


def small(pattern: Pattern, block: int) -> Pattern:
    """The same, searching few bytes at once."""
    return replace(
        pattern, _unicode=replace(pattern._unicode, block=block), _ascii=replace(pattern._ascii, block=block)
    )


def found(pattern: Pattern, text: str, stop: Stop | None = None, group: int = 0) -> list[tuple[int, int]]:
    batches = search(pattern, text.encode(), stop or Stop(), ascii=text.isascii(), group=group)
    return [span for batch in batches for span in batch]


def expected(expression: str, text: str) -> list[tuple[int, int]]:
    """By the standard library, line by line; where a match is empty, the search goes on one character later."""
    spans, before, compiled = [], 0, re.compile(expression, FLAGS)
    for line in text.split("\n"):
        at = 0
        while at < len(line) and (match := compiled.search(line, at)):
            if match.end() > match.start():
                spans.append((before + len(line[: match.start()].encode()), before + len(line[: match.end()].encode())))
            at = max(match.end(), match.start() + 1)
        before += len(line.encode()) + 1
    return spans


@given(expressions, texts)
def test_matches_are_those_of_the_standard_library_within_lines(expression: str, text: str) -> None:
    assert found(compile_pattern(expression), text) == expected(expression, text)


@given(expressions, texts, st.integers(4, 40))
def test_blocks_change_nothing_where_lines_fit_into_them(expression: str, text: str, block: int) -> None:
    longest = max(len(line.encode()) for line in text.split("\n")) + 1
    pattern = compile_pattern(expression)
    assert found(small(pattern, max(block, longest)), text) == found(pattern, text)


@given(st.text(st.sampled_from("ab é"), max_size=200), st.integers(16, 40))
@example(" " * 18 + "abb" + " " * 10, 16)
def test_a_long_line_is_searched_in_windows_that_overlap(text: str, block: int) -> None:
    """A match that is no longer than the overlap is found wherever it stands, and none is found twice."""
    pattern = compile_pattern("a[ab]?b")
    assert found(small(pattern, block), text) == expected("a[ab]?b", text)


@given(expressions, texts, st.integers(0, 80))
def test_a_search_that_stops_has_all_matches_up_to_there(expression: str, text: str, position: int) -> None:
    whole = found(compile_pattern(expression), text)
    stop = Stop(position=position)
    assert found(compile_pattern(expression), text, stop) == [
        span for span in whole if stop.reached is None or span[0] < stop.reached
    ]


@given(texts)
def test_every_position_is_where_a_character_begins(text: str) -> None:
    for start, end in found(small(compile_pattern("[^b]?"), 8), text):
        text.encode()[start:end].decode()


def test_hostile_patterns_end_with_what_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding all matches is quadratic here; the clock is read before each."""
    ticks = iter(range(10**9))
    monkeypatch.setattr(patterns.time, "monotonic", lambda: next(ticks))
    stop = Stop(deadline=20)
    assert len(found(compile_pattern("x(?:x*[0-9])?"), "x" * 3_000_000, stop)) == 21
    assert stop.reached == 21


@pytest.mark.parametrize(
    "expression", [r"(?:x.{0,400}){2}!", r"x[xy]{400}!", r"(?:.{0,30}){30}!", r"(?:\pL{0,4}x?){2}!"]
)
def test_what_one_search_may_cost_is_bounded(expression: str) -> None:
    """Bytes at once times size of the pattern: RE2 cannot be interrupted within one search."""
    pattern = compile_pattern(expression)
    for machine in (pattern._unicode, pattern._ascii):
        start, end = machine.region(b"x" * 3_000_000, 0)
        assert end - start <= 1 << 16
        assert end * machine.match.__self__.ProgramSize() <= 100 << 20


@given(texts, texts)
def test_lines_with_a_text_are_those_it_stands_in(text: str, wanted: str) -> None:
    wanted = wanted.replace("\n", "")
    lines = matching_lines(compile_pattern(f"(?-i){quote(wanted)}"), text.encode(), Stop(), ascii=text.isascii())
    numbers = [text.encode()[:start].count(b"\n") for start, _ in lines]
    there = text.removesuffix("\n").split("\n") if text else []
    assert numbers == [n for n, line in enumerate(there) if wanted in line and (wanted or line or text)][: len(numbers)]
    assert len(numbers) == sum(wanted in line for line in there)


def test_groups_have_places_of_their_own() -> None:
    text = "é took 12 ms\ntook none\nTOOK 7"
    pattern = compile_pattern(r"took ([0-9]+)|took", capture=True)
    assert [text.encode()[a:b] for a, b in found(pattern, text, group=1)] == [b"12", b"7"]


@pytest.mark.parametrize(
    ("expression", "remedy"),
    [
        ("(", "backslash before signs"),
        ("a)(b", "unexpected"),
        ("(?=a)", "no lookaround"),
        (r"(a)\1", "no back references"),
        ("a{1001}", "at most 1000 times"),
        (r"(?:\pL{1,100}x?){9}", "shorter counted repetitions"),
        (r"a\C", "matches a byte"),
        (r"\\\C", "matches a byte"),
        ("[", "missing ]"),
        ("\ud800", "lone surrogate"),
    ],
)
def test_what_is_no_pattern_is_refused_with_what_to_write(expression: str, remedy: str) -> None:
    with pytest.raises(InputError, match=re.escape(remedy)):
        compile_pattern(expression)


def test_a_backslash_before_a_capital_c_is_none() -> None:
    assert found(compile_pattern(r"\\C"), r"a\Cb") == [(1, 3)]


def test_matches_are_in_any_case_but_where_the_pattern_says_otherwise() -> None:
    assert found(compile_pattern("é"), "É") == [(0, 2)]
    assert found(compile_pattern("(?-i)e"), "Ee") == [(1, 2)]
    assert Stop().position == inf
