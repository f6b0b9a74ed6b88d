"""Rows are read one by one: a bad line is a row with a reason, and the others go on."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from llamalab.errors import (
    ContextOverflow,
    EmptyResponse,
    EngineError,
    LlamalabError,
    NonFinite,
    ProviderError,
    TemplateMissing,
    TokenBoundaryError,
)
from llamalab.scored import Decoding
from llamalab.scoring.policy import Policy
from llamalab.scoring.result import LogProbResult, TokenScore
from llamalab.scoring.rows import BadRow, Row, as_line, error_type, read_rows, result_record

POLICY = Policy("p", "llama_cpp", "pico")
CUT = Policy("p", "llama_cpp", "pico", Decoding(top_k=2))
TOKENS = (TokenScore(5, "a", -1.0, -0.5, 2, 0.25), TokenScore(6, "b", -2.0, -0.25, 1, 0.5))
RESULT = LogProbResult(-0.75, -3.0, TOKENS, "direct", True, 1, 4, "own", True, True, {"key": "f"}, 2.0)


def read(*lines: object) -> list[Row | BadRow]:
    return list(read_rows(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))


def test_all_fields_are_read() -> None:
    rows = read(
        {"id": "x", "prompt": "p", "response": "r"},
        {"id": 7, "messages": [{"role": "user", "content": "hi"}], "response": "r", "finished": False, "more": 1},
        {"prompt": "", "response_ids": [3, 0]},
    )
    assert rows == [
        Row(1, "x", "p", "r"),
        Row(2, 7, ({"role": "user", "content": "hi"},), "r", finished=False),
        Row(3, 3, "", None, response_ids=(3, 0)),
    ]


GOOD = {"prompt": "p", "response": "r"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"not json\n", "not valid JSON"),
        (b'{"prompt": "p", "response": NaN}\n', "NaN is no JSON number"),
        (b'{"prompt": "p", "response": "\xff\xfe"}\n', "not UTF-8 text: byte 0xff at offset 29"),
        (b"[" * 100_000 + b"\n", "nested too deeply|not valid JSON"),
        (b"9" * 6000 + b"\n", "not valid JSON"),
        (b"[1]\n", "no JSON object but a list"),
        ({"prompt": "p"}, "'response' is missing"),
        ({"response": "r"}, "'prompt' is missing"),
        (GOOD | {"prompt": 5}, "'prompt' must be text, not a number"),
        (GOOD | {"response": ["r"]}, "'response' must be text, not a list"),
        (GOOD | {"messages": [{"role": "user", "content": "hi"}]}, "'prompt' and 'messages'"),
        ({"messages": [], "response": "r"}, "'messages' must be a list of objects"),
        ({"messages": ["hi"], "response": "r"}, "'messages' must be a list of objects"),
        (GOOD | {"finished": "yes"}, "'finished' must be true or false"),
        (GOOD | {"response_ids": [1, -1]}, "'response_ids' must be a list"),
        (GOOD | {"response_ids": [True]}, "'response_ids' must be a list"),
        (GOOD | {"response_ids": [2**31]}, "'response_ids' must be a list"),
        (GOOD | {"id": [1]}, "'id' must be text or a whole number"),
        (GOOD | {"id": True}, "'id' must be text or a whole number"),
    ],
)
def test_a_bad_line_says_what_is_wrong_and_the_next_is_read(line: object, message: str) -> None:
    bad, good = read(line, {"id": "next", **GOOD})
    assert isinstance(bad, BadRow)
    assert bad.line == 1
    assert pytest.raises(ValueError, match=message).matches(ValueError(bad.message))
    assert good == Row(2, "next", "p", "r")


def test_the_second_row_of_an_id_is_bad_and_names_the_first() -> None:
    first, blank_skipped, other = read({"id": "a", **GOOD}, b" \n", {"id": "a", **GOOD}, {"id": "b", **GOOD})
    assert (first.id, other.id) == ("a", "b")
    assert isinstance(blank_skipped, BadRow)
    assert (blank_skipped.line, blank_skipped.id) == (3, "a")
    assert "that of line 1" in blank_skipped.message


def test_text_and_number_are_different_ids() -> None:
    assert all(isinstance(row, Row) for row in read({"id": "1", **GOOD}, {"id": 1, **GOOD}))


def test_a_byte_order_mark_is_no_part_of_the_first_row() -> None:
    assert read(b"\xef\xbb\xbf" + json.dumps(GOOD).encode()) == [Row(1, 1, "p", "r")]


def test_errors_have_the_name_of_their_class() -> None:
    errors: dict[str, LlamalabError] = {
        "context_overflow": ContextOverflow("x", needed=2, available=1),
        "empty_response": EmptyResponse("x"),
        "non_finite": NonFinite("x"),
        "template_missing": TemplateMissing("x"),
        "provider": ProviderError("x"),
        "token_boundary": TokenBoundaryError("x"),
        "engine": EngineError("x"),
    }
    assert {error_type(error) for error in errors.values()} == set(errors)
    assert all(error_type(error) == name for name, error in errors.items())


def test_a_result_is_written_with_what_it_is_made_of() -> None:
    record = result_record(POLICY, RESULT, tokens=True)
    assert (record["logprob"], record["raw_logprob"], record["n_tokens"]) == (-0.75, -3.0, 2)
    assert (record["method"], record["finished"], record["fingerprint"]) == ("direct", True, "f")
    assert record["tokens"][1] == {"id": 6, "text": "b", "raw": -2.0, "logprob": -0.25, "rank": 1, "entropy": 0.5}
    assert "tokens" not in result_record(POLICY, RESULT, tokens=False)
    assert "seconds" not in record  # it would differ from run to run


def test_outside_a_truncated_support_is_a_value() -> None:
    outside = dataclasses.replace(RESULT, value=None, tokens=(TokenScore(5, "a", -9.0, None, 7, 0.1),))
    record = result_record(CUT, outside, tokens=True)
    assert record["logprob"] is None
    assert record["out_of_support"] is True
    assert "error" not in record


@pytest.mark.parametrize(
    ("policy", "change"),
    [
        (POLICY, {"value": None}),
        (POLICY, {"value": math.nan}),
        (CUT, {"value": math.nan}),
        (POLICY, {"value": -math.inf}),
        (POLICY, {"tokens": (TokenScore(5, "a", -1.0, math.nan, 1, 0.1),)}),
    ],
)
def test_what_is_no_number_is_an_error_never_a_value(policy: Policy, change: dict[str, object]) -> None:
    record = result_record(policy, dataclasses.replace(RESULT, **change), tokens=True)  # type: ignore[arg-type]
    assert record["logprob"] is None
    assert record["error"] == "non_finite"
    assert "out_of_support" not in record


def test_lines_are_utf_8_and_survive_half_a_surrogate_pair() -> None:
    assert as_line({"text": "é"}) == '{"text": "é"}\n'.encode()
    assert json.loads(as_line({"text": "\ud800"})) == {"text": "\ud800"}
