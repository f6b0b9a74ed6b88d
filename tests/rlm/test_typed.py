from __future__ import annotations

import json
from typing import Any

import pytest

from llamalab.errors import InputError, SchemaError
from llamalab.rlm.typed import check_schema, read_answer
from tests.rlm.scripted import Scripted, ask, settings, told

CODE: dict[str, Any] = {
    "type": "object",
    "properties": {"code": {"$ref": "#/$defs/digits"}, "vault": {"type": "string"}},
    "required": ["code", "vault"],
    "additionalProperties": False,
    "$defs": {"digits": {"type": "integer", "minimum": 10000, "maximum": 99999}},
}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "integer"}, "48213", 48213),
        ({"type": "number"}, " 1.5 ", 1.5),
        ({"type": "string"}, "48213", "48213"),
        ({"type": "string"}, "Blue Harbor", "Blue Harbor"),
        ({"enum": ["yes", "no"]}, "yes", "yes"),
        ({"type": "array", "items": {"type": "integer"}}, "[1, 2]", [1, 2]),
        ({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}, "7", {"n": 7}),
        (CODE, '{"vault":"Blue","code":48213}', {"code": 48213, "vault": "Blue"}),
        ({"type": "integer"}, "not found", None),
    ],
)
def test_an_answer_becomes_a_value_of_its_schema(schema: dict[str, Any], text: str, value: object) -> None:
    found = read_answer(schema, text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer"}, "many"),
        ({"type": "integer"}, "NaN"),
        ({"enum": ["yes", "no"]}, "perhaps"),
        (CODE, '{"code":7,"vault":"Blue"}'),
        (CODE, '{"code":48213}'),
        (CODE, '{"code":48213,"vault":"Blue","more":1}'),
        ({"type": "number"}, "9" * 6000),
        ({"type": "array"}, "[" * 100_000),
    ],
)
def test_an_answer_of_another_form_is_refused(schema: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match="no value of the schema"):
        read_answer(schema, text)


def test_a_schema_that_cannot_be_compiled_is_refused_before_any_model_is_asked() -> None:
    with pytest.raises(SchemaError, match="cannot be compiled"):
        check_schema({"type": "nonsense"})
    root = Scripted(["x"])
    with pytest.raises(SchemaError):
        ask(root, schema={"type": "nonsense"})
    assert root.asked == []


def final(answer: object) -> str:
    return json.dumps({"thought": "", "op": "final", "answer": answer})


def test_a_root_that_answers_in_another_form_is_told_and_may_try_again() -> None:
    look = '{"thought":"","op":"len"}'
    root = Scripted([look, final({"code": 1, "vault": "Blue"}), final({"code": 48213, "vault": "Blue"})])
    answer = ask(root, schema=CODE)
    assert (answer.value, answer.complete) == ({"code": 48213, "vault": "Blue"}, True)
    assert "no value of the schema" in told(root)[1]
    assert "The answer is JSON of this schema" in root.asked[0][1]["content"]


def test_in_the_last_turn_an_answer_of_another_form_comes_back_marked() -> None:
    root = Scripted(['{"thought":"","op":"len"}', final({"code": 1})])
    answer = ask(root, schema=CODE, config=settings(max_iterations=2))
    assert (answer.value, answer.complete) == (None, False)
    assert "no value of the schema" in answer.why
    assert json.loads(answer.text) == {"code": 1}


def test_the_turn_s_schema_holds_the_typed_answer_and_not_found() -> None:
    """Judged by the compiler that constrains local models."""
    from llguidance import LLMatcher, LLTokenizer

    root = Scripted([final("not found")])
    assert ask(root, schema=CODE).value is None
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(root.schemas[0]), overrides={"whitespace_flexible": False})
    said = {
        '{"thought":"","op":"final","answer":{"code":48213,"vault":"Blue"}}': True,
        '{"thought":"","op":"final","answer":"not found"}': True,
        '{"thought":"","op":"final","answer":"48213"}': False,
        '{"thought":"","op":"final","answer":{"code":1,"vault":"Blue"}}': False,
    }
    for sentence, allowed in said.items():
        matcher = LLMatcher(LLTokenizer("byte"), grammar)
        assert (matcher.consume_tokens(list(sentence.encode())) and matcher.is_accepting()) == allowed


def test_direct_answers_are_typed_as_well() -> None:
    root = Scripted(['{"code":48213,"vault":"Blue"}'])
    answer = ask(root, schema=CODE, config=settings(bypass_enabled=True))
    assert (answer.mode, answer.value) == ("direct", {"code": 48213, "vault": "Blue"})


@pytest.mark.parametrize(
    ("answer", "says"),
    [("9" * 6000, "an integer of 6,000 digits"), ('{"a":1,"a":2}', "a key stands twice"), ("NaN", "NaN is no number")],
    ids=["digits", "twice", "nan"],
)
def test_json_that_python_reads_and_others_do_not_is_refused_in_words_of_our_own(answer: str, says: str) -> None:
    root = Scripted(['{"op":"len"}', '{"op":"final","answer":' + answer + "}", final({"code": 48213, "vault": "Blue"})])
    assert ask(root, schema=CODE).complete
    assert says in told(root)[1]
    direct = ask(Scripted([answer]), schema={"type": "object"}, config=settings(bypass_enabled=True))
    assert (direct.value, direct.complete) == (None, False)
    assert "sys." not in direct.why + told(root)[1]


@pytest.mark.parametrize("number", [10**6000, float("inf"), float("nan")], ids=["digits", "inf", "nan"])
def test_a_schema_in_python_with_a_number_that_is_none_is_refused(number: float) -> None:
    with pytest.raises(SchemaError, match="or has thousands of digits"):
        check_schema({"type": "number", "maximum": number})
