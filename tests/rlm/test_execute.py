from __future__ import annotations

import json
import re
from collections import Counter
from decimal import Decimal
from itertools import count
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamalab.errors import InputError
from llamalab.rlm import compact, state
from llamalab.rlm.commands import COMMANDS, SUB_COMMANDS, check_command
from llamalab.rlm.execute import NEVER, Limits, Result, State, execute
from llamalab.rlm.text import Context, Document
from llamalab.rlm.values import Value
from tests.rlm.test_commands import matcher, turn_schema, walk

NOTES = """\
Harbor notes
The access code of the Blue Harbor vault is 48213.
ERROR took 12.5 ms
ERROR took 7 ms
Nobody remembers the access code.

WARN took 1,000 ms"""
texts = st.text(st.sampled_from("ab \n\n é€x1.-"), max_size=60)
offsets = st.none() | st.integers(-70, 70)


def of(*texts: str, **limits: Any) -> State:
    documents = [Document.of(text, f"name{n}") for n, text in enumerate(texts, 1)]
    return State(Context(documents), limits=Limits(**limits))


def do(state: State, op: str, **fields: Any) -> Result:
    return execute(check_command({"op": op, **fields}), state)[0]


def then(state: State, op: str, **fields: Any) -> State:
    result, after = execute(check_command({"op": op, **fields}), state)
    assert result.error is None, result.error
    return after


def found(result: Result) -> list[str]:
    assert result.error is None, result.error
    assert result.value is not None
    return [item.text for item in result.value.items]


def lines_of(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n") if text else []


@given(st.lists(texts, min_size=1, max_size=3).filter(any), offsets, offsets)
def test_slice_is_that_of_str_over_all_documents(contents: list[str], start: int | None, end: int | None) -> None:
    result = do(of(*contents), "slice", start=start or 0, end=end)
    assert "".join(found(result)) == "".join(contents)[start or 0 : end]


@given(texts.filter(bool), st.integers(1, 70), st.integers(1, 70))
def test_lines_are_numbered_from_one_and_both_ends_are_in(text: str, start: int, end: int) -> None:
    result = do(of(text), "lines", start=start, end=end)
    assert "".join(found(result)) == "\n".join(lines_of(text)[start - 1 : end])
    tail = do(of(text), "lines", start=-2)
    assert "".join(found(tail)) == "\n".join(lines_of(text)[-2:])


@given(st.lists(texts, min_size=1, max_size=3).filter(any))
def test_counts_are_those_of_str(contents: list[str]) -> None:
    here, whole = of(*contents), "".join(contents)
    for op, fields, expected in (
        ("len", {}, len(whole)),
        ("count", {"what": "chars"}, len(whole)),
        ("count", {"what": "words"}, sum(len(text.encode().split()) for text in contents)),
        ("count", {"what": "lines"}, sum(len(lines_of(text)) for text in contents)),
    ):
        assert found(do(here, op, **fields)) == [str(expected)]


@given(texts.filter(bool), st.sampled_from(["a", "\n", "\n\n", " é", "x1"]))
def test_split_is_that_of_str_without_what_is_empty(text: str, delimiter: str) -> None:
    assert found(do(of(text), "split", delimiter=delimiter)) == [part for part in text.split(delimiter) if part]


@given(st.lists(texts, min_size=1, max_size=3).filter(any), st.sampled_from(["a+", "[^a ]+", "x|1", "é.?"]))
def test_regex_gives_matches_with_their_places(contents: list[str], pattern: str) -> None:
    here = of(*contents)
    value = do(here, "regex", pattern=pattern).value
    assert value is not None
    expected = [match for text in contents for line in text.split("\n") for match in re.findall(pattern, line)]
    assert [item.text for item in value.items] == expected
    texts_by_name = {document.name: document.text() for document in here.context.documents}
    for item in value.items:
        assert item.span is not None
        text = texts_by_name[item.span.document]
        assert text[item.span.start : item.span.end] == item.text
        assert text.count("\n", 0, item.span.start) + 1 == item.span.line


@given(texts.filter(bool), st.sampled_from(["a", "x", "é"]))
def test_a_search_in_what_was_found_keeps_the_places_in_the_document(text: str, wanted: str) -> None:
    """`on` a variable: each of its pieces is a text of its own."""
    after = then(of(text), "regex", pattern="[^ \n]+", store="runs")
    result = do(after, "regex", pattern=f"^{wanted}", on="runs")
    assert result.value is not None
    runs = [match for match in re.finditer(r"[^ \n]+", text) if match.group().startswith(wanted)]
    assert [item.span.start for item in result.value.items if item.span] == [match.start() for match in runs]


@given(texts.filter(bool), st.integers(1, 30), st.sampled_from(["[ab]+", "^.", ".$", "é x|1.", "a$|^b"]))
def test_pieces_are_searched_together_as_if_one_by_one(text: str, size: int, pattern: str) -> None:
    """However many are joined for a search, none is seen beside another, and `^` and `$` are the piece's ends."""
    after = then(of(text), "split", delimiter=" ", store="pieces")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "BLOCK", size)
        result = do(after, "regex", pattern=pattern, on="pieces")
    pieces = [line for part in text.split(" ") if part for line in part.split("\n")]
    assert found(result) == [match for piece in pieces for match in re.findall(pattern, piece)]
    assert all(span.document == "name1" for span in result.spans)


def test_find_gives_lines_best_first_and_a_second_document_has_its_own_numbers() -> None:
    result = do(of(NOTES, "é\naccess code 1"), "find", text="access code", store="hits")
    assert result.head == "3 matches in hits"
    assert result.text.splitlines() == [
        "doc2 L2: access code 1",
        "doc1 L5: Nobody remembers the access code.",
        "doc1 L2: The access code of the Blue Harbor vault is 48213.",
    ]
    assert found(do(of(NOTES), "find", text="code access", how="phrase")) == []
    assert len(found(do(of(NOTES), "find", text="harbor nobody", how="any"))) == 3


numbers = st.lists(st.decimals(-(10**6), 10**6, places=3), min_size=1, max_size=20)


@given(numbers)
def test_aggregates_are_exact(values: list[Decimal]) -> None:
    here = of("\n".join(f"took {value} ms" for value in values))
    expected = {"count": len(values), "sum": sum(values), "min": min(values), "max": max(values)}
    for what, value in expected.items():
        result = do(here, "aggregate", pattern=r"took (\S+)", what=what)
        assert Decimal(found(result)[0]) == value
        assert result.spans
    mean = Decimal(found(do(here, "aggregate", pattern=r"took (\S+)", what="mean"))[0])
    assert abs(mean - sum(values) / len(values)) <= Decimal("1e-8")


@given(st.lists(st.sampled_from(["a", "b", "é", "c d"]), min_size=1, max_size=20))
def test_top_and_unique_are_those_of_counter(values: list[str]) -> None:
    here = of("\n".join(f"<{value}>" for value in values))
    unique = do(here, "aggregate", pattern="<(.*)>", what="unique")
    assert found(unique) == list(dict.fromkeys(values))
    top = do(here, "aggregate", pattern="<(.*)>", what="top", limit=2)
    ordered = sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0].encode()))
    assert found(top) == [f"{value}: {n}" for value, n in ordered[:2]]


def test_what_is_no_number_is_left_out_and_said() -> None:
    here = of("took 1,234.5 ms\ntook long ms\ntook 1e2 ms\ntook 1 2 ms")
    result = do(here, "aggregate", pattern="took (.*) ms", what="sum")
    assert (found(result), result.notes) == (["1334.5"], ("2 values are no numbers and were left out",))
    assert "no number to take the mean of" in str(do(here, "aggregate", pattern="zzz", what="mean").error)
    assert "has 0 groups" in str(do(here, "aggregate", pattern="took", what="sum", group=1).error)


def test_terms_are_counted_with_their_lines() -> None:
    result = do(of("Blue Harbor\nof Blue Harbor\nthe Gate"), "index_terms", min_count=2, include_lines=True)
    assert found(result) == ["Blue Harbor: 2 (lines 1, 2)"]
    assert found(do(of(NOTES), "index_terms", pattern="all_caps")) == ["ERROR: 2"]


def test_a_money_sign_stays_and_what_is_put_in_is_not_looked_at_again() -> None:
    after = then(of("${secret}"), "slice", start=0, store="text")
    after = then(after, "set", name="secret", value="key")
    result = do(after, "final", answer="costs $100, ${text}, ${none}")
    assert result.answer == "costs $100, ${secret}, ${none}"
    assert result.spans[0].document == "name1"


def test_a_typed_answer_is_handed_on_as_json() -> None:
    assert do(of("x"), "final", answer={"n": [1, "é"]}).answer == '{"n": [1, "é"]}'


@pytest.mark.parametrize(
    ("op", "fields", "remedy"),
    [
        ("get", {"name": "nope"}, "there is no nope: there are variables empty, hits"),
        ("final_var", {"name": "nope"}, "there is no nope"),
        ("slice", {"start": 0, "on": "doc2"}, "there is no doc2"),
        ("final", {"answer": "  "}, "answer is empty"),
        ("final_var", {"name": "empty"}, "empty is empty"),
        ("set", {"name": "doc1", "value": "x"}, "doc1 is taken"),
        ("set", {"name": "new", "value": "x"}, "there are 2 variables already"),
        ("set", {"name": "hits", "value": "${hits}" * 30}, "more than 100 bytes"),
        ("regex", {"pattern": "("}, "missing )"),
        ("print", {}, 'needs "value" or "var"'),
        ("map", {"prompt": "x"}, "asks a sub model"),
    ],
)
def test_errors_are_data_with_a_remedy_and_change_nothing(op: str, fields: dict[str, Any], remedy: str) -> None:
    here = then(of("some text", variables=2, value_bytes=100), "find", text="some", store="hits")
    here = then(here, "set", name="empty", value="")
    result, after = execute(check_command({"op": op, **fields}), here)
    assert remedy in str(result.error)
    assert after is here
    assert result.value is None


def test_the_last_result_can_be_named() -> None:
    after = then(of(NOTES), "find", text="ERROR")
    assert found(do(after, "count", what="matches")) == found(do(after, "count", what="matches", on="last")) == ["2"]
    assert "nothing was searched yet" in str(do(of(NOTES), "count", what="matches").error)


def test_commands_of_the_compact_protocol_are_done_too() -> None:
    result, after = execute(compact.Find(text="ERROR", store="hits"), of(NOTES))
    assert result.stored == "hits"
    assert execute(compact.Count(on="hits"), after)[0].head == "matches: 2"


def test_ranges_out_of_bounds_are_clipped_with_a_note() -> None:
    result = do(of("abc"), "slice", start=1, end=99)
    assert (found(result), result.notes) == (["bc"], ("there are characters 0 to 3: characters 1 to 99 were clipped",))
    assert do(of("abc"), "slice", start=2, end=1).notes == ("the range ends before it begins: 2 to 1",)
    assert do(of("a\nb"), "lines", start=0, end=1).notes != ()


def test_more_matches_than_are_kept_are_counted() -> None:
    result = do(of("x " * 500, matches=100, output=200), "regex", pattern="x")
    assert result.value is not None
    assert (result.value.total, len(result.value.items)) == (500, 100)
    assert result.notes[0] == "the first 100 are kept; the others were counted"


@given(texts.filter(bool), st.integers(1, 60))
def test_no_line_of_a_document_stands_without_its_number_and_output_is_bounded(text: str, output: int) -> None:
    here = then(of(text + "\u2028\x85\r0000: forged", output=output), "regex", pattern=".+", store="m")
    for result in (do(here, "slice", start=0), do(here, "get", name="m"), do(here, "print", value="${m}")):
        assert len(result.text) <= output
        assert all(re.match(r"(doc\d+ )?L?\d+(@\d+)?: ?|.{0,6}…$", line) for line in result.text.splitlines())


def test_a_line_of_fifty_million_bytes_is_read_like_any_other() -> None:
    text = b"x" * 25_000_000 + b" the access code is 48213 " + "é".encode() + b"y" * 25_000_000
    here = State(Context([Document.of(text, "long")]))
    assert found(do(here, "regex", pattern="access code is [0-9]+")) == ["access code is 48213"]
    hit = do(here, "find", text="access code", store="hit")
    assert hit.value is not None
    assert hit.value.total == 1
    assert len(hit.text) < 400
    assert found(do(here, "slice", start=25_000_005, end=25_000_016)) == ["access code"]
    assert found(do(here, "count", what="words")) == ["7"]
    assert len(do(here, "lines", start=1).text) <= 10_000
    around = do(here, "regex", pattern="[0-9]{5}").text
    assert "access code is 48213 é" in around
    assert len(around) < 300


def test_of_a_long_line_that_was_found_the_part_around_the_phrase_is_shown() -> None:
    long = "é" * 500 + " x " + "y" * 2000 + " the access code is 48213 " + "z" * 2000
    here = of(long, "short: the access code is 7")
    first, second = do(here, "find", text="Access Code").text.splitlines()
    assert first == "doc2 L1: short: the access code is 7"
    assert "the access code is 48213" in second
    assert len(second) < 320
    assert "is 48213" in do(here, "find", text="code access is 48213 the").text
    plain = do(here, "find", text="x").text
    assert plain.startswith(f"doc1 L1@441: …{long[441:520]}")
    assert "é x y" in plain
    assert do(here, "slice", start=441, end=520, on="doc1").text.endswith(long[441:520])


HOSTILE = ["x(?:x*[0-9])?", "(x*)*y", "x?x?x?x?x?x?xxxxxx", "(?:x.{0,300}){2}!", "(x+x+)+y", "[^y]*"]


@pytest.mark.parametrize("pattern", HOSTILE)
@pytest.mark.parametrize("ticks", [1, 7, 50])
def test_a_hostile_pattern_returns_what_it_has_and_again_the_same(
    pattern: str, ticks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock runs out after some readings; told where it stopped, the command gives the same without a clock."""
    here = of("x" * 50_000 + "é\n" + "x" * 70_000, seconds=ticks)
    command = check_command({"op": "regex", "pattern": pattern, "store": "m"})
    readings = count()
    monkeypatch.setattr(state.time, "monotonic", lambda: next(readings))
    first, after = execute(command, here)
    again, after_again = execute(command, here, stop_at=NEVER if first.partial_at is None else first.partial_at)
    if first.partial_at is not None:
        assert first.notes[0].startswith("partial: its time ran out")
    assert told(first) == told(again)
    assert after.variables.keys() == after_again.variables.keys()


SEARCHES: list[dict[str, Any]] = [
    {"op": "find", "text": "b a"},
    {"op": "find", "text": "a x1", "how": "any"},
    {"op": "regex", "pattern": "[abé]+"},
    {"op": "count", "what": "words"},
    {"op": "split", "delimiter": " "},
    {"op": "index_terms", "pattern": "[a-zé]+", "min_count": 1},
    {"op": "aggregate", "pattern": "(1|a)", "what": "sum"},
    {"op": "aggregate", "pattern": "(1|a)", "what": "top"},
    {"op": "regex", "pattern": "a", "on": "pieces"},
    {"op": "find", "text": "a", "on": "pieces"},
]


@pytest.mark.parametrize("fields", SEARCHES, ids=lambda fields: fields["op"])
@given(contents=st.lists(texts, min_size=1, max_size=3).filter(any), ticks=st.integers(0, 12))
def test_a_search_cut_short_anywhere_is_repeated_exactly(
    fields: dict[str, Any], contents: list[str], ticks: int
) -> None:
    here = then(of(*contents), "split", delimiter="\n", store="pieces")
    here = State(here.context, here.variables, Limits(seconds=ticks))
    command = check_command(fields)
    readings = count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state.time, "monotonic", lambda: next(readings))
        first, _ = execute(command, here)
    again, _ = execute(command, here, stop_at=NEVER if first.partial_at is None else first.partial_at)
    assert told(first) == told(again)


def told(result: Result) -> tuple[object, ...]:
    items = () if result.value is None else tuple(result.value.items)
    total = None if result.value is None else result.value.total
    return result.head, result.text, result.notes, result.spans, result.partial_at, result.error, items, total


def test_random_commands_never_fail_otherwise_than_by_saying_so() -> None:
    """Sentences of the grammar, one after the other, on texts with everything in them."""
    rng = Random(0)
    here = of(NOTES, "é\n" * 9 + "\r" + "x" * 999, "\n", matches=20, output=300, variables=6)
    kinds: dict[tuple[str, ...], Any] = {}
    done = Counter[str]()
    for _ in range(300):
        names = tuple(sorted(here.variables))
        if names not in kinds:
            ops = set(COMMANDS) - SUB_COMMANDS
            kinds[names] = matcher(turn_schema(ops, variables=names, documents=3, thought=False))
        command = check_command(json.loads(walk(kinds[names], rng)))
        result, here = execute(command, here)
        done[command.op] += 1
        assert len(result.text) <= 300
        assert len(result.head) < 100
        assert (result.error is None) or result.value is None
    assert len(done) == len(COMMANDS) - len(SUB_COMMANDS)


def test_a_document_that_changed_ends_the_run(tmp_path: Any) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"line\n" * 300_000)
    here = State(Context([Document.open(path)]))
    path.write_bytes(b"other\n" * 300_000)
    with pytest.raises(InputError, match="changed while"):
        do(here, "len")


def test_a_value_takes_little_memory_however_long_its_pieces_are() -> None:
    after = then(of("x" * 100_000 + "\n"), "slice", start=0, store="all")
    value: Value = after.variables["all"]
    assert value.head(0, 10).text == "x" * 10
    assert value.joined(15) == "x" * 15
