from __future__ import annotations

import json
import runpy
from pathlib import Path
from random import Random
from typing import Any

import llguidance
import pytest

from llamalab.errors import InputError
from llamalab.rlm import compact
from llamalab.rlm.commands import COMMANDS, FINAL_COMMANDS, SUB_COMMANDS, parse_command, write_command
from llamalab.rlm.grammar import allowed_ops, describe_commands, fields_of, longest_sentence, turn_schema

COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
TOKENIZER = llguidance.LLTokenizer("byte")

# As the program that gave rise to this one wrote them.
TRANSCRIPT = """\
{"op":"slice","start":0,"end":500}
{"op":"slice","start":-200,"store":"tail"}
{"op":"lines","start":10,"end":20,"store":"part"}
{"op":"regex","pattern":"ERROR.*timeout","store":"errors"}
{"op":"find","text":"secret code","store":"hits"}
{"op":"count","what":"lines"}
{"op":"count","what":"matches","on":"errors"}
{"op":"split","delimiter":"\\n\\n","on":"last","store":"paragraphs"}
{"op":"len","on":"_"}
{"op":"index_terms","pattern":"proper_nouns","min_count":3,"max_terms":100,"include_lines":true,"store":"terms"}
{"op":"set","name":"x","value":"${hits}"}
{"op":"get","name":"x"}
{"op":"print","value":"found: ${x}"}
{"op":"print","var":"x"}
{"op":"llm_query","prompt":"Summarise: ${part}","store":"summary"}
{"op":"llm_delegate","task":"Who is named?","on":"part","max_iterations":5,"levels":["dsl"],"store":"who"}
{"op":"llm_reduce","directive":"Collect names","chunk_size":10000,"overlap":500,"on":"part","store":"names"}
{"op":"final","answer":"It costs $100."}
{"op":"final_var","name":"names"}"""


def matcher(schema: dict[str, Any]) -> llguidance.LLMatcher:
    grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=COMPACT)
    return llguidance.LLMatcher(TOKENIZER, grammar, log_level=0)


def walk(compiled: llguidance.LLMatcher, rng: Random) -> str:
    """A random sentence: each byte drawn from those allowed; a text is ended early more often than not."""
    state = compiled.deep_copy()
    said = bytearray()
    while not state.is_stopped():
        mask = int.from_bytes(state.compute_bitmask(), "little")
        if mask & (mask - 1) == 0:
            token = mask.bit_length() - 1
        elif mask >> ord('"') & 1 and rng.random() < 0.2:
            token = ord('"')
        else:
            token = rng.choice([t for t, bit in enumerate(reversed(f"{mask:b}")) if bit == "1"])
        assert state.consume_token(token)
        if token < 256:
            said.append(token)
    return said.decode()


def walks(n: int, rng: Random) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"variables": ["hits", "_", "m2"], "documents": 3},
        {"variables": ["a"], "documents": 100, "thought": False},
        {"ops": allowed_ops(sub_calls=False), "variables": ["_"]},
        {"ops": allowed_ops(last=True), "variables": ["found"]},
        {"ops": allowed_ops(last=True), "answer": {"type": "integer", "minimum": 0, "maximum": 99}},
    ]
    seen: set[str] = set()
    for kind in kinds:
        schema = turn_schema(**kind)
        compiled, longest = matcher(schema), longest_sentence(schema)
        for _ in range(n // len(kinds) + 1):
            text = walk(compiled, rng)
            command = parse_command(text)
            seen.add(command.op)
            assert command.op in kind.get("ops", COMMANDS)
            assert len(text.encode()) <= longest
            on = getattr(command, "on", None)
            assert on is None or on in kind.get("variables", ()) or on.startswith("doc")
            assert (command.thought is None) == (kind.get("thought") is False)
    assert seen == set(COMMANDS)


def test_every_sentence_of_the_schema_is_a_command() -> None:
    walks(600, Random(0))


@pytest.mark.slow
def test_ten_thousand_sentences_are_commands() -> None:
    walks(10_000, Random(1))


@pytest.mark.parametrize("line", TRANSCRIPT.splitlines())
def test_transcripts_of_the_first_program_are_read(line: str) -> None:
    command = parse_command(line)
    assert command.op == json.loads(line)["op"].removeprefix("llm_").replace("query", "llm_query")
    assert parse_command(write_command(command)) == command


@pytest.mark.parametrize("op", COMMANDS)
def test_the_example_of_each_command_is_one(op: str) -> None:
    """It is what the docs show, and a sentence of the grammar."""
    example = {"thought": "", "op": op, **COMMANDS[op].example}
    names = {str(example[key]) for key in ("on", "name", "var") if key in example}
    text = json.dumps(example, separators=(",", ":"), ensure_ascii=False)
    assert write_command(parse_command(text)) == text
    state = matcher(turn_schema(variables=names))
    assert state.consume_tokens(list(text.encode()))
    assert state.is_accepting()


def test_every_command_of_the_compact_protocol_is_one_of_the_language() -> None:
    for command in (
        compact.Find(text="ERROR", store="hits"),
        compact.Count(on="hits"),
        compact.Final(answer="not found"),
    ):
        text = compact.write_command(command)
        assert write_command(parse_command(text)) == text.replace(
            '"on":"hits","what":"matches"', '"what":"matches","on":"hits"'
        )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("FINAL(42)", "Expecting value"),
        ('{"op":"rust_cli_intent","intent":"ls"}', "no operation 'rust_cli_intent'; there are slice"),
        ('{"op":"slice","start":0,"file":"/etc/passwd"}', "at slice.file"),
        ('{"op":"slice","start":"0"}', "valid integer"),
        ('{"op":"slice","start":1.5}', "valid integer"),
        ('{"op":"slice","start":true}', "valid integer"),
        ('{"op":"slice","start":99999999999}', "less than or equal"),
        ('{"op":"slice","start":' + "9" * 6000 + "}", "digits"),
        ('{"op":"final","answer":NaN}', "NaN is no number"),
        ('{"op":"final","answer":-Infinity}', "-Infinity is no number"),
        ('{"op":"final","answer":1e999}', "not JSON compliant"),
        ('{"op":"len","op":"final","answer":"x"}', "a key stands twice"),
        ('{"op":"final","answer":{"a":1,"a":2}}', "a key stands twice"),
        ('{"op":"final","answer":"\\ud800"}', "surrogates"),
        ('{"op":"final"', "delimiter"),
        ('{"op":"final","answer":"x"} {"op":"len"}', "Extra data"),
        ('[{"op":"len"}]', "dictionary"),
        ("[" * 60_000, "nested too deeply"),
        ('{"op":"final","answer":"' + "x" * (1 << 20) + '"}', "characters; a command has at most"),
        ('{"op":"set","name":"a b","value":"x"}', "should match pattern"),
        ('{"op":"aggregate","pattern":"x","what":"exec"}', "Input should be"),
    ],
)
def test_what_is_no_command_is_refused(text: str, why: str) -> None:
    with pytest.raises(InputError, match="not a command") as refusal:
        parse_command(text)
    assert why in str(refusal.value)
    assert len(str(refusal.value)) < 500


def branches(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {branch["properties"]["op"]["const"]: branch["properties"] for branch in schema["anyOf"]}


def test_the_schema_offers_only_what_there_is() -> None:
    """Without variables nothing that needs one; with them, they alone."""
    bare = branches(turn_schema())
    assert set(COMMANDS) - set(bare) == {"get", "final_var"}
    assert "on" not in bare["find"]
    full = branches(turn_schema(variables=["b", "_"], documents=2))
    assert full["find"]["on"] == {"enum": ["_", "b", "doc1", "doc2"]}
    assert full["final_var"]["name"] == full["print"]["var"] == {"enum": ["_", "b"]}


def test_the_last_turn_and_a_spent_budget_narrow_the_operations() -> None:
    assert set(allowed_ops(last=True)) == FINAL_COMMANDS
    assert set(allowed_ops(sub_calls=False)) == set(COMMANDS) - SUB_COMMANDS


@pytest.mark.parametrize("op", COMMANDS)
def test_every_text_and_number_has_a_bound_and_the_thought_comes_first(op: str) -> None:
    properties = branches(turn_schema(variables=["a"]))[op]
    assert list(properties)[:2] == ["thought", "op"]
    for field in properties.values():
        if field.get("type") == "string" and "enum" not in field:
            assert "maxLength" in field or field["pattern"].endswith("{0,15}$")
            assert field.get("maxLength", 0) < 2000  # some engines refuse longer repetitions
        elif field.get("type") == "integer":
            assert {"minimum", "maximum"} <= set(field)
        else:
            assert {"const", "enum"} & set(field) or field["type"] == "boolean"


def test_the_prompt_describes_every_field() -> None:
    text = describe_commands()
    for op in COMMANDS:
        line = next(line for line in text.splitlines() if line.startswith(f"{op}("))
        assert all(field in line for field in fields_of(op))


def test_page_of_commands_is_current() -> None:
    """Otherwise: python docs/make_commands.py."""
    docs = Path(__file__).parent.parent.parent / "docs"
    made = runpy.run_path(str(docs / "make_commands.py"))["page"]()
    assert (docs / "rlm-commands.md").read_text(encoding="utf-8") == made
