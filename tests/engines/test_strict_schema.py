"""Schemas in the form of OpenAI's strict mode: what it refuses is gone, and answers come back in the schema's form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llamalab.engines.strict_schema import StrictForm, strict_form
from llamalab.rlm.compact import command_schema
from llamalab.rlm.grammar import turn_schema
from llamalab.rlm.protocol import turn_schema as typed_turn
from llamalab.rlm.text import Context, Document
from tests.openai_rules import refusal

PERSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "name": {"type": "string", "description": "in full", "default": "x"},
        "age": {"type": "integer", "minimum": 0},
        "of": {"type": ["string", "null"]},
        "kind": {"enum": ["a", 1, None]},
        "friends": {"type": "array", "items": {"$ref": "#"}, "maxItems": 3},
    },
    "required": ["name"],
}


def form_of(schema: dict[str, Any]) -> StrictForm:
    form = strict_form(schema)
    assert form is not None
    return form


@pytest.mark.parametrize(
    ("schema", "exact"),
    [
        (PERSON, True),
        (turn_schema(variables=("_", "hits"), documents=3), False),
        (command_schema(variables=("hits",)), False),
        ({"type": "array", "items": {"type": "number", "multipleOf": 0.5}, "minItems": 1}, True),
        ({"oneOf": [{"type": "string", "format": "date"}, {"const": 3}]}, False),
        ({"type": "string", "format": "uri"}, False),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, False),
        ({"enum": [True, None]}, True),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "boolean"}}}, True),
    ],
)
def test_openai_refuses_the_schema_and_takes_its_strict_form(schema: dict[str, Any], exact: bool) -> None:
    form = form_of(schema)
    assert refusal(schema) is not None
    assert refusal(form.schema) is None
    assert form.exact is exact


def test_the_schema_of_a_typed_answer_with_parts_of_its_own_has_a_strict_form() -> None:
    context = Context([Document.of("one line\n", "a")])
    schema = typed_turn("full", ops=("find", "final"), variables=(), context=context, answer=PERSON)
    form = form_of(schema)
    assert refusal(form.schema) is None
    said = {"thought": "", "op": "final", "answer": {"name": "A", "age": None, "of": None, "kind": 1, "friends": []}}
    text = form.restored(json.dumps({"reply": said}))
    assert text is not None
    assert json.loads(text)["answer"] == {"name": "A", "of": None, "kind": 1, "friends": []}


def test_what_may_be_left_out_is_null_and_is_left_out_again_but_a_null_of_its_own_stays() -> None:
    inner = {"name": "B", "age": None, "of": "x", "kind": None, "friends": None}
    said = {"name": "A", "age": None, "of": None, "kind": None, "friends": [inner]}
    text = form_of(PERSON).restored(json.dumps(said))
    assert text is not None
    assert json.loads(text) == {
        "name": "A",
        "of": None,
        "kind": None,
        "friends": [{"name": "B", "of": "x", "kind": None}],
    }


def test_an_answer_in_which_nothing_was_left_out_stays_as_it_was_written() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
    assert form_of(schema).restored('{"x":1.50 }') == '{"x":1.50 }'


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"const": 1}, {"reply": True}),
        ({"const": "a"}, {"reply": "b"}),
        ({"const": "a"}, {"reply": "a", "more": 1}),
        ({"const": "a"}, "a"),
        ({"type": "integer"}, {"reply": 1.5}),
        ({"type": "array", "items": {"type": "string"}}, {"reply": ["a", None]}),
        (PERSON, {"name": "A", "else": 1}),
        (PERSON, {"name": None, "age": 1, "of": None, "kind": 1, "friends": []}),
        (PERSON, {"age": 1}),
    ],
)
def test_an_answer_of_another_form_has_no_way_back(schema: dict[str, Any], said: Any) -> None:
    assert form_of(schema).restored(json.dumps(said)) is None


@pytest.mark.parametrize("text", ["", "{", '{"reply": ', "[" * 100_000, '{"reply": 1e999}', "NaN"])
def test_what_is_no_json_has_no_way_back(text: str) -> None:
    assert form_of({"type": "number"}).restored(text) is None


def test_half_a_character_does_not_come_back() -> None:
    assert form_of({"type": "string"}).restored('{"reply": "\\ud800"}') == '"?"'


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"properties": {"a": {"type": "string"}}},
        {"type": "object", "additionalProperties": {"type": "string"}},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]},
        {"type": "object", "properties": {"a": True}},
        {"type": "object", "properties": {"a": {"type": "string"}}, "patternProperties": {"b": {"type": "string"}}},
        {"type": "array"},
        {"allOf": [{"type": "string"}]},
        {"type": "string", "not": {"const": "a"}},
        {"anyOf": {"type": "string"}},
        {"anyOf": [{"type": "string"}], "type": "string"},
        {"const": {"a": 1}},
        {"enum": []},
        {"$ref": "#/$defs/none"},
        {"$ref": "https://example.org/schema"},
        {"$ref": 3},
        {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}},
    ],
)
def test_what_cannot_be_said_strictly_has_no_strict_form(schema: dict[str, Any]) -> None:
    assert strict_form(schema) is None
